"""Opens each kind of store for its contract tests, and the words that those tests are written in.

A new store joins the suite by one line in `open_store` and one parameter of the fixtures `store` and `shared_store`.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_service.domain.draft import Draft, NewId, Snapshot
from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import Event
from agent_service.domain.expiry import expire
from agent_service.domain.message import Message, UserContent
from agent_service.domain.moves import PlannedCall, StepRecord, fail, record_answer
from agent_service.domain.recovery import recover, retry
from agent_service.domain.run import AgentKind, Claim, Owner, Pinned, Run, RunError, RunStatus, StopReason, Usage
from agent_service.domain.start import NewRun, OnBusy, Started
from agent_service.domain.submit import (
    ApproveAnswer,
    CallAnswer,
    DenyAnswer,
    ReturnAnswer,
    Submission,
    Submitted,
    submit,
)
from agent_service.domain.tool import Executor, ToolSchema
from agent_service.domain.values import replace
from agent_service.engine.loop import moved
from agent_service.engine.store import Publish, RunStore
from agent_service.stores.memory import MemoryStore
from agent_service.stores.postgres import PostgresStore
from agent_service.stores.sqlite import SqliteStore
from agent_service.stores.urls import is_postgres

TENANT = "acme"
OTHER = "globex"
LEASE = 10_000
"""Nanoseconds of a lease."""
FIRST, SECOND = Owner("process_1", LEASE), Owner("process_2", LEASE)
GONE = RunError(Reason.LLM_UNAVAILABLE, "the endpoint is down", retryable=True)
REPEATABLE = ToolSchema("repeatable", "", "{}", Executor.SERVER, idempotent=True)
PINNED = Pinned("default", AgentKind.LLM, "model-1", "openai", "Be helpful.", (REPEATABLE,))


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


def counter() -> NewId:
    """Ids that count: msg_1, msg_2, ..."""
    numbers = itertools.count(1)
    return lambda prefix: f"{prefix}_{next(numbers)}"


async def open_store(setting: str, publish: Publish, clock: Clock) -> RunStore:
    """The store of this setting: "memory", a path, or the URL of a database."""
    if setting == "memory":
        return MemoryStore(publish=publish, clock=clock, new_id=counter())
    if is_postgres(setting):
        return await PostgresStore.open(setting, publish=publish, clock=clock, new_id=counter())
    return SqliteStore(Path(setting), publish=publish, clock=clock, new_id=counter())


@dataclass
class Kept:
    """An open store, its clock, and what it published, in order."""

    store: RunStore
    clock: Clock
    told: list[tuple[str, str, tuple[Event, ...]]]

    async def start(self, run_id: str = "run_1", conversation_id: str = "", **fields: Any) -> Started:
        """Starts a run in a new conversation, or in the one named."""
        tenant, on_busy = fields.pop("tenant", TENANT), fields.pop("on_busy", OnBusy.REJECT)
        return await self.store.start(tenant, replace(new_run(run_id, conversation_id, **fields), on_busy=on_busy))

    async def expire(self, run_id: str = "run_1", tenant: str = TENANT) -> bool:
        """Another process does what is due by the clock; True if it goes on with the run."""
        return await self.store.move(tenant, run_id, lambda draft: expire(draft, SECOND))

    async def answer(self, *calls: PlannedCall, run_id: str = "run_1", tenant: str = TENANT, **fields: Any) -> Snapshot:
        """Stores a model answer as the run's present owner."""
        return await self.store.owner_move(
            await self.claim(run_id, tenant), moved(record_answer, step(*calls, **fields))
        )

    async def paused(self, *calls: PlannedCall, run_id: str = "run_1", **fields: Any) -> Snapshot:
        """Starts a run whose model makes these calls."""
        await self.start(run_id, **fields)
        return await self.answer(*calls, run_id=run_id)

    async def submit(
        self, *answers: CallAnswer, run_id: str = "run_1", request_id: str = "req_1", tenant: str = TENANT
    ) -> Submitted:
        """Submits answers as a caller."""
        submission = submitted(*answers, request_id=request_id)
        return await self.store.move(
            tenant,
            run_id,
            lambda draft: submit(draft, submission, SECOND),
            call_ids=tuple(answer.tool_call_id for answer in answers),
            request_id=request_id,
        )

    async def interrupt(self, run_id: str = "run_1", tenant: str = TENANT) -> Snapshot:
        """The run's present owner gives up, because of a failure that may pass."""
        return await self.store.owner_move(
            await self.claim(run_id, tenant), moved(fail, StopReason.LLM_API_ERROR, GONE)
        )

    async def recover(self, run_id: str = "run_1", tenant: str = TENANT) -> bool:
        """The lease of the run's owner is over, and another process looks after the run; True if it goes on there."""
        self.clock.now += LEASE
        pinned = await self.store.get_pinned(tenant, run_id)
        return await self.store.move(tenant, run_id, lambda draft: recover(draft, pinned, SECOND))

    async def retry(self, run_id: str = "run_1", request_id: str = "", tenant: str = TENANT) -> bool:
        """Somebody asks to go on with the run; True if it goes on."""
        pinned = await self.store.get_pinned(tenant, run_id)
        return await self.store.move(
            tenant, run_id, lambda draft: retry(draft, request_id, pinned, SECOND), request_id=request_id
        )

    async def claim(self, run_id: str = "run_1", tenant: str = TENANT) -> Claim:
        """The claim of the run's present owner."""
        return Claim(tenant, run_id, (await self.run(run_id, tenant)).epoch)

    async def run(self, run_id: str = "run_1", tenant: str = TENANT) -> Run:
        """The run as it is now."""
        return (await self.store.get_run(tenant, run_id)).run

    async def events(self, run_id: str = "run_1", tenant: str = TENANT) -> list[Event]:
        """All events of a run."""
        events: list[Event] = []
        while page := await self.store.events(tenant, run_id, len(events), 1000):
            events.extend(page)
        return events

    async def messages(self, conversation_id: str = "conv_run_1", tenant: str = TENANT) -> list[Message]:
        """All messages of a conversation."""
        messages: list[Message] = []
        while page := await self.store.messages(tenant, conversation_id, len(messages), 1000):
            messages.extend(page)
        return messages


