"""The run state machine: each move is a pure edit of a Draft. Stores apply them under the lock of the run's row.

Two rules hold after every move. A call without outcome exists only while its run is active or interrupted. A run is
PAUSED exactly when calls are pending and nothing on the server can proceed.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_service.domain.content import Parts
from agent_service.domain.draft import Draft
from agent_service.domain.errors import Reason
from agent_service.domain.event import (
    BlockRead,
    MemoryRead,
    RunAccepted,
    RunCause,
    RunResumed,
    RunStarted,
    RunStopped,
    StepRestarted,
)
from agent_service.domain.memory import SeenBlock
from agent_service.domain.message import (
    AssistantContent,
    InputContent,
    ReasoningContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
)
from agent_service.domain.rules import NO_CALLS, RuleState
from agent_service.domain.run import Owner, Run, RunError, RunStatus, StopReason, Usage, status_of
from agent_service.domain.tool import Call, CallState, Executor, OnTimeout, Outcome, ToolCall, pending_of
from agent_service.domain.values import replace

NO_USAGE = Usage()
UNKNOWN_OUTCOME = "Outcome unknown: the call may have been executed. The server stopped waiting for it."
CANCELLED_BEFORE = "Cancelled: the run ended before this call was executed."
CANCELLED_UNANSWERED = "Cancelled: the run ended before this call was answered. It may or may not have been executed."
INTERRUPTED_TTL = 24 * 3600 * 10**9
"""How long an interrupted run waits for a retry or the next message before it fails, in nanoseconds."""
ANSWER_REFUSED = (
    "Error: your answer is against the response schema: {}. "
    "Answer again, with nothing but JSON that satisfies the schema."
)
CUT_ARGUMENTS = "Not executed: the answer was cut by the token limit, so the arguments may be incomplete."


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call of a model answer, checked: it is refused (with the text for the model), or goes to its executor."""

    tool_call_id: str
    provider_call_id: str
    name: str
    arguments_json: str
    executor: Executor
    needs_approval: bool
    refusal: str = ""
    timeout: int = 0
    on_timeout: OnTimeout = OnTimeout.RETURN_ERROR
    ends_run: bool = False


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A whole model answer, ready to be stored. Message ids are those its deltas carried.

    `cut`: by the token limit. `call_required`: the request demanded a call. `first_token_time` is 0 if none came.
    `violation` says how an answer is against the response format, empty if it is not.
    `rule_state` is the run's with these calls. `note`: an answer without calls does not end the run, but this is told.
    `memory` are the blocks that the model was shown.
    """

    step_id: str
    text: str
    text_message_id: str
    reasoning: str
    reasoning_message_id: str
    calls: tuple[PlannedCall, ...]
    calls_message_id: str
    usage: Usage
    attempts: int
    first_token_time: int
    cut: bool
    call_required: bool
    max_invalid_steps: int
    violation: str = ""
    max_invalid_answers: int = 1
    rule_state: RuleState = NO_CALLS
    note: str = ""
    memory: tuple[SeenBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class CallResult:
    """What came of a server tool call; `failed` makes it an error return."""

    tool_call_id: str
    text: str
    failed: bool = False
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class AskModel:
    """Next: a model request."""


@dataclass(frozen=True, slots=True)
class Execute:
    """Next: these server calls, in the model's order."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Next: nothing; the run is paused, interrupted or over, or a started call has no outcome yet."""


Next = AskModel | Execute | Stop


def next_of(run: Run, batch: tuple[Call, ...]) -> Next:
    """What the owner of the run does next."""
    if run.status is not RunStatus.RUNNING:
        return Stop()
    runnable = tuple(call for call in batch if _runnable(run, call, batch))
    if runnable:
        return Execute(runnable)
    return AskModel() if all(call.settled for call in batch) else Stop()


def accept(draft: Draft) -> None:
    """A new run: its first event."""
    run = draft.run
    draft.emit(RunAccepted(run.conversation_id, run.agent_id, run.overridden_tools))


def begin(draft: Draft, inputs: tuple[InputContent, ...], owner: Owner) -> None:
    """Its input is stored in the conversation, and it starts."""
    positions = [draft.add_message(content).position for content in inputs]
    draft.run = replace(draft.run, first_position=positions[0] if positions else 0)
    run_under(draft, owner)
    draft.emit(RunStarted(draft.run.epoch, RunCause.START))


