"""Which agents there are, those of the configuration and those made by calls, and how one is made for a caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from agent_service.domain.errors import AgentServiceError, FieldViolation, Reason, invalid
from agent_service.domain.registry import AgentRecord
from agent_service.domain.run import AgentDefinition, AgentKind, MemoryPlan, Pinned, Sleeptime
from agent_service.domain.values import replace
from agent_service.engine.agent import Agent
from agent_service.engine.agent_blocks import check_blocks
from agent_service.engine.commands import Caller
from agent_service.engine.llm_agent import AGENT_CLASSES, LlmAgent
from agent_service.engine.memory_tools import MEMORY_TOOLS
from agent_service.engine.registry import Registry
from agent_service.engine.runs import Runs
from agent_service.engine.sleeptime import SleeptimeAgent, named, problems, wrong_kind

Edit = Callable[[AgentDefinition], AgentDefinition]


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """An agent as it is shown; `record` is None for one of the configuration."""

    definition: AgentDefinition
    record: AgentRecord | None = None
    is_default: bool = False

    @property
    def revision(self) -> int:
        """Counts its changes from 1; 0 for one of the configuration."""
        return self.record.revision if self.record else 0


class Agents:
    """The agents of a server. The first configured one is the default; `default_model` is for those that name none."""

    def __init__(
        self,
        configured: Sequence[AgentDefinition],
        registry: Registry,
        runs: Runs,
        *,
        provider: str,
        default_model: str,
    ) -> None:
        self.configured = tuple(KnownAgent(d, None, d is configured[0]) for d in configured)
        self.default_model = default_model
        self._by_id = {agent.definition.agent_id: agent for agent in self.configured}
        self._registry = registry
        self._runs = runs
        self._provider = provider

    async def get(self, agent_id: str, caller: Caller) -> Agent:
        """The agent of this id, or the default one for an empty id. Raises AGENT_NOT_FOUND."""
        known = await self.look_up(agent_id, caller)
        if known.definition.sleeptime is not None:
            return await self._sleeptime(known, known.definition.sleeptime, caller)
        return self._make(known.definition, caller, known.revision)

    async def memory_agent(self, agent_id: str, caller: Caller) -> LlmAgent:
        """The same as a memory agent. Raises AGENT_NOT_FOUND, AGENT_CANNOT."""
        known = await self.look_up(agent_id, caller)
        wrong = wrong_kind(agent_id, known.definition.kind, (AgentKind.LLM,))
        if wrong:
            raise AgentServiceError(Reason.AGENT_CANNOT, f"agent_id: {wrong}", metadata={"agent_id": agent_id})
        return self._make(known.definition, caller, known.revision)

    async def of_run(self, run_id: str, caller: Caller) -> Agent:
        """The agent that a run was started with, as it was pinned. Raises RUN_NOT_FOUND."""
        pinned = await self._runs.parts.store.get_pinned(caller.tenant, run_id)
        definition = AgentDefinition(pinned.agent_id, pinned.kind, pinned.system_prompt, pinned.model)
        return self._make(definition, caller, pinned=pinned)

    async def look_up(self, agent_id: str, caller: Caller) -> KnownAgent:
        """The agent of this id as it is now. Raises AGENT_NOT_FOUND."""
        known = self._by_id.get(agent_id) if agent_id else self.configured[0]
        if known is not None:
            return known
        try:
            record = await self._registry.get_agent(caller.tenant, agent_id)
        except AgentServiceError as error:
            if error.reason is not Reason.AGENT_NOT_FOUND:
                raise
            listed = ", ".join(self._by_id)
            text = f"agent_id: no agent '{agent_id}'; configured: {listed}; ListAgents shows all"
            raise AgentServiceError(Reason.AGENT_NOT_FOUND, text) from None
        return KnownAgent(record.definition, record)

    def foreground(self, configured: KnownAgent) -> AgentDefinition:
        """The configured agent that one answers through, which is itself unless it is a sleeptime agent."""
        sleeptime = configured.definition.sleeptime
        return self._by_id[sleeptime.foreground_agent_id].definition if sleeptime else configured.definition

    async def create(self, definition: AgentDefinition, caller: Caller) -> KnownAgent:
        """A new agent, or the present one if it equals. Raises AGENT_ID_REUSED."""
        self._check(definition)
        await self._check_named(definition, caller)
        await self._check_blocks(definition, caller)
        if definition.agent_id in self._by_id:
            raise AgentServiceError(
                Reason.AGENT_ID_REUSED,
                f"agent.agent_id: '{definition.agent_id}' is an agent of the server's configuration",
                metadata={"agent_id": definition.agent_id},
            )
        record = await self._registry.create_agent(caller.tenant, definition)
        return KnownAgent(record.definition, record)

    async def update(self, agent_id: str, etag: str, edit: Edit, caller: Caller) -> KnownAgent:
        """Changes an agent. Raises AGENT_NOT_FOUND, AGENT_READ_ONLY, ETAG_MISMATCH."""
        self._check_writable(agent_id)

        def change(record: AgentRecord) -> AgentDefinition:
            record.expect(etag)
            definition = edit(record.definition)
            self._check(definition)
            return definition

        before = (await self._registry.get_agent(caller.tenant, agent_id)).definition
        wanted = edit(before)
        if wanted.memory_block_ids != before.memory_block_ids:
            await self._check_blocks(wanted, caller)
        await self._check_named(wanted, caller)
        record = await self._registry.update_agent(caller.tenant, agent_id, change)
        return KnownAgent(record.definition, record)

    async def delete(self, agent_id: str, etag: str, caller: Caller) -> None:
        """Deletes an agent. Raises AGENT_NOT_FOUND, AGENT_READ_ONLY, ETAG_MISMATCH."""
        self._check_writable(agent_id)
        await self._registry.delete_agent(caller.tenant, agent_id, etag)

    async def page(self, after: tuple[bool, str], limit: int, caller: Caller) -> tuple[KnownAgent, ...]:
        """At most `limit` agents after one (made by a call?, id): the configured ones by id, then the others by id."""
        stored_only, after_id = after
        configured = sorted(self.configured, key=lambda agent: agent.definition.agent_id)
        first = () if stored_only else tuple(a for a in configured if a.definition.agent_id > after_id)[:limit]
        left = limit - len(first)
        if not left:
            return first
        records = await self._registry.list_agents(caller.tenant, after_id if stored_only else "", left)
        return (*first, *(KnownAgent(record.definition, record) for record in records))

    def _check_writable(self, agent_id: str) -> None:
        if agent_id in self._by_id:
            raise AgentServiceError(
                Reason.AGENT_READ_ONLY,
                f"agent_id: '{agent_id}' comes from the server's configuration and cannot be changed by a call",
                metadata={"agent_id": agent_id},
            )

    def _check(self, definition: AgentDefinition) -> None:
        """Raises INVALID_FIELD for what the agent cannot have."""
        found = tuple(problems(definition, self._runs.parts.limits.max_memory_agents))
        if found:
            raise invalid(*(FieldViolation(f"agent.{each.field}", each.description) for each in found))
        self._check_tools(definition)

    async def _check_named(self, definition: AgentDefinition, caller: Caller) -> None:
        """Raises INVALID_FIELD for agents that a sleeptime agent cannot be made of."""
        found = []
        for path, agent_id, allowed in named(definition):
            try:
                problem = wrong_kind(agent_id, (await self._existing(agent_id, caller)).definition.kind, allowed)
            except AgentServiceError as error:
                if error.reason is not Reason.AGENT_NOT_FOUND:
                    raise
                problem = f"no agent '{agent_id}'; ListAgents shows all"
            if problem:
                found.append(FieldViolation(f"agent.{path}", problem))
        if found:
            raise invalid(*found)

    async def _existing(self, agent_id: str, caller: Caller) -> KnownAgent:
        """The agent of this id, where an empty one means none."""
        if agent_id:
            return await self.look_up(agent_id, caller)
        raise AgentServiceError(Reason.AGENT_NOT_FOUND, "agent_id: is empty")

    async def _sleeptime(self, known: KnownAgent, sleeptime: Sleeptime, caller: Caller) -> SleeptimeAgent:
        definition, foreground_id = known.definition, sleeptime.foreground_agent_id
        try:
            foreground = (await self.look_up(foreground_id, caller)).definition
        except AgentServiceError as error:
            if error.reason is not Reason.AGENT_NOT_FOUND:
                raise
            agent_id = definition.agent_id
            raise AgentServiceError(
                Reason.FOREGROUND_AGENT_NOT_FOUND,
                f"agent_id: '{agent_id}' answers through agent '{foreground_id}', which does not exist any more; "
                f"make it again, or change sleeptime.foreground_agent_id of '{agent_id}'",
                metadata={"agent_id": agent_id, "foreground_agent_id": foreground_id},
            ) from None
        inner = self._make(
            replace(foreground, agent_id=definition.agent_id), caller, known.revision, memory_plan=sleeptime.plan
        )
        return SleeptimeAgent(definition, caller, structlog.get_logger(), foreground=inner)

    def _check_tools(self, definition: AgentDefinition) -> None:
        """Raises INVALID_FIELD for tools that the agent cannot have."""
        names, tools = definition.server_tools, self._runs.parts.tools
        for field in ("server_tools", "tool_rules"):
            if definition.kind is AgentKind.RESPONDER and getattr(definition, field):
                text = "a responder has no tools; send none, or make an agent of kind LLM"
                raise invalid(FieldViolation(f"agent.{field}", text))
        problems = []
        for index, name in enumerate(names):
            if tools.schema(name) is None and name not in MEMORY_TOOLS:
                text = f"no server tool '{name[:64]}'; known: {_listed((*tools.names, *MEMORY_TOOLS))}"
            elif name in names[:index]:
                text = f"'{name}' is named twice"
            else:
                continue
            problems.append(FieldViolation(f"agent.server_tools[{index}]", text))
        if problems:
            raise invalid(*problems)

    async def _check_blocks(self, definition: AgentDefinition, caller: Caller) -> None:
        await check_blocks(self._runs.parts.store, caller.tenant, definition, self._runs.parts.limits)

    def _make(
        self,
        definition: AgentDefinition,
        caller: Caller,
        revision: int = 0,
        *,
        memory_plan: MemoryPlan | None = None,
        pinned: Pinned | None = None,
    ) -> LlmAgent:
        return AGENT_CLASSES[definition.kind](
            replace(definition, model=definition.model or self.default_model),
            caller,
            structlog.get_logger(),
            runs=self._runs,
            provider=self._provider,
            revision=revision,
            memory_plan=memory_plan,
            pinned=pinned,
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
