"""Memory runs of sleeptime agents over gRPC: when they begin, what they are given, and what becomes of failures."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agents_pb2, runs_pb2, tools_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from agent_service.domain.memory_work import MAX_TRIES
from agent_service.engine import upkeep
from agent_service.engine.runs import Runs
from tests.scripted_openai import Gate, Reply, Request, calls, fails, gated, says
from tests.server_tools import executions
from tests.service import SECRET, Client, kinds, returned, scripted
from tests.sleepers import KEEPER, Part, answers, make_agents, memory_runs, part_of, reads
from tests.store_contract import Clock

pytestmark = pytest.mark.anyio

COMPLETED, FAILED = runs_pb2.RUN_STATUS_COMPLETED, runs_pb2.RUN_STATUS_FAILED
PAUSED, INTERRUPTED = runs_pb2.RUN_STATUS_PAUSED, runs_pb2.RUN_STATUS_INTERRUPTED
ADD = {"tools": "tests.server_tools:add,tests.server_tools:delete_file"}
DELAY = 10 * 10**9
"""Nanoseconds from a first failure to the next try."""


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests need not wait for a second."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.01)


class Once:
    """A model of which memory agents get these replies first, one after the other."""

    def __init__(self, *first: Reply) -> None:
        self._first = list(first)

    def __call__(self, request: Request) -> Reply:
        return self._first.pop(0) if reads(request) and self._first else answers(request)


async def talk(client: Client, *texts: str, conversation_id: str = "") -> list[runs_pb2.Run]:
    """Runs of one conversation with the sleeptime agent, one after the other."""
    runs = []
    for text in texts:
        runs.append((await client.ask(text, agent_id="desk", conversation_id=conversation_id)).run)
        conversation_id = runs[0].conversation_id
    return runs


async def ranges(client: Client, runs: list[runs_pb2.Run]) -> list[tuple[int, int]]:
    """The first and the last message that memory runs were given."""
    parts = [await part_of(client, run) for run in runs]
    return [(part.first, part.last) for part in parts]


async def delete_conversation(client: Client, conversation_id: str) -> None:
    """DeleteConversation."""
    request = registry_pb.DeleteConversationRequest(conversation_id=conversation_id)
    await client.registry.DeleteConversation(request)


async def test_a_memory_agent_reads_each_part_after_every_nth_run(store: str) -> None:
    """In a run of its own, linked to the run whose end was the cause, and each message in exactly one of them."""
    async with scripted(answers, store) as (client, _):
        await make_agents(client, every=2)
        runs: list[runs_pb2.Run] = []
        for text in ("a", "b", "c", "d", "e"):
            runs += await talk(client, text, conversation_id=runs[0].conversation_id if runs else "")
            await memory_runs(client, len(runs) // 2)
        assert {(run.agent_id, run.status) for run in runs} == {("desk", COMPLETED)}
        first, second = await memory_runs(client, 2)
        assert [first.parent_run_id, second.parent_run_id] == [runs[1].run_id, runs[3].run_id]
        conversation = runs[0].conversation_id
        assert conversation not in (first.conversation_id, second.conversation_id)
        parts = [await part_of(client, run) for run in (first, second)]
        text = "User: {0}\n\nAssistant: You said {0}.\n\nUser: {1}\n\nAssistant: You said {1}."
        assert parts == [
            Part(conversation, 1, 4, text.format("a", "b")),
            Part(conversation, 5, 8, text.format("c", "d")),
        ]
        assert [run.run_id for run in (await client.list_runs(parent_run_id=runs[1].run_id)).runs] == [first.run_id]


async def test_a_memory_run_begins_at_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the run is over, and the next one as soon as that before it is: nobody waits for a look."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 3600)
    async with scripted(answers, store) as (client, _):
        await make_agents(client)
        await talk(client, "a")
        await talk(client, "b")
        await memory_runs(client, 2)


async def test_only_runs_that_are_completed_count(store: str) -> None:
    """Not one that is paused and cancelled, fails, or expires; what was said in these is part of the transcript."""
    ask = calls(("get_secret_code", {"name": "Alice"}))
    replies = [ask, fails(400), ask, says("One."), says("Two.")]
    async with scripted(lambda r: says("Noted.") if reads(r) else replies.pop(0), store) as (client, _):
        await make_agents(client, every=2)
        paused = (await client.ask("a", SECRET, agent_id="desk")).run
        here: dict[str, Any] = {"agent_id": "desk", "conversation_id": paused.conversation_id}
        await client.cancel(paused.run_id)
        assert (await client.ask("b", **here)).run.status == FAILED
        brief = (await client.ask("c", SECRET, pause_ttl=Duration(nanos=1_000_000), **here)).run
        assert (await client.watch(brief.run_id))[-1].run_stopped.status == runs_pb2.RUN_STATUS_EXPIRED
        await client.ask("d", **here)
        last = (await client.ask("e", **here)).run
        (run,) = await memory_runs(client, 1)
        assert run.parent_run_id == last.run_id
        count = len(await client.messages(paused.conversation_id))
        assert await ranges(client, [run]) == [(1, count)]
        text = (await part_of(client, run)).text.split("\n\n")
        assert text[:3] == [
            "User: a",
            'Assistant calls get_secret_code: {"name": "Alice"}',
            f"Tool get_secret_code ends with cancelled: {text[2].partition(': ')[2]}",
        ]


async def test_a_run_that_was_paused_counts_when_it_is_completed(store: str) -> None:
    """Once, with what the caller returned."""
    replies = [calls(("get_secret_code", {"name": "Alice"})), says("It is A-1.")]
    async with scripted(lambda r: says("Noted.") if reads(r) else replies.pop(0), store) as (client, _):
        await make_agents(client)
        paused = (await client.ask("Code?", SECRET, agent_id="desk")).run
        assert paused.status == PAUSED
        await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
        (run,) = await memory_runs(client, 1)
        assert (await part_of(client, run)).text.split("\n\n")[-2:] == [
            "Tool get_secret_code returns: A-1",
            "Assistant: It is A-1.",
        ]


async def test_a_memory_agent_has_its_own_tools_and_none_of_the_caller(store: str) -> None:
    """No request of it shows the client tools, and what it edits it edits through a server tool."""

    def script(request: Request) -> Reply:
        if reads(request) and request.last["role"] != "tool":
            return calls(("add", {"a": 1, "b": 2}))
        return says("Done.")

    async with scripted(script, store, **ADD) as (client, upstream):
        await make_agents(client, tools=["add"])
        await client.ask("Hi", SECRET, agent_id="desk")
        (run,) = await memory_runs(client, 1)
        assert kinds(await client.messages(run.conversation_id)) == ["user", "tool_call", "tool_return", "assistant"]
        foreground, *background = upstream.requests
        assert foreground.tool_names == ["get_secret_code"]
        assert [request.tool_names for request in background] == [["add"], ["add"]]
        assert all(request.system == "Remember." for request in background)
        assert "get_secret_code" not in json.dumps([request.body for request in background])


async def test_each_of_two_memory_agents_reads_all(store: str) -> None:
    """Each at its own pace: one that is held up does not hold up the other."""
    gate = Gate()
    async with scripted(Once(says("Slow.", gate=gate)), store) as (client, upstream):
        await make_agents(client, keepers=("slow", "quick"))
        (run,) = await talk(client, "a")
        await upstream.wait_for_requests(3)
        gate.open()
        for keeper in ("slow", "quick"):
            (read,) = await memory_runs(client, 1, agent_id=keeper)
            assert read.parent_run_id == run.run_id
            assert await ranges(client, [read]) == [(1, 2)]


async def test_a_memory_agent_has_one_memory_run_at_a_time(store: str) -> None:
    """Over all conversations: the others wait, and are read when it is over."""
    gate = Gate()

    def script(request: Request) -> Reply:
        held = reads(request) and "User: a" in request.last["content"] and "Hold." in request.system
        return gated(says("Slow."), gate) if held else answers(request)

    async with scripted(script, store) as (client, _):
        await client.create_agent("one", instructions="Hold.", model="keeper-model")
        await make_agents(client, keepers=("other",))
        parts = agents_pb2.Sleeptime(foreground_agent_id="clerk", memory_agent_ids=["one", "other"], every=1)
        changed = agents_pb2.Agent(agent_id="desk", sleeptime=parts)
        await client.registry.UpdateAgent(
            registry_pb.UpdateAgentRequest(agent=changed, update_mask=FieldMask(paths=["sleeptime"]))
        )
        runs = [*await talk(client, "a"), *await talk(client, "b"), *await talk(client, "c")]
        # When the other one has read all, this process has looked often enough.
        await memory_runs(client, 3, agent_id="other")
        (held,) = (await client.list_runs(agent_id="one")).runs
        assert held.status == runs_pb2.RUN_STATUS_RUNNING
        gate.open()
        read = await memory_runs(client, 3, agent_id="one")
        assert {run.parent_run_id for run in read} == {run.run_id for run in runs}
        spans = [(run.create_time.ToNanoseconds(), run.end_time.ToNanoseconds()) for run in read]
        assert all(end <= begun for (_, end), (begun, _) in pairwise(spans))


async def test_a_failed_memory_run_is_repeated_with_the_same_part(store: str, clock: Clock) -> None:
    """After a delay, as a new run; what is said meanwhile is read after it."""
    async with scripted(Once(fails(400)), store) as (client, _):
        await make_agents(client)
        (first,) = await talk(client, "a")
        (failed,) = await memory_runs(client, 1, status=FAILED)
        clock.now += DELAY
        repeated = (await memory_runs(client, 1))[-1]
        assert await part_of(client, repeated) == await part_of(client, failed)
        assert repeated.parent_run_id == failed.parent_run_id == first.run_id
        clock.now += 1
        await talk(client, "b", conversation_id=first.conversation_id)
        runs = await memory_runs(client, 2)
        assert [run.status for run in runs] == [FAILED, COMPLETED, COMPLETED]
        assert await ranges(client, runs) == [(1, 2), (1, 2), (3, 4)]


async def test_a_failure_delays_what_is_said_after_it_as_well(store: str, clock: Clock) -> None:
    """All that was not read yet is then read at once."""
    async with scripted(Once(fails(400)), store) as (client, _):
        await make_agents(client)
        (first,) = await talk(client, "a")
        await memory_runs(client, 1, status=FAILED)
        (second,) = await talk(client, "b", conversation_id=first.conversation_id)
        clock.now += DELAY
        runs = await memory_runs(client, 1)
        assert await ranges(client, runs) == [(1, 2), (1, 4)]
        assert runs[1].parent_run_id == second.run_id


async def test_an_interrupted_memory_run_goes_on_by_itself(store: str, clock: Clock) -> None:
    """The endpoint was away: the same run is retried after a delay, and longer after the next failure."""
    async with scripted(Once(fails(503), fails(503)), store) as (client, _):
        await make_agents(client)
        await talk(client, "a")
        (away,) = await memory_runs(client, 1, status=INTERRUPTED)
        clock.now += DELAY
        attempts = away.model_attempts
        while (run := await client.run(away.run_id)).model_attempts == attempts or run.status != INTERRUPTED:
            pass
        clock.now += 2 * DELAY
        (done,) = await memory_runs(client, 1)
        assert (done.run_id, done.steps_taken) == (away.run_id, 1)
        assert await ranges(client, [done]) == [(1, 2)]


async def test_a_memory_run_that_is_interrupted_again_and_again_is_given_up(store: str, clock: Clock) -> None:
    """It is FAILED then, so that its agent can read other conversations; its part is read with the next n-th run."""
    async with scripted(Once(*(fails(503) for _ in range(MAX_TRIES))), store) as (client, _):
        await make_agents(client)
        (first,) = await talk(client, "a")
        for attempts in range(1, MAX_TRIES + 1):
            (run,) = await memory_runs(client, 1, status=INTERRUPTED)
            while run.model_attempts < attempts or run.status != INTERRUPTED:
                run = await client.run(run.run_id)
            clock.now += 360 * DELAY
        (failed,) = await memory_runs(client, 1, status=FAILED)
        assert failed.model_attempts == MAX_TRIES
        clock.now += 1
        await talk(client, "b", conversation_id=first.conversation_id)
        assert await ranges(client, await memory_runs(client, 1)) == [(1, 2), (1, 4)]


async def test_a_cancelled_memory_run_is_repeated(store: str, clock: Clock) -> None:
    """Whoever cancels it gains time."""
    gate = Gate()
    async with scripted(Once(says("Slow.", gate=gate)), store) as (client, upstream):
        await make_agents(client)
        await talk(client, "a")
        await upstream.wait_for_requests(2)
        (run,) = (await client.list_runs(agent_id=KEEPER)).runs
        await client.cancel(run.run_id)
        gate.open()
        clock.now += DELAY
        runs = await memory_runs(client, 1)
        assert await ranges(client, runs) == [(1, 2), (1, 2)]


async def test_a_memory_run_that_waits_for_an_approval_is_in_the_inbox(store: str) -> None:
    """Nothing else is given to its agent until it is over."""

    def script(request: Request) -> Reply:
        if reads(request) and request.last["role"] != "tool" and "User: a" in request.last["content"]:
            return calls(("delete_file", {"path": "/a"}))
        return answers(request)

    async with scripted(script, store, **ADD) as (client, _):
        await make_agents(client, tools=["delete_file"])
        await talk(client, "a")
        (paused,) = await memory_runs(client, 1, status=PAUSED)
        (waiting,) = (await client.waiting(agent_id=KEEPER)).calls
        assert waiting.run_id == paused.run_id
        await talk(client, "b")
        assert len((await client.list_runs(agent_id=KEEPER)).runs) == 1
        decision = tools_pb2.ApprovalDecision(tool_call_id=waiting.call.tool_call_id, approve=tools_pb2.Approve())
        await client.answer(paused.run_id, approvals=[decision])
        assert executions[waiting.call.tool_call_id] == 1
        runs = await memory_runs(client, 2)
        assert await ranges(client, runs) == [(1, 2), (1, 2)]
        assert len({(await part_of(client, run)).conversation_id for run in runs}) == 2


async def test_a_large_part_is_given_in_pieces(store: str) -> None:
    """Each a whole number of runs; one run that is too large by itself is cut between its answers, and one message that
    is too large is given without its end."""

    def script(request: Request) -> Reply:
        return says("ok")

    async with scripted(script, store, limits={"max_memory_part_bytes": 110}) as (client, _):
        await make_agents(client, every=4)
        runs = await talk(client, "a" * 30, "b" * 30, "c" * 60, "d" * 130)
        read = await memory_runs(client, 4)
        assert await ranges(client, read) == [(1, 4), (5, 6), (7, 7), (8, 8)]
        assert {run.parent_run_id for run in read} == {runs[-1].run_id}
        text = (await part_of(client, read[2])).text
        assert text == "User: " + "d" * 104 + "\n[the rest of this message is left out]"


async def test_the_work_of_a_deleted_memory_agent_waits(store: str, clock: Clock) -> None:
    """It holds up no other work, and is done some time after the agent is there again."""
    async with scripted(answers, store) as (client, _):
        await make_agents(client, keepers=("gone", "here"))
        await client.registry.DeleteAgent(registry_pb.DeleteAgentRequest(agent_id="gone"))
        (first,) = await talk(client, "a")
        await memory_runs(client, 1, agent_id="here")
        await talk(client, "b")
        # A look comes after the one before it: that has put off what the first run made due.
        await memory_runs(client, 2, agent_id="here")
        assert not (await client.list_runs(agent_id="gone")).runs
        await client.create_agent("gone", model="keeper-model")
        clock.now += 1
        await talk(client, "c")
        early = await memory_runs(client, 1, agent_id="gone")
        assert first.run_id not in {run.parent_run_id for run in early}
        clock.now += DELAY
        runs = await memory_runs(client, 3, agent_id="gone")
        assert first.run_id in {run.parent_run_id for run in runs}


async def test_a_deleted_conversation_is_read_no_more(store: str) -> None:
    """A memory run under way ends as it should; a conversation made anew under the same id is read from its start."""
    gate = Gate()
    async with scripted(Once(says("Slow.", gate=gate)), store) as (client, upstream):
        await make_agents(client)
        (run,) = await talk(client, "a")
        await upstream.wait_for_requests(2)
        await delete_conversation(client, run.conversation_id)
        request = registry_pb.CreateConversationRequest(conversation_id=run.conversation_id)
        await client.registry.CreateConversation(request)
        gate.open()
        await memory_runs(client, 1)
        await talk(client, "b", conversation_id=run.conversation_id)
        runs = await memory_runs(client, 2)
        assert (await part_of(client, runs[1])).text == "User: b\n\nAssistant: You said b."


async def test_deleted_memory_runs_give_nothing_twice(store: str, clock: Clock) -> None:
    """The part of a COMPLETED one stays read. One that was not over is repeated; its parent may be deleted, too."""
    async with scripted(Once(says("Noted."), fails(503), fails(503)), store) as (client, _):
        await make_agents(client)
        (first,) = await talk(client, "a")
        (done,) = await memory_runs(client, 1)
        await client.delete(done.run_id)
        await client.delete(first.run_id)
        (second,) = await talk(client, "b", conversation_id=first.conversation_id)
        (away,) = await memory_runs(client, 1, status=INTERRUPTED)
        await client.delete(away.run_id)
        clock.now += 2 * DELAY
        (away,) = await memory_runs(client, 1, status=INTERRUPTED)
        await delete_conversation(client, away.conversation_id)
        clock.now += 8 * DELAY
        (read,) = await memory_runs(client, 1)
        assert await ranges(client, [read]) == [(3, 4)]
        assert read.parent_run_id == second.run_id


async def test_a_server_that_shuts_down_begins_no_memory_run(
    shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that is under way ends within the grace; the next server begins what became due by that."""
    gate = Gate()
    shut_down = Runs.shut_down

    async def answered_meanwhile(runs: Runs, *args: Any) -> None:
        gate.open()
        await shut_down(runs, *args)

    monkeypatch.setattr(Runs, "shut_down", answered_meanwhile)
    async with scripted(lambda r: gated(says("Slow."), gate), shared_store, grace_seconds=20.0) as (client, upstream):
        await make_agents(client)
        run = (await client.ask("a", agent_id="desk", background=True)).run
        await upstream.wait_for_requests(1)
    assert len(upstream.requests) == 1
    async with scripted(answers, shared_store) as (client, _):
        (read,) = await memory_runs(client, 1)
        assert read.parent_run_id == run.run_id
        assert (await client.run(run.run_id)).status == COMPLETED