def record_answer(draft: Draft, step: StepRecord) -> None:
    """Stores a model answer with its calls, and decides what it leads to."""
    _count_step(draft, step)
    _note_memory(draft, step)
    if step.reasoning:
        draft.add_message(ReasoningContent(step.reasoning), step.step_id, step.reasoning_message_id)
    if step.text:
        draft.add_message(AssistantContent(step.text), step.step_id, step.text_message_id)
    if step.calls:
        _record_calls(draft, step)
    _after_answer(draft, step)


def restart_step(draft: Draft, attempts: int, reason: str, usage: Usage = NO_USAGE) -> None:
    """The model is asked again for the step in hand; partial text of the attempt before is void."""
    _count_attempts(draft, attempts, usage)
    draft.emit(StepRestarted(draft.run.model_attempts + 1, reason))


def start_calls(draft: Draft, tool_call_ids: tuple[str, ...]) -> None:
    """Server calls are about to be executed; after this they count as perhaps executed."""
    for tool_call_id in tool_call_ids:
        call = startable(draft, tool_call_id)
        draft.put_call(replace(call, state=CallState.STARTED, attempts=call.attempts + 1))


def startable(draft: Draft, tool_call_id: str) -> Call:
    """A server call that may be executed now. Raises ValueError for any other."""
    call = _known(draft, tool_call_id)
    if not _runnable(draft.run, call, draft.batch):
        raise ValueError(f"{tool_call_id} cannot start in state {call.state}")
    return call


def finish_calls(draft: Draft, results: tuple[CallResult, ...]) -> None:
    """Server calls got their outcomes."""
    for result in results:
        outcome = Outcome.FAILED if result.failed else Outcome.RETURNED
        settle(draft, _known(draft, result.tool_call_id), outcome, result.text, truncated=result.truncated)
    draft.run = replace(draft.run, losses=0)
    rest_or_go_on(draft)


def cancel(draft: Draft, stop_reason: StopReason = StopReason.CANCELLED) -> None:
    """Ends the run for good and takes it from its owner. A run that is over stays as it is."""
    if draft.run.status.terminal:
        return
    count_broken_request(draft)
    close_calls(draft)
    draft.run = replace(draft.run, epoch=draft.run.epoch + 1, error=None)
    stop(draft, stop_reason)


def fail(draft: Draft, stop_reason: StopReason, error: RunError, attempts: int = 0, usage: Usage = NO_USAGE) -> None:
    """Stops the run by an error: interrupted if it is retryable (open calls stay open), else failed for good."""
    if draft.run.status is not RunStatus.RUNNING:
        return
    _count_attempts(draft, attempts, usage)
    if not error.retryable:
        close_calls(draft)
    stop(draft, stop_reason, error)


def _count_attempts(draft: Draft, attempts: int, usage: Usage) -> None:
    run = draft.run
    draft.run = replace(run, model_attempts=run.model_attempts + attempts, usage=run.usage + usage)


def time_out(draft: Draft, error: RunError) -> None:
    """Ends the run in the middle of what its owner does."""
    count_broken_request(draft)
    fail(draft, StopReason.ERROR, error)


def abandon(draft: Draft) -> None:
    """Settles an interrupted run as failed, because the conversation goes on without it."""
    run = draft.run
    if run.status is not RunStatus.INTERRUPTED or run.error is None or run.stop_reason is None:
        raise ValueError(f"run {run.run_id} is {run.status}, not interrupted")
    close_calls(draft)
    draft.run = replace(draft.run, epoch=run.epoch + 1)
    stop(draft, run.stop_reason, replace(run.error, retryable=False, retry_after=None))


def resume(draft: Draft, cause: RunCause, owner: Owner) -> None:
    """A run goes on under a new owner."""
    run_under(draft, owner)
    draft.emit(RunResumed(draft.run.epoch, cause))


def stop(draft: Draft, stop_reason: StopReason, error: RunError | None = None) -> None:
    """Writes the stop: new status, and the event that ends the waiting of callers."""
    status = status_of(stop_reason, error)
    count_running_time(draft, draft.now)
    if status is RunStatus.PAUSED:
        _start_clocks(draft)
    draft.run = replace(
        draft.run,
        status=status,
        stop_reason=stop_reason,
        error=error,
        owner="",
        lease_expire_time=0,
        pause_expire_time=draft.now + _ttl(draft.run, status) if not status.terminal else 0,
        end_time=draft.now if status.terminal else 0,
        queued_inputs=() if status.terminal else draft.run.queued_inputs,
    )
    emit_stopped(draft)


