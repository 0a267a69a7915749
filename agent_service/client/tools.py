"""Client tools: functions of this process that the agent calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, overload

from agentrpc.v1 import tools_pb2
from google.protobuf.duration_pb2 import Duration

from agent_service.functions import described

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("agent_service.client")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that waits for this process. A tool with a parameter of this type is given its call.

    `tool_call_id` is unique over all runs: use it as the idempotency key of what the tool does. `kind` is
    CLIENT_EXECUTION, or APPROVAL for a server tool that needs a decision. `arguments_json` is as the model wrote it.
    """

    run_id: str
    tool_call_id: str
    name: str
    arguments_json: str
    kind: str = "CLIENT_EXECUTION"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, which satisfy the tool's schema."""
        read: dict[str, Any] = json.loads(self.arguments_json or "{}")
        return read

    @staticmethod
    def of(run_id: str, call: tools_pb2.PendingToolCall) -> ToolCall:
        """A pending call of a run."""
        kind = tools_pb2.PendingKind.Name(call.kind).removeprefix("PENDING_KIND_")
        return ToolCall(run_id, call.tool_call_id, call.name, call.arguments_json, kind)


class ClientTool(Generic[P, R]):
    """A function as a tool; made by `client_tool`. Called, it is the function."""

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        requires_approval: bool = False,
    ) -> None:
        self._function = described(function, ToolCall, name=name)
        if timeout is not None and timeout <= 0:
            raise ValueError(f"the timeout of '{self._function.name}' is {timeout:g} s; set one above 0")
        self._timeout = timeout
        self.requires_approval = requires_approval
        self.schema = tools_pb2.ClientToolSchema(
            name=self._function.name,
            description=self._function.description,
            parameters_json=self._function.parameters_json,
        )
        if deadline is not None:
            self.schema.timeout.CopyFrom(seconds(deadline))
        self.__doc__ = function.__doc__

    @property
    def name(self) -> str:
        """The name that the model calls."""
        return self.schema.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function."""
        made: R = self._function.function(*args, **kwargs)
        return made

    async def execute(self, call: ToolCall) -> tools_pb2.ToolReturn:
        """Executes a call. What the function raises, and what it does not do in time, is an error return."""
        outcome = await self._function.call(call.arguments_json or "{}", call, self._timeout)
        if isinstance(outcome.result, tools_pb2.ToolReturn):
            made = tools_pb2.ToolReturn()
            made.CopyFrom(outcome.result)
            made.tool_call_id = call.tool_call_id
            return made
        if outcome.error is not None:
            log.warning("tool %s failed (%s)", call.name, call.tool_call_id, exc_info=outcome.error)
        if outcome.problem:
            status, text = tools_pb2.TOOL_RETURN_STATUS_ERROR, f"Error: {outcome.problem}"
        else:
            status, text = tools_pb2.TOOL_RETURN_STATUS_SUCCESS, outcome.text
        # A lone surrogate has no UTF-8.
        text = text.encode(errors="replace").decode()
        return tools_pb2.ToolReturn(tool_call_id=call.tool_call_id, status=status, text=text)


@overload
def client_tool(function: Callable[P, R], /) -> ClientTool[P, R]: ...


@overload
def client_tool(
    *,
    name: str | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
    requires_approval: bool = False,
) -> Callable[[Callable[P, R]], ClientTool[P, R]]: ...


def client_tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Makes a tool of a function with type hints, which may be a coroutine function.

    Its docstring is the description, the `Args:` section that of its parameters; the types make the JSON Schema, and
    the arguments are checked against them. A text is returned to the model as it is, None as no text, anything else as
    JSON (and a `tools_pb2.ToolReturn` as it is, for images). An exception becomes an error return that the model reads.
    A function that is not a coroutine function is executed in a thread.

    `name` None means the function's. `timeout`, in seconds, is how long a call may be executed here; then the model
    gets an error return. `deadline`, in seconds from the pause, is how long the service waits for the return, whatever
    happens to this process; then the model is told that the outcome is unknown. None means without end for both (a
    pause ends after `StepRequest.pause_ttl`). With `requires_approval`, `on_approval` decides before each call.

    Raises ValueError where the function cannot be a tool.
    """
    return ClientTool(function) if function is not None else lambda made: ClientTool(made, **options)


def named(tools: Iterable[ClientTool[..., Any] | Callable[..., Any]]) -> dict[str, ClientTool[..., Any]]:
    """The tools by name; functions are made tools. Raises ValueError where two have one name."""
    found: dict[str, ClientTool[..., Any]] = {}
    for tool in (tool if isinstance(tool, ClientTool) else ClientTool(tool) for tool in tools):
        if tool.name in found:
            raise ValueError(f"two tools are named '{tool.name}'; rename one with @client_tool(name=...)")
        found[tool.name] = tool
    return found


def seconds(value: float) -> Duration:
    """A duration."""
    made = Duration()
    made.FromNanoseconds(round(value * 1e9))
    return made
