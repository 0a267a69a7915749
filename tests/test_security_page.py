"""The blocks of docs/security.md, run as they stand, in order, against a server that is started as the page says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from agent_service.engine.commands import Scope
from agent_service.settings import load_settings
from agent_service.transport.access import SCOPES
from tests.pages import DOCS, blocks, check
from tests.process import API_KEY, environment, running
from tests.scripted_openai import ScriptedOpenAI

pytestmark = pytest.mark.anyio

PAGE = (DOCS / "security.md").read_text()


@pytest.mark.skipif(not (shutil.which("grpcurl") and shutil.which("openssl")), reason="no grpcurl or no openssl")
async def test_each_block_shows_what_the_page_says(tmp_path: Path) -> None:
    """A CA and a certificate, a key, the server, and calls with and without the key."""
    certificate, key, *calls = blocks(PAGE)
    await check(certificate, folder=tmp_path)
    await check(key, folder=tmp_path)
    (command,) = re.findall(r"^    agent-service serve (.*)$", PAGE, re.MULTILINE)
    async with (
        ScriptedOpenAI([], api_key=API_KEY) as upstream,
        running(tmp_path, environment(upstream), "--store", "memory", *shlex.split(command)) as (server, _),
    ):
        for call in calls:
            await check(call, f"localhost:{server.target.rpartition(':')[2]}", folder=tmp_path)


def test_the_settings_for_tokens_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those three."""
    (text,) = re.findall(r"```env\n(.*?)```", PAGE, re.DOTALL)
    for line in text.splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    assert load_settings().authenticates


def test_the_table_of_scopes_is_that_of_the_server() -> None:
    """Methods that the page names stand beside their scope."""
    shown = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    scopes = {path.rpartition("/")[2]: scope for path, scope in SCOPES.items()}
    for scope in Scope:
        for method in re.findall(r"`(\w+)`", shown[scope]):
            assert scopes[method] is scope