def _start_clocks(draft: Draft) -> None:
    """The time that callers have for their calls begins with the pause."""
    for call in draft.batch:
        if call.state is CallState.PENDING and call.timeout and not call.deadline:
            draft.put_call(replace(call, deadline=draft.now + call.timeout))


def _ttl(run: Run, status: RunStatus) -> int:
    return run.pause_ttl if status is RunStatus.PAUSED else INTERRUPTED_TTL


def count_running_time(draft: Draft, until: int) -> None:
    """Adds the time since the owner took the run."""
    run = draft.run
    ran = until - run.running_since if run.running_since else 0
    draft.run = replace(run, running_time=run.running_time + max(ran, 0), running_since=0)


def count_broken_request(draft: Draft) -> None:
    """A model request that the owner may have sent counts, as the provider may bill it. Without a lease it sends none:
    it has handed the run over."""
    run = draft.run
    if run.status is RunStatus.RUNNING and run.lease_expire_time and all(call.settled for call in draft.batch):
        draft.run = replace(run, model_attempts=run.model_attempts + 1)


def emit_stopped(draft: Draft) -> None:
    """Tells where the run stands and what it waits for."""
    run = draft.run
    draft.emit(
        RunStopped(
            status=run.status,
            stop_reason=run.stop_reason or StopReason.REQUIRES_APPROVAL,
            final=run.status.terminal,
            remaining=pending_of(draft.batch),
            usage=run.usage,
            error=run.error,
        )
    )


def settle(
    draft: Draft,
    call: Call,
    outcome: Outcome,
    text: str,
    *,
    stdout: str = "",
    stderr: str = "",
    truncated: bool = False,
    parts: Parts = (),
) -> None:
    """Gives a call its one outcome, and the conversation the message of it."""
    if call.settled:
        raise ValueError(f"{call.tool_call_id} already has outcome {call.state}")
    draft.put_call(replace(call, state=CallState(outcome.value), settle_time=draft.now))
    draft.run = replace(draft.run, rule_state=draft.run.rule_state.after_outcome(call.tool_call_id, text))
    content = ToolReturnContent(call.tool_call_id, call.name, outcome, text, stdout, stderr, truncated, parts)
    draft.add_message(content, call.step_id)


def rest_or_go_on(draft: Draft) -> None:
    """After calls moved: pause if only callers can go on, end if a tool ends the run or no step is left, else stay
    running."""
    batch = draft.batch
    open_calls = [call for call in batch if not call.settled]
    if not open_calls:
        if any(call.ends_run and call.state is CallState.RETURNED for call in batch):
            stop(draft, StopReason.TOOL_RULE)
        elif draft.run.steps_taken >= draft.run.max_steps:
            stop(draft, StopReason.MAX_STEPS)
    elif not any(call.state is CallState.STARTED or _runnable(draft.run, call, batch) for call in open_calls):
        stop(draft, StopReason.REQUIRES_APPROVAL)


def close_calls(draft: Draft) -> None:
    """Gives every open call an outcome the model can read: unknown if it was ever started, else cancelled."""
    for call in draft.batch:
        if call.settled:
            continue
        if call.attempts:  # One whose owner was lost may wait to be started again.
            settle(draft, call, Outcome.FAILED, UNKNOWN_OUTCOME)
        elif call.state is CallState.PENDING and call.executor is Executor.CLIENT:
            settle(draft, call, Outcome.CANCELLED, CANCELLED_UNANSWERED)
        else:
            settle(draft, call, Outcome.CANCELLED, CANCELLED_BEFORE)


def run_under(draft: Draft, owner: Owner) -> None:
    """The run belongs to this owner from now on, and nobody else can write as its owner."""
    run = draft.run
    draft.run = replace(
        run,
        status=RunStatus.RUNNING,
        stop_reason=None,
        error=None,
        epoch=run.epoch + 1,
        owner=owner.name,
        lease_expire_time=draft.now + owner.lease,
        pause_expire_time=0,
        running_since=draft.now,
    )


def _runnable(run: Run, call: Call, batch: tuple[Call, ...]) -> bool:
    """Whether the server may start this call: approved ones, and in some runs all, wait for the caller."""
    if call.state is CallState.PROPOSED and not run.server_tools_wait:
        return True
    waiting = any(sibling.pending for sibling in batch)
    return call.state in (CallState.PROPOSED, CallState.APPROVED) and not waiting


