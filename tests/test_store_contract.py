"""What every store of runs guarantees, I: starts, reads, tenants, text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import MessageStored, RunAccepted, RunStarted, RunStopped
from agent_service.domain.message import Message, MessageType, ToolReturnContent, UserContent
from agent_service.domain.moves import UNKNOWN_OUTCOME, cancel, start_calls
from agent_service.domain.run import AgentKind, Claim, Pinned, RunStatus, StopReason
from agent_service.domain.tool import Executor, Outcome, ToolChoice, ToolChoiceMode, ToolSchema
from agent_service.engine.loop import moved
from agent_service.engine.store import RunStore
from tests.store_contract import (
    OTHER,
    PINNED,
    TENANT,
    Kept,
    client,
    new_run,
    opened,
    returns,
    server,
    unchanged,
)

pytestmark = pytest.mark.anyio


async def test_a_start_stores_the_run_its_input_and_its_events_together(store: str) -> None:
    """After a start all of it can be read, and the answer says the same."""
    async with opened(store) as kept:
        kept.clock.now = 5_000
        started = await kept.start(text="Hello")
        assert not started.joined
        snapshot = await kept.store.get_run(TENANT, "run_1")
        assert snapshot.run == started.run
        assert (snapshot.run.status, snapshot.run.epoch, snapshot.run.owner) == (RunStatus.RUNNING, 1, "process_1")
        assert (snapshot.run.create_time, snapshot.run.labels) == (5_000, {"team": "a"})
        assert snapshot.calls == ()
        messages = await kept.messages()
        assert [message.content for message in messages] == [UserContent("Hello")]
        assert started.messages == tuple(messages)
        assert (started.last_position, snapshot.last_position) == (1, 1)
        kinds = [type(event.body) for event in await kept.events()]
        assert kinds == [RunAccepted, MessageStored, RunStarted]


async def test_an_equal_start_joins_the_run_and_stores_nothing(store: str) -> None:
    """The same id with the same digest is the same start, also when the run has moved on; it says how it is now."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        before, told = await kept.events(), len(kept.told)
        joined = await kept.start(text="Hello")
        assert joined.joined
        assert joined.run == await kept.run()
        assert joined.run.status is RunStatus.PAUSED
        assert await kept.events() == before
        assert len(kept.told) == told


async def test_an_id_cannot_be_used_for_another_start(store: str) -> None:
    """The same id with another digest is refused, and the run stays as it is."""
    async with opened(store) as kept:
        await kept.start()
        before = await kept.run()
        with pytest.raises(AgentServiceError) as refused:
            await kept.start(digest="other")
        assert refused.value.reason is Reason.RUN_ID_REUSED
        assert refused.value.metadata == {"run_id": "run_1"}
        assert await kept.run() == before


async def test_a_start_in_an_unknown_conversation_stores_nothing(store: str) -> None:
    """A conversation is only made by a start that asks for a new one."""
    async with opened(store) as kept:
        with pytest.raises(AgentServiceError) as refused:
            await kept.start("run_1", "conv_x")
        assert refused.value.reason is Reason.CONVERSATION_NOT_FOUND
        assert "conv_x" in refused.value.message
        with pytest.raises(AgentServiceError, match="run_1") as missing:
            await kept.run()
        assert missing.value.reason is Reason.RUN_NOT_FOUND
        with pytest.raises(AgentServiceError) as missing:
            await kept.messages("conv_x")
        assert missing.value.reason is Reason.CONVERSATION_NOT_FOUND
        assert kept.told == []


async def test_a_conversation_takes_one_running_run_at_a_time(store: str) -> None:
    """A second start is told the id of the run it must wait for, and leaves no trace."""
    async with opened(store) as kept:
        await kept.start()
        with pytest.raises(AgentServiceError) as busy:
            await kept.start("run_2", "conv_run_1")
        assert busy.value.reason is Reason.CONVERSATION_BUSY
        assert busy.value.metadata == {"run_id": "run_1"}
        assert len(await kept.messages()) == 1
        with pytest.raises(AgentServiceError):
            await kept.run("run_2")
        await kept.answer(text="Hi.")
        assert not (await kept.start("run_2", "conv_run_1")).joined


