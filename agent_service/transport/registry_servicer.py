"""AgentRegistryService: agents and conversations; memory blocks are in a file of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
from agentrpc.v1 import agent_registry_service_pb2 as pb
from agentrpc.v1 import agents_pb2

from agent_service.domain.errors import FieldViolation, invalid
from agent_service.domain.message import Message
from agent_service.domain.run import (
    DEFAULT_EVERY,
    MESSAGE_ARGUMENT,
    MESSAGE_TOOL,
    AgentDefinition,
    AgentKind,
    MemoryPlan,
    Sleeptime,
)
from agent_service.transport import translate
from agent_service.transport.access import current_caller
from agent_service.transport.memory_servicer import MemoryServicer
from agent_service.transport.paging import bounded_page, page_size, read_page, read_token, write_token
from agent_service.transport.requests import Reader, masked

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    agents_pb2.AGENT_KIND_UNSPECIFIED: AgentKind.LLM,
    agents_pb2.AGENT_KIND_LLM: AgentKind.LLM,
    agents_pb2.AGENT_KIND_RESPONDER: AgentKind.RESPONDER,
    agents_pb2.AGENT_KIND_SLEEPTIME: AgentKind.SLEEPTIME,
}
ReadMessages = Callable[[int, int], Awaitable[tuple[Message, ...]]]
_CHANGEABLE = (
    "description",
    "instructions",
    "model",
    "server_tools",
    "message_tool",
    "message_argument",
    "tool_rules",
    "sleeptime",
    "memory_block_ids",
    "context",
)


class AgentRegistryServicer(MemoryServicer):
    """Adapts AgentRegistryService onto agents and the registry."""

    async def CreateAgent(self, request: pb.CreateAgentRequest, context: Context) -> pb.CreateAgentResponse:
        definition = self._definition(request.agent)
        definition = replace(definition, agent_id=definition.agent_id or self._runs.parts.new_id("agent"))
        return pb.CreateAgentResponse(agent=translate.agent(await self._agents.create(definition, current_caller())))

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        reader = Reader(self._limits)
        reader.id("agent_id", request.agent_id)
        reader.done()
        return pb.GetAgentResponse(
            agent=translate.agent(await self._agents.look_up(request.agent_id, current_caller()))
        )

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        reader = Reader(self._limits)
        size = page_size(reader.problems, self._limits, request.page_size)
        stored, after_id = read_token(reader.problems, "agents", request.page_token)
        reader.done()
        agents = await self._agents.page((bool(stored), after_id), size + 1, current_caller())
        shown = bounded_page(map(translate.agent, agents), size, self._limits.max_response_bytes)
        more = bool(shown) and len(shown) < len(agents)
        token = write_token("agents", int(not shown[-1].configured), shown[-1].agent_id) if more else ""
        return pb.ListAgentsResponse(agents=shown, next_page_token=token)

    async def UpdateAgent(self, request: pb.UpdateAgentRequest, context: Context) -> pb.UpdateAgentResponse:
        reader = Reader(self._limits, "agent.")
        reader.required_id("agent_id", request.agent.agent_id, "the agent")
        reader.done()
        wanted = self._definition(request.agent)
        paths = masked(request.update_mask.paths, _CHANGEABLE)

        def edit(present: AgentDefinition) -> AgentDefinition:
            return replace(present, **{name: getattr(wanted, name) for name in paths})

        known = await self._agents.update(wanted.agent_id, request.agent.etag, edit, current_caller())
        return pb.UpdateAgentResponse(agent=translate.agent(known))

    async def DeleteAgent(self, request: pb.DeleteAgentRequest, context: Context) -> pb.DeleteAgentResponse:
        reader = Reader(self._limits)
        reader.required_id("agent_id", request.agent_id, "the agent")
        reader.done()
        await self._agents.delete(request.agent_id, request.etag, current_caller())
        return pb.DeleteAgentResponse()

    async def CreateConversation(
        self, request: pb.CreateConversationRequest, context: Context
    ) -> pb.CreateConversationResponse:
        reader = Reader(self._limits)
        conversation_id = reader.id("conversation_id", request.conversation_id)
        labels = reader.labels(request.labels)
        reader.done()
        made = await self._registry.create_conversation(
            current_caller().tenant, conversation_id or self._runs.parts.new_id("conv"), labels
        )
        return pb.CreateConversationResponse(conversation=translate.conversation(made))

    async def GetConversation(self, request: pb.GetConversationRequest, context: Context) -> pb.GetConversationResponse:
        conversation_id = self._conversation_id(request.conversation_id)
        found = await self._registry.get_conversation(current_caller().tenant, conversation_id)
        return pb.GetConversationResponse(conversation=translate.conversation(found))

    async def ListConversations(
        self, request: pb.ListConversationsRequest, context: Context
    ) -> pb.ListConversationsResponse:
        reader = Reader(self._limits)
        labels = tuple(sorted(reader.labels(request.labels).items()))
        descending = reader.order(request.order, descending=True)
        page = read_page(
            reader.problems, self._limits, "conversations", request.page_size, request.page_token, descending=descending
        )
        reader.done()
        found = await self._registry.list_conversations(current_caller().tenant, labels, page)
        shown = bounded_page(map(translate.conversation, found), page.limit - 1, self._limits.max_response_bytes)
        last = found[len(shown) - 1] if shown and len(shown) < len(found) else None
        token = write_token("conversations", last.create_time, last.conversation_id) if last else ""
        return pb.ListConversationsResponse(conversations=shown, next_page_token=token)

    async def DeleteConversation(
        self, request: pb.DeleteConversationRequest, context: Context
    ) -> pb.DeleteConversationResponse:
        conversation_id = self._conversation_id(request.conversation_id)
        await self._registry.delete_conversation(current_caller().tenant, conversation_id)
        await self._runs.forget(current_caller().tenant, conversation_id)
        return pb.DeleteConversationResponse()

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Context) -> pb.ListMessagesResponse:
        reader = Reader(self._limits)
        reader.id("conversation_id", request.conversation_id)
        reader.id("run_id", request.run_id)
        if not request.conversation_id and not request.run_id:
            reader.problems.add("conversation_id", "is empty, and so is run_id; name a conversation or a run")
        size = page_size(reader.problems, self._limits, request.page_size)
        after, _ = read_token(reader.problems, "messages", request.page_token)
        descending = reader.order(request.order, descending=False)
        reader.done()
        read = await self._message_reader(request, descending)
        page = await read(after, size)
        shown = bounded_page(map(translate.message, page), size, self._limits.max_response_bytes)
        more = bool(shown) and await read(shown[-1].position, 1)
        token = write_token("messages", shown[-1].position, "-") if more else ""
        return pb.ListMessagesResponse(messages=shown, next_page_token=token)

    async def _message_reader(self, request: pb.ListMessagesRequest, descending: bool) -> ReadMessages:
        """Reads pages of the conversation or of the run that is asked for."""
        tenant, conversation_id, run_id = current_caller().tenant, request.conversation_id, request.run_id
        first = 0
        if run_id:
            run = (await self._runs.get(tenant, run_id)).run
            if conversation_id not in ("", run.conversation_id):
                text = f"{run_id} is a run of {run.conversation_id}, not of {conversation_id}"
                raise invalid(FieldViolation("run_id", text))
            conversation_id, first = run.conversation_id, run.first_position

        async def read(after: int, limit: int) -> tuple[Message, ...]:
            start = after or (0 if descending else max(first - 1, 0))
            return await self._runs.parts.store.messages(
                tenant, conversation_id, start, limit, descending=descending, run_id=run_id
            )

        return read

    def _conversation_id(self, conversation_id: str) -> str:
        reader = Reader(self._limits)
        reader.required_id("conversation_id", conversation_id, "a conversation")
        reader.done()
        return conversation_id

    def _definition(self, agent: agents_pb2.Agent) -> AgentDefinition:
        reader = Reader(self._limits, "agent.")
        definition = AgentDefinition(
            agent_id=reader.id("agent_id", agent.agent_id),
            kind=_KINDS.get(agent.kind, AgentKind.LLM),
            instructions=agent.instructions,
            model=agent.model,
            server_tools=tuple(agent.server_tools),
            description=agent.description,
            message_tool=agent.message_tool or MESSAGE_TOOL,
            message_argument=agent.message_argument or MESSAGE_ARGUMENT,
            tool_rules=reader.tool_rules(agent.tool_rules),
            sleeptime=_sleeptime(reader, agent.sleeptime) if agent.HasField("sleeptime") else None,
            memory_block_ids=tuple(
                reader.id(f"memory_block_ids[{i}]", v) for i, v in enumerate(agent.memory_block_ids)
            ),
            context=reader.context_policy("context", agent.context),
        )
        if agent.kind not in _KINDS:
            reader.problems.add("agent.kind", f"{agent.kind} is not a value of AgentKind")
        reader.too_many("server_tools", len(agent.server_tools))
        for name in ("instructions", "description"):
            reader.bounded(name, getattr(agent, name), self._limits.max_input_bytes)
        for name in ("model", "message_tool", "message_argument"):
            reader.bounded(name, getattr(agent, name), 256)
        reader.done()
        return definition


def _sleeptime(reader: Reader, value: agents_pb2.Sleeptime) -> Sleeptime:
    path = "sleeptime."
    ids = tuple(reader.id(f"{path}memory_agent_ids[{i}]", each) for i, each in enumerate(value.memory_agent_ids))
    plan = MemoryPlan(ids, value.every or DEFAULT_EVERY)
    foreground = reader.required_id(f"{path}foreground_agent_id", value.foreground_agent_id, "the agent that answers")
    return Sleeptime(foreground, plan)


def _mask(paths: list[str]) -> tuple[str, ...]:
    """The fields to change; all if none is named."""
    unknown = [path for path in paths if path not in _CHANGEABLE]
    if unknown:
        listed = ", ".join(_CHANGEABLE)
        raise invalid(FieldViolation("update_mask", f"'{unknown[0][:64]}' cannot be changed; these can: {listed}"))
    return tuple(paths) or _CHANGEABLE
