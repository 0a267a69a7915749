"""How long the events of a run are kept after its end, and what callers read then."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from agentrpc.v1 import runs_pb2

from agent_service.engine import upkeep
from tests.scripted_openai import calls, says
from tests.service import SECRET, Client, kinds, refusal, returned, scripted
from tests.store_contract import client, opened, returns

pytestmark = pytest.mark.anyio

BRIEFLY: Any = {"event_retention_seconds": 1e-6}
CALL = calls(("get_secret_code", {"name": "Alice"}))


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests need not wait for a second."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.01)


async def test_only_events_of_runs_that_ended_long_ago_are_forgotten(store: str) -> None:
    """At most as many runs at a time as asked for, the earliest first; messages and the run itself stay."""
    async with opened(store) as kept:
        for number in range(3):
            await kept.paused(client(f"call_{number}"), run_id=f"run_{number}")
        for number in range(2):
            kept.clock.now += 100
            await kept.submit(returns(f"call_{number}"), run_id=f"run_{number}")
            await kept.answer(text="Bye.", run_id=f"run_{number}")
        before = [await kept.run(f"run_{number}") for number in range(3)]
        assert await kept.store.trim_events(kept.clock.now - 100, 9) == 0
        assert await kept.store.trim_events(kept.clock.now, 9) == 1
        assert [bool(await kept.events(f"run_{number}")) for number in range(3)] == [False, True, True]
        kept.clock.now += 100
        assert await kept.store.trim_events(kept.clock.now, 1) == 1
        assert await kept.store.trim_events(kept.clock.now, 9) == 0
        assert [bool(await kept.events(f"run_{number}")) for number in range(3)] == [False, False, True]
        assert [await kept.run(f"run_{number}") for number in range(3)] == before
        assert len(await kept.messages("conv_run_0")) == 4


async def forgotten(service: Client, run_id: str) -> None:
    """Returns when the run's events are gone."""
    with pytest.raises(grpc.aio.AioRpcError):
        while await service.watch(run_id):
            pass


async def test_a_watcher_is_told_that_events_are_gone(store: str) -> None:
    """OUT_OF_RANGE; the run and its messages can be read, and the conversation goes on."""
    async with scripted([says("Hello."), says("Again.")], store, **BRIEFLY) as (service, upstream):
        run = (await service.ask("Hi")).run
        await forgotten(service, run.run_id)
        refused = await refusal(service.watching(run.run_id))
        assert (refused.code, refused.reason) == ("OUT_OF_RANGE", "CURSOR_TRIMMED")
        assert await service.watch(run.run_id, run.last_sequence) == []
        assert await service.run(run.run_id) == run
        assert kinds(await service.messages(run.conversation_id)) == ["user", "assistant"]
        await service.ask("Hi again", conversation_id=run.conversation_id)
        upstream.check_histories()


async def test_a_repeat_after_that_is_told_the_same(store: str) -> None:
    """A start and a submit are known still and not done twice, but their events are gone."""
    async with scripted([CALL, says("It is A-1.")], store, **BRIEFLY) as (service, upstream):
        paused = (await service.ask("Code?", SECRET, run_id="run-1")).run
        answer = returned(paused.pending_tool_calls[0], "A-1")
        await service.answer("run-1", answer)
        await forgotten(service, "run-1")
        for repeated in (service.ask("Code?", SECRET, run_id="run-1"), service.answer("run-1", answer)):
            assert (await refusal(repeated)).reason == "CURSOR_TRIMMED"
        assert upstream.request_count == 2


async def test_a_paused_run_keeps_its_events(store: str) -> None:
    """However long it waits."""
    async with scripted([CALL, says("Hello.")], store, **BRIEFLY) as (service, _):
        paused = (await service.ask("Code?", SECRET)).run
        other = (await service.ask("Hi")).run
        await forgotten(service, other.run_id)
        events = await service.watch(paused.run_id, stop_at="STOP_AT_NEXT_STOP")
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_PAUSED
