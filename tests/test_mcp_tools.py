"""Tools of an MCP server that runs in a process of its own, over both transports and both protocols."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent_service.engine.limits import Limits
from agent_service.engine.tools import ToolOutput
from agent_service.tools.mcp import connection
from agent_service.tools.mcp.server import McpServer
from tests.mcp_desk import CONTEXT, Journal, call, connected, eventually, program, running

pytestmark = pytest.mark.anyio

TOOLS = {
    *("desk_add", "desk_say_hello", "desk_hang", "desk_stuck", "desk_big", "desk_fail", "desk_refuse", "desk_picture"),
    *("desk_environment", "desk_headers", "desk_complain", "desk_die", "desk_grow", "desk_lie"),
}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """What the server writes down."""
    return Journal(tmp_path / "journal")


@pytest.fixture(params=["program", "program of the older protocol", "endpoint", "endpoint of the older protocol"])
async def desk(request: pytest.FixtureRequest, journal: Journal) -> AsyncIterator[McpServer]:
    """The server as it is configured, in each way that there is."""
    flags = ("--old",) if "older" in request.param else ()
    if request.param.startswith("program"):
        yield program(journal, *flags)
    else:
        async with running(journal, *flags) as endpoint:
            yield endpoint.server()


async def test_tools_are_listed_and_called(desk: McpServer) -> None:
    """All pages of the list, under names that models accept; the model reads the texts and what is not said twice."""
    async with connected(desk) as tools:
        assert set(tools.names) == TOOLS
        schema = tools.schema("desk_add")
        assert schema is not None
        assert schema.description == "Adds two numbers."
        assert json.loads(schema.parameters_json)["required"] == ["a", "b"]
        assert not schema.idempotent
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
        assert await call(tools, "say_hello") == ToolOutput("hello\nthere")
        assert await call(tools, "picture") == ToolOutput("a cat\n[left out: 1 image (image/png)]")


async def test_errors_are_error_returns(desk: McpServer) -> None:
    """Of the tool, of the protocol, and a result that is not what the server promised."""
    async with connected(desk) as tools:
        assert await call(tools, "fail") == ToolOutput("Error: the disk is full", failed=True)
        assert await call(tools, "refuse") == ToolOutput("Error: not with None", failed=True)
        lie = await call(tools, "lie")
        assert lie.failed
        assert lie.text.startswith("Error: executed, but its result is not as it should be: ")
        gone = await tools.call("desk_gone", "{}", CONTEXT)
        assert gone == ToolOutput("Error: there is no tool 'desk_gone' any more", failed=True)


async def test_a_long_return_is_cut(desk: McpServer) -> None:
    """And marked; also one of megabytes, over HTTP as well."""
    async with connected(desk, Limits(max_server_tool_result_bytes=100)) as tools:
        output = await call(tools, "big", size=3_000_000)
        assert output.truncated
        assert not output.failed
        assert len(output.text) == 100
        assert output.text.endswith(" bytes were cut here]")
        assert await call(tools, "big", size=100) == ToolOutput("x" * 100)


async def test_a_hanging_tool_times_out_and_the_server_is_told(desk: McpServer, journal: Journal) -> None:
    """Other calls go on meanwhile, and afterwards."""
    async with connected(replace(desk, timeout=1.0)) as tools:
        hanging = asyncio.create_task(call(tools, "hang"))
        await journal.wrote("hang {}")
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
        text = "Error: timed out after 1 s; its outcome is unknown, it may have been executed"
        assert await hanging == ToolOutput(text, failed=True)
        await journal.wrote("hang cancelled")
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
    assert journal.lines.count("started") == 1


async def test_a_cancelled_call_is_cancelled_at_the_server(desk: McpServer, journal: Journal) -> None:
    """The cancellation goes on to who called."""
    async with connected(desk) as tools:
        hanging = asyncio.create_task(call(tools, "hang"))
        await journal.wrote("hang {}")
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await journal.wrote("hang cancelled")


async def test_a_changed_list_is_taken_over(desk: McpServer) -> None:
    """Without being asked for; a tool that is gone is an error return."""
    async with connected(desk) as tools:
        with capture_logs() as logs:
            assert await call(tools, "grow") == ToolOutput("grown")
            await eventually(lambda: "desk_grown" in tools.names, "the new tool")
        assert set(tools.names) == {*TOOLS, "desk_grown"} - {"desk_fail"}
        assert await call(tools, "grown") == ToolOutput("here I am")
        assert (await call(tools, "fail")).text == "Error: there is no tool 'desk_fail' any more"
        (line,) = [line for line in logs if line["event"] == "mcp.tools_changed"]
        assert (line["added"], line["removed"]) == (["desk_grown"], ["desk_fail"])


async def test_what_cannot_be_used_is_left_out_with_a_reason() -> None:
    """Bad schemas, too long names, and both of two tools that would have one name. Said once, not at each listing."""
    with capture_logs() as logs:
        async with connected(program()) as tools:
            assert set(tools.names) == TOOLS
            await call(tools, "die")
            await call(tools, "add", a=1, b=2)
    left_out = [(line["tool"], line["reason"]) for line in logs if line["event"] == "mcp.tool_left_out"]
    reasons = dict(left_out)
    assert len(left_out) == len(reasons)
    assert reasons.keys() == {"broken", "n" * 70, "twin.a", "twin_a"}
    assert reasons["broken"].startswith("its parameters: not valid JSON Schema: at /properties/a/type")
    assert reasons["n" * 70].endswith("has more than 64 characters")
    assert reasons["twin_a"] == "another tool has the same name"


async def test_a_program_that_dies_during_a_call_is_started_again(journal: Journal) -> None:
    """The model reads that nothing is known of the call; the next one is served."""
    async with connected(program(journal)) as tools:
        died = await call(tools, "die")
        assert died.failed
        assert "the outcome of the call is unknown" in died.text
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
    assert journal.lines.count("die {}") == 1
    assert journal.lines.count("started") == 2


@pytest.mark.parametrize("flags", [(), ("--old",)], ids=["newer protocol", "older protocol"])
async def test_an_endpoint_may_be_killed_and_started_again_between_calls(
    journal: Journal, flags: tuple[str, ...]
) -> None:
    """The next call succeeds, also if the endpoint has forgotten the session; while it is away the error is clear."""
    async with running(journal, *flags) as endpoint, connected(endpoint.server()) as tools:
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
        await endpoint.kill()
        away = await call(tools, "add", a=1, b=2)
        assert away.failed
        assert away.text.startswith("Error: not executed, the MCP server 'desk' is not connected: ")
        await endpoint.start()
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
        await endpoint.kill()
        await endpoint.start()
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
        died = await call(tools, "die")
        assert "the outcome of the call is unknown" in died.text
    assert journal.lines.count('add {"a": 1, "b": 2}') == 3


@pytest.mark.parametrize("flags", [(), ("--old",)], ids=["newer protocol", "older protocol"])
async def test_a_call_that_was_sent_is_not_made_again(journal: Journal, flags: tuple[str, ...]) -> None:
    """Although the endpoint, killed during the call and started again, says that it knows nothing of it."""
    async with running(journal, *flags) as endpoint, connected(endpoint.server()) as tools:
        hanging = asyncio.create_task(call(tools, "hang"))
        await journal.wrote("hang {}")
        await endpoint.kill()
        await endpoint.start()
        assert "the outcome of the call is unknown" in (await hanging).text
        assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
    assert journal.lines.count("hang {}") == 1


@pytest.mark.parametrize(("trusted", "calls"), [(False, 1), (True, 2)])
async def test_annotations_count_only_if_they_are_trusted(journal: Journal, trusted: bool, calls: int) -> None:
    """Then a tool that says so is idempotent, and a call that broke off is made once more."""
    async with connected(program(journal, trust_annotations=trusted)) as tools:
        for name, hinted in (("desk_add", True), ("desk_say_hello", True), ("desk_fail", False)):
            schema = tools.schema(name)
            assert schema is not None
            assert schema.idempotent == (trusted and hinted)
        await call(tools, "die")
    assert journal.lines.count("die {}") == calls


@pytest.mark.parametrize("safe", [False, True])
async def test_tools_are_executed_beside_others_only_where_the_configuration_says_so(safe: bool) -> None:
    """It says so for all tools of a server."""
    async with connected(program(parallel_safe=safe)) as tools:
        schemas = [tools.schema(name) for name in tools.names]
        assert {schema.parallel_safe for schema in schemas if schema} == {safe}


async def test_only_allowed_tools_are_there() -> None:
    """They are named as the server names them; one that it does not have is told."""
    with capture_logs() as logs:
        async with connected(program(allow=("add", "say.hello", "nothing"))) as tools:
            assert tools.names == ("desk_add", "desk_say_hello")
            assert tools.schema("desk_fail") is None
            assert (await call(tools, "fail")).text == "Error: there is no tool 'desk_fail' any more"
    (line,) = [line for line in logs if line["event"] == "mcp.allowed_tools_missing"]
    assert line["tools"] == ["nothing"]


async def test_a_server_that_comes_later(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has listed its tools each name is taken for one of them, described as unknown; then they are known.

    A run that began before can call what is there after all: a call does not wait for the next attempt to connect.
    """
    monkeypatch.setattr(connection, "_PAUSES", (600.0, 600.0))
    async with running(journal) as endpoint:
        await endpoint.kill()
        async with connected(endpoint.server(allow=("add",))) as tools:
            assert tools.names == ()
            unknown = tools.schema("desk_add")
            assert unknown is not None
            assert "could not be reached when this run began" in unknown.description
            assert unknown.parameters_json == '{"type":"object"}'
            assert tools.schema("desk_fail") is None
            assert tools.schema("other_add") is None
            assert (await call(tools, "add", a=1, b=2)).text.startswith("Error: not executed, the MCP server 'desk'")
            await endpoint.start()
            assert await call(tools, "add", a=1, b=2) == ToolOutput('{"sum": 3}')
            known = tools.schema("desk_add")
            assert known is not None
            assert known.description == "Adds two numbers."


