"""Agents that answer as another agent does, while memory agents read what was said."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import fields

from structlog.typing import FilteringBoundLogger

from agent_service.domain.errors import FieldViolation
from agent_service.domain.event import Event
from agent_service.domain.run import AgentDefinition, AgentKind
from agent_service.engine.agent import Agent
from agent_service.engine.commands import Built, Caller, Delivery, StartCommand, SubmitCommand
from agent_service.engine.llm_agent import LlmAgent

FOREGROUND_KINDS = (AgentKind.LLM, AgentKind.RESPONDER)
_OWN = ("agent_id", "kind", "description", "sleeptime")


class SleeptimeAgent(Agent):
    """Does all through its foreground agent, which was made with the id of this one and with its memory plan."""

    def __init__(
        self, definition: AgentDefinition, caller: Caller, log: FilteringBoundLogger, *, foreground: LlmAgent
    ) -> None:
        super().__init__(definition, caller, log)
        self._foreground = foreground

    async def build_request(self, command: StartCommand | SubmitCommand) -> Built:
        """See Agent."""
        return await self._foreground.build_request(command)

    def stream(self, command: StartCommand | SubmitCommand, delivery: Delivery) -> AsyncGenerator[Event]:
        """See Agent."""
        return self._foreground.stream(command, delivery)


def problems(definition: AgentDefinition, max_memory_agents: int) -> Iterator[FieldViolation]:
    """What is wrong with a definition about `sleeptime`, but for what depends on other agents. Paths begin with the
    field."""
    sleeptime = definition.sleeptime
    if definition.kind is not AgentKind.SLEEPTIME:
        if sleeptime is not None:
            yield FieldViolation("sleeptime", "only an agent of kind SLEEPTIME has it; leave it unset")
        return
    for field in fields(definition):
        value = getattr(definition, field.name)
        if field.name not in _OWN and value and value != field.default:
            yield FieldViolation(field.name, "a sleeptime agent has none of its own; set it in its foreground agent")
    if sleeptime is None:
        yield FieldViolation("sleeptime", "is unset; name a foreground agent and at least one memory agent")
        return
    ids, path = sleeptime.plan.memory_agent_ids, "sleeptime.memory_agent_ids"
    if not ids:
        yield FieldViolation(path, "is empty; name at least one agent")
    if len(ids) > max_memory_agents:
        yield FieldViolation(path, f"has {len(ids)} agents; the most are {max_memory_agents}")
    for index, agent_id in enumerate(ids):
        if agent_id in ids[:index]:
            yield FieldViolation(f"{path}[{index}]", f"'{agent_id}' is named twice")
        if agent_id == definition.agent_id:
            yield FieldViolation(f"{path}[{index}]", "is the agent itself; name another one")
    if sleeptime.foreground_agent_id == definition.agent_id:
        yield FieldViolation("sleeptime.foreground_agent_id", "is the agent itself; name another one")
    if sleeptime.plan.every < 1:
        yield FieldViolation("sleeptime.every", f"{sleeptime.plan.every} is below 1; leave it unset for 5")


def named(definition: AgentDefinition) -> Iterator[tuple[str, str, tuple[AgentKind, ...]]]:
    """The agents that a sleeptime agent is made of: the path, the id, and the kinds that it may be of."""
    sleeptime = definition.sleeptime
    if sleeptime is None:
        return
    yield "sleeptime.foreground_agent_id", sleeptime.foreground_agent_id, FOREGROUND_KINDS
    for index, agent_id in enumerate(sleeptime.plan.memory_agent_ids):
        yield f"sleeptime.memory_agent_ids[{index}]", agent_id, (AgentKind.LLM,)


def wrong_kind(agent_id: str, kind: AgentKind, allowed: tuple[AgentKind, ...]) -> str:
    """Why an agent cannot be named there, or empty."""
    if kind in allowed:
        return ""
    return f"agent '{agent_id}' is of kind {kind.name}; allowed: {' or '.join(each.name for each in allowed)}"