async def test_a_start_in_a_paused_conversation_is_told_what_it_waits_for(store: str) -> None:
    """At most 16 pending calls are named, and how many there are."""
    async with opened(store) as kept:
        await kept.paused(*(client(f"call_{n}") for n in range(18)))
        with pytest.raises(AgentServiceError) as paused:
            await kept.start("run_2", "conv_run_1")
        assert paused.value.reason is Reason.CONVERSATION_PAUSED
        named = {f"pending_{n}": f"call_{n} tool_call_{n} CLIENT_EXECUTION" for n in range(16)}
        assert paused.value.metadata == {"run_id": "run_1", "pending_total": "18", **named}
        assert "call_15 (tool_call_15) and 2 more" in paused.value.message
        assert "call_16" not in paused.value.message
        assert len(await kept.messages()) == 2


async def test_the_next_start_settles_an_interrupted_run(store: str) -> None:
    """It becomes FAILED, with an outcome for each open call; then the new run begins. All in one transaction."""
    async with opened(store) as kept:
        await kept.paused(server("started"), client("asked"), server("waiting"))
        await kept.store.owner_move(await kept.claim(), moved(start_calls, ("started",)))
        await kept.interrupt()
        interrupted = await kept.run()
        assert (interrupted.status, interrupted.stop_reason) == (RunStatus.INTERRUPTED, StopReason.LLM_API_ERROR)

        started = await kept.start("run_2", "conv_run_1", text="And now?")
        settled = await kept.store.get_run(TENANT, "run_1")
        assert (settled.run.status, settled.run.stop_reason) == (RunStatus.FAILED, StopReason.LLM_API_ERROR)
        assert settled.run.error is not None
        assert (settled.run.error.reason, settled.run.error.retryable) == (Reason.LLM_UNAVAILABLE, False)
        assert all(call.settled for call in settled.calls)
        messages = await kept.messages()
        assert started.messages == tuple(messages[2:])
        outcomes = [m.content for m in messages if isinstance(m.content, ToolReturnContent)]
        assert [(o.tool_call_id, o.outcome) for o in outcomes] == [
            ("started", Outcome.FAILED),
            ("asked", Outcome.CANCELLED),
            ("waiting", Outcome.CANCELLED),
        ]
        assert outcomes[0].text == UNKNOWN_OUTCOME
        assert messages[-1].content == UserContent("And now?")
        assert messages[-1].run_id == "run_2"
        finals = [e.body for e in await kept.events() if isinstance(e.body, RunStopped) and e.body.final]
        assert [body.status for body in finals] == [RunStatus.FAILED]
        assert started.last_position == len(messages)


async def test_the_preview_of_a_start_says_what_the_start_would_and_stores_nothing(store: str) -> None:
    """Its messages and its errors are those of the start; neither run nor conversation exists after it."""
    async with opened(store) as kept:
        preview = await kept.store.preview_start(TENANT, new_run(text="Hello"))
        assert [message.content for message in preview.messages] == [UserContent("Hello")]
        assert (preview.run.status, preview.last_position) == (RunStatus.RUNNING, 1)
        for reading in (kept.run(), kept.messages()):
            with pytest.raises(AgentServiceError):
                await reading
        started = await kept.start()
        assert started.run == preview.run
        assert (await kept.store.preview_start(TENANT, new_run())).joined
        with pytest.raises(AgentServiceError) as busy:
            await kept.store.preview_start(TENANT, new_run("run_2", "conv_run_1"))
        assert busy.value.reason is Reason.CONVERSATION_BUSY