async def test_without_a_call_the_connection_is_made_all_the_same(journal: Journal) -> None:
    """It is tried again by itself; and a name that turns out to be none is an error return."""
    async with running(journal) as endpoint:
        await endpoint.kill()
        async with connected(endpoint.server()) as tools:
            assert tools.schema("desk_nothing") is not None
            await endpoint.start()
            await eventually(lambda: tools.names, "the tools")
            assert tools.schema("desk_nothing") is None


async def test_a_program_that_is_not_there_is_told() -> None:
    """To the log and to the model."""
    with capture_logs() as logs:
        async with connected(McpServer("desk", 20, command="no-such-program")) as tools:
            said = (await call(tools, "add")).text
    assert said.endswith("FileNotFoundError: there is no program 'no-such-program' on the path")
    assert [line["reason"] for line in logs if line["event"] == "mcp.not_connected"]


async def test_a_program_that_ends_at_once_is_told() -> None:
    """Its last words are in the log."""
    with capture_logs() as logs:
        async with connected(McpServer("desk", 20, command="sh", args=("-c", "echo no licence >&2; exit 1"))) as tools:
            assert (await call(tools, "add")).text.endswith("is not connected: the program ended")
    assert next(line["line"] for line in logs if line["event"] == "mcp.stderr") == "no licence"


async def test_a_refusal_tells_the_http_status() -> None:
    """A wrong token is no riddle."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with connected(McpServer("desk", 20, url=f"http://127.0.0.1:{port}/mcp")) as tools:
            assert "HTTP status 401" in (await call(tools, "add")).text


async def test_an_endpoint_gets_the_configured_headers(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not asked about this host."""
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    headers = {"Authorization": "Bearer t0k3n"}
    async with running(journal) as endpoint, connected(endpoint.server(headers=headers)) as tools:
        assert json.loads((await call(tools, "headers")).text)["authorization"] == "Bearer t0k3n"


def test_what_is_secret_is_not_shown() -> None:
    """Neither by a configured server nor by where it is."""
    url = "https://user:t0k3n@example.org/t0k3n/mcp?key=t0k3n"
    server = McpServer("desk", 20, url=url, headers={"Authorization": "t0k3n"}, secrets=("t0k3n",))
    assert "t0k3n" not in repr(server)
    assert server.where == "https://example.org/***/mcp"
