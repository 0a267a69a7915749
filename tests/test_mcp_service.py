"""Agents with tools of MCP servers, over gRPC."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from agentrpc.v1 import runs_pb2, tools_pb2
from structlog.testing import capture_logs

from tests.mcp_desk import Journal, program, running
from tests.scripted_openai import calls, says
from tests.service import refusal, scripted

pytestmark = pytest.mark.anyio

Configure = Callable[..., Path]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """What the server writes down."""
    return Journal(tmp_path / "journal")


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Writes an agents file whose default agent has these tools, and says where it is."""

    def write(server: dict[str, object], *tools: str) -> Path:
        path = tmp_path / "agents.toml"
        lines = [f"{name} = {json.dumps(value)}" for name, value in server.items()]
        agent = f"[agents.default]\nserver_tools = {json.dumps(tools)}\n"
        path.write_text("\n".join([agent, "[mcp_servers.desk]", *lines]))
        return path

    return write


def by_program(journal: Journal) -> dict[str, object]:
    """The table of the server as a program."""
    server = program(journal)
    return {"command": server.command, "args": server.args, "cwd": server.cwd}


RETURNED, FAILED = tools_pb2.TOOL_CALL_OUTCOME_RETURNED, tools_pb2.TOOL_CALL_OUTCOME_FAILED


async def test_an_agent_calls_python_functions_and_tools_of_mcp_servers(
    store: str, journal: Journal, configure: Configure
) -> None:
    """In one run; what is against a schema is not executed, and errors, timeouts and long returns are told."""
    script = [
        calls(
            ("desk_add", {"a": "three", "b": 4}),
            ("add", {"a": 1, "b": 2}),
            ("desk_add", {"a": 3, "b": 4}),
            ("desk_fail", {}),
            ("desk_big", {"size": 5000}),
            ("desk_hang", {}),
        ),
        says("Done."),
    ]
    path = configure({**by_program(journal), "timeout": 1}, "add", "desk_add", "desk_fail", "desk_big", "desk_hang")
    limits = {"max_server_tool_result_bytes": 1000}
    async with scripted(script, store, agents_file=path, tools="tests.server_tools", limits=json.dumps(limits)) as (
        client,
        upstream,
    ):
        done = await client.ask("All of it.")
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        unfit, python, added, failed, big, hung = [m.tool_return for m in done.messages[2:-1]]
        assert (python.text, added.text) == ("3", '{"sum": 7}')
        assert unfit.text.startswith("Error: not executed, the arguments are against the tool's schema")
        assert failed.text == "Error: the disk is full"
        assert hung.text.startswith("Error: timed out after 1 s")
        assert big.text.endswith(" bytes were cut here]")
        returns = (unfit, python, added, failed, big, hung)
        assert [r.outcome for r in returns] == [FAILED, RETURNED, RETURNED, FAILED, RETURNED, FAILED]
        assert [r.truncated for r in returns] == [False, False, False, False, True, False]
        assert journal.lines.count('add {"a": 3, "b": 4}') == 1
        assert upstream.requests[0].tool_names == ["add", "desk_add", "desk_fail", "desk_big", "desk_hang"]
        assert upstream.requests[1].new_returns == [r.text for r in returns]


async def test_cancelling_a_run_cancels_its_call(store: str, journal: Journal, configure: Configure) -> None:
    """The server learns of it."""
    path = configure(by_program(journal), "desk_hang")
    async with scripted([calls(("desk_hang", {}))], store, agents_file=path) as (client, _):
        run = (await client.ask("Hang.", background=True)).run
        await journal.wrote("hang {}")
        assert (await client.cancel(run.run_id)).status == runs_pb2.RUN_STATUS_CANCELLED
        await journal.wrote("hang cancelled")


async def test_the_service_starts_without_its_mcp_server(store: str, journal: Journal, configure: Configure) -> None:
    """The model reads of its tools that they cannot be reached; as soon as the server is there, all is well."""
    script = [
        calls(("desk_add", {"a": 1, "b": 2})),
        says("It is away."),
        calls(("desk_add", {"a": 1, "b": 2})),
        says("Three."),
        says("You are welcome."),
    ]
    async with running(journal) as endpoint:
        await endpoint.kill()
        path = configure({"url": endpoint.url}, "desk_add")
        async with scripted(script, store, agents_file=path) as (client, upstream):
            first = await client.ask("Add.")
            answer = first.messages[2].tool_return
            assert answer.outcome == FAILED
            assert answer.text.startswith("Error: not executed, the MCP server 'desk' is not connected")
            assert first.run.status == runs_pb2.RUN_STATUS_COMPLETED
            (unknown,) = upstream.requests[0].body["tools"]
            assert "could not be reached when this run began" in unknown["function"]["description"]

            await endpoint.start()
            second = await client.ask("Add.")
            assert second.messages[2].tool_return.text == '{"sum": 3}'
            # Whether this run began before the server had come back is a matter of luck; a third one is not.
            await client.ask("Thank you.")
        assert upstream.requests[-1].body["tools"][0]["function"]["description"] == "Adds two numbers."


async def test_a_rule_makes_a_tool_of_an_mcp_server_wait_for_approval(
    store: str, journal: Journal, configure: Configure
) -> None:
    """It is called once somebody has approved."""
    path = configure(by_program(journal), "desk_add")
    rule = 'tool_rules = [{ requires_approval = { tool_name = "desk_add" } }]\n'
    path.write_text(path.read_text().replace("[agents.default]\n", f"[agents.default]\n{rule}"))
    script = [calls(("desk_add", {"a": 1, "b": 2})), says("Three.")]
    async with scripted(script, store, agents_file=path) as (client, _):
        run = (await client.ask("Add.")).run
        (waiting,) = run.pending_tool_calls
        assert waiting.kind == tools_pb2.PENDING_KIND_APPROVAL
        assert journal.lines.count('add {"a": 1, "b": 2}') == 0
        approval = tools_pb2.ApprovalDecision(tool_call_id=waiting.tool_call_id, approve=tools_pb2.Approve())
        done = await client.answer(run.run_id, approvals=[approval])
        assert done.messages[1].tool_return.text == '{"sum": 3}'


async def test_agents_made_by_calls_may_name_tools_of_mcp_servers(
    store: str, journal: Journal, configure: Configure
) -> None:
    """Those that the server lists; others are refused with what there is."""
    path = configure(by_program(journal))
    async with scripted([calls(("desk_add", {"a": 1, "b": 2})), says("Three.")], store, agents_file=path) as (
        client,
        _,
    ):
        await client.create_agent("adder", server_tools=["desk_add"])
        done = await client.ask("Add.", agent_id="adder")
        assert done.messages[2].tool_return.text == '{"sum": 3}'
        refused = await refusal(client.create_agent("other", server_tools=["desk_nothing"]))
        assert refused.fields == ("agent.server_tools[0]",)
        assert "no server tool 'desk_nothing'; known: desk_add, " in refused.message


async def test_a_tool_that_a_server_does_not_list_is_told_at_the_start(
    store: str, journal: Journal, configure: Configure
) -> None:
    """In the log: the service starts, as what a server lists is not the operator's to say."""
    path = configure(by_program(journal), "desk_add", "desk_nothing")
    with capture_logs() as logs:
        async with scripted([says("Hello.")], store, agents_file=path) as (client, upstream):
            await client.ask("Hi")
            assert upstream.requests[0].tool_names == ["desk_add"]
    (line,) = [line for line in logs if line["event"] == "agent.unknown_tools"]
    assert (line["agent_id"], line["tools"]) == ("default", ["desk_nothing"])
