"""ServerService: says what this server is."""

from __future__ import annotations

from typing import Any

import grpc
from agentrpc.v1 import server_service_pb2 as pb
from agentrpc.v1 import server_service_pb2_grpc as pb_grpc

from agent_service import __version__
from agent_service.domain.run import AgentDefinition, AgentKind
from agent_service.engine.agents import Agents, KnownAgent
from agent_service.engine.limits import Limits
from agent_service.transport import translate

Context = grpc.aio.ServicerContext[Any, Any]

CAPABILITIES = (
    "client_tools",
    "approvals",
    "partial_submits",
    "background",
    "resumable_streams",
    "dry_run",
    "agents",
    "inbox",
    "claims",
    "deadlines",
    "on_busy",
    "structured_output",
    "images",
    "tool_rules",
    "parallel_tools",
    "sleeptime",
    "memory_blocks",
    "compaction",
)
"""What clients may rely on."""


class ServerServicer(pb_grpc.ServerServiceServicer):
    """Answers from what was configured at the start."""

    def __init__(self, agents: Agents, limits: Limits, store: str) -> None:
        self._info = pb.GetServerInfoResponse(
            version=__version__,
            capabilities=CAPABILITIES,
            agents=[_agent(known, agents.foreground(known)) for known in agents.configured],
            default_model=agents.default_model,
            store=store,
            limits=translate.limits(limits),
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return self._info


def _agent(known: KnownAgent, answering: AgentDefinition) -> pb.AgentInfo:
    return pb.AgentInfo(
        agent_id=known.definition.agent_id,
        is_default=known.is_default,
        kind=known.definition.kind.value,
        client_tools=answering.kind is not AgentKind.RESPONDER,
        server_tools=answering.server_tools,
    )