async def test_messages_of_several_runs_are_one_append_only_list(store: str) -> None:
    """Positions are 1, 2, 3, ... over all runs of the conversation; what was read once is never changed."""
    async with opened(store) as kept:
        seen: list[Message] = []
        for number in range(1, 4):
            conversation = "conv_run_1" if number > 1 else ""
            await kept.paused(client(f"call_{number}"), run_id=f"run_{number}", conversation_id=conversation)
            await kept.submit(returns(f"call_{number}"), run_id=f"run_{number}")
            await kept.answer(run_id=f"run_{number}", text="Good.")
            messages = await kept.messages()
            assert messages[: len(seen)] == seen
            seen = messages
        assert [message.position for message in seen] == list(range(1, 13))
        each = [MessageType.USER, MessageType.TOOL_CALL, MessageType.TOOL_RETURN, MessageType.ASSISTANT]
        assert [message.type for message in seen] == each * 3
        assert [message.run_id for message in seen] == ["run_1"] * 4 + ["run_2"] * 4 + ["run_3"] * 4


async def test_messages_are_read_in_pages(store: str) -> None:
    """A page begins after the given position, holds at most `limit`, and is empty after the end."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"))
        await kept.submit(returns("call_1"))
        everything = await kept.messages()
        assert len(everything) == 3
        assert await kept.store.messages(TENANT, "conv_run_1", 0, 2) == tuple(everything[:2])
        assert await kept.store.messages(TENANT, "conv_run_1", 2, 2) == tuple(everything[2:])
        assert await kept.store.messages(TENANT, "conv_run_1", 3, 2) == ()
        assert await kept.store.messages(TENANT, "conv_run_1", 2**62, 2) == ()


async def test_what_a_run_is_pinned_to_is_kept_exactly(store: str) -> None:
    """Schemas are exact text; two runs pinned alike and a third one pinned otherwise do not mix."""
    tool = ToolSchema("t", "ü", '{"a":  12345678901234567890, "z":1.0}', Executor.CLIENT, "{}", True, True)
    choice = ToolChoice(ToolChoiceMode.REQUIRED, "t")
    pinned = Pinned("a", AgentKind.RESPONDER, "m", "p", "S\x00\n", (tool,), ("t",), choice, False)
    async with opened(store) as kept:
        await kept.start("run_1", pinned=pinned)
        await kept.start("run_2", pinned=pinned)
        await kept.start("run_3", pinned=PINNED)
        assert await kept.store.get_pinned(TENANT, "run_1") == pinned
        assert await kept.store.get_pinned(TENANT, "run_2") == pinned
        assert await kept.store.get_pinned(TENANT, "run_3") == PINNED


_RUN_METHODS: dict[str, Callable[[RunStore], Awaitable[object]]] = {
    "move": lambda store: store.move(OTHER, "run_1", moved(cancel)),
    "owner_move": lambda store: store.owner_move(Claim(OTHER, "run_1", 1), moved(cancel)),
    "preview": lambda store: store.preview(OTHER, "run_1", unchanged),
    "get_run": lambda store: store.get_run(OTHER, "run_1"),
    "get_pinned": lambda store: store.get_pinned(OTHER, "run_1"),
    "events": lambda store: store.events(OTHER, "run_1", 0, 10),
    "messages": lambda store: store.messages(OTHER, "conv_run_1", 0, 10),
    "start": lambda store: store.start(OTHER, new_run("run_2", "conv_run_1")),
    "preview_start": lambda store: store.preview_start(OTHER, new_run("run_2", "conv_run_1")),
}


@pytest.mark.parametrize("method", _RUN_METHODS)
async def test_what_another_tenant_has_is_not_found(store: str, method: str) -> None:
    """No method reads or changes a run or conversation of another tenant, whatever ids it is given."""
    async with opened(store) as kept:
        await kept.start()
        before = await kept.store.get_run(TENANT, "run_1")
        with pytest.raises(AgentServiceError) as missing:
            await _RUN_METHODS[method](kept.store)
        of_conversation = method in ("messages", "start", "preview_start")
        wanted = Reason.CONVERSATION_NOT_FOUND if of_conversation else Reason.RUN_NOT_FOUND
        assert missing.value.reason is wanted
        assert await kept.store.get_run(TENANT, "run_1") == before


async def test_tenants_may_use_the_same_ids(store: str) -> None:
    """A run and a conversation of the same id belong to each tenant apart, and so do their receipts."""
    async with opened(store) as kept:
        await kept.paused(client("call_1"), text="Mine")
        await kept.start(tenant=OTHER, text="Theirs", digest="other")
        await kept.answer(client("call_2"), tenant=OTHER)
        await kept.submit(returns("call_1", "mine"))
        accepted = await kept.submit(returns("call_2", "theirs"), tenant=OTHER)
        assert accepted.fresh
        assert (await kept.messages())[0].content == UserContent("Mine")
        assert (await kept.messages(tenant=OTHER))[0].content == UserContent("Theirs")
        told = [event for tenant, _, events in kept.told for event in events if tenant == OTHER]
        assert told == await kept.events(tenant=OTHER)


@pytest.mark.parametrize("method", ["get_run", "move", "owner_move", "preview", "get_pinned", "events"])
async def test_an_unknown_run_is_not_found_and_named(store: str, method: str) -> None:
    """Each method says which id it did not find."""
    calls: dict[str, Callable[[RunStore], Awaitable[object]]] = {
        "get_run": lambda s: s.get_run(TENANT, "run_x"),
        "move": lambda s: s.move(TENANT, "run_x", unchanged),
        "owner_move": lambda s: s.owner_move(Claim(TENANT, "run_x", 1), unchanged),
        "preview": lambda s: s.preview(TENANT, "run_x", unchanged),
        "get_pinned": lambda s: s.get_pinned(TENANT, "run_x"),
        "events": lambda s: s.events(TENANT, "run_x", 0, 1),
    }
    async with opened(store) as kept:
        with pytest.raises(AgentServiceError, match="'run_x'") as missing:
            await calls[method](kept.store)
        assert missing.value.reason is Reason.RUN_NOT_FOUND


_TEXTS = {
    "empty": "",
    "spaces": "  \t\r\n ",
    "unicode": "naïve 日本語 العربية 👩‍👩‍👧 e\u0301",
    "nul": "a\x00b\x00",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028\u2029",
    "edges": "\ufeff\uffff\U0010ffff\ue000",
    "escapes": '\\u0041 \\ud800 \\" %s {} \\\\n',
    "number": "12345678901234567890123",
    "mebibyte": "é" * (512 * 1024),
}


@pytest.mark.parametrize("name", _TEXTS)
async def test_text_comes_back_exactly(store: str, name: str) -> None:
    """Input, arguments, returns and assistant text are kept character for character, in messages, events and calls."""
    text = _TEXTS[name]
    async with opened(store) as kept:
        await kept.start(text=text)
        snapshot = await kept.answer(client("call_1", text), text=text, reasoning=text)
        await kept.submit(returns("call_1", text, stdout=text, stderr=text))
        (call,) = (await kept.store.get_run(TENANT, "run_1")).calls
        assert (snapshot.calls[0].arguments_json, call.arguments_json) == (text, text)
        messages = await kept.messages()
        assert [m for m in _texts(messages) if m != text] == []
        assert len(_texts(messages)) == (7 if text else 5)
        bodies = [event.body for event in await kept.events()]
        assert [body.message for body in bodies if isinstance(body, MessageStored)] == messages


def _texts(messages: list[Message]) -> list[str]:
    found: list[str] = []
    for message in messages:
        content = message.content
        found += [getattr(content, name) for name in ("text", "stdout", "stderr") if hasattr(content, name)]
        found += [call.arguments_json for call in getattr(content, "calls", ())]
    return found


async def test_a_conversation_goes_on_after_any_end(store: str) -> None:
    """Completed, cancelled and interrupted runs keep nobody from starting the next one."""
    async with opened(store) as kept:
        await kept.start("run_1")
        await kept.answer(text="Hi.")
        await kept.start("run_2", "conv_run_1")
        await kept.store.move(TENANT, "run_2", moved(cancel))
        await kept.start("run_3", "conv_run_1")
        await kept.interrupt("run_3")
        await kept.start("run_4", "conv_run_1")
        assert await _statuses(kept, 4) == ["completed", "cancelled", "failed", "running"]


async def _statuses(kept: Kept, count: int) -> list[str]:
    return [(await kept.run(f"run_{number}")).status.value for number in range(1, count + 1)]
