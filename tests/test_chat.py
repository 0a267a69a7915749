"""The chat in the terminal, against a real service: what it writes, asks and sends."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from agentrpc.v1 import runs_pb2

from agent_service.chat import Chat, Terminal
from agent_service.client import AgentClient
from agent_service.tools import server_tool
from tests.scripted_openai import Gate, Reply, ScriptedOpenAI, Tally, breaks_off, calls, cut_by_length, fails, says
from tests.service import Client, scripted

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 4, 12, 0, 0, 123, tzinfo=UTC)
SUM = calls(("calculate", {"expression": "6 * 7"}))
SERVER_TOOLS = "tests.test_chat:delete_file,tests.test_chat:send_message"


@server_tool(requires_approval=True)
async def delete_file(path: str) -> str:
    """Deletes a file."""
    return f"deleted {path}"


async def send_message(message: str) -> str:
    """Says something."""
    return "sent"


@dataclass
class Screen:
    """A terminal whose user types these lines; `shown` is all that stands on it."""

    lines: list[str]
    shown: str = ""
    writes: Tally = field(default_factory=lambda: Tally("writes"))

    def read(self, prompt: str) -> str:
        """The next line; EOFError after the last."""
        self.shown += prompt
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        self.shown += line + "\n"
        return line

    def write(self, text: str) -> None:
        """Shows it."""
        self.shown += text
        self.writes.add()


@dataclass
class Talk:
    """A chat that is ready, its screen, and the two ends of the service under it."""

    chat: Chat
    screen: Screen
    client: Client
    upstream: ScriptedOpenAI

    async def held(self) -> str:
        """All that stands on the screen after the chat."""
        for text in self.chat.lines():
            await self.chat.say(text)
        return self.screen.shown


@asynccontextmanager
async def talking(
    script: list[Reply] | Callable[[Any], Reply],
    *lines: str,
    store: str = "memory",
    agent: str = "",
    conversation: str = "",
    **settings: Any,
) -> AsyncIterator[Talk]:
    """A chat with a service on this script."""
    async with scripted(script, store, **settings) as (client, upstream), AgentClient(client.target) as own:
        screen = Screen(list(lines))
        terminal = Terminal(screen.read, screen.write)
        chat = Chat(own, terminal, lambda: NOON, agent=agent, conversation=conversation)
        yield Talk(chat, screen, client, upstream)


async def test_an_answer_is_written(store: str) -> None:
    """On a line of its own, and the next prompt follows; the end of the input ends the chat."""
    async with talking([says("Good day.")], "Hi", store=store) as talk:
        assert await talk.held() == "you> Hi\nagent> Good day.\nyou> "


async def test_text_is_written_as_it_comes() -> None:
    """Each piece when the model says it, not when the answer is complete."""
    gate = Gate()
    async with talking([says(["Good", " day", "."], gate=gate)], "Hi") as talk:
        held = asyncio.create_task(talk.held())
        gate.release()
        await talk.screen.writes.reach(1)
        assert talk.screen.shown == "you> Hi\nagent> Good"
        gate.release()
        await talk.screen.writes.reach(2)
        assert talk.screen.shown == "you> Hi\nagent> Good day"
        gate.open()
        assert await held == "you> Hi\nagent> Good day.\nyou> "


async def test_empty_lines_say_nothing() -> None:
    """They prompt again, without a request."""
    async with talking([says("Good day.")], "", "   ", " Hi ") as talk:
        assert await talk.held() == "you> \nyou>    \nyou>  Hi \nagent> Good day.\nyou> "
        assert talk.upstream.requests[0].last["content"] == "Hi"


async def test_the_conversation_goes_on(store: str) -> None:
    """Each message is the next one of the same conversation, and the model sees what was said before."""
    async with talking([says("Noted."), says("42.")], "Remember 42.", "Which number?", store=store) as talk:
        shown = await talk.held()
        assert shown == "you> Remember 42.\nagent> Noted.\nyou> Which number?\nagent> 42.\nyou> "
        contents = [message["content"] for message in talk.upstream.requests[1].history]
        assert contents == ["Remember 42.", "Noted.", "Which number?"]
        assert (await talk.client.get_conversation(talk.chat.conversation)).message_count == 4


async def test_an_earlier_conversation_can_be_continued() -> None:
    """By its id, with an agent of one's choice."""
    async with scripted([says("Noted."), says("42.")], "memory") as (client, upstream):
        before = (await client.ask("Remember 42.")).run.conversation_id
        async with AgentClient(client.target) as own:
            screen = Screen(["Which number?"])
            terminal = Terminal(screen.read, screen.write)
            chat = Chat(own, terminal, lambda: NOON, agent="default", conversation=before)
            for text in chat.lines():
                await chat.say(text)
        assert len(upstream.requests[1].history) == 3
        assert chat.conversation == before


