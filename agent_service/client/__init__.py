"""A client of the service: asks agents, and lets them call functions of this process.

    @client_tool
    def get_secret_code(name: str) -> str:
        "Returns the secret code of a person."
        return CODES[name]

    async with AgentClient("localhost:50051") as client:
        result = await client.run("What is the secret code of Alice?", tools=[get_secret_code])
        print(result.text)

Warnings about retries and failed tools go to the logger `agent_service.client`.
"""

from agentrpc.v1.tools_pb2 import Approve, Deny

from agent_service.client.client import AgentClient, Conversation, RunStream
from agent_service.client.connection import Retry, Tls
from agent_service.client.errors import (
    AccessError,
    AgentClientError,
    ConflictError,
    DeadlineError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    RefusedError,
    RunFailedError,
    UnavailableError,
    WaitingCall,
)
from agent_service.client.events import (
    Accepted,
    Event,
    MessageStored,
    OtherEvent,
    ReasoningDelta,
    Restarted,
    ReturnsAccepted,
    Stopped,
    TextDelta,
    ToolArgumentsDelta,
    ToolProgress,
)
from agent_service.client.result import RunResult
from agent_service.client.tools import ClientTool, ToolCall, client_tool

__all__ = [
    "Accepted",
    "AccessError",
    "AgentClient",
    "AgentClientError",
    "Approve",
    "ClientTool",
    "ConflictError",
    "Conversation",
    "DeadlineError",
    "Deny",
    "Event",
    "FieldViolation",
    "InvalidRequestError",
    "MessageStored",
    "NotFoundError",
    "OtherEvent",
    "ReasoningDelta",
    "RefusedError",
    "Restarted",
    "Retry",
    "ReturnsAccepted",
    "RunFailedError",
    "RunResult",
    "RunStream",
    "Stopped",
    "TextDelta",
    "Tls",
    "ToolArgumentsDelta",
    "ToolCall",
    "ToolProgress",
    "UnavailableError",
    "WaitingCall",
    "client_tool",
]
