"""What can be asked of a run, and the request that it becomes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

from agentrpc.v1 import agent_service_pb2 as pb
from agentrpc.v1 import messages_pb2, tools_pb2

from agent_service.client.drive import OnApproval, Task
from agent_service.client.tools import ClientTool, named

Tools = Iterable[ClientTool[..., Any] | Callable[..., Any]]
Text = str | Sequence[messages_pb2.InputMessage]

_CHOICES = {
    "auto": tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_AUTO),
    "required": tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_REQUIRED),
    "none": tools_pb2.ToolChoice(mode=tools_pb2.TOOL_CHOICE_MODE_NONE),
}
_DISCONNECTS = {"continue": pb.ON_DISCONNECT_CONTINUE, "cancel": pb.ON_DISCONNECT_CANCEL}


class ResumeOptions(TypedDict, total=False):
    """How a run is driven.

    `tools` are the ClientTools, or functions, that the agent may call here. `on_approval` decides about server tools
    that need approval, and about client tools with `requires_approval`; it may be a coroutine function, else it is
    called in a thread; what it raises is raised. `on_disconnect` "cancel": the run ends when it is left, and when it is
    cut off from this process in any way, also by the network; "continue" (the default): it goes on, and so does this
    client after a cut. `timeout`, in seconds, holds for all of it.
    """

    tools: Tools
    on_approval: OnApproval | None
    on_disconnect: Literal["continue", "cancel"]
    timeout: float | None


class ConversationOptions(ResumeOptions, total=False):
    """What each run of a conversation is given.

    `agent_id` empty means the server's default agent. `tool_choice`, for the first model request, is "auto",
    "required", "none" or the name of the tool to call. `step` holds further fields, such as `max_steps` or `labels`.
    """

    agent_id: str
    tool_choice: str
    step: pb.StepRequest


class RunOptions(ConversationOptions, total=False):
    """What one run is given.

    `conversation_id` empty begins a new conversation. `run_id` empty: one is issued; choose it yourself if a repeat,
    also by another process, shall be the same run.
    """

    conversation_id: str
    run_id: str


def started(text: Text, *, tokens: bool, **options: Unpack[RunOptions]) -> Task:
    """A run to start. Raises ValueError."""
    _check(options, RunOptions)
    start = pb.StepRequest()
    if step := options.get("step"):
        start.CopyFrom(step)
    start.agent_id = options.get("agent_id") or start.agent_id
    start.conversation_id = options.get("conversation_id") or start.conversation_id
    chosen = options.get("run_id") or start.run_id
    start.run_id = chosen or f"run_{uuid.uuid4().hex}"
    said = [messages_pb2.InputMessage(text=text)] if isinstance(text, str) else text
    start.input_messages.extend(said)
    if choice := options.get("tool_choice"):
        start.tool_choice.CopyFrom(_CHOICES.get(choice) or tools_pb2.ToolChoice(tool_name=choice))
    task = _task(start.run_id, start, tokens, options, fresh=not chosen)
    start.client_tools.extend(tool.schema for tool in task.tools.values())
    start.on_disconnect = task.on_disconnect
    return task


def resumed(run_id: str, *, tokens: bool, **options: Unpack[ResumeOptions]) -> Task:
    """A run that was started before. Raises ValueError."""
    _check(options, ResumeOptions)
    return _task(run_id, None, tokens, options, fresh=False)


def _task(run_id: str, start: pb.StepRequest | None, tokens: bool, options: ResumeOptions, *, fresh: bool) -> Task:
    tools, on_approval = named(options.get("tools", ())), options.get("on_approval")
    asking = next((tool.name for tool in tools.values() if tool.requires_approval), "")
    if asking and on_approval is None:
        raise ValueError(f"the tool '{asking}' requires approval; give on_approval")
    disconnect = options.get("on_disconnect", "continue")
    if disconnect not in _DISCONNECTS:
        raise ValueError(f"on_disconnect: {disconnect!r} is none of {', '.join(_DISCONNECTS)}")
    return Task(run_id, start, tools, on_approval, tokens, _DISCONNECTS[disconnect], fresh)


def _check(options: Mapping[str, Any], known: type) -> None:
    allowed = known.__annotations__
    for name in options:
        if name not in allowed:
            raise TypeError(f"there is no option '{name}'; there are: {', '.join(sorted(allowed))}")
