"""The agent loop: each thing is stored before the next. Driven by the run's own task, never by an RPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

import structlog

from agent_service.domain.compaction import compact
from agent_service.domain.draft import Draft, NewId, Snapshot
from agent_service.domain.errors import Reason
from agent_service.domain.memory import BlockRecord
from agent_service.domain.memory_edit import edit_memory, edited_blocks
from agent_service.domain.moves import (
    NO_USAGE,
    AskModel,
    Execute,
    StepRecord,
    Stop,
    fail,
    finish_calls,
    next_of,
    record_answer,
    restart_step,
    start_calls,
)
from agent_service.domain.permit import note, tools_with_given_arguments, uncalled
from agent_service.domain.run import Claim, Pinned, Run, RunError, StopReason, Usage
from agent_service.domain.tool import Call, ToolChoiceMode
from agent_service.engine.answer import AnswerWriter
from agent_service.engine.calls import plan_calls
from agent_service.engine.compaction import Compactor, Fit, Plan, Spent, counter_of, system_prompt_too_large
from agent_service.engine.context import Contexts
from agent_service.engine.executions import Executions
from agent_service.engine.hub import Channel, Hub
from agent_service.engine.limits import Limits
from agent_service.engine.model import FinishReason, ModelAnswer, ModelClient, ModelError
from agent_service.engine.schemas import parse_json, text_violation
from agent_service.engine.store import Move, RunStore
from agent_service.engine.telemetry import NO_TELEMETRY, Telemetry
from agent_service.engine.tools import ServerTools, ToolContext
from agent_service.engine.turn import Turn, model_request, next_turn

P = ParamSpec("P")
log = structlog.get_logger()

_STOP_REASONS = {
    Reason.LLM_UNAVAILABLE: StopReason.LLM_API_ERROR,
    Reason.LLM_REFUSED: StopReason.LLM_API_ERROR,
    Reason.CONTEXT_TOO_LARGE: StopReason.LLM_API_ERROR,
    Reason.LLM_INSUFFICIENT_CREDITS: StopReason.INSUFFICIENT_CREDITS,
    Reason.LLM_INVALID_RESPONSE: StopReason.INVALID_LLM_RESPONSE,
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the engine works with. `models` are the model clients by name."""

    store: RunStore
    hub: Hub
    contexts: Contexts
    models: Mapping[str, ModelClient]
    tools: ServerTools
    limits: Limits
    new_id: NewId
    telemetry: Telemetry = NO_TELEMETRY


