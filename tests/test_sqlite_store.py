"""The SQLite store on real files: how they are opened, commits, locks and crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from agent_service.domain.draft import Draft, Receipt
from agent_service.domain.errors import AgentServiceError, Reason, StaleClaimError
from agent_service.domain.event import ToolReturnsAccepted
from agent_service.domain.moves import cancel, record_answer
from agent_service.domain.run import Claim, RunStatus
from agent_service.engine.loop import moved
from agent_service.stores.errors import SchemaError
from agent_service.stores.sqlite import SqliteStore
from agent_service.stores.sqlite_thread import SqliteThread, open_database, open_reader
from tests.store_contract import (
    TENANT,
    Clock,
    Kept,
    approval,
    approves,
    client,
    counter,
    new_run,
    opened,
    refused,
    returns,
    server,
    step,
    unchanged,
)

pytestmark = pytest.mark.anyio

_ROOT = Path(__file__).parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file will be."""
    return tmp_path / "runs.sqlite3"


def sql(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Runs a statement on a connection of its own, as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        return db.execute(statement, values).fetchall()


@asynccontextmanager
async def writer_held(store: SqliteStore | Kept) -> AsyncIterator[None]:
    """Keeps the writer busy with a move of run_1 that changes nothing, so that further writes wait until the end."""
    held, release = threading.Event(), threading.Event()

    def wait(draft: Draft) -> None:
        held.set()
        assert release.wait(30)

    port = store.store if isinstance(store, Kept) else store
    holding = asyncio.ensure_future(port.move(TENANT, "run_1", wait))
    assert await asyncio.to_thread(held.wait, 30)
    try:
        yield
        await asyncio.sleep(0)
    finally:
        release.set()
        await holding


def commits(path: Path) -> int:
    """How many commits are in the write-ahead log: frames that carry the size of the database after a commit."""
    log = Path(f"{path}-wal").read_bytes()
    page_size, salts = int.from_bytes(log[8:12], "big"), log[16:24]
    frames = [log[at : at + 24] for at in range(32, len(log) - 23, 24 + page_size)]
    return sum(1 for frame in frames if frame[8:16] == salts and frame[4:8] != bytes(4))


# Opening


async def test_the_file_is_readable_by_its_owner_only(path: Path) -> None:
    """So are the log, the index and the lock beside it, whatever the process's mask allows."""
    mask = os.umask(0)
    try:
        async with opened(str(path)) as kept:
            await kept.start()
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(mask)
    assert modes == {path.name + suffix: 0o600 for suffix in ("", "-wal", "-shm", "-lock")}


def test_the_writer_flushes_each_commit_and_checks_references(path: Path) -> None:
    """A write-ahead log with a full flush; and readers cannot write."""
    with closing(open_database(path)) as db:
        found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")]
        assert found == ["wal", 2, 1]
        assert db.execute("PRAGMA fullfsync").fetchone()[0] == 1
    with closing(open_reader(path)) as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM runs")


def test_a_newer_schema_is_refused(path: Path) -> None:
    """An older program does not touch the file of a newer one, and says so."""
    open_database(path).close()
    sql(path, "PRAGMA user_version = 99")
    with pytest.raises(SchemaError, match="schema 99, newer than"):
        open_database(path)
    assert sql(path, "PRAGMA user_version") == [(99,)]


@pytest.mark.parametrize("version", [0, 1, 99])
def test_a_database_of_something_else_is_refused(path: Path, version: int) -> None:
    """Whatever version it has; it is left byte for byte as it was."""
    sql(path, "CREATE TABLE runs (something)")
    sql(path, f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="something else"):
        open_database(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    """It is left as it was."""
    path.write_text("These are my notes. " * 100)
    with pytest.raises(SchemaError, match="not a database"):
        open_database(path)
    assert path.read_text() == "These are my notes. " * 100


def test_a_file_that_cannot_be_made_is_refused(path: Path) -> None:
    """The error names it."""
    with pytest.raises(SchemaError, match=r"nowhere.*runs"):
        open_database(path.parent / "nowhere" / "runs.sqlite3")


async def test_a_file_opened_again_has_everything(path: Path) -> None:
    """Runs, calls, events, messages, receipts and pins read the same as before it was closed."""

    async def everything(kept: Kept) -> list[object]:
        snapshot, pinned = await kept.store.get_run(TENANT, "run_1"), await kept.store.get_pinned(TENANT, "run_1")
        return [snapshot, pinned, await kept.events(), await kept.messages()]

    async with opened(str(path)) as kept:
        await kept.paused(server("look"), client("ask"), approval("send"), refused("bad"), text="Ü\x00")
        await kept.interrupt()
        accepted = await kept.submit(returns("ask"), approves("send", '{"a": 1}', "go"))
        before = await everything(kept)
    async with opened(str(path)) as kept:
        assert await everything(kept) == before
        again = await kept.submit(returns("ask"), approves("send", '{"a": 1}', "go"))
        assert (again.receipt, again.sequence, again.fresh) == (accepted.receipt, accepted.sequence, False)
        assert await everything(kept) == before


# Commits


async def test_writes_that_wait_share_one_commit(path: Path) -> None:
    """Ten starts that came while the writer was busy are flushed once; each has its own answer."""
    async with opened(str(path)) as kept:
        await kept.start()
        before = commits(path)
        assert before > 0
        async with writer_held(kept):
            many = [asyncio.ensure_future(kept.start(f"run_{n}")) for n in range(2, 12)]
        assert [(await start).run.run_id for start in many] == [f"run_{n}" for n in range(2, 12)]
        assert commits(path) == before + 1
        await kept.start("run_12")
        await kept.start("run_13")
        assert commits(path) == before + 3


async def test_a_write_that_fails_does_not_fail_those_it_is_committed_with(path: Path) -> None:
    """Its own caller gets its error, all others get their answers, in one commit."""

    def broken(draft: Draft) -> None:
        cancel(draft)
        raise ValueError("a bug")

    async with opened(str(path)) as kept:
        await kept.paused(client("call_1"))
        before = commits(path)
        async with writer_held(kept):
            writes = [
                kept.start("run_2"),
                kept.start("run_3", "conv_x"),
                kept.store.move(TENANT, "run_1", broken),
                kept.store.owner_move(Claim(TENANT, "run_1", 0), moved(cancel)),
                kept.submit(returns("call_1")),
                kept.start("run_1", digest="other"),
                kept.start("run_4"),
            ]
            waiting = asyncio.gather(*map(asyncio.ensure_future, writes), return_exceptions=True)
        results = await waiting
        failed = [type(result) for result in results if isinstance(result, Exception)]
        assert failed == [AgentServiceError, ValueError, StaleClaimError, AgentServiceError]
        assert commits(path) == before + 1
        assert [(await kept.run(run_id)).status.value for run_id in ("run_1", "run_2", "run_4")] == ["running"] * 3
        assert [run_id for _, run_id, _ in kept.told[-3:]] == ["run_2", "run_1", "run_4"]


async def test_a_write_that_the_database_refuses_leaves_nothing_of_itself(path: Path) -> None:
    """What it had written before the refusal is undone, and nothing is published."""

    def same_receipt(draft: Draft) -> None:
        cancel(draft)
        draft.keep_receipt(Receipt("req_1", "", 1, ToolReturnsAccepted("req_1", (), (), ())))

    async with opened(str(path)) as kept:
        await kept.paused(client("call_1"), client("call_2"))
        await kept.submit(returns("call_1"), request_id="req_1")
        before, told = (await kept.run(), await kept.events(), await kept.messages()), len(kept.told)
        with pytest.raises(sqlite3.IntegrityError):
            await kept.store.move(TENANT, "run_1", same_receipt)
        assert (await kept.run(), await kept.events(), await kept.messages()) == before
        assert len(kept.told) == told


async def test_a_commit_that_fails_is_repeated_write_by_write(path: Path) -> None:
    """The write that makes it fail is told that the store is unavailable; its neighbour is stored and published."""
    orphan = "INSERT INTO receipts VALUES (4711, 'req', 1, '{}')"
    kept_row = "INSERT INTO conversations (tenant, conversation_id, create_time) VALUES ('t', 'c', 1)"
    told: list[object] = []
    writer = SqliteThread(open_database(path), "writer", begin="BEGIN IMMEDIATE")
    held, release = threading.Event(), threading.Event()

    def wait(db: sqlite3.Connection) -> bool:
        held.set()
        return release.wait(30)

    def break_at_commit(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute(orphan)

    first = asyncio.ensure_future(writer.run(wait))
    assert await asyncio.to_thread(held.wait, 30)
    good = asyncio.ensure_future(writer.run(lambda db: db.execute(kept_row).rowcount, told.append))
    bad = asyncio.ensure_future(writer.run(break_at_commit, told.append))
    await asyncio.sleep(0)
    release.set()
    assert await first
    with pytest.raises(AgentServiceError, match="unavailable") as failed:
        await bad
    assert failed.value.reason is Reason.STORE_UNAVAILABLE
    assert await good == 1
    assert told == [1]
    assert sql(path, "SELECT count(*) FROM conversations") == [(1,)]
    assert sql(path, "SELECT count(*) FROM receipts") == [(0,)]
    await writer.close()


async def test_a_publisher_that_fails_leaves_nobody_waiting(path: Path) -> None:
    """What was committed is acknowledged, and the other writes of the batch are, too."""
    writer = SqliteThread(open_database(path), "writer", begin="BEGIN IMMEDIATE")

    def fail(result: int) -> None:
        raise RuntimeError("broken publisher")

    first = writer.run(lambda db: 1, fail)
    second = writer.run(lambda db: 2)
    assert list(await asyncio.gather(first, second)) == [1, 2]
    await writer.close()


async def test_events_are_committed_before_they_are_published(path: Path) -> None:
    """Another connection reads them from the file at the moment they are told."""
    seen: list[tuple[int, int]] = []

    def publish(tenant: str, run_id: str, events: tuple[object, ...]) -> None:
        seen.append((len(events), len(sql(path, "SELECT sequence FROM events"))))

    store = SqliteStore(path, publish=publish, clock=Clock(), new_id=counter())
    await store.start(TENANT, new_run())
    await store.owner_move(Claim(TENANT, "run_1", 1), moved(record_answer, step(text="Hi.")))
    assert seen == [(3, 3), (2, 5)]
    await store.close()


async def test_a_write_whose_caller_left_is_stored_and_published(path: Path) -> None:
    """Who stops waiting does not stop the write, nor those who watch the run from hearing of it."""
    async with opened(str(path)) as kept:
        await kept.paused(client("call_1"))
        async with writer_held(kept):
            leaving = asyncio.ensure_future(kept.submit(returns("call_1")))
            await asyncio.sleep(0)
            leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (await kept.store.move(TENANT, "run_1", unchanged)).run.status is RunStatus.RUNNING
        told = [event for _, _, events in kept.told for event in events]
        assert told == await kept.events()


async def test_closing_finishes_what_was_begun(path: Path) -> None:
    """Writes that wait when the store is closed are stored and answered; later ones are refused."""
    async with opened(str(path)) as kept:
        await kept.start()
        async with writer_held(kept):
            many = [asyncio.ensure_future(kept.start(f"run_{n}")) for n in range(2, 6)]
            await asyncio.sleep(0)
            closing_store = asyncio.ensure_future(kept.store.close())
        await closing_store
        assert [(await start).joined for start in many] == [False] * 4
        assert sql(path, "SELECT count(*) FROM runs") == [(5,)]
        for late in (kept.start("run_9"), kept.run()):
            with pytest.raises(AgentServiceError, match="closed"):
                await late


# Other processes


async def test_a_locked_file_makes_writes_unavailable_and_nothing_else(path: Path) -> None:
    """The caller is told when to try again; reads go on; once the lock is gone, so do writes."""
    told: list[object] = []
    store = SqliteStore(
        path, publish=lambda *what: told.append(what), clock=Clock(), new_id=counter(), busy_seconds=0.01
    )
    await store.start(TENANT, new_run())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for write in (store.move(TENANT, "run_1", moved(cancel)), store.start(TENANT, new_run("run_2"))):
            with pytest.raises(AgentServiceError, match="locked") as locked:
                await write
            assert locked.value.reason is Reason.STORE_UNAVAILABLE
            assert locked.value.retry_after is not None
            assert locked.value.retry_after > 0
        assert (await store.get_run(TENANT, "run_1")).run.status is RunStatus.RUNNING
        assert len(told) == 1
        other.execute("ROLLBACK")
    await store.move(TENANT, "run_1", moved(cancel))
    assert (await store.get_run(TENANT, "run_1")).run.status is RunStatus.CANCELLED
    await store.close()


async def test_two_stores_on_one_file_see_each_others_writes(path: Path) -> None:
    """What one acknowledged the other reads at once; an owner in one is refused after a cancel in the other."""
    async with opened(str(path)) as here, opened(str(path)) as there:
        await here.start()
        claim = await there.claim()
        await there.store.move(TENANT, "run_1", moved(cancel))
        assert (await here.run()).status is RunStatus.CANCELLED
        with pytest.raises(StaleClaimError):
            await here.store.owner_move(claim, unchanged)
        assert (await there.start("run_1")).joined
        assert not (await here.start("run_2", "conv_run_1")).joined


_CHILD = """
import asyncio, sys
from tests.store_contract import client, opened, returns

async def main():
    async with opened(sys.argv[1]) as kept:
        for number in range(1, 10_000):
            run_id, call_id = f"run_{number}", f"call_{number}"
            await kept.paused(client(call_id), run_id=run_id)
            print("paused", run_id, flush=True)
            await kept.submit(returns(call_id, "secret"), run_id=run_id)
            print("running", run_id, flush=True)

asyncio.run(main())
"""


def killed(path: Path) -> list[list[str]]:
    """What a process acknowledged that writes to this file until it is killed."""
    command = [sys.executable, "-c", _CHILD, str(path)]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(9)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    return [line.split() for line in lines if line.endswith("\n")]


async def test_what_was_acknowledged_survives_the_death_of_the_process(path: Path) -> None:
    """Killed in the middle of its writes: all that it had acknowledged is in the file, and the file is sound."""
    told = killed(path)
    assert told[:2] == [["paused", "run_1"], ["running", "run_1"]]
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]
    async with opened(str(path)) as kept:
        for status, run_id in told:
            run = await kept.run(run_id)
            assert run.epoch >= (2 if status == "running" else 1)
            events = await kept.events(run_id)
            assert [event.sequence for event in events] == list(range(1, run.last_sequence + 1))
            assert len(await kept.messages(f"conv_{run_id}")) >= (3 if status == "running" else 2)
        running = [run_id for (run_id,) in sql(path, "SELECT run_id FROM runs WHERE status = 'running'")]
        # Nobody else is there, so their leases are over although the clock says that they are not.
        assert sorted(await kept.store.lost_runs(100)) == sorted((TENANT, run_id) for run_id in running) != []
