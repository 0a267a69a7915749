"""MCP servers that are programs: what they get of the service, and how they end with it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent_service.tools.mcp.server import McpServer
from tests.mcp_desk import Journal, call, connected, eventually, program
from tests.process import environment, launch, running
from tests.scripted_openai import ScriptedOpenAI, calls, says

pytestmark = pytest.mark.anyio

TOKEN = "t0k3n-not-for-the-log"
AGENTS = """
[agents.default]
server_tools = ["desk_stuck", "desk_add", "desk_complain"]

[mcp_servers.desk]
command = {command}
args = {args}
cwd = {cwd}
env = {{ TOKEN = "${{DESK_TOKEN}}" }}
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """What the server writes down."""
    return Journal(tmp_path / "journal")


def alive(journal: Journal) -> list[int]:
    """The processes that the journal names and that still run."""
    pids = [int(line.removeprefix("pid ")) for line in journal.lines if line.startswith("pid ")]
    assert pids
    return [pid for pid in pids if _state(pid) not in ("", "Z")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def test_a_program_has_only_the_environment_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of the service are none of its business."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    async with connected(program(env={"TOKEN": TOKEN})) as tools:
        found = json.loads((await call(tools, "environment")).text)
    assert found["TOKEN"] == TOKEN
    assert "PATH" in found
    assert found.keys() <= {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "TOKEN", "LC_CTYPE"}


async def test_what_a_program_writes_to_stderr_is_logged_without_its_secrets() -> None:
    """Line by line; error returns do not hold them either."""
    with capture_logs() as logs:
        async with connected(program(env={"TOKEN": TOKEN}, secrets=(TOKEN,))) as tools:
            assert (await call(tools, "complain")).text == "done"
            assert (await call(tools, "refuse")).text == "Error: not with ***"
    assert [line["line"] for line in logs if line["event"] == "mcp.stderr"] == ["the token is ***"]


async def test_a_program_that_gives_no_answer_is_started_again(journal: Journal) -> None:
    """Once no call keeps it busy any more."""
    server = program(journal, timeout=0.5, connect_timeout=1.0)
    async with connected(server) as tools:
        await journal.wrote("listed", times=4)  # Each time in two pages, and once again when changes are listened to.
        assert (await call(tools, "stuck")).text.startswith("Error: timed out")
        await eventually(lambda: journal.lines.count("started") == 2, "the second start")
        await eventually(lambda: len(alive(journal)) == 1, "the end of the first one")


async def test_a_program_that_does_not_end_by_itself_is_ended(journal: Journal) -> None:
    """A few seconds after the service lets go of it, whatever it does."""
    async with connected(program(journal)) as tools:
        stuck = asyncio.create_task(call(tools, "stuck"))
        await journal.wrote("stuck {}")
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert alive(journal) == []
    assert (await stuck).failed


async def test_leaving_does_not_wait_for_a_program_that_never_connects() -> None:
    """It is ended while it is waited for."""
    silent = McpServer("desk", 20, command=sys.executable, args=("-c", "import time; time.sleep(3600)"))
    entering = asyncio.create_task(connected(silent).__aenter__())
    await asyncio.wait({entering}, timeout=0.5)
    entering.cancel()
    await asyncio.wait({entering}, timeout=9)
    assert entering.cancelled()


@pytest.fixture
def folder(tmp_path: Path, journal: Journal) -> Path:
    """Where a service runs that has the server as a program."""
    server = program(journal)
    text = AGENTS.format(command=json.dumps(server.command), args=json.dumps(server.args), cwd=json.dumps(server.cwd))
    (tmp_path / "agents.toml").write_text(text)
    return tmp_path


FLAGS = ("--store", "memory", "--model", "m-1", "--agents-file", "agents.toml")


@pytest.mark.parametrize("killed", [False, True], ids=["told to stop", "killed"])
async def test_a_program_ends_with_the_service(folder: Path, journal: Journal, killed: bool) -> None:
    """Also one that reads nothing any more, and also if the service is killed (on Linux). The log holds no secret."""
    script = [calls(("desk_complain", {})), calls(("desk_stuck", {}))]
    async with ScriptedOpenAI(script) as upstream:
        settings = environment(upstream, DESK_TOKEN=TOKEN, AGENT_SERVICE_GRACE_SECONDS="0")
        async with running(folder, settings, *FLAGS) as (server, client):
            await client.ask("Get stuck.", background=True)
            await journal.wrote("stuck {}")
            assert len(alive(journal)) == 1
            if killed:
                await server.kill()
            else:
                server.terminate()
                assert await server.ended() == 0
            await eventually(lambda: alive(journal) == [], "the end of the program")
            assert [line["line"] for line in server.log if line["event"] == "mcp.stderr"] == ["the token is ***"]
            assert TOKEN not in server.log_path.read_text()


async def test_a_service_without_mcp_servers_does_not_load_the_library(tmp_path: Path) -> None:
    """It is an extra, and takes half a second to load."""
    program = "import sys\nsys.modules['mcp'] = None\nfrom agent_service.cli import main\nsys.exit(main())"
    async with ScriptedOpenAI([says("Hello.")]) as upstream:
        command = (sys.executable, "-c", program)
        async with running(tmp_path, environment(upstream), *FLAGS[:4], program=command) as (_, client):
            assert (await client.ask("Hi")).messages[-1].assistant.text == "Hello."


async def test_a_missing_library_is_told(folder: Path) -> None:
    """With the way to install it."""
    program = "import sys\nsys.modules['mcp'] = None\nfrom agent_service.cli import main\nsys.exit(main())"
    command = (sys.executable, "-c", program)
    async with ScriptedOpenAI([]) as upstream:
        process, log = await launch(folder, environment(upstream, DESK_TOKEN=TOKEN), *FLAGS, program=command)
        await process.communicate()
    assert process.returncode == 1
    assert log.read_text() == (
        "error: tool 'mcp_servers.desk': the package 'mcp' is not installed; install agent-service[mcp]\n"
    )
