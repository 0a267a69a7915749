"""What can go wrong only between two steps of one process, or between two services on one file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import pytest
from agentrpc.v1 import agent_registry_service_pb2, agent_service_pb2, run_service_pb2, runs_pb2

from agent_service.domain.run import Owner, RunStatus
from agent_service.domain.start import NewRun, Started
from agent_service.engine.context import Contexts
from agent_service.engine.hub import Hub
from agent_service.engine.limits import Limits
from agent_service.engine.loop import Parts
from agent_service.engine.model import ModelClient
from agent_service.engine.runs import Runs
from agent_service.engine.supervisor import Supervisor
from agent_service.engine.tools import ServerTools
from agent_service.stores.errors import unavailable
from agent_service.stores.memory import MemoryStore
from agent_service.stores.sqlite_presence import Presence
from tests.scripted_openai import ScriptedOpenAI, calls, fails, says
from tests.service import SECRET, Client, serving
from tests.store_contract import TENANT, Clock, counter, new_run, opened
from tests.stored import edit, edit_bodies

pytestmark = pytest.mark.anyio

ENQUEUE = agent_service_pb2.ON_BUSY_ENQUEUE
BOUND = 3.0
"""The longest, in seconds, that a test waits for what should come."""
MINUTE = 60 * 10**9
CALL = calls(("get_secret_code", {"name": "Alice"}))


class Unanswering:
    """A model that never answers, and counts how often it is asked."""

    name = "openai"
    asked = 0

    def encode(self, messages: object) -> bytes:
        """Nothing."""
        return b""

    def build(self, request: object) -> Any:
        """Nothing."""

    async def complete(self, request: object, sink: object) -> Any:
        """For ever."""
        self.asked += 1
        await asyncio.Event().wait()


class SlowStore(MemoryStore):
    """Tells of a start only a while after it is stored."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.stored, self.go_on = asyncio.Event(), asyncio.Event()

    async def start(self, tenant: str, new: NewRun) -> Started:
        """See RunStore."""
        started = await super().start(tenant, new)
        self.stored.set()
        await self.go_on.wait()
        return started


class AwayStore(MemoryStore):
    """Does not answer the first two moves."""

    moves = 0

    async def move(self, *args: Any, **options: Any) -> Any:
        """See RunStore."""
        self.moves += 1
        if self.moves <= 2:
            raise unavailable("it is away", retry_after=0.001)
        return await super().move(*args, **options)


Made = TypeVar("Made", bound=MemoryStore)


def made(kind: type[Made], model: Unanswering, supervisor: Supervisor, clock: Any = time.time_ns) -> tuple[Made, Runs]:
    """A store, and the use cases on it and on this model."""
    hub = Hub(99)
    store = kind(publish=hub.publish, clock=clock, new_id=counter())
    models = {model.name: cast(ModelClient, model)}
    parts = Parts(store, hub, Contexts(store, 0), models, cast(ServerTools, None), Limits(), counter())
    return store, Runs(parts, supervisor, owner=Owner("process_1", MINUTE), heartbeat=BOUND)


async def delete(client: Client, conversation_id: str) -> None:
    """DeleteConversation."""
    request = agent_registry_service_pb2.DeleteConversationRequest(conversation_id=conversation_id)
    await client.registry.DeleteConversation(request)


@asynccontextmanager
async def two(script: Any, store: str) -> AsyncIterator[tuple[Client, Client]]:
    """Two services on one store."""
    async with ScriptedOpenAI(script) as upstream, serving(upstream, store) as a, serving(upstream, store) as b:
        yield a, b


@asynccontextmanager
async def watching(client: Client, run_id: str, after: int) -> AsyncIterator[asyncio.Task[str]]:
    """Watches a run from a cursor on, up to its final end: the status that the watch ends with."""
    call: Any = client.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after))
    events = aiter(call)
    assert (await anext(events)).event.HasField("live")

    async def end() -> str:
        with suppress(grpc.aio.AioRpcError):
            async for _ in events:
                pass
        return str((await call.code()).name)

    ending = asyncio.ensure_future(end())
    try:
        yield ending
    finally:
        call.cancel()
        await asyncio.wait({ending})


async def test_a_run_that_is_cancelled_before_its_work_begins_asks_no_model(supervisor: Supervisor) -> None:
    """Between the start that is stored and the first step of its task, too."""
    model = Unanswering()
    _, runs = made(MemoryStore, model, supervisor)
    starting = asyncio.ensure_future(anext(runs.start(TENANT, new_run())))
    await asyncio.sleep(0)
    snapshot = await runs.cancel(TENANT, "run_1")
    await asyncio.wait({starting}, timeout=BOUND)
    await supervisor.settle(0.2)
    starting.cancel()
    assert (snapshot.run.status, snapshot.run.epoch) == (RunStatus.CANCELLED, 2)
    assert (model.asked, runs.leases.held) == (0, ())


async def test_a_run_whose_caller_left_is_cancelled_when_the_store_is_back(supervisor: Supervisor) -> None:
    """Nobody is there to repeat the cancel that could not be stored at once."""
    store, runs = made(AwayStore, Unanswering(), supervisor)
    await store.start(TENANT, new_run())
    runs.cancel_soon(TENANT, "run_1")
    await supervisor.settle(BOUND)
    assert (await store.get_run(TENANT, "run_1")).run.status is RunStatus.CANCELLED
    assert store.moves == 3


async def stopped_while_a_start_is_stored(supervisor: Supervisor) -> tuple[SlowStore, Runs]:
    """A process that was told to stop after a start was stored and before it heard of that."""
    store, runs = made(SlowStore, Unanswering(), supervisor)
    starting = asyncio.ensure_future(anext(runs.start(TENANT, new_run())))
    await store.stored.wait()
    stopping = asyncio.ensure_future(runs.shut_down(0.0))
    for _ in range(20):
        await asyncio.sleep(0)
    store.go_on.set()
    await asyncio.wait_for(stopping, BOUND)
    starting.cancel()
    return store, runs


