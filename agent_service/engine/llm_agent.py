"""Agents on a language model: one that uses tools and can pause, and a plain responder that does neither."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from structlog.typing import FilteringBoundLogger

from agent_service.domain.draft import Snapshot
from agent_service.domain.errors import AgentServiceError, FieldViolation, Reason, invalid
from agent_service.domain.event import Event, ToolReturnsAccepted
from agent_service.domain.memory import BlockRecord
from agent_service.domain.message import UserContent
from agent_service.domain.permit import about, permitted
from agent_service.domain.policy import ContextPolicy
from agent_service.domain.rules import NO_CALLS, RuleKind, merged
from agent_service.domain.run import (
    DEFAULT_PAUSE_TTL,
    AgentDefinition,
    AgentKind,
    MemoryPart,
    MemoryPlan,
    Pinned,
    Run,
    RunStatus,
)
from agent_service.domain.start import NewRun
from agent_service.domain.submit import ApproveAnswer, CallAnswer, ReturnAnswer, Submission
from agent_service.domain.tool import CallState, ToolSchema
from agent_service.domain.values import replace
from agent_service.engine.agent import Agent
from agent_service.engine.calls import arguments_violation
from agent_service.engine.commands import Built, Caller, Delivery, StartCommand, SubmitCommand, digest
from agent_service.engine.memory_tools import MEMORY_TOOLS, offered
from agent_service.engine.runs import Runs
from agent_service.engine.schemas import JsonError, parse_json, violation
from agent_service.engine.turn import contradiction
from agent_service.engine.view import Viewer


class LlmAgent(Agent):
    """An agent with tools: server tools of its definition and client tools of the request. It can pause.

    To submit, it has to be made for the run; `pinned` is what that run is pinned to.
    """

    kind = AgentKind.LLM

    def __init__(
        self,
        definition: AgentDefinition,
        caller: Caller,
        log: FilteringBoundLogger,
        *,
        runs: Runs,
        provider: str,
        revision: int = 0,
        memory_plan: MemoryPlan | None = None,
        pinned: Pinned | None = None,
    ) -> None:
        super().__init__(definition, caller, log)
        self._revision = revision
        self._memory_plan = memory_plan
        self._pinned = pinned
        self._runs = runs
        self._provider = provider

    async def build_request(self, command: StartCommand | SubmitCommand) -> Built:
        """See Agent."""
        tenant = self.caller.tenant
        if isinstance(command, StartCommand):
            return await self._runs.build_start(tenant, self._new_run(command, await self._blocks()))
        submission, pinned = await self._submission(command)
        return await self._runs.build_submit(tenant, command.run_id, submission, pinned)

    async def stream(self, command: StartCommand | SubmitCommand, delivery: Delivery) -> AsyncGenerator[Event]:
        """See Agent."""
        if isinstance(command, StartCommand):
            events = self._started(command, delivery)
        else:
            events = self._submitted(command, delivery)
        stored = False
        async with aclosing(events):
            async for event in events:
                if not stored:
                    await delivery.on_stored(event.run_id)
                    stored = True
                yield event

    async def _started(self, command: StartCommand, delivery: Delivery) -> AsyncGenerator[Event]:
        new = self._new_run(command, await self._blocks())
        viewer = Viewer(delivery.view, new.pinned)
        events = self._runs.start(self.caller.tenant, new, tokens=delivery.stream_tokens, max_wait=delivery.max_wait)
        async with aclosing(events):
            async for event in events:
                shown = viewer.show(event)
                if shown is not None:
                    yield shown

    async def _submitted(self, command: SubmitCommand, delivery: Delivery) -> AsyncGenerator[Event]:
        tenant = self.caller.tenant
        submission, pinned = await self._submission(command)
        viewer = Viewer(delivery.view, pinned)
        events = self._runs.submit(
            tenant, command.run_id, submission, pinned, tokens=delivery.stream_tokens, max_wait=delivery.max_wait
        )
        first = True
        async with aclosing(events):
            async for submitted, event in events:
                if first and isinstance(event.body, ToolReturnsAccepted):
                    event = replace(event, body=submitted.receipt)
                first = False
                shown = viewer.show(event)
                if shown is not None:
                    yield shown

    async def memory_run(self, text: str, part: MemoryPart, parent_run_id: str) -> NewRun:
        """A run that is given a part of another conversation as text, in a new conversation."""
        new = self._new_run(StartCommand((UserContent(text),)), await self._blocks())
        return replace(new, run=replace(new.run, parent_run_id=parent_run_id, memory_part=part))

    async def _blocks(self) -> tuple[BlockRecord, ...]:
        """The agent's memory blocks as they are now."""
        block_ids = self.definition.memory_block_ids
        return await self._runs.parts.store.memory_blocks(self.caller.tenant, block_ids) if block_ids else ()

    def _new_run(self, command: StartCommand, blocks: tuple[BlockRecord, ...]) -> NewRun:
        """The run as it will be stored. Checks what depends on the agent's tools."""
        pinned = self._pin(command, blocks)
        problems = self._rule_problems(command, pinned) or self._choice_problems(command, pinned)
        new_id = self._runs.parts.new_id
        run = Run(
            run_id=command.run_id or new_id("run"),
            conversation_id=command.conversation_id or new_id("conv"),
            agent_id=self.definition.agent_id,
            model=pinned.model,
            digest=command.digest(self.definition.agent_id),
            status=RunStatus.QUEUED,
            max_steps=command.max_steps,
            create_time=0,
            update_time=0,
            request_start_time=command.request_start_time,
            labels=command.labels,
            overridden_tools=pinned.overridden_tools,
            agent_revision=self._revision,
            run_timeout=command.run_timeout,
            pause_ttl=command.pause_ttl or DEFAULT_PAUSE_TTL,
            server_tools_wait=command.server_tools_wait,
            memory_plan=self._memory_plan,
            trace=self._runs.parts.telemetry.trace_context(),
        )
        return NewRun(
            run,
            pinned,
            command.inputs,
            self._runs.owner,
            new_conversation=not command.conversation_id,
            on_busy=command.on_busy,
            max_queued=self._runs.parts.limits.max_queued_runs,
            refusal=invalid(*problems) if problems else None,
        )

    def _pin(self, command: StartCommand, blocks: tuple[BlockRecord, ...]) -> Pinned:
        rules = merged(self.definition.tool_rules, command.tool_rules)
        approved = about(rules, RuleKind.REQUIRES_APPROVAL)
        tools, overridden = self._tools(command.client_tools, approved, self._server_tools(blocks))
        return Pinned(
            agent_id=self.definition.agent_id,
            kind=self.kind,
            model=command.model or self.definition.model,
            provider=self._provider,
            system_prompt=command.system_prompt or self.definition.instructions,
            tools=tools,
            overridden_tools=overridden,
            tool_choice=command.tool_choice,
            parallel_tool_calls=command.parallel_tool_calls,
            agent_revision=self._revision,
            message_tool=self.definition.message_tool,
            message_argument=self.definition.message_argument,
            response_format=command.response_format,
            tool_rules=rules,
            memory_block_ids=self.definition.memory_block_ids,
            context=self._policy(),
        )

    def _policy(self) -> ContextPolicy:
        """The agent's, with the server's window if it has none of its own."""
        policy = self.definition.context
        window = policy.window_tokens or self._runs.parts.limits.context_window_tokens
        return replace(policy, window_tokens=window)

    def _server_tools(self, blocks: tuple[BlockRecord, ...]) -> list[ToolSchema]:
        """The agent's server tools that are there, then the memory tools that go with its blocks."""
        names = self.definition.server_tools
        found = [schema for name in names if (schema := self._runs.parts.tools.schema(name)) is not None]
        memory = offered(names, {schema.name for schema in found}, blocks)
        return [*found, *(MEMORY_TOOLS[name] for name in memory)]

    def _tools(
        self, client_tools: tuple[ToolSchema, ...], approved: frozenset[str], server: list[ToolSchema]
    ) -> tuple[tuple[ToolSchema, ...], tuple[str, ...]]:
        """Server tools that are not overridden (with approval for those in `approved`), then the client tools; and the
        names of the overridden ones."""
        client_names = {tool.name for tool in client_tools}
        kept = tuple(
            replace(tool, requires_approval=tool.requires_approval or tool.name in approved)
            for tool in server
            if tool.name not in client_names
        )
        overridden = tuple(tool.name for tool in server if tool.name in client_names)
        return (*kept, *client_tools), overridden

    def _rule_problems(self, command: StartCommand, pinned: Pinned) -> tuple[FieldViolation, ...]:
        """Rules of the request about tools that the run does not have."""
        known = ", ".join(tool.name for tool in pinned.tools) or "none"
        return tuple(
            FieldViolation(
                f"{command.path}tool_rules[{index}].{rule.kind}.{field}", f"no tool '{name}'; tools: {known}"
            )
            for index, rule in enumerate(command.tool_rules)
            for field, name in rule.names
            if pinned.tool(name) is None
        )

    def _choice_problems(self, command: StartCommand, pinned: Pinned) -> tuple[FieldViolation, ...]:
        """A tool choice of the request that its tools and rules do not allow."""
        name, path = command.tool_choice.tool_name, f"{command.path}tool_choice"
        if name and pinned.tool(name) is None:
            known = ", ".join(tool.name for tool in pinned.tools) or "none"
            return (FieldViolation(f"{path}.tool_name", f"no tool '{name}' in this run; tools: {known}"),)
        if command.tool_choice.mode == "required" and not pinned.tools:
            return (FieldViolation(f"{path}.mode", "REQUIRED, but this run has no tools; send client_tools"),)
        tools = [tool.name for tool in pinned.tools]
        against = contradiction(permitted(pinned.tool_rules, NO_CALLS, tools), command.tool_choice)
        where = f"{path}.{'tool_name' if name else 'mode'}"
        return (FieldViolation(where, f"against a tool rule: {against}"),) if against else ()

    async def _submission(self, command: SubmitCommand) -> tuple[Submission, Pinned]:
        pinned = self._pinned
        assert pinned is not None
        whole = digest(sorted((answer.tool_call_id, answer.digest) for answer in command.answers))
        answers = command.answers
        if any(tool.result_schema_json for tool in pinned.tools) or any(_edits(answer) for answer in answers):
            snapshot = await self._runs.get(self.caller.tenant, command.run_id)
            answers = tuple(replace(a, violation=_violation(a, snapshot, pinned)) for a in answers)
        return Submission(command.request_id or f"auto:{whole[:40]}", whole, answers), pinned


