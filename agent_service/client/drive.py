"""Drives one run to its stop: reads its events over any number of connections, and answers its calls."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import grpc
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import events_pb2, messages_pb2, run_service_pb2, tools_pb2

from agent_service.client.connection import Attempts, Connection, Deadline
from agent_service.client.errors import RefusedError, refused
from agent_service.client.events import Accepted, Event, MessageStored, Reader, Stopped
from agent_service.client.result import RunResult
from agent_service.client.tools import ClientTool, ToolCall
from agent_service.functions import in_thread

Decision = bool | tools_pb2.Approve | tools_pb2.Deny
"""True approves and False denies; the messages carry edited arguments or a reason."""
OnApproval = Callable[[ToolCall], Decision | Awaitable[Decision]]

_Answer = tools_pb2.ToolReturn | tools_pb2.ApprovalDecision
_PATIENCE = 1.0
"""Seconds that tools may take before the run is watched meanwhile."""
_LINGER = 0.01
"""Seconds for which the first return waits for others to go with it."""
_LEAVE_SECONDS = 5.0
_NOT_OURS = frozenset({"CALL_EXPIRED", "CALL_CANCELLED", "CALL_ALREADY_SETTLED", "CALL_CLAIMED", "CLAIM_LOST"})
"""Why an answer is refused because the call is over, or somebody else has it."""


class _Source(Enum):
    """Where events come from."""

    START = auto()
    SUBMIT = auto()
    WATCH = auto()


@dataclass(frozen=True)
class Task:
    """What is to be driven, and who answers its calls.

    `start` None means that the run was started before; `fresh`, that nobody else knows its id.
    """

    run_id: str
    start: pb.StepRequest | None
    tools: Mapping[str, ClientTool[..., Any]]
    on_approval: OnApproval | None
    tokens: bool
    on_disconnect: pb.OnDisconnect.ValueType
    fresh: bool

    def answers(self, call: ToolCall) -> bool:
        """Whether this client answers the call."""
        return self.on_approval is not None if call.kind == "APPROVAL" else call.name in self.tools

    async def answer(self, call: ToolCall) -> _Answer:
        """The answer to a call; raises what `on_approval` raises."""
        if call.kind == "APPROVAL":
            return await self._decide(call)
        tool = self.tools[call.name]
        if tool.requires_approval:
            decision = await self._decide(call)
            if decision.HasField("deny"):
                return decision
            call = replace(call, arguments_json=decision.approve.edited_arguments_json or call.arguments_json)
        return await tool.execute(call)

    async def _decide(self, call: ToolCall) -> tools_pb2.ApprovalDecision:
        assert self.on_approval is not None
        if inspect.iscoroutinefunction(self.on_approval):
            said = await self.on_approval(call)
        else:
            said = await in_thread(self.on_approval, call)
            said = await said if inspect.isawaitable(said) else said
        if isinstance(said, tools_pb2.Approve):
            return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, approve=said)
        if isinstance(said, tools_pb2.Deny):
            return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, deny=said)
        if said is True:
            return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, approve=tools_pb2.Approve())
        if said is False:
            return tools_pb2.ApprovalDecision(tool_call_id=call.tool_call_id, deny=tools_pb2.Deny())
        raise TypeError(f"on_approval returned {said!r}; return True, False, an Approve or a Deny")


class Drive:
    """One run, driven once."""

    def __init__(self, connection: Connection, task: Task, deadline: Deadline) -> None:
        self._connection = connection
        self._task = task
        self._deadline = deadline
        self._attempts = Attempts(connection.retry, deadline, task.run_id)
        self._reader = Reader(tokens=task.tokens)
        self._result = RunResult(task.run_id)
        self._messages: list[messages_pb2.Message] = []
        self._source = _Source.WATCH if task.start is None else _Source.START
        self._trusted = task.fresh
        """Whether a pause at which a stream ends is the present one; else it is looked up."""
        self._caught_up = False
        self._stop: Stopped | None = None
        """The last stop, if nothing happened since."""
        self._answers: dict[str, asyncio.Task[_Answer]] = {}
        """Calls that are being answered, or whose answer is not accepted yet."""
        self._settled: set[str] = set()
        self._submit: pb.SubmitToolReturnsRequest | None = None
        """A submit that is not accepted yet."""
        self._over = False

    @property
    def result(self) -> RunResult:
        """What there is of the run so far."""
        return replace(self._result, messages=tuple(self._messages))

    async def events(self) -> AsyncGenerator[Event]:
        """Everything that happens, until nothing is left for this client to do. Raises RefusedError, DeadlineError and
        what `on_approval` raises."""
        try:
            while not self._over:
                async with aclosing(self._stream()) as stream:
                    async for event in stream:
                        yield event
        finally:
            await self._leave()

    async def _stream(self) -> AsyncGenerator[Event]:
        """The events of one stream; after it, `_source` says which is the next one."""
        source, self._caught_up = self._source, False
        call = self._open()
        try:
            while self._source is source and (event := await self._next(call)) is not None:
                for told in self._read(event):
                    yield told
                if self._caught_up:
                    self._act()
                    if self._over:
                        return
            if self._source is source:
                await self._ended()
        except grpc.aio.AioRpcError as error:
            await self._cut(refused(error))
        finally:
            call.cancel()

    def _open(self) -> Any:
        connection, task = self._connection, self._task
        match self._source:
            case _Source.START:
                start = pb.StreamRequest(step=task.start, stream_tokens=task.tokens)
                return connection.open(connection.agent.Stream, start, self._deadline)
            case _Source.SUBMIT:
                self._submit = self._submit or self._collected()
                submit = pb.StreamToolReturnsRequest(submit=self._submit, stream_tokens=task.tokens)
                return connection.open(connection.agent.StreamToolReturns, submit, self._deadline)
        watch = run_service_pb2.WatchRunRequest(
            run_id=task.run_id, after_sequence=self._reader.cursor, stream_tokens=task.tokens
        )
        return connection.open(connection.runs.WatchRun, watch, self._deadline)

    async def _next(self, call: Any) -> events_pb2.RunEvent | None:
        """The next event; None at the end of the stream, or when an answer is ready while the run is watched."""
        reading = asyncio.ensure_future(call.read())
        answers = self._answers.values() if self._caught_up else ()
        try:
            await asyncio.wait(
                {reading, *answers}, timeout=self._deadline.remaining(), return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                response = reading.result()
                self._attempts.progress()
                return None if response is grpc.aio.EOF else response.event
        finally:
            reading.cancel()
        self._deadline.check(self._task.run_id)
        self._source = _Source.SUBMIT
        return None

    def _read(self, event: events_pb2.RunEvent) -> list[Event]:
        if event.HasField("tool_returns_accepted") and self._leaves_out(event):
            return []
        told = list(self._reader.read(event))
        for one in told:
            self._note(one)
        self._caught_up = self._caught_up or event.HasField("live")
        return told

    def _leaves_out(self, event: events_pb2.RunEvent) -> bool:
        """Notes that the submit is accepted; True if its stream leaves out what somebody else did before."""
        accepted = event.tool_returns_accepted
        if self._submit is None or accepted.request_id != self._submit.request_id:
            return False
        self._settle(*(answer.tool_call_id for answer in self._submit.tool_returns))
        self._settle(*(answer.tool_call_id for answer in self._submit.approvals))
        self._submit = None
        if self._source is not _Source.SUBMIT or event.sequence <= self._reader.cursor + 1:
            return False
        self._source = _Source.WATCH
        return True

    def _note(self, event: Event) -> None:
        match event:
            case Accepted():
                self._result = replace(self._result, conversation_id=event.conversation_id, agent_id=event.agent_id)
            case MessageStored():
                self._messages.append(event.message)
            case Stopped():
                self._stop = event
                self._result = replace(
                    self._result,
                    status=event.status,
                    stop_reason=event.stop_reason,
                    pending=event.pending,
                    usage=event.usage,
                    error=event.error,
                )
            case _ if event.raw.WhichOneof("payload") in ("tool_returns_accepted", "run_started", "run_resumed"):
                self._stop = None

    def _act(self) -> None:
        """At a stop that is the present one: answers what waits for this client. Nothing does: it is over."""
        if self._stop is None or self._stop.final:
            return
        waiting = {call.tool_call_id for call in self._stop.pending}
        self._settle(*(call_id for call_id in self._answers if call_id not in waiting))
        for call in self._stop.pending:
            if call.tool_call_id not in self._answers.keys() | self._settled and self._task.answers(call):
                self._answers[call.tool_call_id] = asyncio.create_task(self._task.answer(call))
        self._over = not self._answers

    async def _ended(self) -> None:
        """A stream has come to its end."""
        if self._source is _Source.WATCH or (self._stop is not None and self._stop.final):
            self._over = True
            return
        if self._stop is None or not self._trusted:
            self._source, self._trusted = _Source.WATCH, True
            return
        self._act()
        if self._over:
            return
        answers = self._answers.values()
        left = self._deadline.remaining()
        patience = _PATIENCE if left is None else min(_PATIENCE, left)
        done, running = await asyncio.wait(answers, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if done and running:
            await asyncio.wait(running, timeout=_LINGER)
        self._deadline.check(self._task.run_id)
        self._source = _Source.SUBMIT if done else _Source.WATCH

    async def _cut(self, error: RefusedError) -> None:
        """A stream was cut or refused; raises if nothing can be done about it."""
        if self._stop is not None and self._stop.final:
            self._over = True
            return
        call_id = error.metadata.get("tool_call_id", "")
        if self._submit is not None and error.reason in _NOT_OURS and call_id:
            self._settle(call_id)
            self._submit, self._source = None, _Source.WATCH
            return
        await self._attempts.failed(error)
        self._trusted = False
        if self._reader.cursor and self._submit is None:
            self._source = _Source.WATCH

    def _collected(self) -> pb.SubmitToolReturnsRequest:
        """The answers that are ready."""
        submit = pb.SubmitToolReturnsRequest(
            run_id=self._task.run_id, request_id=f"req_{uuid.uuid4().hex}", on_disconnect=self._task.on_disconnect
        )
        for answer in (task.result() for task in self._answers.values() if task.done()):
            if isinstance(answer, tools_pb2.ToolReturn):
                submit.tool_returns.append(answer)
            else:
                submit.approvals.append(answer)
        return submit

    def _settle(self, *call_ids: str) -> None:
        """Nothing is to be done about these calls any more."""
        self._settled.update(call_ids)
        for call_id in call_ids:
            if answer := self._answers.pop(call_id, None):
                answer.cancel()

    async def _leave(self) -> None:
        answers = list(self._answers.values())
        self._settle(*self._answers)
        if answers:
            await asyncio.wait(answers, timeout=_LEAVE_SECONDS)
        # An id that is refused because it is another run's must not end that run.
        ours = self._task.fresh or self._reader.cursor > 0
        if ours and not self._over and self._task.on_disconnect == pb.ON_DISCONNECT_CANCEL:
            request = run_service_pb2.CancelRunRequest(run_id=self._task.run_id)
            with suppress(grpc.aio.AioRpcError):  # it may not have started, or the service is away
                await self._connection.open(self._connection.runs.CancelRun, request, Deadline(_LEAVE_SECONDS))