def _known(draft: Draft, tool_call_id: str) -> Call:
    call = draft.call(tool_call_id)
    if call is None:
        raise ValueError(f"{tool_call_id} is not a call of {draft.run.run_id}")
    return call


def _count_step(draft: Draft, step: StepRecord) -> None:
    run = draft.run
    all_refused = bool(step.calls) and all(call.refusal for call in step.calls)
    draft.run = replace(
        run,
        steps_taken=run.steps_taken + 1,
        model_attempts=run.model_attempts + step.attempts,
        usage=run.usage + step.usage,
        invalid_steps=run.invalid_steps + 1 if all_refused else 0,
        losses=0,
        first_token_time=run.first_token_time or _within(run.create_time, step.first_token_time, draft.now),
        rule_state=step.rule_state,
    )


def _note_memory(draft: Draft, step: StepRecord) -> None:
    if step.memory == draft.run.memory_seen:
        return
    draft.run = replace(draft.run, memory_seen=step.memory)
    read = tuple(BlockRead(seen.memory_block_id, seen.label, seen.revision) for seen in step.memory)
    draft.emit(MemoryRead(read), step.step_id)


def _within(earliest: int, time: int, latest: int) -> int:
    """A time that the owner took from its idea of the store's clock, which may be a little off; 0 for none."""
    return min(max(time, earliest), latest) if time else 0


def _record_calls(draft: Draft, step: StepRecord) -> None:
    calls = tuple(ToolCall(c.tool_call_id, c.name, c.arguments_json) for c in step.calls)
    draft.add_message(ToolCallsContent(calls), step.step_id, step.calls_message_id)
    for index, planned in enumerate(step.calls):
        waits = planned.executor is Executor.CLIENT or planned.needs_approval
        call = Call(
            tool_call_id=planned.tool_call_id,
            provider_call_id=planned.provider_call_id,
            step_id=step.step_id,
            step=draft.run.steps_taken,
            index=index,
            name=planned.name,
            arguments_json=planned.arguments_json,
            executor=planned.executor,
            state=CallState.PENDING if waits else CallState.PROPOSED,
            pending_time=draft.now if waits else 0,
            timeout=planned.timeout,
            on_timeout=planned.on_timeout,
            ends_run=planned.ends_run,
        )
        draft.put_call(call)
        if step.cut or planned.refusal:
            settle(draft, call, Outcome.FAILED, CUT_ARGUMENTS if step.cut else planned.refusal)


def _after_answer(draft: Draft, step: StepRecord) -> None:
    if step.cut:
        stop(draft, StopReason.MAX_TOKENS_EXCEEDED)
    elif not step.calls and step.call_required:
        error = RunError(Reason.NO_TOOL_CALL, "a tool call was required, and the model made none")
        stop(draft, StopReason.NO_TOOL_CALL, error)
    elif not step.calls and step.note:
        if draft.run.steps_taken < draft.run.max_steps:
            draft.add_message(SystemContent(step.note), step.step_id)
        rest_or_go_on(draft)
    elif step.violation:
        _refuse_answer(draft, step)
    elif not step.calls:
        stop(draft, StopReason.END_TURN)
    elif draft.run.invalid_steps >= step.max_invalid_steps:
        message = f"{draft.run.invalid_steps} model answers in a row held nothing but refused tool calls"
        stop(draft, StopReason.INVALID_TOOL_CALL, RunError(Reason.INVALID_TOOL_CALLS, message))
    else:
        rest_or_go_on(draft)


def _refuse_answer(draft: Draft, step: StepRecord) -> None:
    """The model is told what is wrong with its answer and asked again, but not for ever."""
    run = draft.run = replace(draft.run, invalid_answers=draft.run.invalid_answers + 1)
    if run.invalid_answers >= step.max_invalid_answers or run.steps_taken >= run.max_steps:
        message = f"no answer satisfied the response schema; the last of {run.invalid_answers}: {step.violation}"
        stop(draft, StopReason.INVALID_LLM_RESPONSE, RunError(Reason.RESPONSE_SCHEMA_VIOLATION, message))
    else:
        draft.add_message(SystemContent(ANSWER_REFUSED.format(step.violation)), step.step_id)
