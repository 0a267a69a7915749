"""A small server around an agent: Step, SubmitToolReturns and ListMessages, for one client tool and no failures.

Its run is its conversation, so that nothing has to be looked up. Everything else is the agent's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import messages_pb2, runs_pb2, tools_pb2

from bench.references.methods import add_methods

TOOL = "get_secret_code"
DESCRIPTION = "Returns the secret code of a person."
PARAMETERS = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
INSTRUCTIONS = "You are a helpful assistant."
STORE = "reference.sqlite3"


@dataclass(frozen=True)
class Reply:
    """What the model said; with a `call_id` it calls the tool."""

    text: str = ""
    call_id: str = ""
    arguments: str = ""


class Agent(Protocol):
    """What is behind the shell. What it has returned is durable."""

    async def ask(self, conversation_id: str, text: str) -> Reply:
        """A message of the user."""

    async def answer(self, conversation_id: str, call_id: str, text: str) -> Reply:
        """What the tool returned."""

    async def history(self, conversation_id: str) -> list[tuple[str, str]]:
        """Role and text of all messages."""


class Shell:
    """Serves an agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._numbers = itertools.count(1)

    async def Step(self, request: pb.StepRequest, context: Any) -> pb.StepResponse:
        """See AgentService."""
        conversation_id = request.conversation_id or f"conv_{next(self._numbers)}"
        reply = await self._agent.ask(conversation_id, request.input_messages[0].text)
        return pb.StepResponse(run=_run(conversation_id, reply), messages=[_message(reply)])

    async def SubmitToolReturns(
        self, request: pb.SubmitToolReturnsRequest, context: Any
    ) -> pb.SubmitToolReturnsResponse:
        """See AgentService."""
        returned = request.tool_returns[0]
        reply = await self._agent.answer(request.run_id, returned.tool_call_id, returned.text)
        return pb.SubmitToolReturnsResponse(run=_run(request.run_id, reply), messages=[_message(reply)])

    async def ListMessages(
        self, request: registry_pb.ListMessagesRequest, context: Any
    ) -> registry_pb.ListMessagesResponse:
        """See AgentRegistryService."""
        history = await self._agent.history(request.conversation_id)
        return registry_pb.ListMessagesResponse(
            messages=[
                messages_pb2.Message(position=position, user=messages_pb2.UserMessage(text=text))
                if role == "user"
                else messages_pb2.Message(position=position, assistant=messages_pb2.AssistantMessage(text=text))
                for position, (role, text) in enumerate(history, 1)
            ]
        )


def serve(server: grpc.aio.Server, agent: Agent) -> None:
    """Adds the agent's services."""
    shell = Shell(agent)
    add_methods(server, "AgentService", Step=shell.Step, SubmitToolReturns=shell.SubmitToolReturns)
    add_methods(server, "AgentRegistryService", ListMessages=shell.ListMessages)


def _run(conversation_id: str, reply: Reply) -> runs_pb2.Run:
    run = runs_pb2.Run(run_id=conversation_id, conversation_id=conversation_id, status=runs_pb2.RUN_STATUS_COMPLETED)
    if reply.call_id:
        run.status = runs_pb2.RUN_STATUS_PAUSED
        run.pending_tool_calls.add(tool_call_id=reply.call_id, name=TOOL, arguments_json=reply.arguments)
    return run


def _message(reply: Reply) -> messages_pb2.Message:
    if reply.call_id:
        call = tools_pb2.ToolCall(tool_call_id=reply.call_id, name=TOOL, arguments_json=reply.arguments)
        return messages_pb2.Message(tool_call=messages_pb2.ToolCallMessage(tool_calls=[call]))
    return messages_pb2.Message(assistant=messages_pb2.AssistantMessage(text=reply.text))