class Loop:
    """Works on one run as its owner, from one pause or start to the next stop."""

    def __init__(self, parts: Parts, claim: Claim, pinned: Pinned) -> None:
        self._parts = parts
        self._claim = claim
        self._pinned = pinned
        self._model = parts.models[pinned.provider]
        self._compactor = Compactor(parts.contexts, self._model, pinned, claim.tenant)
        self._restarts = 0
        self._refused_step = -1  # the last one whose request was refused as too long

    async def drive(self, snapshot: Snapshot) -> Run:
        """Goes on until the run stops. Raises StaleClaimError if the run was taken away."""
        run = snapshot.run
        with self._parts.hub.own(self._claim.tenant, run.run_id, run.last_sequence) as channel:
            while True:
                match next_of(snapshot.run, snapshot.calls):
                    case AskModel():
                        snapshot = await self._ask(snapshot, channel)
                    case Execute((call, *_)) if self._edits_memory(call):
                        snapshot = await self._edit_memory(snapshot.run, call)
                    case Execute(calls):
                        snapshot = await self._execute(snapshot, calls)
                    case Stop():
                        return snapshot.run

    async def _ask(self, snapshot: Snapshot, channel: Channel) -> Snapshot:
        """One step: a model request and what it led to."""
        blocks = await self._blocks()
        run, turn = snapshot.run, next_turn(snapshot.run, self._pinned, blocks)
        if turn.error is not None:
            return await self._parts.store.owner_move(self._claim, moved(fail, StopReason.TOOL_RULE, turn.error))
        fitting = await self._fit(snapshot, turn)
        if fitting.error is not None:
            return await self._overflow(fitting.error)
        if plan := fitting.plan:
            return await self._compact(snapshot, plan)
        built = self._model.build(model_request(snapshot, turn, fitting.history.pieces))
        held = tools_with_given_arguments(self._pinned.tool_rules)
        step_id = self._parts.new_id("step")
        while True:
            writer = AnswerWriter(channel, self._parts.store.now, self._parts.new_id, held)
            channel.open_step(step_id, run.model_attempts + 1, run.last_sequence)
            try:
                answer = await self._model.complete(built, writer)
                record = self._record(step_id, answer, writer, run, turn, blocks)
            except ModelError as error:
                if error.reason is Reason.CONTEXT_TOO_LARGE:
                    return await self._after_refusal(snapshot, fitting, error)
                run = (await self._after_failure(error)).run
                if run.stop_reason is not None:
                    return Snapshot(run, snapshot.calls, snapshot.last_position)
                continue
            finally:
                channel.close_step()
            self._restarts = 0
            return await self._parts.store.owner_move(self._claim, moved(record_answer, record))

    async def _fit(self, snapshot: Snapshot, turn: Turn) -> Fit:
        run, counter = snapshot.run, await counter_of(self._pinned)
        history = await self._parts.contexts.history(
            self._claim.tenant,
            run.conversation_id,
            self._model,
            snapshot.last_position,
            run.conversation_time,
            counter,
            snapshot.appended,
        )
        return Fit(turn.shown, history, counter)

    async def _overflow(self, error: RunError, attempts: int = 0) -> Snapshot:
        reason = StopReason.CONTEXT_WINDOW_OVERFLOW_IN_SYSTEM_PROMPT
        return await self._parts.store.owner_move(self._claim, moved(fail, reason, error, attempts))

    async def _after_refusal(self, snapshot: Snapshot, fitting: Fit, error: ModelError) -> Snapshot:
        """The endpoint says that the request is too long: compacts, once per step, or stops the run."""
        again = self._refused_step == snapshot.run.steps_taken
        self._refused_step = snapshot.run.steps_taken
        plan = None if again else fitting.after_refusal(error.window_tokens)
        if plan is not None and error.started:
            # Some of an answer may have been shown.
            restarted = moved(restart_step, error.attempts, error.message)
            return await self._compact(await self._parts.store.owner_move(self._claim, restarted), plan)
        if plan is not None:
            return await self._compact(snapshot, plan, error.attempts)
        window = error.window_tokens or fitting.policy.window_tokens
        if window and fitting.fixed > window:
            return await self._overflow(system_prompt_too_large(fitting.fixed, window), error.attempts)
        return await self._after_failure(error)

    async def _compact(self, snapshot: Snapshot, plan: Plan, attempts: int = 0) -> Snapshot:
        """Stores a compaction; the model is asked after it. `attempts` are those of a refused request before."""
        while True:
            spent = Spent(attempts=attempts)
            try:
                record = await self._compactor.record(snapshot, plan, spent)
            except ModelError as error:
                error.attempts += spent.attempts
                snapshot = await self._after_failure(error, spent.usage)
                if snapshot.run.stop_reason is not None:
                    return snapshot
                attempts = 0
            else:
                self._restarts = 0
                return await self._parts.store.owner_move(self._claim, moved(compact, record))

    async def _after_failure(self, error: ModelError, usage: Usage = NO_USAGE) -> Snapshot:
        """Asks again if an answer that had begun broke off (bounded), else stops the run with what went wrong."""
        broke_off = error.started and error.reason is Reason.LLM_UNAVAILABLE
        if broke_off and self._restarts < self._parts.limits.max_step_restarts:
            self._restarts += 1
            log.warning("model.restart", run_id=self._claim.run_id, error=error.message)
            return await self._parts.store.owner_move(
                self._claim, moved(restart_step, error.attempts, error.message, usage)
            )
        metadata = {} if error.http_status is None else {"http_status": str(error.http_status)}
        run_error = RunError(error.reason, error.message, error.retryable, error.retry_after, metadata)
        log.warning("model.failed", run_id=self._claim.run_id, reason=error.reason.value, error=error.message)
        return await self._parts.store.owner_move(
            self._claim, moved(fail, _STOP_REASONS[error.reason], run_error, error.attempts, usage)
        )

    def _record(
        self,
        step_id: str,
        answer: ModelAnswer,
        writer: AnswerWriter,
        run: Run,
        turn: Turn,
        blocks: tuple[BlockRecord, ...],
    ) -> StepRecord:
        limits, rules, choice = self._parts.limits, self._pinned.tool_rules, turn.choice
        calls, state = plan_calls(answer.calls, self._pinned, run.rule_state, choice, limits, self._parts.new_id)
        missing = uncalled(rules, state)
        for index, call in enumerate(calls):
            writer.tell_held(index, call.name, call.arguments_json)
        return StepRecord(
            step_id=step_id,
            text=answer.text,
            text_message_id=writer.text_message_id,
            reasoning=answer.reasoning,
            reasoning_message_id=writer.reasoning_message_id,
            calls=calls,
            calls_message_id=writer.calls_message_id,
            usage=answer.usage,
            attempts=answer.attempts,
            first_token_time=writer.first_token_time,
            cut=answer.finish is FinishReason.LENGTH,
            call_required=bool(choice.tool_name) or choice.mode is ToolChoiceMode.REQUIRED,
            max_invalid_steps=limits.max_consecutive_invalid_steps,
            violation="" if answer.calls else self._violation(answer.text),
            max_invalid_answers=limits.max_invalid_answers,
            rule_state=state,
            note=note(missing) if missing else "",
            memory=tuple(record.seen for record in blocks),
        )

    def _violation(self, text: str) -> str:
        """How an answer in text is against the run's response format."""
        wanted = self._pinned.response_format
        return text_violation(wanted.schema_json, text) if wanted is not None else ""

    async def _execute(self, snapshot: Snapshot, runnable: tuple[Call, ...]) -> Snapshot:
        """Server tool calls, until none is executed: marked as started before, and each outcome stored as it comes."""
        store, most = self._parts.store, self._parts.limits.max_parallel_tool_calls
        async with Executions(self._parts.tools, self._pinned, most) as executions:
            while True:
                if starting := executions.admitted(runnable):
                    call_ids = tuple(call.tool_call_id for call in starting)
                    await store.owner_move(self._claim, moved(start_calls, call_ids))
                for call in starting:
                    executions.begin(call, self._context(snapshot.run, call))
                snapshot = await store.owner_move(self._claim, moved(finish_calls, (await executions.result(),)))
                if not executions.working:
                    return snapshot
                coming = next_of(snapshot.run, snapshot.calls)
                runnable = coming.calls if isinstance(coming, Execute) else ()

    async def _blocks(self) -> tuple[BlockRecord, ...]:
        """The memory of the run's agent as it is now."""
        block_ids = self._pinned.memory_block_ids
        return await self._parts.store.memory_blocks(self._claim.tenant, block_ids) if block_ids else ()

    def _edits_memory(self, call: Call) -> bool:
        tool = self._pinned.tool(call.name)
        return tool is not None and tool.edits_memory

    async def _edit_memory(self, run: Run, call: Call) -> Snapshot:
        """A call of a memory tool: its edit and its outcome are stored together, so it never counts as started."""
        arguments = parse_json(call.effective_arguments_json)
        most = self._parts.limits.max_server_tool_result_bytes
        move = moved(edit_memory, call.tool_call_id, arguments, most)
        return await self._parts.store.owner_move(self._claim, move, block_ids=edited_blocks(run, arguments))

    def _context(self, run: Run, call: Call) -> ToolContext:
        return ToolContext(
            self._claim.tenant, run.run_id, run.conversation_id, call.tool_call_id, attempt=call.attempts + 1
        )


def moved(edit: Callable[Concatenate[Draft, P], None], *args: P.args, **kwargs: P.kwargs) -> Move[Snapshot]:
    """A move that makes the edit and says how things stand after it."""

    def move(draft: Draft) -> Snapshot:
        edit(draft, *args, **kwargs)
        return draft.snapshot

    return move
