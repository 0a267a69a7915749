"""The ways to start and to resume a run, so that a test can demand the same of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentrpc.v1 import agent_service_pb2, events_pb2, messages_pb2, run_service_pb2, runs_pb2
from google.protobuf import json_format

from tests.service import Client, durable

MODES = ("blocking", "steps", "tokens", "background")
"""Step; Stream of whole messages; Stream of tokens; Step in the background, then WatchRun."""

_IDS = re.compile(r"\b(run|conv|msg|step|call)_[0-9a-f]{24}\b")


@dataclass(frozen=True)
class Window:
    """What a caller saw from a start or a submit to the next stop; `events` are empty in blocking mode."""

    run: runs_pb2.Run
    messages: list[messages_pb2.Message]
    events: list[events_pb2.RunEvent]
    receipt: events_pb2.ToolReturnsAccepted | None = None


async def start(client: Client, mode: str, request: agent_service_pb2.StepRequest) -> Window:
    """Starts (or joins) a run and follows it to its next stop."""
    if mode == "blocking":
        response = await client.agent.Step(request)
        return Window(response.run, list(response.messages), [])
    if mode == "background":
        accepted = await client.agent.Step(_in_background(request))
        view: dict[str, Any] = {"include_return_message_types": request.include_return_message_types}
        if request.HasField("use_assistant_message"):
            view["use_assistant_message"] = request.use_assistant_message
        return await _window(client, await _next_stop(client, accepted.run.run_id, 0, **view))
    stream = agent_service_pb2.StreamRequest(step=request, stream_tokens=mode == "tokens")
    return await _window(client, [response.event async for response in client.agent.Stream(stream)])


async def resume(
    client: Client, mode: str, paused: runs_pb2.Run, request: agent_service_pb2.SubmitToolReturnsRequest
) -> Window:
    """Submits to a run that is seen paused, and follows it to its next stop."""
    if mode == "blocking":
        response = await client.agent.SubmitToolReturns(request)
        return Window(response.run, list(response.messages), [], response.receipt)
    if mode == "background":
        await client.agent.SubmitToolReturns(_in_background(request))
        return await _window(client, await _next_stop(client, paused.run_id, paused.last_sequence))
    stream = agent_service_pb2.StreamToolReturnsRequest(submit=request, stream_tokens=mode == "tokens")
    return await _window(client, [response.event async for response in client.agent.StreamToolReturns(stream)])


def messages_of(events: Iterable[events_pb2.RunEvent]) -> list[messages_pb2.Message]:
    """The whole messages among events."""
    return [event.message_stored.message for event in events if event.WhichOneof("payload") == "message_stored"]


def story(events: Iterable[events_pb2.RunEvent]) -> list[str]:
    """The durable events with ids numbered in order of appearance and without times: equal for equal runs."""
    numbers: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return numbers.setdefault(match[0], f"{match[1]}#{len(numbers)}")

    found = []
    for raw in durable(events):
        event = json_format.MessageToDict(events_pb2.RunEvent.FromString(raw))
        found.append(_IDS.sub(numbered, json.dumps(_without_times(event), sort_keys=True)))
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key != "createTime"}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


async def _window(client: Client, events: list[events_pb2.RunEvent]) -> Window:
    first = events[0]
    receipt = first.tool_returns_accepted if first.HasField("tool_returns_accepted") else None
    return Window(await client.run(first.run_id), messages_of(events), events, receipt)


async def _next_stop(client: Client, run_id: str, after: int, **view: Any) -> list[events_pb2.RunEvent]:
    events = await client.watch(run_id, after, stop_at=run_service_pb2.STOP_AT_NEXT_STOP, **view)
    return [event for event in events if not event.HasField("live")]


def _in_background(request: Any) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    copy.background = True
    return copy
