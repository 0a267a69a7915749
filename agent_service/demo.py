"""The demo: a real model calls a tool of this process, the server is killed at the pause, and the run goes on.

Everything is real: two server processes one after the other on one SQLite file, the client library, a model endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentrpc.v1 import messages_pb2, runs_pb2

from agent_service.client import (
    AgentClient,
    AgentClientError,
    MessageStored,
    ReasoningDelta,
    RunResult,
    RunStream,
    Stopped,
    TextDelta,
    ToolArgumentsDelta,
    ToolCall,
)
from agent_service.local_model import LocalModel, LocalModelFailedError, LocalModelMissingError, run_local_model
from agent_service.settings import Settings, SettingsError, load_settings

CODES = {"Alice": "AZURE-7731", "Grace": "OCHRE-2049"}
"""What the tool of this process knows; the second name is for a second try."""
_STEP_SECONDS = 300.0

Say = Callable[[str], None]


class DemoFailedError(Exception):
    """The flow did not happen as it should; the text says what did."""


@dataclass(frozen=True)
class Outcome:
    """What one pass through the flow showed."""

    steps: int
    answers: tuple[str, str]

    def mention(self, code: str) -> bool:
        """Whether the model repeated the code both times."""
        return all(code in answer for answer in self.answers)


def run_demo(keep: str | None) -> int:
    """Runs the demo; 0 only if the flow truly happened."""
    try:
        settings = load_settings()
        with tempfile.TemporaryDirectory(prefix="agent-service-demo-") as folder:
            store = Path(keep).absolute() if keep else Path(folder) / "demo.sqlite3"
            logging.getLogger("agent_service.client").setLevel(logging.ERROR)  # the demo tells of cuts itself
            return asyncio.run(_demo(settings, store, kept=keep is not None))
    except (SettingsError, LocalModelMissingError, LocalModelFailedError, DemoFailedError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or nobody reads on
        return 130


async def _demo(settings: Settings, store: Path, *, kept: bool) -> int:
    async with AsyncExitStack() as stack:
        local = None
        if settings.external_model:
            where = settings.openai_base_url or "OpenAI's endpoint"
            _say(f"The model: {settings.model or 'the one listed'} at {where}, because OPENAI_* is set.")
        else:
            _say("Starting the bundled local model (SmolLM2-135M-Instruct, on this machine's processor) ...")
            local = await stack.enter_async_context(run_local_model())
            _say("Tool choice is forced for this tiny model; arguments and answer are its own.")
        for number, (name, code) in enumerate(CODES.items()):
            try:
                outcome = await _attempt(store, local, name)
            except DemoFailedError as error:
                if number + 1 == len(CODES):
                    raise
                _say(f"\nThat did not work: {error}. A second try, with another name.")
                continue
            return _conclude(outcome, code, local, store if kept else None)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _attempt(store: Path, local: LocalModel | None, name: str) -> Outcome:
    before = await local.requests_served() if local else 0
    outcome = await _flow(store, _environment(local), name, forced=local is not None)
    served = await local.requests_served() - before if local else outcome.steps
    if served != outcome.steps:
        raise DemoFailedError(f"the model server counted {served} requests, and the runs {outcome.steps}")
    return outcome


async def _flow(store: Path, environment: dict[str, str], name: str, *, forced: bool) -> Outcome:
    """Ask -> pause -> kill the server -> look -> return -> answer -> recall."""
    async with Server.running(store, environment) as server, AgentClient(server.address) as client:
        called: list[str] = []

        async def get_secret_code(name: str, call: ToolCall) -> dict[str, str]:
            """Returns the secret code of a person."""
            called.append(name)
            _say("   The run is paused and stored. Now the server is killed (kill -9), and another one started.")
            await server.replace()
            found = await client.get_run(call.run_id, timeout=30)
            _say(f"<- GetRun  {call.run_id}  {_status(found.status)}, waits for {found.pending_tool_calls[0].name}")
            _say(f"   This process executes {call.name}({call.arguments_json})")
            return {"code": CODES[name]}

        conversation = client.conversation(tools=[get_secret_code], timeout=_STEP_SECONDS)
        _say(f'-> Stream  "What is the secret code of {name}?"  with the schema of get_secret_code(name: str)')
        choice = "get_secret_code" if forced else ""
        asked = await _told(conversation.stream(f"What is the secret code of {name}?", tool_choice=choice))
        if called != [name]:
            raise DemoFailedError(f"the model called the tool with {called}, not once with {name}")
        _say('-> Stream  "What was the secret code?"  in the same conversation')
        recalled = await _told(conversation.stream("What was the secret code?", tool_choice="none"))
        _expect_history(await client.messages(conversation.conversation_id))
        steps = [(await client.get_run(result.run_id)).steps_taken for result in (asked, recalled)]
        return Outcome(sum(steps), (asked.text, recalled.text))


async def _told(stream: RunStream) -> RunResult:
    """Tells events as they come; the run must end as it should."""
    pieces = 0
    async for event in stream:
        number = f"<- {event.sequence}"
        match event:
            case TextDelta() | ReasoningDelta() | ToolArgumentsDelta():
                pieces += 1
            case MessageStored():
                streamed = f"  (streamed in {pieces} pieces)" if pieces else ""
                _say(f"{number} {_message_text(event.message)}{streamed}")
                pieces = 0
            case Stopped():
                _say(f"{number} run_stopped  {event.status}, {event.stop_reason}")
            case _:
                _say(f"{number} {event.raw.WhichOneof('payload')}")
    result = stream.result
    if result.stop_reason != "END_TURN":
        why = f": {result.error.message}" if result.error else ""
        raise DemoFailedError(f"the run should have ended, and is {result.status}{why}")
    return result


@dataclass
class Server:
    """A server process of its own on a store, which may be replaced by another one at the same address."""

    store: Path
    environment: dict[str, str]
    address: str = "127.0.0.1:0"
    _process: asyncio.subprocess.Process = field(init=False)

    @staticmethod
    @asynccontextmanager
    async def running(store: Path, environment: dict[str, str]) -> AsyncIterator[Server]:
        """Told to stop at the end. Raises DemoFailedError where it does not start or a call of it fails."""
        server = Server(store, environment)
        await server._start()
        try:
            yield server
            server._process.terminate()
            await server._process.wait()
        except AgentClientError as error:
            raise DemoFailedError(f"a call failed: {error}") from error
        finally:
            if server._process.returncode is None:
                await server._kill()

    async def replace(self) -> None:
        """Kills the process, and starts another one on the same store and port."""
        await self._kill()
        await self._start()

    async def _kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def _start(self) -> None:
        port = self.address.rpartition(":")[2]
        log_path = self.store.with_suffix(".log")
        with log_path.open("a") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agent_service", "serve", "--port", port, "--store", str(self.store)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self.environment,
            )
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        if not line.startswith("listening on "):
            await self._process.wait()
            raise DemoFailedError(f"the server did not start: {log_path.read_text()[-2000:].strip()}")
        self.address = line.removeprefix("listening on ").strip()
        _say(f"\nA server: pid {self._process.pid}, {self.address}, {self.store}")


def _environment(local: LocalModel | None) -> dict[str, str]:
    """The server's environment: this one's, and the local model if that is used."""
    if local is None:
        return dict(os.environ)
    return os.environ | {
        "OPENAI_BASE_URL": local.base_url,
        "OPENAI_API_KEY": local.api_key,
        "AGENT_SERVICE_MODEL": local.model,
        "AGENT_SERVICE_TOOL_MODE": "json_schema",
        "AGENT_SERVICE_ANSWERS_AFTER_RETURN": "true",
        "AGENT_SERVICE_MODEL_KEEP_ALIVE": "false",
    }


def _expect_history(history: list[messages_pb2.Message]) -> None:
    kinds = [message.WhichOneof("content") for message in history]
    expected = ["user", "tool_call", "tool_return", "assistant", "user", "assistant"]
    if [kind for kind in kinds if kind != "reasoning"] != expected:
        raise DemoFailedError(f"the conversation holds {kinds}")


def _conclude(outcome: Outcome, code: str, local: LocalModel | None, kept: Path | None) -> int:
    counted = f"{outcome.steps} model requests{', counted by the model server' if local else ''}"
    _say(f"\nThe flow happened: {counted}; one pause, over the death of a server; history in order.")
    mentioned = outcome.mention(code)
    _say(f"The model {'repeated the code both times' if mentioned else 'did not repeat the code both times'}.")
    if kept:
        _say(f"Everything is in {kept}: agent-service serve --store {kept}")
    return 0 if mentioned or local else 1


def _message_text(message: messages_pb2.Message) -> str:
    match message.WhichOneof("content"):
        case "tool_call":
            named = ", ".join(f"{call.name}({call.arguments_json})" for call in message.tool_call.tool_calls)
            return f"tool_call  {named}"
        case "tool_return":
            return f"tool_return  {message.tool_return.text}"
        case kind:
            return f'{kind}  "{getattr(message, str(kind)).text}"'


def _status(status: runs_pb2.RunStatus.ValueType) -> str:
    return runs_pb2.RunStatus.Name(status).removeprefix("RUN_STATUS_")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