class ResponderAgent(LlmAgent):
    """Answers in text. It has no tools and cannot pause, and says so instead of ignoring what it cannot do."""

    kind = AgentKind.RESPONDER

    def _server_tools(self, blocks: tuple[BlockRecord, ...]) -> list[ToolSchema]:
        return []

    def _new_run(self, command: StartCommand, blocks: tuple[BlockRecord, ...]) -> NewRun:
        for field in ("client_tools", "tool_rules"):
            if not getattr(command, field):
                continue
            raise AgentServiceError(
                Reason.AGENT_CANNOT,
                f"{command.path}{field}: agent '{self.definition.agent_id}' has no tools and cannot pause; "
                f"use another agent or send no {field.replace('_', ' ')}",
                metadata={"agent_id": self.definition.agent_id, "kind": self.kind.value},
            )
        return super()._new_run(command, blocks)


AGENT_CLASSES: dict[AgentKind, type[LlmAgent]] = {AgentKind.LLM: LlmAgent, AgentKind.RESPONDER: ResponderAgent}


def _edits(answer: CallAnswer) -> bool:
    return isinstance(answer.answer, ApproveAnswer) and bool(answer.answer.edited_arguments_json)


def _violation(answer: CallAnswer, snapshot: Snapshot, pinned: Pinned) -> FieldViolation | None:
    """How an answer to a pending call violates its tool's schema."""
    call = next((c for c in snapshot.calls if c.tool_call_id == answer.tool_call_id), None)
    tool = pinned.tool(call.name) if call and call.state is CallState.PENDING else None
    if tool is None:
        return None
    match answer.answer:
        case ApproveAnswer(edited) if edited:
            problem = arguments_violation(tool.parameters_json, edited)
            field = f"{answer.path}.approve.edited_arguments_json"
            return FieldViolation(field, f"for '{tool.name}', {problem}") if problem else None
        case ReturnAnswer(text, failed) if not failed and tool.result_schema_json:
            problem = _result_violation(tool.result_schema_json, text)
            where = f"against the result schema of '{tool.name}'"
            return FieldViolation(f"{answer.path}.text", f"{where} {problem}") if problem else None
    return None


def _result_violation(schema_json: str, text: str) -> str:
    try:
        return violation(schema_json, parse_json(text), text)
    except JsonError as error:
        return f"the text is not JSON: {error}"
