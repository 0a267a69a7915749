"""A run played by the pure moves alone, for tests of what each move makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from agent_service.domain.draft import Draft, Receipt, RunState
from agent_service.domain.event import Event, RunStopped
from agent_service.domain.message import Message, ToolReturnContent
from agent_service.domain.moves import (
    AskModel,
    CallResult,
    Execute,
    PlannedCall,
    Stop,
    finish_calls,
    next_of,
    record_answer,
    start_calls,
)
from agent_service.domain.run import Run
from agent_service.domain.start import ConversationState, plan_start
from agent_service.domain.submit import CallAnswer, Submitted, submit
from agent_service.domain.tool import Call, Outcome
from tests.store_contract import SECOND, counter, new_run, step, submitted

T = TypeVar("T")


class Played:
    """A run under moves, with all it has said so far."""

    def __init__(self, **fields: Any) -> None:
        self._new_id = counter()
        (change,) = plan_start(new_run(**fields), None, ConversationState(1, None), 1_000, self._new_id).changes
        self.run: Run = change.run
        self.calls: dict[str, Call] = {}
        self.events: list[Event] = list(change.events)
        self.messages: list[Message] = list(change.messages)
        self.receipts: dict[str, Receipt] = {}
        self.now = 1_000

    def do(self, edit: Callable[..., T], *args: Any, request_id: str = "", **kwargs: Any) -> T:
        """Makes a move; if it raises, nothing is kept."""
        position, receipt = len(self.messages) + 1, self.receipts.get(request_id)
        draft = Draft(RunState(self.run, tuple(self.calls.values()), position, receipt, self.now), self._new_id)
        result = edit(draft, *args, **kwargs)
        change = draft.change()
        if change is not None:
            self.run = change.run
            self.events += change.events
            self.messages += change.messages
            self.calls.update((call.tool_call_id, call) for call in change.calls)
            if change.receipt is not None:
                self.receipts[change.receipt.request_id] = change.receipt
        assert [event.sequence for event in self.events] == list(range(1, self.run.last_sequence + 1))
        return result

    def answers(self, *calls: PlannedCall, **fields: Any) -> Played:
        """The model answers."""
        self.do(record_answer, step(*calls, **fields))
        return self

    def submits(self, *answers: CallAnswer, request_id: str = "req_1") -> Submitted:
        """The caller submits."""
        return self.do(submit, submitted(*answers, request_id=request_id), SECOND, request_id=request_id)

    def executes(self, tool_call_id: str, text: str = "found", *, failed: bool = False) -> None:
        """The server starts a call and finishes it."""
        self.do(start_calls, (tool_call_id,))
        self.do(finish_calls, (CallResult(tool_call_id, text, failed),))

    @property
    def next(self) -> AskModel | Execute | Stop:
        """What the owner does next."""
        batch = tuple(call for call in self.calls.values() if call.step == self.run.steps_taken)
        return next_of(self.run, tuple(sorted(batch, key=lambda call: call.index)))

    @property
    def asks(self) -> bool:
        """Whether the model is asked next."""
        return isinstance(self.next, AskModel)

    @property
    def runnable(self) -> list[str]:
        """The server calls that are next."""
        coming = self.next
        return [call.tool_call_id for call in coming.calls] if isinstance(coming, Execute) else []

    @property
    def where(self) -> tuple[str, str]:
        """Status and stop reason."""
        return self.run.status.value, self.run.stop_reason.value if self.run.stop_reason else ""

    @property
    def states(self) -> dict[str, str]:
        """The state of each call."""
        return {name: call.state.value for name, call in self.calls.items()}

    @property
    def stops(self) -> list[RunStopped]:
        """All stops so far."""
        return [event.body for event in self.events if isinstance(event.body, RunStopped)]

    @property
    def outcomes(self) -> list[tuple[str, Outcome, str]]:
        """What the model is told of each call, in the order of the conversation."""
        contents = [message.content for message in self.messages]
        return [(c.tool_call_id, c.outcome, c.text) for c in contents if isinstance(c, ToolReturnContent)]
