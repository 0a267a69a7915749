"""The demo: a real model calls a tool of this process, the server is killed at the pause, and the run goes on.

Everything is real: two server processes one after the other on one SQLite file, a gRPC client, a model endpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from agentrpc.v1 import (
    agent_registry_service_pb2 as registry_pb,
)
from agentrpc.v1 import (
    agent_registry_service_pb2_grpc,
    agent_service_pb2_grpc,
    events_pb2,
    messages_pb2,
    run_service_pb2_grpc,
    runs_pb2,
    tools_pb2,
)
from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import run_service_pb2 as run_pb

from agent_service.local_model import LocalModel, LocalModelFailedError, LocalModelMissingError, run_local_model
from agent_service.settings import Settings, SettingsError, load_settings

CODES = {"Alice": "AZURE-7731", "Grace": "OCHRE-2049"}
"""What the tool of this process knows; the second name is for a second try."""
TOOL = tools_pb2.ClientToolSchema(
    name="get_secret_code",
    description="Returns the secret code of a person.",
    parameters_json='{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}',
)
_READY_SECONDS = 30.0
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


class DemoClient:
    """A client as anyone would write it from the proto: stubs on a channel, and what it tells as it goes."""

    def __init__(self, channel: grpc.Channel, say: Say) -> None:
        self._agent = agent_service_pb2_grpc.AgentServiceStub(channel)
        self._runs = run_service_pb2_grpc.RunServiceStub(channel)
        self._registry = agent_registry_service_pb2_grpc.AgentRegistryServiceStub(channel)
        self._say = say

    def ask(self, text: str, *, force_tool: bool) -> runs_pb2.Run:
        """Streams a question with the tool's schema; returns the run at its stop."""
        self._say(f'-> Stream  "{text}"  with the schema of get_secret_code(name), which lives in this process')
        step = pb.StepRequest(input_messages=[messages_pb2.InputMessage(text=text)], client_tools=[TOOL])
        if force_tool:
            step.tool_choice.tool_name = TOOL.name
        request = pb.StreamRequest(step=step, stream_tokens=True)
        run_id = self._follow(response.event for response in self._agent.Stream(request, timeout=_STEP_SECONDS))
        return self.look(run_id)

    def answer(self, run_id: str, tool_call_id: str, text: str) -> None:
        """Streams a tool's return and what the agent makes of it."""
        self._say(f"-> StreamToolReturns  {run_id}  {text}")
        submit = pb.SubmitToolReturnsRequest(
            run_id=run_id, tool_returns=[tools_pb2.ToolReturn(tool_call_id=tool_call_id, text=text)]
        )
        request = pb.StreamToolReturnsRequest(submit=submit, stream_tokens=True)
        self._follow(r.event for r in self._agent.StreamToolReturns(request, timeout=_STEP_SECONDS))

    def recall(self, conversation_id: str, text: str) -> pb.StepResponse:
        """Asks in text, in the same conversation."""
        self._say(f'-> Step  "{text}"  in the same conversation')
        request = pb.StepRequest(
            conversation_id=conversation_id,
            input_messages=[messages_pb2.InputMessage(text=text)],
            tool_choice=tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_NONE),
        )
        response: pb.StepResponse = self._agent.Step(request, timeout=_STEP_SECONDS)
        self._say(f'<- {_stop_text(response.run.status)}  "{_last_text(list(response.messages))}"')
        return response

    def look(self, run_id: str) -> runs_pb2.Run:
        """GetRun."""
        response: run_pb.GetRunResponse = self._runs.GetRun(run_pb.GetRunRequest(run_id=run_id), timeout=10)
        return response.run

    def history(self, conversation_id: str) -> list[messages_pb2.Message]:
        """ListMessages."""
        request = registry_pb.ListMessagesRequest(conversation_id=conversation_id)
        response: registry_pb.ListMessagesResponse = self._registry.ListMessages(request, timeout=10)
        return list(response.messages)

    def _follow(self, events: Iterator[events_pb2.RunEvent]) -> str:
        """Tells events as they come; returns the run's id."""
        run_id, pieces = "", 0
        for event in events:
            run_id = event.run_id
            match event.WhichOneof("payload"):
                case "text_delta" | "tool_call_arguments_delta" | "reasoning_delta":
                    pieces += 1
                case "message_stored":
                    streamed = f"  (streamed in {pieces} pieces)" if pieces else ""
                    self._say(f"<- {event.sequence} {_message_text(event.message_stored.message)}{streamed}")
                    pieces = 0
                case "run_stopped":
                    stopped = event.run_stopped
                    reason = runs_pb2.StopReason.Name(stopped.stop_reason).removeprefix("STOP_REASON_")
                    self._say(f"<- {event.sequence} run_stopped  {_stop_text(stopped.status)}, {reason}")
                    if stopped.HasField("error"):
                        self._say(f"   {stopped.error.message}")
                case kind:
                    self._say(f"<- {event.sequence} {kind}")
        return run_id


