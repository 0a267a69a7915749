"""The end of a process, or of a run, in the middle of what its owner does."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import agent_service_pb2_grpc, runs_pb2, tools_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service import wiring
from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.moves import cancel
from agent_service.domain.recovery import hand_over
from agent_service.engine.loop import moved
from agent_service.engine.supervisor import Supervisor
from agent_service.stores.sqlite_thread import SqliteThread
from tests.scripted_openai import ScriptedOpenAI, calls, says, silent
from tests.service import SECRET, scripted, serving, step
from tests.store_contract import TENANT, opened
from tests.test_races import BOUND, stopped_while_a_start_is_stored
from tests.test_stalled_reader import NARROW

pytestmark = pytest.mark.anyio

CALL = calls(("get_secret_code", {"name": "Alice"}))


@pytest.mark.parametrize("how", ["cancelled", "superseded", "timed out"])
async def test_a_model_request_that_the_end_of_its_run_breaks_off_is_counted(store: str, how: str) -> None:
    """The provider may bill it. Waiting for the caller is no request."""
    async with scripted([CALL, silent("Half", after=1), says("Next.")], store) as (client, upstream):
        timeout = Duration(nanos=400_000_000) if how == "timed out" else None
        paused = (await client.ask("Hi", SECRET, run_id="run-1", run_timeout=timeout)).run
        assert paused.model_attempts == 1
        answers = [tools_pb2.ToolReturn(tool_call_id=paused.pending_tool_calls[0].tool_call_id, text="A-1")]
        await client.answer("run-1", *answers, background=True)
        await upstream.wait_for_requests(2)
        if how == "cancelled":
            await client.cancel("run-1")
        elif how == "superseded":
            await client.ask("Now!", conversation_id=paused.conversation_id, on_busy=pb.ON_BUSY_SUPERSEDE)
        else:
            await asyncio.wait_for(client.watch("run-1"), BOUND)
        ended = await client.run("run-1")
        assert ended.model_attempts == 2
        assert ended.status in (runs_pb2.RUN_STATUS_CANCELLED, runs_pb2.RUN_STATUS_FAILED)


@pytest.mark.parametrize("handed_over", [False, True])
async def test_a_model_request_is_counted_once_by_whatever_breaks_it_off(store: str, handed_over: bool) -> None:
    """A run that is cancelled after its owner gave it up has no further request in flight."""
    async with opened(store) as kept:
        await kept.start()
        if handed_over:
            await kept.store.owner_move(await kept.claim(), hand_over)
        await kept.store.move(TENANT, "run_1", moved(cancel))
        await kept.store.move(TENANT, "run_1", moved(cancel))
        assert (await kept.run()).model_attempts == 1


async def test_a_run_that_was_left_to_others_gets_no_heartbeat(supervisor: Supervisor) -> None:
    """Heartbeats go on while the server stops; one would keep others away from a run that nobody works on."""
    store, runs = await stopped_while_a_start_is_stored(supervisor)
    await runs.leases.renew()
    assert await store.lost_runs(9) == ((TENANT, "run_1"),)


async def test_the_end_of_a_server_cancels_no_run_for_a_caller_that_stays(
    shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the server that leaves, also if it has to break off a stream of which nothing is read: the run goes on in
    the next process, whatever its caller wanted to happen when itself left."""
    monkeypatch.setattr(wiring, "_STOP_SECONDS", 0.1)
    count = 20_000
    flood = silent(says(["a token of some text "] * count), after=count)
    request = pb.StreamRequest(
        step=step("Hi", run_id="run-1", on_disconnect=pb.ON_DISCONNECT_CANCEL), stream_tokens=True
    )
    async with ScriptedOpenAI([flood, says("Whole.")]) as upstream, AsyncExitStack() as stack:
        async with serving(upstream, shared_store) as client:
            narrow = await stack.enter_async_context(grpc.aio.insecure_channel(client.target, options=NARROW))
            stalled: Any = agent_service_pb2_grpc.AgentServiceStub(narrow).Stream(request)
            await stalled.read()
            shown = 0
            async for response in client.watching("run-1", stream_tokens=True):
                shown += len(response.event.text_delta.text)
                if shown >= count * 20:
                    break
        async with serving(upstream, shared_store) as client:
            events = await asyncio.wait_for(client.watch("run-1"), 20)
            assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_work_is_cancelled_without_looking_at_all_other_work() -> None:
    """A process that stops cancels each of its runs; the time for that must not grow with their square."""

    class Key:
        """Counts how often it is compared."""

        compared = 0

        def __eq__(self, other: object) -> bool:
            Key.compared += 1
            return self is other

        def __hash__(self) -> int:
            return id(self)

    supervisor = Supervisor(lambda error: None)
    keys = [Key() for _ in range(100)]
    tasks = [supervisor.spawn(key, asyncio.Event().wait()) for key in keys]
    for key in keys[1:]:
        supervisor.cancel(key)
    await asyncio.wait(tasks[1:], timeout=BOUND)
    assert [task.cancelled() for task in tasks] == [False] + 99 * [True]
    assert Key.compared < 100
    await supervisor.cancel_all()


