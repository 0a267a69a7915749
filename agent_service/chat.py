"""A chat in the terminal: streams answers, and executes two tools of this process after asking."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import grpc
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import agent_service_pb2_grpc, events_pb2, messages_pb2, runs_pb2, tools_pb2

from agent_service.calculator import CalculationError, calculate

_SCHEMAS = (
    tools_pb2.ClientToolSchema(
        name="current_time", description="Returns the local date and time of the user, with the offset to UTC."
    ),
    tools_pb2.ClientToolSchema(
        name="calculate",
        description="Computes an arithmetic expression, such as (3 + 4) * 2.5 or sqrt(2).",
        parameters_json=(
            '{"type":"object","properties":{"expression":{"type":"string"}},"required":["expression"],'
            '"additionalProperties":false}'
        ),
    ),
)

_CONNECT_SECONDS = 5.0

Tool = Callable[[Mapping[str, str]], str]


def tools(now: Callable[[], datetime]) -> dict[str, Tool]:
    """The tools of this process by name; `now` is the local time, with its zone."""
    return {
        "current_time": lambda arguments: now().isoformat(timespec="seconds"),
        "calculate": lambda arguments: calculate(arguments["expression"]),
    }


@dataclass(frozen=True)
class Terminal:
    """Where the chat reads and writes. `read` shows a prompt and raises EOFError at the end of the input."""

    read: Callable[[str], str]
    write: Callable[[str], None]


class Chat:
    """One conversation with an agent."""

    def __init__(
        self, channel: grpc.Channel, terminal: Terminal, tools: Mapping[str, Tool], *, agent: str, conversation: str
    ) -> None:
        self._stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        self._terminal = terminal
        self._tools = tools
        self._agent = agent
        self.conversation = conversation

    def talk(self) -> None:
        """Reads and answers until the input ends."""
        while True:
            try:
                text = self._terminal.read("you> ").strip()
            except EOFError:
                return
            if not text:
                continue
            try:
                self.say(text)
            except grpc.RpcError as error:
                self._terminal.write(f"error: {error.details() or error.code().name}\n")

    def say(self, text: str) -> None:
        """One message, and what the agent makes of it over any number of tool calls."""
        step = pb.StepRequest(
            agent_id=self._agent,
            conversation_id=self.conversation,
            input_messages=[messages_pb2.InputMessage(text=text)],
            client_tools=_SCHEMAS,
        )
        stream = self._stub.Stream(pb.StreamRequest(step=step, stream_tokens=True))
        run_id, stopped = self._show(response.event for response in stream)
        while stopped is not None and stopped.remaining:
            submit = pb.SubmitToolReturnsRequest(run_id=run_id)
            for call in stopped.remaining:
                self._answer(call, submit)
            again = self._stub.StreamToolReturns(pb.StreamToolReturnsRequest(submit=submit, stream_tokens=True))
            run_id, stopped = self._show(response.event for response in again)

    def _show(self, events: Iterator[events_pb2.RunEvent]) -> tuple[str, events_pb2.RunStopped | None]:
        """Writes text as it comes; returns the run and its stop."""
        run_id, stopped = "", None
        writing = ""
        for event in events:
            run_id = event.run_id
            match event.WhichOneof("payload"):
                case "run_accepted":
                    self.conversation = event.run_accepted.conversation_id
                case "text_delta":
                    self._terminal.write(event.text_delta.text if writing else f"agent> {event.text_delta.text}")
                    writing = event.text_delta.message_id
                case "message_stored":
                    self._show_message(event.message_stored.message, writing)
                    writing = ""
                case "step_restarted":
                    self._terminal.write(" [broke off, asking again]\n")
                    writing = ""
                case "run_stopped":
                    stopped = event.run_stopped
        if writing:
            self._terminal.write("\n")
        if stopped is not None:
            self._explain(stopped)
        return run_id, stopped

    def _show_message(self, message: messages_pb2.Message, writing: str) -> None:
        """Writes what an assistant message says, or only its end of line if its text was written as it came."""
        if writing:
            self._terminal.write("\n")
        if message.HasField("assistant") and message.message_id != writing:
            self._terminal.write(f"agent> {message.assistant.text}\n")

    def _explain(self, stopped: events_pb2.RunStopped) -> None:
        """Says why there is no answer, if there is none."""
        if stopped.HasField("error"):
            self._terminal.write(f"error: {stopped.error.message}\n")
        elif stopped.stop_reason not in (runs_pb2.STOP_REASON_END_TURN, runs_pb2.STOP_REASON_REQUIRES_APPROVAL):
            self._terminal.write(f"[{runs_pb2.StopReason.Name(stopped.stop_reason)}]\n")

    def _answer(self, call: tools_pb2.PendingToolCall, submit: pb.SubmitToolReturnsRequest) -> None:
        """Asks, then executes or denies."""
        allowed = self._ask(f"run {call.name}({call.arguments_json})? [Y/n] ")
        if call.kind == tools_pb2.PENDING_KIND_APPROVAL:
            decision = submit.approvals.add(tool_call_id=call.tool_call_id)
            if allowed:
                decision.approve.SetInParent()
            else:
                decision.deny.reason = "the user said no"
        elif not allowed:
            submit.approvals.add(tool_call_id=call.tool_call_id).deny.reason = "the user said no"
        else:
            submit.tool_returns.append(self._execute(call))

    def _ask(self, question: str) -> bool:
        try:
            return self._terminal.read(question).strip().lower() in ("", "y", "yes")
        except EOFError:
            return False

    def _execute(self, call: tools_pb2.PendingToolCall) -> tools_pb2.ToolReturn:
        try:
            text = self._tools[call.name](json.loads(call.arguments_json))
        except CalculationError as error:
            return tools_pb2.ToolReturn(
                tool_call_id=call.tool_call_id, text=f"Error: {error}", status=tools_pb2.TOOL_RETURN_STATUS_ERROR
            )
        self._terminal.write(f"  = {text}\n")
        return tools_pb2.ToolReturn(tool_call_id=call.tool_call_id, text=text)


def run_chat(target: str, agent: str, conversation: str) -> int:
    """Chats on standard input and output; 1 if the server cannot be reached."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            sys.stderr.write(f"error: no server answers at {target}; start one with: agent-service serve\n")
            return 1
        terminal = Terminal(input, _write)
        chat = Chat(
            channel,
            terminal,
            tools(lambda: datetime.now().astimezone()),
            agent=agent,
            conversation=conversation,
        )
        with contextlib.suppress(KeyboardInterrupt):
            chat.talk()
        if chat.conversation:
            _write(f"\nto go on: agent-service chat --conversation {chat.conversation}\n")
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