async def test_a_start_that_is_stored_while_the_process_stops_is_left_to_others_at_once(supervisor: Supervisor) -> None:
    """Nobody has to wait for the end of its lease, and it is not counted as lost."""
    store, _ = await stopped_while_a_start_is_stored(supervisor)
    assert await store.lost_runs(9) == ((TENANT, "run_1"),)
    assert (await store.get_run(TENANT, "run_1")).run.lease_expire_time == 0


async def test_a_file_has_one_lock_whatever_path_leads_to_it(tmp_path: Path) -> None:
    """A process that comes by a symbolic link is not alone: else it would end the leases of the others."""
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file").symlink_to("real/runs")
    first = Presence(tmp_path / "real" / "runs")
    first.share()
    others = [Presence(tmp_path / "folder" / "runs"), Presence(tmp_path / "file")]
    alone = [presence.alone for presence in (first, *others)]
    for presence in (first, *others):
        presence.close()
    assert alone == [True, False, False]


@pytest.mark.parametrize("damage", ["codec = 999", "body = '{}'"])
async def test_a_run_that_cannot_be_read_holds_up_no_other(shared_store: str, damage: str) -> None:
    """It is overdue, and of a newer program or damaged: a queued run of another conversation begins all the same. What
    is of a newer program is left to that."""
    async with ScriptedOpenAI([CALL, CALL, says("My turn.")]) as upstream:
        async with serving(upstream, shared_store) as client:
            await client.ask("Unreadable", SECRET, run_id="bad")
            paused = await client.ask("First", SECRET, run_id="before")
            conversation = paused.run.conversation_id
            await client.ask("Second", run_id="queued", conversation_id=conversation, on_busy=ENQUEUE, background=True)
        await edit_bodies(shared_store, "runs", "run_id = 'before'", pause_expire_time=1)
        await edit(
            shared_store,
            "UPDATE runs SET pause_expire_time = 1 WHERE run_id IN ('bad', 'before')",
            f"UPDATE runs SET {damage} WHERE run_id = 'bad'",
        )
        async with opened(shared_store) as kept:
            due = {run_id for _, run_id in await kept.store.due_runs(9)}
            assert due == ({"before"} if "codec" in damage else {"before", "bad"})
        async with serving(upstream, shared_store) as client:
            events = await asyncio.wait_for(client.watch("queued"), BOUND)
    assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED


@pytest.mark.parametrize("what", ["run", "conversation"])
async def test_who_watches_an_interrupted_run_that_is_deleted_is_told(store: str, what: str) -> None:
    """Its final stop comes, or that the run is no more."""
    async with ScriptedOpenAI([fails(503, "Busy.")]) as upstream, serving(upstream, store) as client:
        run = (await client.ask("Hello")).run
        async with watching(client, run.run_id, run.last_sequence) as ending:
            await (client.delete(run.run_id) if what == "run" else delete(client, run.conversation_id))
            await asyncio.wait({ending}, timeout=BOUND)
            assert ending.done()
            assert ending.result() == ("OK" if what == "run" else "NOT_FOUND")


@pytest.mark.parametrize("what", ["run", "conversation"])
async def test_who_watches_a_run_that_another_process_deletes_is_told(shared_store: str, what: str) -> None:
    """That it is no more; nobody watches for ever."""
    async with two([fails(503, "Busy.")], shared_store) as (a, b):
        run = (await a.ask("Hello")).run
        async with watching(a, run.run_id, run.last_sequence) as ending:
            await (b.delete(run.run_id) if what == "run" else delete(b, run.conversation_id))
            await asyncio.wait({ending}, timeout=BOUND)
            assert ending.done()
            assert ending.result() == "NOT_FOUND"


async def test_a_look_for_lost_runs_takes_none_while_the_process_stops(supervisor: Supervisor) -> None:
    """It may have found what the stopping process itself has just left to others."""
    store, runs = made(MemoryStore, Unanswering(), supervisor)
    starting = asyncio.ensure_future(anext(runs.start(TENANT, new_run())))
    await asyncio.wait({starting}, timeout=BOUND)
    reading, go_on, read = asyncio.Event(), asyncio.Event(), store.lost_runs

    async def slow(limit: int) -> tuple[tuple[str, str], ...]:
        reading.set()
        await go_on.wait()
        return await read(limit)

    store.lost_runs = slow  # type: ignore[method-assign]  # slower, else the same
    looking = asyncio.ensure_future(runs.take_over())
    await reading.wait()
    await runs.shut_down(0.0)
    go_on.set()
    await asyncio.wait_for(looking, BOUND)
    run = (await store.get_run(TENANT, "run_1")).run
    assert (run.epoch, run.lease_expire_time, runs.leases.held) == (1, 0, ())


async def test_a_process_does_not_take_over_its_own_work_when_the_clock_leaps(supervisor: Supervisor) -> None:
    """As after the host slept: the next heartbeat renews the lease. No model is asked twice, no owner is lost."""
    clock, model = Clock(), Unanswering()
    store, runs = made(MemoryStore, model, supervisor, clock)
    starting = asyncio.ensure_future(anext(runs.start(TENANT, new_run())))
    await asyncio.wait({starting}, timeout=BOUND)
    clock.now += 10 * MINUTE
    taken = await runs.take_over()
    await runs.leases.renew()
    run = (await store.get_run(TENANT, "run_1")).run
    lost = await store.lost_runs(9)
    await runs.shut_down(0.0)
    assert (taken, run.epoch, run.losses, lost, model.asked) == (0, 1, 0, (), 1)
