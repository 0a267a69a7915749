"""A change to one run while it is made: the store loads a Draft, a move edits it, the store writes the Change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent_service.domain.event import DurableBody, Event, MessageStored, RunStopped, ToolReturnsAccepted
from agent_service.domain.memory import BlockRecord
from agent_service.domain.message import Content, Message
from agent_service.domain.run import Run
from agent_service.domain.tool import Call
from agent_service.domain.values import replace

NewId = Callable[[str], str]
"""Makes a fresh id with the given prefix, such as `new_id("msg")`."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a submit or a retry was answered with; a repeat of its `request_id` is answered the same.

    `digest` is over what was asked; `sequence` is the number of its event, where its window begins. `body` is None for
    a retry.
    """

    request_id: str
    digest: str
    sequence: int
    body: ToolReturnsAccepted | None


@dataclass(frozen=True, slots=True)
class RunState:
    """What a move sees: the run, the calls of its last step and those it named, the time of the store, and the memory
    blocks it named."""

    run: Run
    calls: tuple[Call, ...]
    next_position: int
    receipt: Receipt | None
    now: int
    blocks: tuple[BlockRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What a move did, to be written in one transaction. `run` is the new row; `calls` are new or changed ones,
    `blocks` changed memory blocks."""

    run: Run
    messages: tuple[Message, ...]
    events: tuple[Event, ...]
    calls: tuple[Call, ...]
    receipt: Receipt | None
    next_position: int
    blocks: tuple[BlockRecord, ...] = ()

    @property
    def memory_matters(self) -> bool:
        """Whether the run stopped and memory agents read its conversation, or it is the run of one."""
        run = self.run
        if run.memory_plan is None and run.memory_part is None:
            return False
        return any(isinstance(event.body, RunStopped) for event in self.events)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run, the calls of its last step, and the position of its conversation's last message, as a move left them.

    `appended` are the messages that a start added up to there, so that they need not be read.
    """

    run: Run
    calls: tuple[Call, ...]
    last_position: int
    appended: tuple[Message, ...] = ()


class Draft:
    """Collects what a move does to a run. Not shared, not kept."""

    def __init__(self, state: RunState, new_id: NewId) -> None:
        self.run = state.run
        self.now = state.now
        self.receipt = state.receipt
        self.new_id = new_id
        self._before = state.run
        self._calls = {call.tool_call_id: call for call in state.calls}
        self._touched: dict[str, Call] = {}
        self._messages: list[Message] = []
        self._events: list[Event] = []
        self._next_position = state.next_position
        self._new_receipt: Receipt | None = None
        self._blocks = {record.block.memory_block_id: record for record in state.blocks}
        self._changed_blocks: dict[str, BlockRecord] = {}

    def call(self, tool_call_id: str) -> Call | None:
        """A call of the last step, or one the move was loaded with."""
        return self._calls.get(tool_call_id)

    @property
    def blocks(self) -> tuple[BlockRecord, ...]:
        """The memory blocks that the move was loaded with, in the order of the agent, as they are now."""
        return tuple(self._blocks.values())

    @property
    def batch(self) -> tuple[Call, ...]:
        """The calls of the last model response, in its order."""
        step = self.run.steps_taken
        return tuple(sorted((c for c in self._calls.values() if c.step == step), key=lambda c: c.index))

    @property
    def snapshot(self) -> Snapshot:
        """How things stand now."""
        return Snapshot(self.run, self.batch, self._next_position - 1)

    def put_call(self, call: Call) -> None:
        """Adds a call or replaces it."""
        self._calls[call.tool_call_id] = call
        self._touched[call.tool_call_id] = call

    def put_block(self, record: BlockRecord) -> None:
        """Replaces a memory block that the move was loaded with."""
        self._blocks[record.block.memory_block_id] = record
        self._changed_blocks[record.block.memory_block_id] = record

    def emit(self, body: DurableBody, step_id: str = "") -> Event:
        """Appends a durable event with the next number."""
        sequence = self.run.last_sequence + 1
        self.run = replace(self.run, last_sequence=sequence, update_time=self.now)
        event = Event(self.run.run_id, sequence, step_id, self.now, body)
        self._events.append(event)
        return event

    def add_message(self, content: Content, step_id: str = "", message_id: str = "") -> Message:
        """Appends a message to the conversation, and its event."""
        message = Message(
            message_id=message_id or self.new_id("msg"),
            conversation_id=self.run.conversation_id,
            run_id=self.run.run_id,
            step_id=step_id,
            position=self._next_position,
            create_time=self.now,
            content=content,
        )
        self._next_position += 1
        self._messages.append(message)
        self.emit(MessageStored(message), step_id)
        return message

    def keep_receipt(self, receipt: Receipt) -> None:
        """Stores the answer to a submit."""
        self._new_receipt = receipt

    def change(self) -> Change | None:
        """What is to be written; None if the move did nothing."""
        untouched = not self._touched and not self._changed_blocks
        if self.run is self._before and untouched and self._new_receipt is None:
            return None
        return Change(
            run=self.run,
            messages=tuple(self._messages),
            events=tuple(self._events),
            calls=tuple(self._touched.values()),
            receipt=self._new_receipt,
            next_position=self._next_position,
            blocks=tuple(self._changed_blocks.values()),
        )
