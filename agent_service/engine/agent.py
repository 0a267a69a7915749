"""What the transport calls: an agent that can say what it would ask, and that runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from agent_service.domain.event import Event, MessageStored, ToolReturnsAccepted
from agent_service.domain.run import AgentDefinition
from agent_service.engine.commands import Built, Caller, Delivery, StartCommand, SubmitCommand


@dataclass(frozen=True, slots=True)
class StepResult:
    """The stored messages of one window as its caller sees them, as events; and the receipt if a submit began it."""

    run_id: str
    messages: tuple[Event, ...]
    receipt: ToolReturnsAccepted | None


class Agent(ABC):
    """One agent for one caller. `stream` starts, joins or resumes a run; `step` folds it; `build_request` is pure."""

    def __init__(self, definition: AgentDefinition, caller: Caller, log: FilteringBoundLogger) -> None:
        self.definition = definition
        self.caller = caller
        self.log = log.bind(agent_id=definition.agent_id)

    @abstractmethod
    async def build_request(self, command: StartCommand | SubmitCommand) -> Built:
        """The exact request the command would lead to. Stores nothing, executes nothing; fails as `stream` would."""

    @abstractmethod
    def stream(self, command: StartCommand | SubmitCommand, delivery: Delivery) -> AsyncGenerator[Event]:
        """Starts or joins a run, or submits and resumes one; yields its events up to its next stop.

        The first event is RunAccepted or the receipt; what it tells is stored. Leaving the iteration leaves the run.
        """

    async def step(self, command: StartCommand | SubmitCommand, delivery: Delivery) -> StepResult:
        """The same, waited for."""
        messages: list[Event] = []
        run_id, receipt = "", None
        async with aclosing(self.stream(command, delivery)) as events:
            async for event in events:
                run_id = event.run_id
                if isinstance(event.body, MessageStored):
                    messages.append(event)
                elif isinstance(event.body, ToolReturnsAccepted) and receipt is None:
                    receipt = event.body
        return StepResult(run_id, tuple(messages), receipt)
