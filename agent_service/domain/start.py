"""Starting a run: joins an equal start, refuses a busy conversation, settles an interrupted run, begins the new one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent_service.domain.draft import Change, Draft, NewId, RunState
from agent_service.domain.errors import MAX_NAMED, AgentServiceError, Reason
from agent_service.domain.message import InputContent, Message, SystemContent, UserContent
from agent_service.domain.moves import abandon, accept, begin, cancel
from agent_service.domain.run import Owner, Pinned, QueuedInput, Run, RunStatus, StopReason
from agent_service.domain.tool import pending_of
from agent_service.domain.values import replace


class OnBusy(StrEnum):
    """What a start does where the conversation has a run that is RUNNING, PAUSED or QUEUED."""

    REJECT = "reject"
    SUPERSEDE = "supersede"
    ENQUEUE = "enqueue"


@dataclass(frozen=True, slots=True)
class NewRun:
    """A start to be stored. `run` has the row as it will be but for what the store knows (times, epoch, numbers).

    With `new_conversation` the conversation `run.conversation_id` is made; else it must exist. At most `max_queued`
    runs wait in a conversation. `refusal` says why it cannot be started, unless it was before: what it is against, the
    tools of its agent, may have changed since.
    """

    run: Run
    pinned: Pinned
    inputs: tuple[InputContent, ...]
    owner: Owner
    new_conversation: bool
    on_busy: OnBusy = OnBusy.REJECT
    max_queued: int = 16
    refusal: AgentServiceError | None = None


@dataclass(frozen=True, slots=True)
class ConversationState:
    """What a start sees of its conversation: the next message's position, its run that is RUNNING, PAUSED or
    INTERRUPTED, and the ids of those that wait, in their order. `create_time` is 0 for one that is made now."""

    next_position: int
    current: RunState | None
    queue: tuple[str, ...] = ()
    create_time: int = 0

    @property
    def busy(self) -> Run | None:
        """Its run that is RUNNING or PAUSED."""
        return self.current.run if self.current is not None and self.current.run.status.active else None


@dataclass(frozen=True, slots=True)
class Started:
    """The run; `joined` if an equal start had been stored before.

    `messages` are those the start appended, `last_position` the place of the last of them; both only when not joined.
    `ended` is the run that had to make room, if there was one.
    """

    run: Run
    joined: bool
    last_position: int = 0
    messages: tuple[Message, ...] = ()
    ended: Run | None = None


@dataclass(frozen=True, slots=True)
class StartPlan:
    """What to write for a start, in order, and what to answer."""

    changes: tuple[Change, ...]
    started: Started


def plan_start(
    new: NewRun, existing: Run | None, conversation: ConversationState | None, now: int, new_id: NewId
) -> StartPlan:
    """Decides a start from what the store holds under its locks."""
    if existing is not None:
        return StartPlan((), _join(new, existing))
    if new.refusal is not None:
        raise new.refusal
    if conversation is None:
        raise AgentServiceError(
            Reason.CONVERSATION_NOT_FOUND,
            f"conversation_id: no conversation '{new.run.conversation_id}'; leave it empty to begin one",
        )
    run = replace(new.run, create_time=now, update_time=now, conversation_time=conversation.create_time or now)
    if conversation.busy or conversation.queue:
        if new.on_busy is OnBusy.ENQUEUE:
            return _enqueue(replace(new, run=run), conversation, now, new_id)
        if new.on_busy is OnBusy.REJECT:
            raise _busy(new.run.conversation_id, conversation)
    state = RunState(run, (), 0, None, now)
    return _begin(state, conversation, new.inputs, new.owner, new_id, accepted=False)


def plan_queued(queued: RunState, conversation: ConversationState, owner: Owner, new_id: NewId) -> StartPlan | None:
    """What to write when the turn of a queued run has come; None if it has not."""
    run = queued.run
    if run.status is not RunStatus.QUEUED or conversation.busy or conversation.queue[:1] != (run.run_id,):
        return None
    inputs = tuple(
        SystemContent(each.text) if each.system else UserContent(each.text, each.name, each.parts)
        for each in run.queued_inputs
    )
    state = replace(queued, run=replace(run, queued_inputs=()))
    return _begin(state, conversation, inputs, owner, new_id, accepted=True)


def _begin(
    state: RunState,
    conversation: ConversationState,
    inputs: tuple[InputContent, ...],
    owner: Owner,
    new_id: NewId,
    *,
    accepted: bool,
) -> StartPlan:
    """The run starts; the one before it, if it is not over, ends."""
    changes = []
    position = conversation.next_position
    if conversation.current is not None:
        ended = _make_room(replace(conversation.current, next_position=position), new_id)
        changes.append(ended)
        position = ended.next_position
    draft = Draft(replace(state, next_position=position), new_id)
    if not accepted:
        accept(draft)
    begin(draft, inputs, owner)
    change = _changed(draft)
    made_room = changes[0].run if changes else None
    changes.append(change)
    messages = tuple(message for c in changes for message in c.messages)
    return StartPlan(tuple(changes), Started(change.run, False, change.next_position - 1, messages, made_room))


def _enqueue(new: NewRun, conversation: ConversationState, now: int, new_id: NewId) -> StartPlan:
    """The run waits; its input is no message of the conversation yet."""
    if len(conversation.queue) >= new.max_queued:
        raise AgentServiceError(
            Reason.QUEUE_FULL,
            f"conversation {new.run.conversation_id} has {len(conversation.queue)} runs that wait; try again later",
            metadata={"conversation_id": new.run.conversation_id},
            retry_after=1.0,
        )
    inputs = tuple(
        QueuedInput(False, each.text, each.name, each.parts)
        if isinstance(each, UserContent)
        else QueuedInput(True, each.text)
        for each in new.inputs
    )
    run = replace(new.run, queued_inputs=inputs)
    draft = Draft(RunState(run, (), conversation.next_position, None, now), new_id)
    accept(draft)
    change = _changed(draft)
    return StartPlan((change,), Started(change.run, False, conversation.next_position - 1))


def _changed(draft: Draft) -> Change:
    change = draft.change()
    assert change is not None
    return change


def _join(new: NewRun, existing: Run) -> Started:
    if existing.digest != new.run.digest:
        raise AgentServiceError(
            Reason.RUN_ID_REUSED,
            f"run_id: '{existing.run_id}' was used for another request; send that one again, or a new run_id",
            metadata={"run_id": existing.run_id},
        )
    return Started(existing, True)


def _make_room(current: RunState, new_id: NewId) -> Change:
    """Ends the run before: an interrupted one failed, any other one is superseded."""
    draft = Draft(current, new_id)
    if current.run.status is RunStatus.INTERRUPTED:
        abandon(draft)
    else:
        cancel(draft, StopReason.SUPERSEDED)
    return _changed(draft)


def _busy(conversation_id: str, conversation: ConversationState) -> AgentServiceError:
    run = conversation.busy
    if run is None or run.status is not RunStatus.PAUSED or conversation.current is None:
        blocking, status = (run.run_id, run.status) if run else (conversation.queue[0], RunStatus.QUEUED)
        return AgentServiceError(
            Reason.CONVERSATION_BUSY,
            f"conversation {conversation_id} is busy with {blocking} ({status.value.upper()}); "
            "try again when it has stopped",
            metadata={"run_id": blocking},
        )
    pending = pending_of(conversation.current.calls)
    named = ", ".join(f"{call.tool_call_id} ({call.name})" for call in pending[:MAX_NAMED])
    if len(pending) > MAX_NAMED:
        named += f" and {len(pending) - MAX_NAMED} more"
    metadata = {"run_id": run.run_id, "pending_total": str(len(pending))}
    for number, call in enumerate(pending[:MAX_NAMED]):
        metadata[f"pending_{number}"] = f"{call.tool_call_id} {call.name} {call.kind.value.upper()}"
    return AgentServiceError(
        Reason.CONVERSATION_PAUSED,
        f"conversation {run.conversation_id} is paused by {run.run_id}, which waits for: {named}; "
        "submit their returns first",
        metadata=metadata,
    )
