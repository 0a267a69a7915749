"""A chat in the terminal: streams answers, and executes two tools of this process after asking."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentrpc.v1 import server_service_pb2, tools_pb2

from agent_service.calculator import CalculationError, calculate
from agent_service.client import (
    AgentClient,
    AgentClientError,
    Approve,
    ClientTool,
    DeadlineError,
    Deny,
    Event,
    MessageStored,
    RefusedError,
    Restarted,
    RunResult,
    TextDelta,
    ToolCall,
    UnavailableError,
    client_tool,
)
from agent_service.connection import Connection
from agent_service.functions import in_thread

_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Terminal:
    """Where the chat reads and writes. `read` shows a prompt and raises EOFError at the end of the input."""

    read: Callable[[str], str]
    write: Callable[[str], None]


def tools(now: Callable[[], datetime], write: Callable[[str], None]) -> list[ClientTool[..., Any]]:
    """The tools of this process, which show their results; `now` is the local time, with its zone."""

    @client_tool(requires_approval=True)
    async def current_time() -> str:
        """Returns the local date and time of the user, with the offset to UTC."""
        text = now().isoformat(timespec="seconds")
        write(f"  = {text}\n")
        return text

    @client_tool(name="calculate", requires_approval=True)
    async def calculated(expression: str) -> tools_pb2.ToolReturn:
        """Computes an arithmetic expression, such as (3 + 4) * 2.5 or sqrt(2)."""
        try:
            text = calculate(expression)
        except CalculationError as error:
            return tools_pb2.ToolReturn(text=f"Error: {error}", status=tools_pb2.TOOL_RETURN_STATUS_ERROR)
        write(f"  = {text}\n")
        return tools_pb2.ToolReturn(text=text)

    return [current_time, calculated]


class Chat:
    """One conversation with an agent."""

    def __init__(
        self, client: AgentClient, terminal: Terminal, now: Callable[[], datetime], *, agent: str, conversation: str
    ) -> None:
        self._terminal = terminal
        self._asking = asyncio.Lock()
        self._writing = ""
        """The message whose text stands at the end of the screen."""
        self._conversation = client.conversation(
            conversation, agent_id=agent, tools=tools(now, terminal.write), on_approval=self._decide
        )

    @property
    def conversation(self) -> str:
        """Its id; empty before the first answer of a new one."""
        return self._conversation.conversation_id

    def lines(self) -> Iterator[str]:
        """What the user says, until the input ends."""
        while True:
            try:
                text = self._terminal.read("you> ").strip()
            except EOFError:
                return
            if text:
                yield text

    async def say(self, text: str) -> None:
        """One message, and what the agent makes of it over any number of tool calls."""
        try:
            async with self._conversation.stream(text) as stream:
                async for event in stream:
                    self._show(event)
        except AgentClientError as error:
            self._end_line()
            self._terminal.write(f"error: {error.message if isinstance(error, RefusedError) else error}\n")
        else:
            self._end_line()
            self._explain(stream.result)

    def _show(self, event: Event) -> None:
        match event:
            case TextDelta():
                self._terminal.write(event.text if self._writing else f"agent> {event.text}")
                self._writing = event.message_id
            case MessageStored():
                self._end_line()
            case Restarted() if event.dropped:
                self._terminal.write(" [broke off, asking again]\n")
                self._writing = ""

    def _end_line(self) -> None:
        if self._writing:
            self._terminal.write("\n")
        self._writing = ""

    def _explain(self, result: RunResult) -> None:
        """Says why there is no answer, if there is none."""
        if result.error is not None:
            self._terminal.write(f"error: {result.error.message}\n")
        elif result.stop_reason not in ("END_TURN", "REQUIRES_APPROVAL"):
            self._terminal.write(f"[{result.stop_reason}]\n")

    async def _decide(self, call: ToolCall) -> Approve | Deny:
        async with self._asking:
            question = f"run {call.name}({call.arguments_json})? [Y/n] "
            try:
                said = await in_thread(self._terminal.read, question)
            except EOFError:
                said = "no"
            return Approve() if said.strip().lower() in ("", "y", "yes") else Deny(reason="the user said no")


def run_chat(connection: Connection, agent: str, conversation: str) -> int:
    """Chats on standard input and output; 1 if the server cannot be reached."""
    with asyncio.Runner() as runner:
        client = connection.client()
        runner.run(client.__aenter__())
        try:
            chat = Chat(
                client,
                Terminal(input, _write),
                lambda: datetime.now().astimezone(),
                agent=agent,
                conversation=conversation,
            )
            try:
                runner.run(_reach(client))
            except (UnavailableError, DeadlineError):
                sys.stderr.write(
                    f"error: no server answers at {connection.target}; start one with: agent-service serve\n"
                )
                return 1
            with contextlib.suppress(KeyboardInterrupt):
                # Read while no event loop runs, which would keep Ctrl-C from ending it.
                for text in chat.lines():
                    runner.run(chat.say(text))
            if chat.conversation:
                _write(f"\nto go on: agent-service chat --conversation {chat.conversation}\n")
        finally:
            runner.run(client.__aexit__(None, None, None))
    return 0


async def _reach(client: AgentClient) -> None:
    """Raises UnavailableError or DeadlineError."""
    request = server_service_pb2.GetServerInfoRequest()
    await client.call(client.connection.server.GetServerInfo, request, timeout=_CONNECT_SECONDS)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
