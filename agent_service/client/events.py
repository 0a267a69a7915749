"""What is told of a run while it goes on: small events, each with the event of the contract that it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from agentrpc.v1 import errors_pb2, events_pb2, messages_pb2, runs_pb2

from agent_service.client.tools import ToolCall

UNSTORED = frozenset(
    {"text_delta", "reasoning_delta", "tool_call_arguments_delta", "tool_call_progress", "heartbeat", "live"}
)
"""The payloads that are not durable, and repeat the number of the event before."""


@dataclass(frozen=True, slots=True)
class Event:
    """Any event. `raw` is the event of the contract: its times and whatever else it says."""

    raw: events_pb2.RunEvent = field(repr=False)

    @property
    def run_id(self) -> str:
        """The run."""
        return self.raw.run_id

    @property
    def sequence(self) -> int:
        """The number of this durable event, or of the last one before it."""
        return self.raw.sequence


@dataclass(frozen=True, slots=True)
class Accepted(Event):
    """The start is stored. Always the first event."""

    conversation_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class TextDelta(Event):
    """The next piece of an assistant message. All pieces of one `message_id`, joined, are the stored message, unless
    the message is dropped. `offset` counts code points."""

    message_id: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta(Event):
    """The next piece of a reasoning message; as TextDelta."""

    message_id: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta(Event):
    """The next piece of the arguments of the call at place `index` of a tool call message; as TextDelta."""

    message_id: str
    index: int
    name: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class MessageStored(Event):
    """A whole message is part of the conversation."""

    message: messages_pb2.Message


@dataclass(frozen=True, slots=True)
class Restarted(Event):
    """The model is asked again, because its answer broke off or a server process was lost. The messages `dropped`, of
    which there were deltas, will not be stored."""

    dropped: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ToolProgress(Event):
    """A worker tells how far it is with a call."""

    tool_call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class ReturnsAccepted(Event):
    """Returns or decisions are stored, from this client or another one."""

    tool_call_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The run stopped: one per pause, one per submit that left calls pending, and one, `final`, at the end.

    Names are those of RunResult. `pending` are the calls that are waited for.
    """

    status: str
    stop_reason: str
    final: bool
    pending: tuple[ToolCall, ...]
    usage: runs_pb2.Usage
    error: errors_pb2.RunError | None


@dataclass(frozen=True, slots=True)
class OtherEvent(Event):
    """Durable, and of no interest to most: look at `raw`."""


_Delta = events_pb2.TextDelta | events_pb2.ReasoningDelta | events_pb2.ToolCallArgumentsDelta
_ARMS = {"assistant": "text_delta", "reasoning": "reasoning_delta"}


class Reader:
    """Makes events of those of the contract, however often these are told again.

    Durable events are told once, in order. Deltas are cut and filled up, so that those of one message join to it: a
    watcher that attaches anew is sent a message from its beginning, and pieces may be missing until it is stored.
    """

    def __init__(self, *, tokens: bool) -> None:
        self.cursor = 0
        self._tokens = tokens
        self._told: dict[tuple[str, int], str] = {}
        """What was told of messages that are not stored yet; the number is that of a call in its message."""
        self._stored: set[str] = set()

    def read(self, event: events_pb2.RunEvent) -> Iterator[Event]:
        """What is new in it."""
        kind = event.WhichOneof("payload") or ""
        if kind in ("text_delta", "reasoning_delta", "tool_call_arguments_delta"):
            if self._tokens:
                yield from self._delta(event, getattr(event, kind))
        elif kind == "tool_call_progress":
            told = event.tool_call_progress
            yield ToolProgress(event, tool_call_id=told.tool_call_id, text=told.text)
        elif kind not in UNSTORED and event.sequence > self.cursor:
            if kind == "message_stored":
                yield from self._rest(event, event.message_stored.message)
            self.cursor = event.sequence
            yield self._durable(event, kind)

    def _durable(self, event: events_pb2.RunEvent, kind: str) -> Event:
        match kind:
            case "run_accepted":
                accepted = event.run_accepted
                return Accepted(event, conversation_id=accepted.conversation_id, agent_id=accepted.agent_id)
            case "message_stored":
                return MessageStored(event, message=event.message_stored.message)
            case "step_restarted":
                return Restarted(event, dropped=self._drop(), reason=event.step_restarted.reason)
            case "run_resumed" if self._told:
                return Restarted(event, dropped=self._drop(), reason="the server process was lost")
            case "tool_returns_accepted":
                return ReturnsAccepted(event, tool_call_ids=tuple(event.tool_returns_accepted.accepted_tool_call_ids))
            case "run_stopped":
                self._drop()
                return _stopped(event)
        return OtherEvent(event)

    def _drop(self) -> tuple[str, ...]:
        dropped = dict.fromkeys(message_id for message_id, _ in self._told)
        self._told.clear()
        return tuple(dropped)

    def _delta(self, event: events_pb2.RunEvent, delta: _Delta) -> Iterator[Event]:
        index = delta.index if isinstance(delta, events_pb2.ToolCallArgumentsDelta) else 0
        told = self._told.get((delta.message_id, index), "")
        new = delta.text[len(told) - delta.offset :]
        # What lies beyond a gap waits until the message is stored.
        if delta.message_id in self._stored or delta.offset > len(told) or not new:
            return
        self._told[delta.message_id, index] = told + new
        yield _made(event, delta, len(told), new)

    def _rest(self, event: events_pb2.RunEvent, message: messages_pb2.Message) -> Iterator[Event]:
        """What was not told of a message that is stored now."""
        arm = message.WhichOneof("content")
        self._stored.add(message.message_id)
        told = {index: self._told.pop((key, index)) for key, index in list(self._told) if key == message.message_id}
        if not self._tokens:
            return
        if arm in _ARMS:
            whole = [("", getattr(message, arm).text)]
        else:
            whole = [(call.name, call.arguments_json) for call in message.tool_call.tool_calls]
        for index, (name, text) in enumerate(whole):
            seen = told.get(index, "")
            if text.startswith(seen) and len(text) > len(seen):
                raw = events_pb2.RunEvent(run_id=event.run_id, sequence=self.cursor, step_id=event.step_id)
                made = getattr(raw, _ARMS.get(str(arm), "tool_call_arguments_delta"))
                made.message_id, made.offset, made.text = message.message_id, len(seen), text[len(seen) :]
                if name:
                    made.name, made.index = name, index
                yield _made(raw, made, made.offset, made.text)


def _made(event: events_pb2.RunEvent, delta: _Delta, offset: int, text: str) -> Event:
    match delta:
        case events_pb2.ToolCallArgumentsDelta():
            return ToolArgumentsDelta(event, delta.message_id, delta.index, delta.name, offset, text)
        case events_pb2.TextDelta():
            return TextDelta(event, delta.message_id, offset, text)
    return ReasoningDelta(event, delta.message_id, offset, text)


def _stopped(event: events_pb2.RunEvent) -> Stopped:
    stopped = event.run_stopped
    return Stopped(
        event,
        status=runs_pb2.RunStatus.Name(stopped.status).removeprefix("RUN_STATUS_"),
        stop_reason=runs_pb2.StopReason.Name(stopped.stop_reason).removeprefix("STOP_REASON_"),
        final=stopped.final,
        pending=tuple(ToolCall.of(event.run_id, call) for call in stopped.remaining),
        usage=stopped.usage,
        error=stopped.error if stopped.HasField("error") else None,
    )
