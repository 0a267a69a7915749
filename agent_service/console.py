"""Runs and the inbox from the terminal: readable lines, or JSON for scripts.

Exit codes: 0 for success, 1 for what went wrong (the service's own words are on standard error), 2 for bad usage, and
3 where a watched run ended otherwise than COMPLETED.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from agentrpc.v1 import agent_service_pb2 as agent_pb
from agentrpc.v1 import agent_service_pb2_grpc as agent_grpc
from agentrpc.v1 import (
    events_pb2,
    inbox_service_pb2,
    inbox_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    runs_pb2,
    tools_pb2,
)
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from agent_service.connection import Connection

ENDED_OTHERWISE = 3
"""The exit code where a watched run did not complete."""
_SHOWN = 60
_PAGE = 100
_ANSWER_LEASE = Duration(seconds=600)
"""How long a person may think about a call."""

Write = Callable[[str], None]


class Console:
    """The commands on one service. Each returns its exit code; `write` takes lines, `read` shows a prompt and gives
    one, or raises EOFError."""

    def __init__(self, channel: grpc.Channel, write: Write, read: Callable[[str], str], *, as_json: bool) -> None:
        self._runs = run_service_pb2_grpc.RunServiceStub(channel)
        self._agent = agent_grpc.AgentServiceStub(channel)
        self._inbox = inbox_service_pb2_grpc.InboxServiceStub(channel)
        self._write = write
        self._read = read
        self._json = as_json

    def list_runs(self, status: str, agent: str, conversation: str, limit: int) -> int:
        """The newest runs, one line each."""
        request = run_service_pb2.ListRunsRequest(
            agent_id=agent, conversation_id=conversation, page_size=min(limit, _PAGE)
        )
        if status:
            request.statuses.append(runs_pb2.RunStatus.Value(f"RUN_STATUS_{status.upper()}"))
        left = limit
        while left > 0:
            page = self._runs.ListRuns(request)
            for run in page.runs[:left]:
                self._tell(run, _run_line(run))
            left -= len(page.runs)
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        return 0

    def show(self, run_id: str) -> int:
        """One run with its pending calls."""
        run = self._runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id)).run
        self._tell(run, *_run_lines(run))
        return 0

    def watch(self, run_id: str, after: int) -> int:
        """The events of a run until its end."""
        request = run_service_pb2.WatchRunRequest(run_id=run_id, after_sequence=after)
        status = runs_pb2.RUN_STATUS_COMPLETED
        for response in self._runs.WatchRun(request):
            self._tell(response.event, _event_line(response.event))
            if response.event.HasField("run_stopped"):
                status = response.event.run_stopped.status
        return 0 if status == runs_pb2.RUN_STATUS_COMPLETED else ENDED_OTHERWISE

    def submit(self, run_id: str, call_id: str, text: str, *, failed: bool) -> int:
        """Answers a call of a client tool, and does not wait for what the model makes of it."""
        status = tools_pb2.TOOL_RETURN_STATUS_ERROR if failed else tools_pb2.TOOL_RETURN_STATUS_SUCCESS
        answer = tools_pb2.ToolReturn(tool_call_id=call_id, text=text, status=status)
        return self._send(agent_pb.SubmitToolReturnsRequest(run_id=run_id, tool_returns=[answer], background=True))

    def decide(self, run_id: str, call_id: str, *, approve: bool, reason: str = "") -> int:
        """Approves or denies a call."""
        decision = tools_pb2.ApprovalDecision(tool_call_id=call_id)
        if approve:
            decision.approve.note = reason
        else:
            decision.deny.reason = reason
        return self._send(agent_pb.SubmitToolReturnsRequest(run_id=run_id, approvals=[decision], background=True))

    def cancel(self, run_id: str) -> int:
        """Ends a run for good."""
        run = self._runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=run_id)).run
        self._tell(run, _run_line(run))
        return 0

    def retry(self, run_id: str) -> int:
        """Goes on with an interrupted run."""
        run = self._runs.RetryRun(run_service_pb2.RetryRunRequest(run_id=run_id)).run
        self._tell(run, _run_line(run))
        return 0

    def inbox(self, tool: str, *, follow: bool, answer: bool) -> int:
        """The calls that wait for somebody; with `follow` also what comes and goes, until the service ends. With
        `answer` each call of a client tool is claimed and asked for, until the input ends."""
        which = inbox_service_pb2.PendingToolCallFilter(tool_name=tool)
        request = inbox_service_pb2.WatchPendingToolCallsRequest(filter=which)
        changes = self._inbox.WatchPendingToolCalls(request)
        if answer:
            return self._answer_all(changes, which)
        if not self._json:
            self._write("   RUN  CALL  TOOL(ARGUMENTS)  WAITS FOR")
        for change in changes:
            if change.HasField("synced") and not follow:
                changes.cancel()
                break
            if not change.HasField("synced"):
                self._tell(change, _change_line(change))
        return 0

    def _answer_all(self, changes: Any, which: inbox_service_pb2.PendingToolCallFilter) -> int:
        which.kind = tools_pb2.PENDING_KIND_CLIENT_EXECUTION
        claim = inbox_service_pb2.ClaimToolCallsRequest(
            filter=which, worker_id=f"terminal-{os.getpid()}", lease=_ANSWER_LEASE
        )
        for change in changes:
            if not change.HasField("added") or change.added.worker_id:
                continue
            for claimed in self._inbox.ClaimToolCalls(claim).calls:
                self._write(f"{claimed.call.run_id}  {claimed.call.call.name}({claimed.call.call.arguments_json})")
                try:
                    text = self._read("result> ")
                except EOFError:
                    changes.cancel()
                    return 0
                call_id = claimed.call.call.tool_call_id
                back = tools_pb2.ToolReturn(tool_call_id=call_id, text=text, claim_token=claimed.claim_token)
                self._send(
                    agent_pb.SubmitToolReturnsRequest(run_id=claimed.call.run_id, tool_returns=[back], background=True)
                )
        return 0

    def _send(self, request: agent_pb.SubmitToolReturnsRequest) -> int:
        response = self._agent.SubmitToolReturns(request)
        self._tell(response, _run_line(response.run))
        return 0

    def _tell(self, message: Message, *lines: str) -> None:
        shown: Iterable[str] = [json_format.MessageToJson(message, indent=None)] if self._json else lines
        for line in shown:
            self._write(line)


def run_console(command: str, connection: Connection, *, as_json: bool, **arguments: Any) -> int:
    """Runs a command against a service."""
    with connection.open() as channel:
        console = Console(channel, _print, input, as_json=as_json)
        try:
            return int(getattr(console, command)(**arguments))
        except grpc.RpcError as error:
            sys.stderr.write(f"error: {error.code().name}: {error.details()}\n")
            return 1
        except KeyboardInterrupt:
            return 130


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _name(enum: Any, value: int, prefix: str) -> str:
    return str(enum.Name(value)).removeprefix(prefix)


def _run_line(run: runs_pb2.Run) -> str:
    status = _name(runs_pb2.RunStatus, run.status, "RUN_STATUS_")
    reason = _name(runs_pb2.StopReason, run.stop_reason, "STOP_REASON_") if run.HasField("stop_reason") else ""
    time = run.create_time.ToDatetime().isoformat(sep=" ", timespec="seconds")
    return f"{time}  {run.run_id}  {status:11}  {reason:16}  {run.agent_id}  {run.conversation_id}"


def _run_lines(run: runs_pb2.Run) -> list[str]:
    lines = [_run_line(run), f"steps {run.steps_taken} of {run.max_steps}, {run.usage.total_tokens} tokens"]
    if run.HasField("error"):
        again = ", may be retried" if run.error.retryable else ""
        lines.append(f"error: {run.error.message}{again}")
    return lines + [f"waits for {_call(call)}" for call in run.pending_tool_calls]


def _call(call: tools_pb2.PendingToolCall) -> str:
    kind = _name(tools_pb2.PendingKind, call.kind, "PENDING_KIND_")
    return f"{call.tool_call_id}  {call.name}({_short(call.arguments_json)})  {kind}"


def _event_line(event: events_pb2.RunEvent) -> str:
    kind = event.WhichOneof("payload") or "?"
    return f"{event.sequence:5}  {kind:22}  {_short(_told(event, kind))}".rstrip()


def _told(event: events_pb2.RunEvent, kind: str) -> str:
    if kind == "message_stored":
        message = event.message_stored.message
        content = getattr(message, message.WhichOneof("content") or "user")
        return f"{message.WhichOneof('content')}: {json_format.MessageToJson(content, indent=None)}"
    if kind == "run_stopped":
        stopped = event.run_stopped
        status = _name(runs_pb2.RunStatus, stopped.status, "RUN_STATUS_")
        return f"{status} {_name(runs_pb2.StopReason, stopped.stop_reason, 'STOP_REASON_')}"
    return ""


def _change_line(change: inbox_service_pb2.WatchPendingToolCallsResponse) -> str:
    if change.HasField("removed"):
        return f"-  {change.removed.run_id}  {change.removed.tool_call_id}"
    worker = f"  claimed by {change.added.worker_id}" if change.added.worker_id else ""
    return f"+  {change.added.run_id}  {_call(change.added.call)}{worker}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
