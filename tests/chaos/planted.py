"""The service on SQLite with one planted bug: `python -m tests.chaos.planted BUG serve ...`; the checker must find it.

Where the schema of the SQLite file would catch a bug by itself, the bug takes that net away, too.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

from agent_service.cli import main
from agent_service.domain import memory_edit, memory_work, moves, recovery, submit
from agent_service.domain.draft import Draft, Receipt
from agent_service.domain.event import Event, RunStopped
from agent_service.domain.message import Message
from agent_service.domain.run import Claim, Pinned, RunStatus
from agent_service.domain.submit import CallAnswer, Submission, Submitted
from agent_service.domain.tool import Call, CallState
from agent_service.domain.values import replace
from agent_service.engine import context, leases, runs
from agent_service.engine.store import Move
from agent_service.stores import sqlite, sqlite_rows, sqlite_thread, sqlite_work

_COMMIT_SECONDS = 0.05


def publish_before_commit() -> None:
    """Events are told while their transaction may still be lost."""
    attempt = sqlite_thread.SqliteThread._attempt

    def attempt_and_tell(self: Any, job: Any) -> None:
        attempt(self, job)
        if job.done is not None and job.error is None:
            self._loop.call_soon_threadsafe(job.done, job.result)
            job.done = None
            time.sleep(_COMMIT_SECONDS)

    patch(sqlite_thread.SqliteThread, "_attempt", attempt_and_tell)


def stale_epoch_accepted() -> None:
    """An owner goes on writing after the run was taken from it, and is not told in any other way."""

    async def owner_move(self: Any, claim: Claim, move: Move[Any], *, block_ids: tuple[str, ...] = ()) -> Any:
        return await self._move(claim.tenant, claim.run_id, move, (), "", None, block_ids)

    patch(sqlite.SqliteStore, "owner_move", owner_move)
    owners_hear_nothing()
    _without_nets()


def number_used_twice() -> None:
    """The event after a pause takes the number of the pause."""
    emit = Draft.emit

    def emit_again(self: Draft, body: Any, step_id: str = "") -> Event:
        event = emit(self, body, step_id)
        if isinstance(body, RunStopped) and not body.final:
            self.run = replace(self.run, last_sequence=event.sequence - 1)
        return event

    patch(Draft, "emit", emit_again)
    _without_nets()


def receipt_not_stored() -> None:
    """A submit is taken, its receipt is forgotten."""

    def forget(self: Draft, receipt: Receipt) -> None:
        del receipt

    patch(Draft, "keep_receipt", forget)


def row_lock_skipped() -> None:
    """A move is made of what was read before its transaction, so that another one can come between."""

    moved = sqlite.SqliteStore._move

    async def move_unlocked(self: Any, tenant: str, run_id: str, move: Move[Any], *args: Any) -> Any:
        call_ids, request_id, _, *block_ids = args
        if any(block_ids):
            return await moved(self, tenant, run_id, move, *args)
        run_key, run = await self.read(lambda db: sqlite_rows.load_run(db, tenant, run_id))
        draft = await self.read(lambda db: self._draft(db, run_key, run, call_ids, request_id))
        result, change = move(draft), draft.change()

        def write(db: sqlite3.Connection) -> tuple[None, list[Any]]:
            if change is None:
                return None, []
            sqlite_rows.write_change(db, tenant, run_key, sqlite_rows.conversation_of(db, run_key), change)
            return None, [(tenant, run_id, change.events)]

        await self._writer.run(write, self._tell)
        return result

    patch(sqlite.SqliteStore, "_move", move_unlocked)
    _without_nets()


def late_answer_accepted() -> None:
    """An answer to a call that has its outcome is taken as if the call were pending."""
    call_of = submit._call

    def always(draft: Draft, answer: CallAnswer) -> bool:
        return True

    def reopened(draft: Draft, answer: CallAnswer) -> Call:
        call = call_of(draft, answer)
        return replace(call, state=CallState.PENDING) if call.settled else call

    patch(submit, "_is_fresh", always)
    patch(submit, "_call", reopened)
    _without_nets()


def second_final_stop() -> None:
    """A cancel of a run that is over ends it once more."""
    cancel = moves.cancel

    def cancel_again(draft: Draft, *args: Any) -> None:
        if draft.run.status.terminal:
            moves.emit_stopped(draft)
        cancel(draft, *args)

    patch(runs, "cancel", cancel_again)
    _without_nets()


def doubled_resume() -> None:
    """A repeated submit sets the run going once more, beside the one that works already."""
    taken = runs.Runs._submit

    async def taken_again(self: Any, tenant: str, run_id: str, submission: Submission, pinned: Pinned) -> Submitted:
        submitted = await taken(self, tenant, run_id, submission, pinned)
        if not submitted.fresh and submitted.snapshot.run.status is RunStatus.RUNNING:
            self._work(tenant, pinned, submitted.snapshot)
        return submitted

    patch(runs.Runs, "_submit", taken_again)
    _without_nets()


def started_tool_runs_again() -> None:
    """A tool that a dead process had begun is executed again, whatever it is."""
    go_on = recovery._go_on

    def go_on_with_all(draft: Draft, cause: Any, pinned: Pinned, owner: Any) -> bool:
        tools = tuple(replace(tool, idempotent=True) for tool in pinned.tools)
        return go_on(draft, cause, replace(pinned, tools=tools), owner)

    patch(recovery, "_go_on", go_on_with_all)


def read_when_begun() -> None:
    """A part of a transcript counts as read as soon as its memory run begins."""
    taken = memory_work.taken

    def taken_and_read(work: Any, run: Any) -> Any:
        return replace(taken(work, run), through_position=run.memory_part.through)

    patch(sqlite_work, "taken", taken_and_read)


def kept_message_lost() -> None:
    """Of the messages that a compaction keeps, the model is not shown the first."""
    begin_with = context._Entry.begin_with

    def begin_later(self: Any, summary: Message, messages: list[Message]) -> None:
        begin_with(self, summary, messages)
        self.position, self.waiting = self.position + 1, self.waiting[1:]

    patch(context._Entry, "begin_with", begin_later)


def edit_made_twice() -> None:
    """What a memory tool appends is appended once more where the call is stored."""
    appended = memory_edit._appended

    def twice(value: str, text: str) -> str:
        return appended(appended(value, text), text)

    patch(memory_edit, "_appended", twice)


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        publish_before_commit,
        stale_epoch_accepted,
        number_used_twice,
        receipt_not_stored,
        row_lock_skipped,
        late_answer_accepted,
        second_final_stop,
        doubled_resume,
        started_tool_runs_again,
        read_when_begun,
        kept_message_lost,
        edit_made_twice,
    )
}


def patch(owner: object, name: str, value: object) -> None:
    """Replaces something of the service, which must be there."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name} any more: plant this bug elsewhere")
    setattr(owner, name, value)


