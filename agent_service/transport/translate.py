"""From domain values to protobuf: one pure function per noun."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agentrpc.v1 import (
    agent_service_pb2,
    agents_pb2,
    content_pb2,
    errors_pb2,
    events_pb2,
    inbox_service_pb2,
    memory_pb2,
    messages_pb2,
    runs_pb2,
    server_service_pb2,
    tools_pb2,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent_service.domain import event as ev
from agent_service.domain import message as msg
from agent_service.domain.content import ImageDetail, Part
from agent_service.domain.draft import Snapshot
from agent_service.domain.errors import Reason
from agent_service.domain.memory import BlockRecord
from agent_service.domain.registry import Conversation, WaitingCall
from agent_service.domain.run import AgentKind, Run, RunError, RunStatus, Sleeptime, StopReason, Usage
from agent_service.domain.tool import Outcome, PendingCall, PendingKind, ToolCall, pending_of
from agent_service.engine.agents import KnownAgent
from agent_service.engine.commands import Built
from agent_service.engine.inbox import Added, Removed, Synced
from agent_service.engine.limits import Limits
from agent_service.transport.policies import STRATEGIES, context_policy
from agent_service.transport.tool_rules import tool_rule


def timestamp(nanoseconds: int) -> Timestamp | None:
    """A point in time; None for 0."""
    if not nanoseconds:
        return None
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


def duration(seconds: float) -> Duration:
    """A span of time."""
    value = Duration()
    value.FromNanoseconds(round(seconds * 1e9))
    return value


def _numbers(enum: Any, prefix: str, names: Iterable[str]) -> dict[str, Any]:
    return {name: enum.Value(prefix + name.upper()) for name in names}


_STATUS = _numbers(runs_pb2.RunStatus, "RUN_STATUS_", RunStatus)
_STOP_REASON = _numbers(runs_pb2.StopReason, "STOP_REASON_", StopReason)
_OUTCOME = _numbers(tools_pb2.ToolCallOutcome, "TOOL_CALL_OUTCOME_", Outcome)
_KIND = _numbers(tools_pb2.PendingKind, "PENDING_KIND_", PendingKind)
_REASON = _numbers(errors_pb2.ErrorReason, "ERROR_REASON_", Reason)
_AGENT_KIND = _numbers(agents_pb2.AgentKind, "AGENT_KIND_", AgentKind)
_DETAIL = _numbers(content_pb2.ImageDetail, "IMAGE_DETAIL_", ImageDetail)
_CAUSE = _numbers(events_pb2.RunCause, "RUN_CAUSE_", ev.RunCause)


def tool_call(call: ToolCall) -> tools_pb2.ToolCall:
    """A tool call."""
    return tools_pb2.ToolCall(tool_call_id=call.tool_call_id, name=call.name, arguments_json=call.arguments_json)


def pending_calls(calls: Iterable[PendingCall]) -> list[tools_pb2.PendingToolCall]:
    """Calls that wait for the caller."""
    return [
        tools_pb2.PendingToolCall(
            tool_call_id=call.tool_call_id,
            name=call.name,
            arguments_json=call.arguments_json,
            kind=_KIND[call.kind],
            index=call.index,
            deadline=timestamp(call.deadline),
        )
        for call in calls
    ]


def waiting_call(value: WaitingCall) -> inbox_service_pb2.InboxToolCall:
    """A pending call and where it belongs."""
    return inbox_service_pb2.InboxToolCall(
        call=pending_calls([value.call])[0],
        run_id=value.run_id,
        conversation_id=value.conversation_id,
        agent_id=value.agent_id,
        pending_time=timestamp(value.pending_time),
        worker_id=value.worker_id,
        claim_expire_time=timestamp(value.claim_expire_time),
    )


def inbox_change(value: Added | Removed | Synced) -> inbox_service_pb2.WatchPendingToolCallsResponse:
    """What happened in the inbox."""
    match value:
        case Added(call):
            return inbox_service_pb2.WatchPendingToolCallsResponse(added=waiting_call(call))
        case Removed(tool_call_id, run_id):
            removed = inbox_service_pb2.RemovedToolCall(tool_call_id=tool_call_id, run_id=run_id)
            return inbox_service_pb2.WatchPendingToolCallsResponse(removed=removed)
        case Synced():
            return inbox_service_pb2.WatchPendingToolCallsResponse(synced=inbox_service_pb2.Synced())


def agent(value: KnownAgent) -> agents_pb2.Agent:
    """An agent; of the configuration if it has no record."""
    definition, record = value.definition, value.record
    return agents_pb2.Agent(
        agent_id=definition.agent_id,
        kind=_AGENT_KIND[definition.kind],
        description=definition.description,
        instructions=definition.instructions,
        model=definition.model,
        server_tools=definition.server_tools,
        message_tool=definition.message_tool,
        message_argument=definition.message_argument,
        etag=record.etag if record else "",
        revision=record.revision if record else 0,
        create_time=timestamp(record.create_time) if record else None,
        update_time=timestamp(record.update_time) if record else None,
        configured=record is None,
        is_default=value.is_default,
        tool_rules=map(tool_rule, definition.tool_rules),
        sleeptime=_sleeptime(definition.sleeptime) if definition.sleeptime else None,
        memory_block_ids=definition.memory_block_ids,
        context=context_policy(definition.context),
    )


def _sleeptime(value: Sleeptime) -> agents_pb2.Sleeptime:
    return agents_pb2.Sleeptime(
        foreground_agent_id=value.foreground_agent_id,
        memory_agent_ids=value.plan.memory_agent_ids,
        every=value.plan.every,
    )


def memory_block(value: BlockRecord) -> memory_pb2.MemoryBlock:
    """A memory block."""
    block = value.block
    return memory_pb2.MemoryBlock(
        memory_block_id=block.memory_block_id,
        label=block.label,
        value=block.value,
        description=block.description,
        limit=block.limit,
        read_only=block.read_only,
        etag=value.etag,
        revision=value.revision,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
    )


def conversation(value: Conversation) -> agents_pb2.Conversation:
    """A conversation."""
    return agents_pb2.Conversation(
        conversation_id=value.conversation_id,
        labels=value.labels,
        create_time=timestamp(value.create_time),
        message_count=value.message_count,
        active_run_id=value.active_run_id,
    )


def message(value: msg.Message) -> messages_pb2.Message:
    """A message."""
    result = messages_pb2.Message(
        message_id=value.message_id,
        conversation_id=value.conversation_id,
        run_id=value.run_id,
        step_id=value.step_id,
        position=value.position,
        create_time=timestamp(value.create_time),
    )
    match value.content:
        case msg.UserContent(text, name, parts):
            result.user.CopyFrom(messages_pb2.UserMessage(text=text, name=name, parts=map(_part, parts)))
        case msg.SystemContent(text):
            result.system.CopyFrom(messages_pb2.SystemMessage(text=text))
        case msg.AssistantContent(text):
            result.assistant.CopyFrom(messages_pb2.AssistantMessage(text=text))
        case msg.ReasoningContent(text):
            result.reasoning.CopyFrom(messages_pb2.ReasoningMessage(text=text))
        case msg.ToolCallsContent(calls):
            result.tool_call.CopyFrom(messages_pb2.ToolCallMessage(tool_calls=map(tool_call, calls)))
        case msg.ToolReturnContent():
            result.tool_return.CopyFrom(_tool_return(value.content))
        case msg.ApprovalContent(tool_call_id, approved, edited, note):
            result.approval.CopyFrom(
                messages_pb2.ApprovalMessage(
                    tool_call_id=tool_call_id, approved=approved, edited_arguments_json=edited, note=note
                )
            )
        case msg.SummaryContent(text, through):
            result.summary.CopyFrom(messages_pb2.SummaryMessage(text=text, through_position=through))
    return result


def _tool_return(value: msg.ToolReturnContent) -> messages_pb2.ToolReturnMessage:
    success = value.outcome is Outcome.RETURNED
    return messages_pb2.ToolReturnMessage(
        tool_call_id=value.tool_call_id,
        name=value.name,
        status=tools_pb2.TOOL_RETURN_STATUS_SUCCESS if success else tools_pb2.TOOL_RETURN_STATUS_ERROR,
        outcome=_OUTCOME[value.outcome],
        text=value.text,
        stdout=value.stdout,
        stderr=value.stderr,
        truncated=value.truncated,
        parts=map(_part, value.parts),
    )


def _part(value: Part) -> content_pb2.ContentPart:
    image = value.image
    if image is None:
        return content_pb2.ContentPart(text=value.text)
    result = content_pb2.Image(mime_type=image.mime_type, detail=_DETAIL[image.detail])
    if image.url:
        result.url = image.url
    else:
        result.data = image.data
    return content_pb2.ContentPart(image=result)


def usage(value: Usage) -> runs_pb2.Usage:
    """Token counts."""
    return runs_pb2.Usage(
        prompt_tokens=value.prompt_tokens,
        completion_tokens=value.completion_tokens,
        total_tokens=value.total_tokens,
        cached_prompt_tokens=value.cached_prompt_tokens,
        reasoning_tokens=value.reasoning_tokens,
    )


def run_error(value: RunError | None) -> errors_pb2.RunError | None:
    """What went wrong with a run."""
    if value is None:
        return None
    return errors_pb2.RunError(
        reason=_REASON[value.reason],
        message=value.message,
        retryable=value.retryable,
        retry_after=None if value.retry_after is None else duration(value.retry_after),
        metadata=value.metadata,
    )


def run(snapshot: Snapshot) -> runs_pb2.Run:
    """A run with its pending calls."""
    value = snapshot.run
    result = runs_pb2.Run(
        run_id=value.run_id,
        conversation_id=value.conversation_id,
        agent_id=value.agent_id,
        status=_STATUS[value.status],
        pending_tool_calls=pending_calls(pending_of(snapshot.calls)),
        usage=usage(value.usage),
        steps_taken=value.steps_taken,
        model_attempts=value.model_attempts,
        max_steps=value.max_steps,
        model=value.model,
        error=run_error(value.error),
        last_sequence=value.last_sequence,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        end_time=timestamp(value.end_time),
        labels=value.labels,
        overridden_tools=value.overridden_tools,
        agent_revision=value.agent_revision,
        pause_expire_time=timestamp(value.pause_expire_time),
        parent_run_id=value.parent_run_id,
    )
    if value.stop_reason is not None:
        result.stop_reason = _STOP_REASON[value.stop_reason]
    _add_first_token(result, value)
    return result


def _add_first_token(result: runs_pb2.Run, value: Run) -> None:
    if not value.first_token_time:
        return
    result.first_token_time.FromNanoseconds(value.first_token_time)
    result.time_to_first_token_ns = value.first_token_time - value.create_time
    if value.request_start_time:
        result.request_to_first_token_ns = value.first_token_time - value.request_start_time


def receipt(value: ev.ToolReturnsAccepted) -> events_pb2.ToolReturnsAccepted:
    """The receipt of a submit."""
    return events_pb2.ToolReturnsAccepted(
        request_id=value.request_id,
        accepted_tool_call_ids=value.accepted,
        already_settled_tool_call_ids=value.already_settled,
        remaining=pending_calls(value.remaining),
    )


def event(value: ev.Event) -> events_pb2.RunEvent:
    """An event."""
    result = events_pb2.RunEvent(
        run_id=value.run_id,
        sequence=value.sequence,
        step_id=value.step_id,
        create_time=timestamp(value.create_time),
    )
    match value.body:
        case ev.TextDelta(message_id, offset, text, attempt):
            result.text_delta.CopyFrom(
                events_pb2.TextDelta(message_id=message_id, offset=offset, text=text, attempt=attempt)
            )
        case ev.ReasoningDelta(message_id, offset, text, attempt):
            result.reasoning_delta.CopyFrom(
                events_pb2.ReasoningDelta(message_id=message_id, offset=offset, text=text, attempt=attempt)
            )
        case ev.ArgumentsDelta(message_id, index, name, offset, text, attempt):
            result.tool_call_arguments_delta.CopyFrom(
                events_pb2.ToolCallArgumentsDelta(
                    message_id=message_id, index=index, name=name, offset=offset, text=text, attempt=attempt
                )
            )
        case ev.MessageStored(stored):
            result.message_stored.message.CopyFrom(message(stored))
        case ev.ToolCallProgress(tool_call_id, text):
            result.tool_call_progress.CopyFrom(events_pb2.ToolCallProgress(tool_call_id=tool_call_id, text=text))
        case ev.Heartbeat():
            result.heartbeat.SetInParent()
        case ev.Live(deltas):
            result.live.CopyFrom(events_pb2.Live(deltas=deltas))
        case body:
            _set_run_body(result, body)
    return result


def _set_run_body(result: events_pb2.RunEvent, body: ev.Body) -> None:
    match body:
        case ev.RunAccepted(conversation_id, agent_id, overridden):
            result.run_accepted.CopyFrom(
                events_pb2.RunAccepted(conversation_id=conversation_id, agent_id=agent_id, overridden_tools=overridden)
            )
        case ev.RunStarted(epoch, cause):
            result.run_started.CopyFrom(events_pb2.RunStarted(epoch=epoch, cause=_CAUSE[cause]))
        case ev.RunResumed(epoch, cause):
            result.run_resumed.CopyFrom(events_pb2.RunResumed(epoch=epoch, cause=_CAUSE[cause]))
        case ev.ToolReturnsAccepted():
            result.tool_returns_accepted.CopyFrom(receipt(body))
        case ev.StepRestarted(attempt, reason):
            result.step_restarted.CopyFrom(events_pb2.StepRestarted(attempt=attempt, reason=reason))
        case ev.MemoryRead(blocks):
            result.memory_read.SetInParent()
            for b in blocks:
                result.memory_read.blocks.add(memory_block_id=b.memory_block_id, label=b.label, revision=b.revision)
        case ev.Compaction():
            result.compaction.CopyFrom(_compaction(body))
        case ev.RunStopped():
            result.run_stopped.CopyFrom(
                events_pb2.RunStopped(
                    status=_STATUS[body.status],
                    stop_reason=_STOP_REASON[body.stop_reason],
                    final=body.final,
                    remaining=pending_calls(body.remaining),
                    usage=usage(body.usage),
                    error=run_error(body.error),
                )
            )


def _compaction(value: ev.Compaction) -> events_pb2.Compaction:
    return events_pb2.Compaction(
        strategy=STRATEGIES[value.strategy],
        message_id=value.message_id,
        position=value.position,
        through_position=value.through_position,
        tokens_before=value.tokens_before,
        tokens_after=value.tokens_after,
        messages_left_out=value.left_out,
    )


def built(value: Built) -> agent_service_pb2.BuildRequestResponse:
    """The answer to a dry run."""
    result = agent_service_pb2.BuildRequestResponse(
        request_json=value.body.decode(), overridden_tools=value.overridden_tools
    )
    if not value.body:
        result.not_buildable.CopyFrom(
            agent_service_pb2.NotBuildable(
                message=value.why_not,
                remaining=pending_calls(value.remaining),
                server_tool_calls=map(tool_call, value.server_calls),
            )
        )
    return result


def bounded_messages(stored: Sequence[ev.Event], room: int) -> tuple[list[messages_pb2.Message], int | None]:
    """The newest messages that fit into `room` bytes, in order; and, if some do not, a cursor before the oldest of
    those left out."""
    result: list[messages_pb2.Message] = []
    for value in reversed(stored):
        assert isinstance(value.body, ev.MessageStored)
        translated = message(value.body.message)
        room -= translated.ByteSize() + 8
        if room < 0:
            return result[::-1], stored[0].sequence - 1
        result.append(translated)
    return result[::-1], None


def limits(value: Limits) -> server_service_pb2.Limits:
    """The limits that callers see."""
    names = [field.name for field in server_service_pb2.Limits.DESCRIPTOR.fields]
    return server_service_pb2.Limits(**{name: getattr(value, name) for name in names})