def run_demo(keep: str | None) -> int:
    """Runs the demo; 0 only if the flow truly happened."""
    try:
        settings = load_settings()
        with tempfile.TemporaryDirectory(prefix="agent-service-demo-") as folder:
            store = Path(keep).absolute() if keep else Path(folder) / "demo.sqlite3"
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
                outcome = await _attempt(store, local, name, code)
            except DemoFailedError as error:
                if number + 1 == len(CODES):
                    raise
                _say(f"\nThat did not work: {error}. A second try, with another name.")
                continue
            return _conclude(outcome, code, local, store if kept else None)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _attempt(store: Path, local: LocalModel | None, name: str, code: str) -> Outcome:
    before = await local.requests_served() if local else 0
    outcome = await asyncio.to_thread(_flow, store, _environment(local), name, code, local is not None)
    served = await local.requests_served() - before if local else outcome.steps
    if served != outcome.steps:
        raise DemoFailedError(f"the model server counted {served} requests, and the runs {outcome.steps}")
    return outcome


def _flow(store: Path, environment: dict[str, str], name: str, code: str, forced: bool) -> Outcome:
    """Ask -> pause -> kill the server -> look -> return -> answer -> recall."""
    with _server(store, environment) as (process, client):
        paused = client.ask(f"What is the secret code of {name}?", force_tool=forced)
        call = _pending(paused, name)
        _say("   The run is paused and stored. Now the server is killed (kill -9), and another one started.")
        process.kill()
        process.wait()
    with _server(store, environment) as (process, client):
        found = client.look(paused.run_id)
        _say(f"<- GetRun  {found.run_id}  {_stop_text(found.status)}, waits for {_pending(found, name).name}")
        result = json.dumps({"code": CODES[name]})
        _say(f"   This process executes get_secret_code({call.arguments_json}) = {result}")
        client.answer(paused.run_id, call.tool_call_id, result)
        ended = client.look(paused.run_id)
        _expect_end(ended)
        answer = _last_text(client.history(ended.conversation_id))
        recalled = client.recall(ended.conversation_id, "What was the secret code?")
        _expect_end(recalled.run)
        history = client.history(ended.conversation_id)
        _expect_history(history)
        process.terminate()
        process.wait()
    steps = ended.steps_taken + recalled.run.steps_taken
    return Outcome(steps, (answer, _last_text(history)))


@contextmanager
def _server(store: Path, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], DemoClient]]:
    """A server process of its own on this file, and a client of it."""
    log_path = store.with_suffix(".log")
    with log_path.open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent_service", "serve", "--port", "0", "--store", str(store)],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            process.wait()
            raise DemoFailedError(f"the server did not start: {log_path.read_text()[-2000:].strip()}")
        address = line.removeprefix("listening on ").strip()
        _say(f"\nA server: pid {process.pid}, {address}, {store}")
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            grpc.channel_ready_future(channel).result(timeout=_READY_SECONDS)
            yield process, DemoClient(channel, _say)
    except grpc.RpcError as error:
        raise DemoFailedError(f"a call failed: {error}") from error
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


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


def _pending(run: runs_pb2.Run, name: str) -> tools_pb2.PendingToolCall:
    if run.status != runs_pb2.RUN_STATUS_PAUSED or len(run.pending_tool_calls) != 1:
        raise DemoFailedError(f"the run should be paused for one call, and is {_stop_text(run.status)}")
    call = run.pending_tool_calls[0]
    if json.loads(call.arguments_json).get("name") != name:
        raise DemoFailedError(f"the model called {call.name}({call.arguments_json}), not with {name}")
    return call


def _expect_end(run: runs_pb2.Run) -> None:
    if run.stop_reason != runs_pb2.STOP_REASON_END_TURN:
        raise DemoFailedError(f"the run should have ended, and is {_stop_text(run.status)}: {run.error.message}")


def _expect_history(history: list[messages_pb2.Message]) -> None:
    kinds = [message.WhichOneof("content") for message in history]
    expected = ["user", "tool_call", "tool_return", "assistant", "user", "assistant"]
    if [kind for kind in kinds if kind != "reasoning"][-6:] != expected:
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


def _last_text(messages: list[messages_pb2.Message]) -> str:
    return messages[-1].assistant.text.strip() if messages else ""


def _stop_text(status: runs_pb2.RunStatus.ValueType) -> str:
    return runs_pb2.RunStatus.Name(status).removeprefix("RUN_STATUS_")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
