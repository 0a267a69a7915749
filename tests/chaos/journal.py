"""What the clients were told, word for word. Contradictions within it are findings at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from agentrpc.v1 import events_pb2, messages_pb2, runs_pb2

DELTAS = ("text_delta", "reasoning_delta", "tool_call_arguments_delta")
PASSING = (*DELTAS, "tool_call_progress", "heartbeat", "live")
"""Events that are not stored."""
TERMINAL = (
    runs_pb2.RUN_STATUS_COMPLETED,
    runs_pb2.RUN_STATUS_FAILED,
    runs_pb2.RUN_STATUS_CANCELLED,
    runs_pb2.RUN_STATUS_EXPIRED,
)


def raw(message: Any) -> bytes:
    """A message as bytes that are equal exactly when the messages are."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


@dataclass
class Journal:
    """Filled by all clients of a campaign. `counts` is for the report only."""

    starts: dict[str, str] = field(default_factory=dict)
    """Runs whose start was acknowledged, and their conversation where it was told."""
    events: dict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    """Durable events by run and number."""
    deltas: list[events_pb2.RunEvent] = field(default_factory=list)
    receipts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """By run and request_id."""
    taken: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By run: the calls whose answers were acknowledged as stored."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """By call: the outcome that a receipt accepted."""
    messages: dict[str, bytes] = field(default_factory=dict)
    finals: dict[str, bytes] = field(default_factory=dict)
    """By run: the run as it was shown when it was over."""
    windows: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    """By run and submit (empty for the start): the messages of the answer."""
    pressed: set[str] = field(default_factory=set)
    """Runs that another one was started behind, or in the place of, before they were over."""
    left: set[str] = field(default_factory=set)
    """Runs that their client left behind."""
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _trap: tuple[str, Callable[[], None]] | None = None

    def trap(self, kind: str, spring: Callable[[], None]) -> None:
        """Calls `spring` at the next acknowledgement of this kind ("start", "receipt" or "event"), before anybody acts
        upon it."""
        self._trap = (kind, spring)

    def disarm(self) -> bool:
        """Takes the trap away; False if there is none, or it was sprung."""
        armed, self._trap = self._trap is not None, None
        return armed

    def find(self, rule: str, finding: str) -> None:
        """Something that must not be, and the rule that it breaks."""
        self.findings.append(f"{rule}: {finding}")

    def start_stored(self, run_id: str, conversation_id: str = "") -> None:
        """The start of a run was acknowledged."""
        known = self.starts.get(run_id, "")
        if known and conversation_id and known != conversation_id:
            self.find("shown_in_one_way", f"{run_id} was in conversation {known}, is in {conversation_id}")
        self.starts[run_id] = conversation_id or known
        self._acknowledged("start")

    def submit_stored(self, run_id: str, call_ids: Iterable[str]) -> None:
        """The answers to these calls were acknowledged."""
        self.taken[run_id].update(call_ids)
        self._acknowledged("receipt")

    def receipt(self, run_id: str, receipt: events_pb2.ToolReturnsAccepted) -> None:
        """A receipt; the same for each repeat of its submit."""
        self._once(self.receipts, (run_id, receipt.request_id), raw(receipt), "the receipt")
        self.submit_stored(run_id, receipt.accepted_tool_call_ids)

    def outcome(self, call_id: str, content: str) -> None:
        """A receipt accepted this outcome."""
        self._once(self.outcomes, call_id, content, "the accepted outcome of")

    def run(self, run: runs_pb2.Run) -> None:
        """A run as it was shown."""
        self.start_stored(run.run_id, run.conversation_id)
        if run.status in TERMINAL:
            self._once(self.finals, run.run_id, raw(run), "the ended run")

    def window(self, run_id: str, request_id: str, messages: Iterable[messages_pb2.Message]) -> None:
        """The messages that a blocking call was answered with."""
        shown = list(messages)
        for message in shown:
            self.message(message)
        self._once(self.windows, (run_id, request_id), [raw(m) for m in shown], "the answer's messages of")

    def message(self, message: messages_pb2.Message) -> None:
        """A stored message."""
        self._once(self.messages, message.message_id, raw(message), "the message")

    def see(self, event: events_pb2.RunEvent) -> None:
        """An event of a stream."""
        kind = event.WhichOneof("payload")
        if kind in DELTAS:
            self.deltas.append(event)
        if kind in PASSING:
            return
        self._once(self.events[event.run_id], event.sequence, raw(event), f"{event.run_id} event")
        if kind == "run_accepted":
            self.start_stored(event.run_id, event.run_accepted.conversation_id)
        elif kind == "tool_returns_accepted":
            self.receipt(event.run_id, event.tool_returns_accepted)
        elif kind == "message_stored":
            self.message(event.message_stored.message)
        self._acknowledged("event")

    def cursor(self, run_id: str) -> int:
        """The highest number of the run that was seen."""
        return max(self.events[run_id], default=0)

    def _once(self, known: dict[Any, Any], key: Any, value: Any, what: str) -> None:
        if known.setdefault(key, value) != value:
            self.find("shown_in_one_way", f"{what} {key} was shown in two ways")

    def _acknowledged(self, kind: str) -> None:
        self.counts[kind] += 1
        if self._trap is not None and self._trap[0] == kind:
            spring, self._trap = self._trap[1], None
            spring()