@asynccontextmanager
async def opened(setting: str) -> AsyncIterator[Kept]:
    """A store of this setting."""
    told: list[tuple[str, str, tuple[Event, ...]]] = []
    clock = Clock()
    store = await open_store(setting, lambda *what: told.append(what), clock)
    try:
        yield Kept(store, clock, told)
    finally:
        await store.close()


async def lived_in(kept: Kept) -> None:
    """Fills a store: run_1 is completed and has a call and a receipt, run_2 waits for call_2 only, run_3 runs."""
    await kept.paused(client("call_1"))
    await kept.submit(returns("call_1"))
    await kept.answer(text="Bye.")
    await kept.paused(client("call_2"), client("call_3"), run_id="run_2", conversation_id="conv_run_1")
    await kept.submit(returns("call_3"), run_id="run_2")
    await kept.start("run_3")


def new_run(
    run_id: str = "run_1",
    conversation_id: str = "",
    *,
    text: str = "Hello",
    digest: str = "digest",
    pinned: Pinned = PINNED,
    **fields: Any,
) -> NewRun:
    """A start with one user message; without a conversation it makes `conv_<run_id>`."""
    row: dict[str, Any] = {"max_steps": 50, "labels": {"team": "a"}, **fields}
    run = Run(
        run_id=run_id,
        conversation_id=conversation_id or f"conv_{run_id}",
        agent_id="default",
        model="model-1",
        digest=digest,
        status=RunStatus.QUEUED,
        create_time=0,
        update_time=0,
        **row,
    )
    return NewRun(run, pinned, (UserContent(text),), FIRST, new_conversation=not conversation_id)


def client(tool_call_id: str, arguments: str = "{}") -> PlannedCall:
    """A call of a client tool."""
    return _planned(tool_call_id, arguments, Executor.CLIENT)


def timed(tool_call_id: str) -> PlannedCall:
    """A call of a client tool whose caller has half a lease for it."""
    return replace(client(tool_call_id), timeout=LEASE // 2)


def server(tool_call_id: str, arguments: str = "{}") -> PlannedCall:
    """A call of a server tool."""
    return _planned(tool_call_id, arguments, Executor.SERVER)


def repeatable(tool_call_id: str) -> PlannedCall:
    """A call of the server tool that may be executed more than once."""
    return _planned(tool_call_id, "{}", Executor.SERVER, name=REPEATABLE.name)


def approval(tool_call_id: str, arguments: str = "{}") -> PlannedCall:
    """A call of a server tool that needs an approval."""
    return _planned(tool_call_id, arguments, Executor.SERVER, needs_approval=True)


def refused(tool_call_id: str, refusal: str = "Error: there is no such tool.") -> PlannedCall:
    """A call that is refused before anything executes."""
    return _planned(tool_call_id, "{}", Executor.SERVER, refusal=refusal)


def _planned(tool_call_id: str, arguments: str, executor: Executor, **fields: Any) -> PlannedCall:
    return PlannedCall(
        **{
            "tool_call_id": tool_call_id,
            "provider_call_id": f"theirs_{tool_call_id}",
            "name": f"tool_{tool_call_id}",
            "arguments_json": arguments,
            "executor": executor,
            "needs_approval": False,
            **fields,
        }
    )


def step(*calls: PlannedCall, text: str = "", **fields: Any) -> StepRecord:
    """A model answer with these calls."""
    values: dict[str, Any] = {
        "step_id": "step",
        "text_message_id": "",
        "reasoning": "",
        "reasoning_message_id": "",
        "calls_message_id": "",
        "usage": Usage(10, 5, 15),
        "attempts": 1,
        "first_token_time": 0,
        "cut": False,
        "call_required": False,
        "max_invalid_steps": 3,
        **fields,
    }
    return StepRecord(text=text, calls=calls, **values)


def returns(
    tool_call_id: str, text: str = "done", *, failed: bool = False, token: str = "", **fields: Any
) -> CallAnswer:
    """A tool return."""
    return replace(_answer(tool_call_id, ReturnAnswer(text, failed, **fields)), claim_token=token)


def approves(tool_call_id: str, edited: str = "", note: str = "") -> CallAnswer:
    """An approval."""
    return _answer(tool_call_id, ApproveAnswer(edited, note))


def denies(tool_call_id: str, reason: str = "") -> CallAnswer:
    """A denial."""
    return _answer(tool_call_id, DenyAnswer(reason))


def _answer(tool_call_id: str, answer: ReturnAnswer | ApproveAnswer | DenyAnswer) -> CallAnswer:
    return CallAnswer(tool_call_id, f"answers[{tool_call_id}]", answer, digest=repr(answer))


def submitted(*answers: CallAnswer, request_id: str = "req_1") -> Submission:
    """A submit; its digest is over all outcomes, in any order."""
    return Submission(request_id, repr(sorted((a.tool_call_id, a.digest) for a in answers)), answers)


def unchanged(draft: Draft) -> Snapshot:
    """A move that only looks."""
    return draft.snapshot


def refusal(error: pytest.ExceptionInfo[AgentServiceError]) -> tuple[Reason, str]:
    """Reason and message of an error."""
    return error.value.reason, error.value.message
