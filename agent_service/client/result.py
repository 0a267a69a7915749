"""What came of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentrpc.v1 import errors_pb2, messages_pb2, runs_pb2

from agent_service.client.tools import ToolCall


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run at its stop, and the messages that were seen of it, in order.

    `status` and `stop_reason` are the names of RunStatus and StopReason without their prefix, such as COMPLETED and
    END_TURN; empty before the first stop. `pending` are the calls that wait for somebody: not empty only where `status`
    is PAUSED. `error` is set where the run failed or was interrupted. `usage` counts tokens, over the whole run.
    """

    run_id: str
    conversation_id: str = ""
    agent_id: str = ""
    status: str = ""
    stop_reason: str = ""
    messages: tuple[messages_pb2.Message, ...] = ()
    pending: tuple[ToolCall, ...] = ()
    usage: runs_pb2.Usage = field(default_factory=runs_pb2.Usage)
    error: errors_pb2.RunError | None = None

    @property
    def text(self) -> str:
        """What the agent said last; empty if it said nothing."""
        said = (message.assistant.text for message in reversed(self.messages) if message.HasField("assistant"))
        return next(said, "")