@pytest.mark.parametrize("yes", ["", "y", " YES "])
async def test_a_tool_is_executed_after_asking(store: str, yes: str) -> None:
    """The question shows the call; the result is shown and sent, and the answer follows."""
    async with talking([SUM, says("It is 42.")], "6 times 7?", yes, store=store) as talk:
        assert await talk.held() == (
            f'you> 6 times 7?\nrun calculate({{"expression": "6 * 7"}})? [Y/n] {yes}\n  = 42\nagent> It is 42.\nyou> '
        )
        assert talk.upstream.requests[1].new_returns == ["42"]
        assert talk.upstream.requests[0].tool_names == ["current_time", "calculate"]


@pytest.mark.parametrize("no", ["n", "N", "no", "what?"])
async def test_a_tool_is_not_executed_against_the_user_s_will(no: str) -> None:
    """Anything but yes denies; the model is told."""
    async with talking([SUM, says("As you wish.")], "6 times 7?", no) as talk:
        shown = await talk.held()
        assert "  = " not in shown
        assert shown.endswith("agent> As you wish.\nyou> ")
        assert talk.upstream.requests[1].new_returns == ["Denied: the user said no"]


async def test_the_end_of_the_input_denies_and_the_run_is_not_left_waiting() -> None:
    """A closed terminal at a question is no consent."""
    async with talking([SUM, says("As you wish.")], "6 times 7?") as talk:
        await talk.held()
        assert talk.upstream.requests[1].new_returns == ["Denied: the user said no"]
        (run,) = (await talk.client.list_runs()).runs
        assert run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_the_time_is_the_user_s(store: str) -> None:
    """With its offset, to the second; the model may leave out the arguments."""
    async with talking([calls(("current_time", "")), says("Noon.")], "Time?", "y", store=store) as talk:
        shown = await talk.held()
        assert "run current_time({})? [Y/n] y\n  = 2026-03-04T12:00:00+00:00\nagent> Noon.\n" in shown


async def test_an_expression_without_value_is_an_error_return() -> None:
    """The model reads why, and can try again; nothing is shown as a result."""
    script = [calls(("calculate", {"expression": "1 / 0"})), SUM, says("42.")]
    async with talking(script, "Sum?", "y", "y") as talk:
        shown = await talk.held()
        assert shown.count("  = ") == 1
        assert talk.upstream.requests[1].new_returns == ["Error: division by zero"]
        assert talk.upstream.requests[2].new_returns == ["42"]


async def test_several_calls_are_asked_one_by_one() -> None:
    """Each has its own answer, and all are sent together."""
    both = calls(("calculate", {"expression": "1 + 1"}), ("current_time", {}), ("calculate", {"expression": "2 + 2"}))
    async with talking([both, says("Done.")], "Go", "y", "n", "y") as talk:
        shown = await talk.held()
        assert [shown.count(text) for text in ("[Y/n]", "  = 2\n", "  = 4\n")] == [3, 1, 1]
        assert talk.upstream.requests[1].new_returns == ["2", "Denied: the user said no", "4"]
        assert talk.upstream.request_count == 2


@pytest.mark.parametrize(("answer", "result"), [("y", "deleted /x"), ("n", "Denied: the user said no")])
async def test_a_server_tool_that_needs_an_approval_is_asked_about(store: str, answer: str, result: str) -> None:
    """It is executed by the server after a yes, together with tools of this process."""
    both = calls(("delete_file", {"path": "/x"}), ("calculate", {"expression": "1 + 1"}))
    async with talking([both, says("Done.")], "Go", answer, "y", store=store, tools=SERVER_TOOLS) as talk:
        shown = await talk.held()
        assert f'run delete_file({{"path": "/x"}})? [Y/n] {answer}\n' in shown
        assert talk.upstream.requests[1].new_returns == [result, "2"]
        assert shown.endswith("agent> Done.\nyou> ")


