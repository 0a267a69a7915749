"""An oracle: what the model is shown of a conversation, made anew from its stored messages as callers read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agentrpc.v1 import messages_pb2

from agent_service.models.encoding import SUMMARY_MARK
from tests.scripted_openai import Request

Messages = Sequence[messages_pb2.Message]


def shown(messages: Messages) -> list[dict[str, Any]]:
    """What stands after the system message of a request that is built when these are all messages: the newest summary,
    if it says anything, and what came after the messages that it stands for. System messages are left out."""
    summary = next((m.summary for m in reversed(messages) if m.HasField("summary")), messages_pb2.SummaryMessage())
    returns = {m.tool_return.tool_call_id: m.tool_return.text for m in messages if m.HasField("tool_return")}
    found: list[dict[str, Any]] = []
    if summary.text:
        found.append({"role": "user", "content": f"{SUMMARY_MARK}\n\n{summary.text}"})
    step_id = ""
    for message in messages:
        if message.position <= summary.through_position:
            continue
        match message.WhichOneof("content"):
            case "user":
                found.append({"role": "user", "content": message.user.text})
            case "assistant":
                found.append({"role": "assistant", "content": message.assistant.text})
            case "tool_call":
                if not (found and found[-1]["role"] == "assistant" and message.step_id == step_id):
                    found.append({"role": "assistant", "content": None})
                found[-1]["tool_calls"] = [_call(call) for call in message.tool_call.tool_calls]
                found += [_return(c.tool_call_id, returns.get(c.tool_call_id)) for c in message.tool_call.tool_calls]
        step_id = message.step_id
    return found


def strangers(requests: Iterable[Request], messages: Messages) -> list[Request]:
    """The requests that do not show the conversation as it stood at some moment."""
    moments = [shown(messages[:end]) for end in range(1, len(messages) + 1)]
    return [request for request in requests if request.history not in moments]


def _call(call: Any) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.tool_call_id, "type": "function", "function": function}


def _return(tool_call_id: str, text: str | None) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": tool_call_id, "content": text}
