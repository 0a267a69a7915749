"""A small model of a run: the rules in its own words, to check the moves against. It shares no code with them."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent_service.domain.errors import Reason
from agent_service.domain.event import Event

OUTCOMES = {"returned", "failed", "denied", "expired", "cancelled"}
GIVES = {"return": "returned", "other": "returned", "error": "failed", "approve": "approved", "edit": "approved"}


@dataclass
class BelievedCall:
    """What the model believes of a call; `answer` is what the caller said, `taken` the receipt that took it.

    `begun`: it was started, perhaps by an owner that was lost.
    """

    name: str
    kind: str
    state: str
    answer: str = ""
    taken: int = 0
    begun: bool = False

    @property
    def open(self) -> bool:
        return self.state not in OUTCOMES


@dataclass
class BelievedRun:
    """What the model believes of a run."""

    run_id: str
    max_steps: int
    waits: bool = False
    status: str = "running"
    epoch: int = 1
    steps: int = 0
    invalid: int = 0
    calls: list[BelievedCall] = field(default_factory=list)
    batch: list[BelievedCall] = field(default_factory=list)
    receipts: dict[str, tuple[str, int, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = field(
        default_factory=dict
    )
    events: list[Event] = field(default_factory=list)
    stops: int = 0
    lost: int = 0

    @property
    def over(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    @property
    def pending(self) -> list[BelievedCall]:
        return [call for call in self.batch if call.state == "pending"]

    @property
    def startable(self) -> list[BelievedCall]:
        held = {"approved", "proposed"} if self.waits else {"approved"}
        ready = {"approved", "proposed"} - (held if self.pending else set())
        return [call for call in self.batch if call.state in ready]

    @property
    def started(self) -> list[BelievedCall]:
        return [call for call in self.batch if call.state == "started"]

    @property
    def asks(self) -> bool:
        return self.status == "running" and not any(call.open for call in self.batch)

    def close(self) -> None:
        for call in self.batch:
            if call.open:
                call.state = "failed" if call.begun else "cancelled"

    def lose(self) -> bool:
        """The owner is gone; True if the next one works on."""
        if self.status != "running":
            return False
        self.lost += 1
        self.epoch += 1
        if self.lost == 3:
            self.stop("interrupted")
            return False
        return self.go_on()

    def retry(self, request_id: str) -> Reason | bool:
        """What a request to go on leads to: an error, or whether somebody works on."""
        if request_id in self.receipts:
            return Reason.REQUEST_ID_REUSED if self.receipts[request_id][0] != "retry" else False
        if self.status != "interrupted":
            return Reason.RUN_NOT_INTERRUPTED
        if request_id:
            self.receipts[request_id] = ("retry", 0, (), (), ())
        self.lost = 0
        self.epoch += 1
        return self.go_on()

    def go_on(self) -> bool:
        """Of a call that was started nobody knows the outcome; only a repeatable one may start again."""
        self.status = "running"
        for call in self.started:
            call.state = "proposed" if call.kind == "repeatable" else "failed"
        self.settle_down()
        return self.status == "running"

    def run_out_of_time(self) -> bool:
        """Nobody answered; True if somebody works on without the answers."""
        late = [call for call in self.pending if call.kind == "timed"]
        if self.status != "paused" or not late:
            return False
        for call in late:
            call.state = "expired"
        if self.pending:
            return False
        self.status = "running"
        self.settle_down()
        self.epoch += not self.over
        return not self.over

    def settle_down(self) -> None:
        """Where a run that the server works on stands after something happened to its calls."""
        if not any(call.open for call in self.batch):
            if self.steps >= self.max_steps:
                self.stop("completed")
        elif not self.startable and not self.started:
            self.stop("paused")

    def stop(self, status: str) -> None:
        self.status = status
        self.stops += 1

    def submit(self, chosen: list[tuple[str, str]], request_id: str, digest: str) -> Reason | tuple[bool, bool]:
        """What a submit leads to: an error, or whether something is new and whether it resumes the run."""
        if request_id in self.receipts:
            return (False, False) if self.receipts[request_id][0] == digest else Reason.REQUEST_ID_REUSED
        calls = {call.name: call for call in self.calls}
        names = [name for name, _ in chosen]
        if len(set(names)) < len(names) or not set(names) <= set(calls):
            return Reason.UNKNOWN_TOOL_CALL
        for name, kind in chosen:
            problem = _problem(calls[name], kind)
            if problem is not None:
                return problem
        new = [(calls[name], kind) for name, kind in chosen if calls[name].state == "pending"]
        already = tuple(name for name in names if calls[name].state != "pending")
        sequence = self.events[-1].sequence + 1 if new else max(calls[name].taken for name in names)
        for call, kind in new:
            call.state, call.answer, call.taken = GIVES.get(kind, "denied"), kind, sequence
        remaining = tuple(call.name for call in self.pending)
        self.receipts[request_id] = (digest, sequence, tuple(call.name for call, _ in new), already, remaining)
        if not new:
            return (False, False)
        self.lost = 0
        if remaining or self.status == "interrupted":
            self.stops += 1
        elif self.status == "paused":
            self.status = "running"
            self.settle_down()
            self.epoch += not self.over
            return (True, not self.over)
        return (True, False)


def _problem(call: BelievedCall, kind: str) -> Reason | None:
    """Why a call does not take this answer."""
    if call.state != "pending":
        if call.answer == kind:
            return None
        if call.state in ("cancelled", "expired"):
            return Reason.CALL_CANCELLED if call.state == "cancelled" else Reason.CALL_EXPIRED
        return Reason.CALL_ALREADY_SETTLED if call.answer or not call.open else Reason.CALL_NOT_PENDING
    if call.kind in ("client", "timed"):
        return Reason.CALL_NEEDS_TOOL_RETURN if kind in ("approve", "edit") else None
    return Reason.CALL_NEEDS_APPROVAL if kind in ("return", "other", "error") else None