async def test_what_an_agent_says_through_its_message_tool_is_written() -> None:
    """As text, once, and before what it says after it."""
    script = [calls(("send_message", {"message": "Good day."})), says("Bye.")]
    async with talking(script, "Hi", tools=SERVER_TOOLS) as talk:
        assert await talk.held() == "you> Hi\nagent> Good day.\nagent> Bye.\nyou> "


async def test_text_beside_a_call_has_a_line_of_its_own() -> None:
    """The question does not stand in the middle of what the agent says."""
    script = [calls(("calculate", {"expression": "1 + 1"}), text="Let me see."), says("2.")]
    async with talking(script, "Sum?", "y") as talk:
        shown = await talk.held()
        assert "agent> Let me see.\nrun calculate(" in shown


async def test_an_answer_that_breaks_off_is_begun_anew() -> None:
    """The user sees that the partial text is void."""
    async with talking([breaks_off(says(["Good m", "orning."]), after=1), says("Good day.")], "Hi") as talk:
        assert await talk.held() == "you> Hi\nagent> Good m [broke off, asking again]\nagent> Good day.\nyou> "


async def test_a_refused_message_is_told_and_the_chat_goes_on() -> None:
    """With the words of the service."""
    async with talking([], "Hi", "Hi again", agent="nobody") as talk:
        shown = await talk.held()
        assert shown.count("error: agent_id: no agent 'nobody'") == 2
        assert shown.endswith("\nyou> ")


@pytest.mark.parametrize("status", [400, 503])
async def test_a_run_that_fails_is_told_and_the_chat_goes_on(store: str, status: int) -> None:
    """The next message is one of the same conversation."""
    async with talking([fails(status, "No luck."), says("Good day.")], "Hi", "Again", store=store) as talk:
        shown = await talk.held()
        first, second = shown.split("you> ")[1:3]
        assert first.startswith("Hi\nerror: ")
        assert second == "Again\nagent> Good day.\n"
        assert len(talk.upstream.requests[1].history) == 2


async def test_an_answer_that_is_cut_says_why() -> None:
    """By the name of the stop reason."""
    async with talking([cut_by_length("A long story.", after=1)], "Tell me") as talk:
        assert "[MAX_TOKENS_EXCEEDED]\n" in await talk.held()


async def command(target: str, *more: str) -> asyncio.subprocess.Process:
    """`agent-service chat` in a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_service", "chat", "--target", target, *more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("interrupted", [False, True])
async def test_the_command_talks_on_standard_input_and_output(interrupted: bool) -> None:
    """It ends with the command that continues the conversation, whether the input ends or the user interrupts."""
    async with scripted([says("Good day."), says("Again.")], "memory") as (client, _), asyncio.timeout(30):
        more: list[str] = []
        for answer in (b"Good day.", b"Again."):
            chat = await command(client.target, *more)
            assert chat.stdin is not None
            assert chat.stdout is not None
            chat.stdin.write(b"Hi\n")
            written = await chat.stdout.readuntil(b"agent> " + answer + b"\nyou> ")
            if interrupted:
                chat.send_signal(signal.SIGINT)
            rest, errors = await chat.communicate(b"")
            assert (chat.returncode, errors) == (0, b"")
            conversation = (await client.list_runs()).runs[0].conversation_id
            assert written + rest == (
                b"you> agent> " + answer + b"\nyou> "
                b"\nto go on: agent-service chat --conversation " + conversation.encode() + b"\n"
            )
            more = ["--conversation", conversation, "--agent", "default"]
        assert (await client.get_conversation(conversation)).message_count == 4


async def test_the_command_says_that_no_server_answers() -> None:
    """Exit code 1, and how to start one."""
    chat = await command("127.0.0.1:1")
    _, errors = await chat.communicate()
    assert chat.returncode == 1
    assert errors == b"error: no server answers at 127.0.0.1:1; start one with: agent-service serve\n"
