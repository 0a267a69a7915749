"""Which agents there are, and how one is made for a caller."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.run import AgentDefinition
from agent_service.engine.agent import Agent
from agent_service.engine.commands import Caller
from agent_service.engine.llm_agent import AGENT_CLASSES
from agent_service.engine.runs import Runs


class Agents:
    """The configured agents; the first is the default."""

    def __init__(self, definitions: Sequence[AgentDefinition], runs: Runs, provider: str) -> None:
        self.definitions = tuple(definitions)
        self._by_id = {definition.agent_id: definition for definition in definitions}
        self._runs = runs
        self._provider = provider

    def get(self, agent_id: str, caller: Caller) -> Agent:
        """The agent of this id, or the default one for an empty id. Raises AGENT_NOT_FOUND."""
        definition = self._by_id.get(agent_id) if agent_id else self.definitions[0]
        if definition is None:
            known = ", ".join(self._by_id)
            raise AgentServiceError(Reason.AGENT_NOT_FOUND, f"agent_id: no agent '{agent_id}'; known: {known}")
        return self._make(definition, caller)

    async def of_run(self, run_id: str, caller: Caller) -> Agent:
        """The agent that a run was started with, as it was pinned. Raises RUN_NOT_FOUND."""
        pinned = await self._runs.parts.store.get_pinned(caller.tenant, run_id)
        return self._make(AgentDefinition(pinned.agent_id, pinned.kind, pinned.system_prompt, pinned.model), caller)

    def _make(self, definition: AgentDefinition, caller: Caller) -> Agent:
        return AGENT_CLASSES[definition.kind](
            definition, caller, structlog.get_logger(), runs=self._runs, provider=self._provider
        )
