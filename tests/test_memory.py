"""Memory blocks in runs: what the model sees of them, how its tools change them, and what the run tells of it."""

from __future__ import annotations

import json

import pytest
from agentrpc.v1 import agent_service_pb2, runs_pb2, tools_pb2

from tests.blocks import (
    TOOLS,
    appends,
    delete,
    make,
    memory_of,
    overwrite,
    reads,
    remembering,
    rethinks,
    update,
    value,
)
from tests.modes import MODES, start, story
from tests.ruled import outcomes, rule
from tests.scripted_openai import Gate, calls, gated, says
from tests.service import SECRET, kinds, refusal, returned, scripted, step, submit

pytestmark = pytest.mark.anyio

DONE = says("Noted.")
SERVER = "tests.test_memory:memory_append"
COMPLETED = runs_pb2.RUN_STATUS_COMPLETED


async def memory_append(label: str, text: str) -> str:
    """Takes the place of the service's own tool."""
    return f"kept elsewhere: {text}"


async def test_the_next_request_shows_the_edit(store: str) -> None:
    """Within the run, and in the next conversation, at the end of the system prompt."""
    async with scripted([appends("human", "Likes tea."), DONE, says("Tea.")], store) as (client, upstream):
        await make(client, "human", "Name: Ada.", description="Who they are.", limit=100)
        await remembering(client, "human")
        done = await client.ask("I like tea.", agent_id="keeper")
        assert kinds(done.messages) == ["user", "tool_call", "tool_return", "assistant"]
        assert outcomes(done.messages) == [
            ("memory_append", "Memory block 'human' now has 21 of at most 100 characters.")
        ]
        await client.ask("What do I like?", agent_id="keeper")
        shown = "Remember.\n\nYour memory, as it is now. It outlives this conversation.\n\n{}"
        block = (
            "[memory block 'human', at most 100 characters]\nDescription: Who they are.\nValue:\n{}\n[end of 'human']"
        )
        before, after = shown.format(block.format("Name: Ada.")), shown.format(block.format("Name: Ada.\nLikes tea."))
        assert [request.system for request in upstream.requests] == [before, after, after]
        assert await value(client, "human") == "Name: Ada.\nLikes tea."


async def test_each_tool_does_what_it_says(store: str) -> None:
    """In the order of the calls of one answer, each on what the one before left."""
    edits = calls(
        ("memory_append", {"label": "list", "text": "three"}),
        ("memory_insert", {"label": "list", "text": "zero", "line": 0}),
        ("memory_replace", {"label": "list", "old_text": "two", "new_text": "2"}),
        ("memory_insert", {"label": "list", "text": "four"}),
        ("memory_rethink", {"label": "other", "value": "all new"}),
    )
    async with scripted([edits, DONE], store) as (client, upstream):
        await make(client, "list", "one\ntwo\n")
        await make(client, "other", "old")
        await remembering(client, "list", "other")
        await client.ask("Go.", agent_id="keeper")
        assert await value(client, "list") == "zero\none\n2\nthree\nfour"
        assert await value(client, "other") == "all new"
        assert upstream.requests[0].tool_names == TOOLS


async def test_reads_are_told_once_and_after_each_change(store: str) -> None:
    """With the step whose request showed them, stored with its answer; in every mode the same."""
    stories, told = [], []
    for mode in MODES:
        script = [calls(("get_secret_code", {"name": "Bob"})), appends("human", "x"), says("a")]
        async with scripted(script, "memory") as (client, _):
            await make(client, "human")
            await remembering(client, "human")
            window = await start(client, mode, step("Go.", SECRET, agent_id="keeper", run_id="run-1"))
            assert window.run.status == runs_pb2.RUN_STATUS_PAUSED
            await client.answer("run-1", returned(window.run.pending_tool_calls[0], "S"), request_id="r-1")
            events = await client.watch("run-1")
            stories.append(story(events))
            told.append(reads(events))
            steps = [event.step_id for event in events if event.HasField("memory_read")]
            answers = [event for event in events if event.HasField("message_stored")]
            assert steps == [answers[1].step_id, answers[-1].step_id]
    assert told == [[[("human", 1)], [("human", 2)]]] * len(MODES)
    assert stories == [stories[0]] * len(MODES)