async def test_work_that_begins_while_the_process_stops_has_the_time_that_is_left(supervisor: Supervisor) -> None:
    """As a run whose start was being stored: it is not broken off because everything else has ended."""
    ended = []

    async def work() -> None:
        for _ in range(20):  # It is still at work when all that was there at first has ended.
            await asyncio.sleep(0)
        ended.append("run")

    async def store() -> None:
        await asyncio.sleep(0)
        supervisor.spawn("run", work())

    supervisor.spawn(None, store())
    await supervisor.settle(BOUND)
    assert ended == ["run"]
    supervisor.spawn("run", asyncio.Event().wait())
    await asyncio.wait_for(supervisor.settle(0.01), BOUND)
    await supervisor.cancel_all()


HANGING = """
import asyncio, threading
from agent_service.engine.tools import ToolContext
from agent_service.tools import load_tools, server_tool

@server_tool(timeout=0.05)
def hang() -> str:
    threading.Event().wait()

@server_tool()
def answer() -> str:
    return "here"

async def main() -> None:
    tools = load_tools(["__main__:hang", "__main__:answer"], max_result_bytes=1000)
    context = ToolContext("t", "run-1", "conv-1", "call-1", 1)
    hung = await asyncio.gather(*(tools.call("hang", "{}", context) for _ in range(100)))
    assert all(output.failed for output in hung)
    assert (await tools.call("answer", "{}", context)).text == "here"

asyncio.run(main())
"""


async def test_a_tool_that_hangs_in_its_thread_holds_up_nothing() -> None:
    """Neither other calls, however many hang already, nor the end of the process, whose runs others wait for."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HANGING), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        errors = (await asyncio.wait_for(process.communicate(), 20))[1]
        assert (process.returncode, errors) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_store_closes_while_all_threads_of_the_loop_are_at_work(shared_store: str) -> None:
    """What a library does in the loop's pool may never end."""
    over = threading.Event()
    async with opened(shared_store) as kept:
        busy = [asyncio.ensure_future(asyncio.to_thread(over.wait)) for _ in range(32)]
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(kept.store.close(), BOUND)
        finally:
            over.set()
            await asyncio.gather(*busy)


class Failing(sqlite3.Connection):
    """A connection on a disk that fails for a while."""

    bad_rollbacks = 0

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Fails instead of rolling back, so many times."""
        if statement == "ROLLBACK" and self.bad_rollbacks:
            self.bad_rollbacks -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, *parameters)


async def test_a_rollback_that_fails_leaves_nobody_waiting_and_nothing_half_written() -> None:
    """Who asks is told that the store is unavailable, and the store works again once the disk does."""
    db = sqlite3.connect(":memory:", factory=Failing, isolation_level=None, check_same_thread=False)
    db.execute("CREATE TABLE written (value)")
    db.bad_rollbacks = 2
    thread = SqliteThread(db, "sqlite-writer", begin="BEGIN IMMEDIATE")

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO written VALUES (1)")
        raise sqlite3.OperationalError("disk I/O error")

    def count(connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT count(*) FROM written").fetchone()[0])

    for asking in (thread.run(half), thread.run_outside(count)):
        with pytest.raises(AgentServiceError) as refused:
            await asyncio.wait_for(asking, BOUND)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
    assert db.bad_rollbacks == 0
    assert await asyncio.wait_for(thread.run_outside(count), BOUND) == 0
    await thread.close()
