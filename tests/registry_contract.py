"""Opens each kind of store with its registry, and the words that tests of lists and of the registry are written in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent_service.domain.draft import Snapshot
from agent_service.domain.message import Message, UserContent
from agent_service.domain.moves import PlannedCall, StepRecord, cancel, fail, record_answer
from agent_service.domain.registry import CallFilter, Page, RunFilter
from agent_service.domain.run import (
    AgentDefinition,
    AgentKind,
    Claim,
    Pinned,
    Run,
    RunStatus,
    StopReason,
    Usage,
)
from agent_service.domain.start import NewRun, Started
from agent_service.domain.submit import ApproveAnswer, CallAnswer, ReturnAnswer, Submission, submit
from agent_service.domain.tool import Executor
from agent_service.engine.loop import moved
from agent_service.engine.registry import Registry
from agent_service.engine.store import RunStore
from agent_service.stores.memory import MemoryStore
from agent_service.stores.memory_registry import MemoryRegistry
from agent_service.stores.postgres import PostgresStore
from agent_service.stores.postgres_registry import PostgresRegistry
from agent_service.stores.sqlite import SqliteStore
from agent_service.stores.sqlite_registry import SqliteRegistry
from tests.store_contract import FIRST, GONE, SECOND, TENANT, Clock, open_store

ALL = 1000
PINNED = Pinned("default", AgentKind.LLM, "model-1", "openai", "Be helpful.")


@dataclass
class Kept:
    """An open store and registry, and their clock."""

    store: RunStore
    registry: Registry
    clock: Clock

    async def start(self, run_id: str, conversation_id: str = "", **fields: Any) -> Started:
        """Starts a run in a new conversation `conv_<run_id>`, or in the one named."""
        return await self.store.start(fields.pop("tenant", TENANT), new_run(run_id, conversation_id, **fields))

    async def answer(self, run_id: str, *calls: PlannedCall, text: str = "", tenant: str = TENANT) -> Snapshot:
        """Stores a model answer; without calls the run is over."""
        claim = Claim(tenant, run_id, (await self.run(run_id, tenant)).epoch)
        return await self.store.owner_move(claim, moved(record_answer, step(*calls, text=text)))

    async def paused(self, run_id: str, *calls: PlannedCall, tenant: str = TENANT, **fields: Any) -> Snapshot:
        """Starts a run whose model makes these calls."""
        await self.start(run_id, tenant=tenant, **fields)
        return await self.answer(run_id, *calls, tenant=tenant)

    async def completed(self, run_id: str, conversation_id: str = "", tenant: str = TENANT, **fields: Any) -> Snapshot:
        """Starts a run whose model answers."""
        await self.start(run_id, conversation_id, tenant=tenant, **fields)
        return await self.answer(run_id, text="Done.", tenant=tenant)

    async def returned(self, run_id: str, tool_call_id: str) -> None:
        """The caller answers a call of a client tool."""
        await self._submit(run_id, tool_call_id, ReturnAnswer("done"))

    async def approved(self, run_id: str, tool_call_id: str) -> None:
        """The caller approves a call."""
        await self._submit(run_id, tool_call_id, ApproveAnswer())

    async def cancelled(self, run_id: str, tenant: str = TENANT) -> Snapshot:
        """Cancels a run."""
        return await self.store.move(tenant, run_id, moved(cancel))

    async def interrupted(self, run_id: str, tenant: str = TENANT) -> Snapshot:
        """The run's server goes."""
        return await self.store.move(tenant, run_id, moved(fail, StopReason.LLM_API_ERROR, GONE))

    async def run(self, run_id: str, tenant: str = TENANT) -> Run:
        """The run as it is now."""
        return (await self.store.get_run(tenant, run_id)).run

    async def messages(self, conversation_id: str, tenant: str = TENANT, **fields: Any) -> tuple[Message, ...]:
        """The messages of a conversation."""
        return await self.store.messages(tenant, conversation_id, 0, ALL, **fields)

    async def run_ids(self, tenant: str = TENANT, page: Page | None = None, **which: Any) -> list[str]:
        """The ids of the runs that a filter chooses, oldest first."""
        found = await self.store.list_runs(tenant, RunFilter(**which), page or Page(ALL))
        return [snapshot.run.run_id for snapshot in found]

    async def call_ids(self, tenant: str = TENANT, page: Page | None = None, **which: Any) -> list[str]:
        """The ids of the waiting calls that a filter chooses, oldest first."""
        found = await self.store.waiting_calls(tenant, CallFilter(**which), page or Page(ALL))
        return [waiting.call.tool_call_id for waiting in found]

    async def _submit(self, run_id: str, tool_call_id: str, what: ReturnAnswer | ApproveAnswer) -> None:
        answer = CallAnswer(tool_call_id, "answers[0]", what, repr(what))
        submission = Submission(f"req_{tool_call_id}", tool_call_id, (answer,))
        await self.store.move(
            TENANT,
            run_id,
            lambda draft: submit(draft, submission, SECOND),
            call_ids=(tool_call_id,),
            request_id=submission.request_id,
        )