async def test_a_dry_run_shows_the_same_bytes(store: str) -> None:
    """At a start and at a resume; an override of the system prompt leaves the memory."""
    asks = calls(("get_secret_code", {"name": "Ålice"}))
    async with scripted([asks, DONE], store) as (client, upstream):
        await make(client, "human", "Ünï \U0001f600 <b>\n\n", read_only=True)
        await make(client, "notes")
        await remembering(
            client, "notes", "human", tool_rules=[rule(max_count={"tool_name": TOOLS[0], "max_count": 2})]
        )
        request = step("Go.", SECRET, agent_id="keeper", run_id="run-1", system_prompt="Be brief.")
        build = agent_service_pb2.BuildRequestRequest
        built = await client.agent.BuildRequest(build(step=request))
        paused = await client.agent.Step(request)
        assert built.request_json.encode() == upstream.requests[0].raw
        system = upstream.requests[0].system
        assert system.startswith("Be brief.\n\nRules for your tool calls:")
        assert system.index("'human'") < system.index("'notes'")
        assert "read-only" in memory_of(system)
        await overwrite(client, "notes", "changed during the pause")
        answer = submit("run-1", returned(paused.run.pending_tool_calls[0], "x"), request_id="r-1")
        built = await client.agent.BuildRequest(build(submit=answer))
        await client.agent.SubmitToolReturns(answer)
        assert built.request_json.encode() == upstream.requests[1].raw
        assert "changed during the pause" in upstream.requests[1].system


async def test_what_cannot_be_edited_is_told(store: str) -> None:
    """With what is, what is allowed and what to do; nothing is changed, and the model goes on."""
    edits = calls(
        ("memory_append", {"label": "nobody", "text": "x"}),
        ("memory_rethink", {"label": "law", "value": "x"}),
        ("memory_append", {"label": "notes", "text": "€€€€€€"}),
        ("memory_replace", {"label": "notes", "old_text": "z", "new_text": ""}),
        ("memory_replace", {"label": "notes", "old_text": "aa", "new_text": ""}),
        ("memory_insert", {"label": "notes", "text": "x", "line": 7}),
    )
    async with scripted([edits, DONE], store) as (client, _):
        await make(client, "law", "Never lie.", read_only=True)
        await make(client, "notes", "aaa", limit=9)
        await remembering(client, "law", "notes")
        texts = [text for _, text in outcomes((await client.ask("Go.", agent_id="keeper")).messages)]
        assert texts == [
            "Error: not changed, there is no memory block 'nobody'. Blocks that can be changed: 'notes'",
            "Error: not changed, memory block 'law' is read-only. Blocks that can be changed: 'notes'",
            "Error: not changed, memory block 'notes' would have 10 characters; at most 9 are allowed. "
            "It has 3 now. Write less, or shorten it first",
            "Error: not changed, old_text is not in the memory block. It has to be a part of the value, to the letter",
            "Error: not changed, old_text is in the memory block more than once. Take more of what stands around it",
            "Error: not changed, there is no line 7. The memory block has 1 lines: send 0 to insert before the first, "
            "1 or -1 for the end",
        ]
        assert (await value(client, "law"), await value(client, "notes")) == ("Never lie.", "aaa")


async def test_the_limit_counts_code_points(store: str) -> None:
    """Not bytes, and not halves of surrogate pairs; half of one is no text."""
    edits = calls(
        ("memory_rethink", {"label": "notes", "value": "\U0001f600" * 4}),
        ("memory_append", '{"label": "notes", "text": "\\ud83d"}'),
    )
    async with scripted([edits, DONE], store) as (client, _):
        await make(client, "notes", limit=6)
        await remembering(client, "notes")
        texts = outcomes((await client.ask("Go.", agent_id="keeper")).messages)
        assert "now has 4 of at most 6" in texts[0][1]
        assert "half of a surrogate pair" in texts[1][1]
        assert await value(client, "notes") == "\U0001f600" * 4


async def test_two_agents_share_a_block(store: str) -> None:
    """What one writes the other reads with its next request."""
    async with scripted([appends("human", "Tall."), DONE, says("Tall.")], store) as (client, upstream):
        await make(client, "human")
        await remembering(client, "human")
        await remembering(client, "human", agent_id="other", kind="AGENT_KIND_RESPONDER")
        await client.ask("I am tall.", agent_id="keeper")
        await client.ask("Am I?", agent_id="other")
        assert "Tall." in memory_of(upstream.requests[2].system)
        assert upstream.requests[2].tool_names == []


