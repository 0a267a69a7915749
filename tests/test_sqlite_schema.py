"""The schema of the SQLite store: what the database itself refuses, and what becomes of files of older programs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agent_service.stores.errors import SchemaError
from agent_service.stores.sqlite_thread import SCHEMA_VERSION, open_database
from tests.older import SCHEMAS, check_resumes
from tests.store_contract import client, lived_in, opened, returns

pytestmark = pytest.mark.anyio

_BEGUN = "'run_started', NULL, 1, '{}'"
_FINAL = """'run_stopped', NULL, 1, '{"final":true}'"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file will be."""
    return tmp_path / "runs.sqlite3"


def sql(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Runs a statement on a connection of its own, as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        return db.execute(statement).fetchall()


def contents(path: Path) -> list[str]:
    """Everything in the file."""
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


# What the database refuses


def event(run_id: str, number: str, what: str = _BEGUN) -> str:
    """A statement that appends an event; `number` is an expression over the run's row."""
    return f"INSERT INTO events SELECT run_key, {number}, '', 1, {what} FROM runs WHERE run_id = '{run_id}'"


def call(tool_call_id: str, run_id: str, state: str, verb: str = "INSERT") -> str:
    """A statement that writes a call of a run."""
    return (
        f"{verb} INTO calls (tool_call_id, tenant, run_key, step, pending_time, state, codec, body) "
        f"SELECT '{tool_call_id}', tenant, run_key, 1, 1, '{state}', 1, '{{}}' FROM runs WHERE run_id = '{run_id}'"
    )


_COPY_OF_A_RUN = (
    "pin_key, agent_id, status, epoch, owner, lease_expire_time, pause_expire_time, last_sequence, create_time, "
    "codec, body, parent_run_id FROM runs"
)

_OF_RUNS = {
    "a revived run": ("UPDATE runs SET status = 'running' WHERE run_id = 'run_1'", "terminal run never changes"),
    "a second end": ("UPDATE runs SET status = 'failed' WHERE run_id = 'run_1'", "terminal run never changes"),
    "an end told otherwise": ("UPDATE runs SET body = '{}' WHERE run_id = 'run_1'", "terminal run never changes"),
    "an end with an owner": ("UPDATE runs SET owner = 'x' WHERE run_id = 'run_1'", "terminal run never changes"),
    "an end nobody is told": ("UPDATE runs SET status = 'failed' WHERE run_id = 'run_3'", "final event"),
    "an epoch that goes down": ("UPDATE runs SET epoch = epoch - 1 WHERE run_id = 'run_3'", "never go down"),
    "numbers that go down": ("UPDATE runs SET last_sequence = 2 WHERE run_id = 'run_3'", "never go down"),
    "a number without an event": ("UPDATE runs SET last_sequence = 4 WHERE run_id = 'run_3'", "of the last event"),
    "a second busy run": (
        f"INSERT INTO runs SELECT 99, tenant, 'run_9', conversation_key, {_COPY_OF_A_RUN} WHERE run_id = 'run_2'",
        "UNIQUE",
    ),
    "the same run twice": (
        f"INSERT INTO runs SELECT 99, tenant, run_id, conversation_key, {_COPY_OF_A_RUN} WHERE run_id = 'run_1'",
        "inserted once",
    ),
    "another run in the place of one": (
        f"REPLACE INTO runs SELECT run_key, tenant, 'run_9', conversation_key, {_COPY_OF_A_RUN} WHERE run_id = 'run_1'",
        "inserted once",
    ),
    "an unknown status": ("UPDATE runs SET status = 'asleep' WHERE run_id = 'run_2'", "CHECK"),
    "text where a number belongs": ("UPDATE runs SET epoch = 'x' WHERE run_id = 'run_2'", "cannot store"),
}

_OF_EVENTS = {
    "another event": ("UPDATE events SET kind = 'run_started' WHERE sequence = 1", "event never changes"),
    "the same number twice": (event("run_3", "1"), "next number"),
    "a number left out": (event("run_3", "last_sequence + 2"), "next number"),
    "an event in the place of one": (event("run_3", "1").replace("INSERT", "REPLACE"), "next number"),
    "an event after the end": (event("run_1", "last_sequence + 1"), "no further event"),
    "two final events": (
        event("run_3", "value", _FINAL).replace("FROM runs", "FROM json_each('[4, 5]'), runs"),
        "UNIQUE",
    ),
    "an event with neither body nor message": (
        event("run_3", "last_sequence + 1", "'run_started', NULL, 1, NULL"),
        "CHECK",
    ),
}

_OF_CALLS = {
    "a second outcome": ("UPDATE calls SET state = 'failed' WHERE state = 'returned'", "outcome of a call"),
    "an outcome taken back": ("UPDATE calls SET state = 'pending' WHERE state = 'returned'", "outcome of a call"),
    "an outcome replaced": (call("call_3", "run_2", "failed", "REPLACE"), "its outcome"),
    "a call moved to another run": (
        "UPDATE calls SET run_key = (SELECT run_key FROM runs WHERE run_id = 'run_3') WHERE tool_call_id = 'call_2'",
        "moves to another run",
    ),
    "a call of another tenant": ("UPDATE calls SET tenant = 'x' WHERE tool_call_id = 'call_2'", "moves to another run"),
    "a call overwritten by another run": (
        call("call_2", "run_3", "returned") + " ON CONFLICT (tool_call_id) DO UPDATE SET state = excluded.state",
        "keeps its run",
    ),
    "a call replaced by another run": (call("call_2", "run_3", "pending", "REPLACE"), "keeps its run"),
    "a call after the end": (call("call_9", "run_1", "pending"), "no further call"),
}

_OF_THE_REST = {
    "another text": ("UPDATE messages SET body = '{}' WHERE position = 1", "message never changes"),
    "the same position twice": ("INSERT INTO messages SELECT * FROM messages LIMIT 1", "message never changes"),
    "a message in the place of one": ("REPLACE INTO messages SELECT * FROM messages LIMIT 1", "message never changes"),
    "another receipt": ("UPDATE receipts SET body = '{}'", "receipt never changes"),
    "the same receipt twice": ("INSERT INTO receipts SELECT * FROM receipts LIMIT 1", "receipt never changes"),
    "a receipt in the place of one": ("REPLACE INTO receipts SELECT * FROM receipts LIMIT 1", "receipt never changes"),
    "a conversation taken from under its runs": ("DELETE FROM conversations", "FOREIGN KEY"),
}

_FORBIDDEN = _OF_RUNS | _OF_EVENTS | _OF_CALLS | _OF_THE_REST


@pytest.mark.parametrize("what", _FORBIDDEN)
async def test_the_database_itself_refuses(path: Path, what: str) -> None:
    """What must never happen is refused by the file, also when another program or a bug asks for it."""
    async with opened(str(path)) as kept:
        await lived_in(kept)
    before = contents(path)
    statement, message = _FORBIDDEN[what]
    with pytest.raises(sqlite3.IntegrityError, match=message):
        sql(path, statement)
    assert contents(path) == before


async def test_a_run_cannot_end_while_a_call_of_it_is_open(path: Path) -> None:
    """Not even when its final event is there."""
    async with opened(str(path)) as kept:
        await lived_in(kept)
    sql(path, event("run_2", "last_sequence + 1", _FINAL))
    with pytest.raises(sqlite3.IntegrityError, match="has no outcome"):
        sql(path, "UPDATE runs SET status = 'failed', last_sequence = last_sequence + 1 WHERE run_id = 'run_2'")


async def test_the_lease_of_a_running_run_can_be_moved(path: Path) -> None:
    """By a statement of its own, without a move of the run."""
    async with opened(str(path)) as kept:
        await lived_in(kept)
    sql(path, "UPDATE runs SET lease_expire_time = 5 WHERE run_id = 'run_3' AND epoch = 1 AND status = 'running'")
    assert sql(path, "SELECT lease_expire_time FROM runs WHERE run_id = 'run_3'") == [(5,)]


async def test_a_model_answer_with_a_call_id_of_another_run_is_not_stored(path: Path) -> None:
    """Neither run is changed by it."""
    async with opened(str(path)) as kept:
        await lived_in(kept)
        before = contents(path)
        with pytest.raises(sqlite3.IntegrityError, match="keeps its run"):
            await kept.answer(client("call_2"), run_id="run_3")
        assert contents(path) == before


async def test_known_outcomes_are_received_again_after_the_end_of_the_run(path: Path) -> None:
    """The receipt is kept, and the row of the run, which is over, is left alone."""
    async with opened(str(path)) as kept:
        await lived_in(kept)
        run = await kept.run()
        again = await kept.submit(returns("call_1"), request_id="req_2")
        assert (again.fresh, again.receipt.already_settled) == (False, ("call_1",))
        assert await kept.run() == run
    found = sql(path, "SELECT request_id FROM receipts JOIN runs USING (run_key) WHERE run_id = 'run_1' ORDER BY 1")
    assert found == [("req_1",), ("req_2",)]


# Files of older programs


def restore(path: Path, version: int, *more: str) -> None:
    """Makes the file that a program of that schema left, with more statements applied."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript((SCHEMAS / f"{version}.sql").read_text())
        for statement in more:
            db.execute(statement)
        db.commit()


def objects(path: Path) -> list[tuple[object, ...]]:
    """All that the schema defines."""
    return sql(path, "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_older_file_gets_the_schema_of_a_new_one(path: Path, version: int) -> None:
    """Each table, index and trigger is the same, and the rows are those it had, with defaults in new columns."""
    restore(path, version)
    rows = [line.removesuffix(");") for line in contents(path) if line.startswith("INSERT")]
    open_database(path).close()
    new = path.with_name("new.sqlite3")
    open_database(new).close()
    assert objects(path) == objects(new)
    assert sql(path, "PRAGMA user_version") == sql(new, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    now = [line for line in contents(path) if line.startswith("INSERT")]
    assert all(line.startswith(before) for line, before in zip(now, rows, strict=True))


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_a_run_that_an_older_program_paused_is_resumed(path: Path, version: int) -> None:
    """What it knows, it knows still; what it waits for can be sent."""
    restore(path, version)
    first, second = (str(row[0]) for row in sql(path, "SELECT tool_call_id FROM calls ORDER BY state DESC"))
    await check_resumes(str(path), first, second)


def test_a_file_that_cannot_be_brought_to_the_schema_is_left_as_it_was(path: Path) -> None:
    """All steps are one transaction, and the error says what is wrong."""
    restore(path, 1, event("run_first", "last_sequence + 1", _FINAL))
    before = contents(path), sql(path, "PRAGMA user_version")
    with pytest.raises(SchemaError, match="UNIQUE"):
        open_database(path)
    assert (contents(path), sql(path, "PRAGMA user_version")) == before