@asynccontextmanager
async def opened(setting: str) -> AsyncIterator[Kept]:
    """The store of this setting with its registry."""
    clock = Clock()
    store = await open_store(setting, lambda *told: None, clock)
    try:
        yield Kept(store, _registry(store, clock), clock)
    finally:
        await store.close()


def _registry(store: RunStore, clock: Clock) -> Registry:
    match store:
        case MemoryStore():
            return MemoryRegistry(store, clock)
        case SqliteStore():
            return SqliteRegistry(store, clock)
        case PostgresStore():
            return PostgresRegistry(store)
        case _:
            raise AssertionError(f"no registry is known for {store}")


def new_run(
    run_id: str,
    conversation_id: str = "",
    *,
    agent_id: str = "default",
    text: str = "Hello",
    labels: dict[str, str] | None = None,
    **fields: Any,
) -> NewRun:
    """A start with one user message; without a conversation it makes `conv_<run_id>`."""
    run = Run(
        run_id=run_id,
        conversation_id=conversation_id or f"conv_{run_id}",
        agent_id=agent_id,
        model="model-1",
        digest="digest",
        status=RunStatus.QUEUED,
        max_steps=50,
        create_time=0,
        update_time=0,
        labels=labels or {},
        **fields,
    )
    return NewRun(run, PINNED, (UserContent(text),), FIRST, new_conversation=not conversation_id)


def client(tool_call_id: str, name: str = "look_up") -> PlannedCall:
    """A call of a client tool."""
    return _planned(tool_call_id, name, Executor.CLIENT)


def server(tool_call_id: str, name: str = "work") -> PlannedCall:
    """A call of a server tool."""
    return _planned(tool_call_id, name, Executor.SERVER)


def approval(tool_call_id: str, name: str = "delete_file") -> PlannedCall:
    """A call of a server tool that needs an approval."""
    return _planned(tool_call_id, name, Executor.SERVER, needs_approval=True)


def _planned(tool_call_id: str, name: str, executor: Executor, *, needs_approval: bool = False) -> PlannedCall:
    return PlannedCall(tool_call_id, f"theirs_{tool_call_id}", name, "{}", executor, needs_approval)


def step(*calls: PlannedCall, text: str = "") -> StepRecord:
    """A model answer."""
    return StepRecord(
        step_id="step",
        text=text,
        text_message_id="",
        reasoning="",
        reasoning_message_id="",
        calls=calls,
        calls_message_id="",
        usage=Usage(10, 5, 15),
        attempts=1,
        first_token_time=0,
        cut=False,
        call_required=False,
        max_invalid_steps=3,
    )


def agent(agent_id: str, instructions: str = "Be brief.", **fields: Any) -> AgentDefinition:
    """An agent's definition."""
    return AgentDefinition(agent_id, AgentKind.LLM, instructions, **fields)