async def test_an_edit_of_others_is_not_overwritten(store: str) -> None:
    """A caller changes the block while the model writes its answer: what rests on what the model saw is refused with
    the present value, what does not is made upon it; after the next request the model may decide anew."""
    edits = calls(
        ("memory_append", {"label": "notes", "text": "C"}),
        ("memory_rethink", {"label": "notes", "value": "lost"}),
        ("memory_insert", {"label": "notes", "text": "lost", "line": 0}),
    )
    gate = Gate()
    async with scripted([gated(edits, gate), rethinks("notes", "A B C")], store) as (client, upstream):
        await make(client, "notes", "A")
        await remembering(client, "notes", tool_rules=[rule(terminal="memory_rethink")])
        await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
        await upstream.wait_for_requests(1)
        await overwrite(client, "notes", "A\nB")
        gate.open()
        events = await client.watch("run-1")
        texts = [text for _, text in outcomes(e.message_stored.message for e in events)]
        assert [text.startswith("Error") for text in texts] == [False, True, True, False]
        assert texts[1].endswith("Decide anew; its value now is:\nA\nB\nC")
        assert reads(events) == [[("notes", 1)], [("notes", 3)]]
        assert await value(client, "notes") == "A B C"


async def test_the_runs_own_edits_do_not_stand_in_its_way(store: str) -> None:
    """The model knows what it did."""
    edits = calls(
        ("memory_append", {"label": "notes", "text": "B"}),
        ("memory_insert", {"label": "notes", "text": "0", "line": 0}),
        ("memory_rethink", {"label": "notes", "value": "done"}),
    )
    async with scripted([edits, DONE], store) as (client, _):
        await make(client, "notes", "A")
        await remembering(client, "notes")
        texts = outcomes((await client.ask("Go.", agent_id="keeper")).messages)
        assert not [text for _, text in texts if text.startswith("Error")]
        assert await value(client, "notes") == "done"


@pytest.mark.parametrize("again", [False, True])
async def test_a_deleted_block_is_gone_from_prompts_and_tools(store: str, again: bool) -> None:
    """Agents and their runs go on without it; one that is made again under its id is not what the model saw."""
    edits = rethinks("notes", "x")
    gate = Gate()
    async with scripted([gated(edits, gate), DONE], store) as (client, upstream):
        await make(client, "notes", "A")
        await make(client, "human", "Ada")
        await remembering(client, "notes", "human")
        await client.ask("Go.", agent_id="keeper", run_id="run-1", background=True)
        await upstream.wait_for_requests(1)
        await delete(client, "notes")
        if again:
            await make(client, "notes", "B")
        gate.open()
        events = await client.watch("run-1")
        ((_, text),) = outcomes(e.message_stored.message for e in events)
        assert ("changed by someone else" if again else "there is no memory block 'notes'") in text
        second = [("notes", 1), ("human", 1)] if again else [("human", 1)]
        assert reads(events) == [[("notes", 1), ("human", 1)], second]
        assert ("'notes'" in memory_of(upstream.requests[1].system)) == again


async def test_read_only_blocks_alone_bring_no_tools(store: str) -> None:
    """They are shown; a model that calls a tool all the same gets an error. Once one may be changed, the next run has
    the tools."""
    unruly = calls((TOOLS[3], {"label": "law", "value": "x"}), unruly=True)
    async with scripted([unruly, DONE, rethinks("law", "Lie."), DONE], store) as (client, up):
        await make(client, "law", "Never lie.", read_only=True)
        await remembering(client, "law")
        ((_, text),) = outcomes((await client.ask("Go.", agent_id="keeper")).messages)
        assert text.startswith("Error: tools must not be called")
        assert up.requests[0].tool_names == []
        assert "Never lie." in up.requests[0].system
        await update(client, "law", "read_only", read_only=False)
        await client.ask("Go.", agent_id="keeper")
        assert await value(client, "law") == "Lie."


async def test_an_agent_may_name_the_memory_tools_it_has(store: str) -> None:
    """Exactly those then, after its other tools."""
    async with scripted([DONE], store, tools="tests.server_tools:add") as (client, upstream):
        await make(client, "notes")
        await remembering(client, "notes", server_tools=["memory_replace", "add", "memory_append"])
        await client.ask("Go.", agent_id="keeper")
        assert upstream.requests[0].tool_names == ["add", "memory_append", "memory_replace"]