def owners_hear_nothing() -> None:
    """No owner learns that a run was taken from it, unless a write of it is refused."""

    async def renew(self: Any) -> None:
        await self._store.renew(self.held, self.owner.lease)

    def check(self: Any, tenant: str, run_id: str, epoch: int) -> None:
        del self, tenant, run_id, epoch

    patch(leases.Leases, "renew", renew)
    patch(leases.Leases, "check", check)


def _without_nets() -> None:
    """Takes away the triggers and the index of final stops, and lets a row replace another of the same key."""
    opened = sqlite_thread.open_database

    def open_database(*args: Any) -> Any:
        connection = opened(*args)
        nets = "SELECT type, name FROM sqlite_schema WHERE type = 'trigger' OR name = 'events_final'"
        for kind, name in connection.execute(nets).fetchall():
            connection.execute(f"DROP {kind} {name}")
        return _Replacing(connection)

    patch(sqlite, "open_database", open_database)


class _Replacing:
    """A connection that replaces rows instead of refusing them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *args: Any) -> Any:
        return self._connection.execute(_replacing(sql), *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        return self._connection.executemany(_replacing(sql), *args)


def _replacing(sql: str) -> str:
    """Calls are left alone: their insert updates by itself."""
    into = ("INSERT INTO events", "INSERT INTO messages", "INSERT INTO receipts")
    return sql.replace("INSERT", "INSERT OR REPLACE", 1) if sql.startswith(into) else sql


if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