async def test_a_client_tool_takes_the_place_of_a_memory_tool(store: str) -> None:
    """The run pauses for it and says so; the block is left alone."""
    mine = tools_pb2.ClientToolSchema(name="memory_append")
    async with scripted([appends("notes", "x"), DONE], store) as (client, upstream):
        await make(client, "notes", "A")
        await remembering(client, "notes")
        paused = await client.ask("Go.", mine, agent_id="keeper")
        assert list(paused.run.overridden_tools) == ["memory_append"]
        await client.answer(paused.run.run_id, returned(paused.run.pending_tool_calls[0], "kept"))
        assert upstream.requests[0].tool_names == [*TOOLS[1:], "memory_append"]
        assert await value(client, "notes") == "A"


async def test_a_server_tool_takes_the_place_of_a_memory_tool(store: str) -> None:
    """If the agent names it; the others are there as well."""
    async with scripted([appends("notes", "x"), DONE], store, tools=SERVER) as (client, upstream):
        await make(client, "notes", "A")
        await remembering(client, "notes", server_tools=["memory_append"])
        done = await client.ask("Go.", agent_id="keeper")
        assert outcomes(done.messages) == [("memory_append", "kept elsewhere: x")]
        assert upstream.requests[0].tool_names == TOOLS
        assert await value(client, "notes") == "A"


async def test_rules_and_approvals_hold_for_memory_tools(store: str) -> None:
    """An edit waits for a person, who may edit it, too; the rules about counts and ends are those of any tool."""
    edits = calls(
        ("memory_append", {"label": "notes", "text": "x"}), ("memory_rethink", {"label": "notes", "value": ""})
    )
    rules = [rule(requires_approval="memory_append"), rule(max_count={"tool_name": "memory_rethink", "max_count": 1})]
    rules.append(rule(terminal="memory_append"))
    async with scripted([edits], store) as (client, _):
        await make(client, "notes", "A")
        await remembering(client, "notes", tool_rules=rules)
        paused = await client.ask("Go.", agent_id="keeper")
        (call,) = paused.run.pending_tool_calls
        assert (call.name, call.kind) == ("memory_append", tools_pb2.PENDING_KIND_APPROVAL)
        assert await value(client, "notes") == ""
        approve = tools_pb2.Approve(edited_arguments_json=json.dumps({"label": "notes", "text": "y"}))
        decision = tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, approve=approve)
        done = await client.answer(paused.run.run_id, approvals=[decision])
        assert (done.run.stop_reason, done.run.status) == (runs_pb2.STOP_REASON_TOOL_RULE, COMPLETED)
        assert await value(client, "notes") == "y"


async def test_other_server_tools_are_executed_in_their_turn(store: str) -> None:
    """Memory edits stand between them in the order of the calls."""
    edits = calls(
        ("add", {"a": 1, "b": 2}),
        ("memory_append", {"label": "notes", "text": "x"}),
        ("add", {"a": 3, "b": 4}),
    )
    async with scripted([edits, DONE], store, tools="tests.server_tools:add") as (client, _):
        await make(client, "notes")
        await remembering(client, "notes", server_tools=["add"])
        done = await client.ask("Go.", agent_id="keeper")
        names = [m.tool_return.name for m in done.messages if m.HasField("tool_return")]
        assert names == ["add", "memory_append", "add"]


async def test_a_repeated_start_joins_whatever_became_of_the_blocks(store: str) -> None:
    """It was right when it was sent: the answer is the same; only a new start is held to the tools there are now."""
    async with scripted([appends("notes", "x"), DONE], store) as (client, _):
        await make(client, "notes")
        await remembering(client, "notes")
        wanted = {
            "tool_choice": tools_pb2.ToolChoice(tool_name="memory_append"),
            "tool_rules": [rule(terminal="memory_rethink")],
        }
        request = step("Go.", agent_id="keeper", run_id="run-1", **wanted)
        done = await client.agent.Step(request)
        await update(client, "notes", "read_only", read_only=True)
        assert await client.agent.Step(request) == done
        built = await client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request))
        assert built.not_buildable.message.startswith("run run-1 was started before")
        request.run_id = "run-2"
        refused = await refusal(client.agent.Step(request))
        assert refused.fields == ("tool_rules[0].terminal.tool_name",)


async def test_an_agent_without_blocks_is_what_it_was(store: str) -> None:
    """No tools, nothing in the prompt, no event."""
    async with scripted([DONE], store) as (client, upstream):
        await client.create_agent("plain", instructions="Be brief.")
        done = await client.ask("Go.", agent_id="plain")
        assert (upstream.requests[0].system, upstream.requests[0].tool_names) == ("Be brief.", [])
        assert reads(await client.watch(done.run.run_id)) == []
