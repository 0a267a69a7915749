"""Server tools that are Python functions: found by module path, described by their type hints and docstring."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from agent_service.domain.tool import Executor, ToolSchema
from agent_service.engine.schemas import JsonError, parse_json
from agent_service.engine.tools import ToolContext, ToolOutput
from agent_service.functions import Function, FunctionError, described
from agent_service.tools.output import bounded, failed, raised

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = "__server_tool__"


class ToolLoadError(Exception):
    """A server tool cannot be used; one line says which, why and what to do."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(" ".join(f"tool '{path}': {problem}".split()))


@dataclass(frozen=True, slots=True)
class _Options:
    name: str | None = None
    requires_approval: bool = False
    idempotent: bool = False
    timeout: float | None = None
    parallel_safe: bool = False


def server_tool(
    *,
    name: str | None = None,
    requires_approval: bool = False,
    idempotent: bool = False,
    timeout: float | None = None,
    parallel_safe: bool = False,
) -> Callable[[F], F]:
    """Sets the options of a function that is a server tool. A function without it has the defaults.

    `name` None means the function's. With `requires_approval` a caller decides about each call before it runs.
    `idempotent` allows running a call again after a crash. `timeout` is in seconds; None means the server's default.
    `parallel_safe` lets a call be executed while other calls of such tools are, for the same run.
    """

    def mark(function: F) -> F:
        setattr(function, _OPTIONS, _Options(name, requires_approval, idempotent, timeout, parallel_safe))
        return function

    return mark


@dataclass(frozen=True, slots=True)
class _Tool:
    function: Function
    schema: ToolSchema
    timeout: float


def load_tools(paths: Sequence[str], *, max_result_bytes: int, default_timeout: float = 60) -> PythonTools:
    """The tools at these paths: `package.module:function`, or `package.module` for the functions in its `__all__`,
    without one for the public functions that it defines.

    A tool's text for the model is at most `max_result_bytes` of UTF-8; `default_timeout` is in seconds.
    Raises ToolLoadError.
    """
    tools: dict[str, _Tool] = {}
    for path in paths:
        for function in _functions(path):
            tool = _tool(path, function, default_timeout)
            if tool.schema.name in tools:
                raise ToolLoadError(path, f"there is another tool named '{tool.schema.name}'; rename or remove one")
            tools[tool.schema.name] = tool
    return PythonTools(tools, max_result_bytes)


class PythonTools:
    """Implements ServerTools. Coroutine functions run in the event loop, others in a thread.

    A thread cannot be stopped: after a timeout or a cancellation a function in a thread still runs to its end.
    """

    def __init__(self, tools: dict[str, _Tool], max_result_bytes: int) -> None:
        self._tools = tools
        self._max_result_bytes = max_result_bytes

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names, in the order they were loaded."""
        return tuple(self._tools)

    def schema(self, name: str) -> ToolSchema | None:
        """See ServerTools."""
        tool = self._tools.get(name)
        return tool.schema if tool else None

    async def call(self, name: str, arguments_json: str, context: ToolContext) -> ToolOutput:
        """See ServerTools. A text is returned as it is, None as no text, anything else as JSON."""
        tool = self._tools.get(name)
        if tool is None:
            return failed(f"there is no tool {name[:64]!r} any more")
        try:
            parse_json(arguments_json)
        except JsonError as error:
            return failed(f"not executed, the arguments are not valid JSON: {error}")
        outcome = await tool.function.call(arguments_json, context, tool.timeout)
        if outcome.error is not None:
            return raised(name, outcome.error, context)
        return failed(outcome.problem) if outcome.problem else bounded(outcome.text, self._max_result_bytes)


def _functions(path: str) -> list[Callable[..., Any]]:
    module_name, colon, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ToolLoadError(
            path,
            f"cannot import '{module_name}': {type(error).__name__}: {error}; write package.module:function or"
            " package.module, of a module that can be imported (PYTHONPATH)",
        ) from error
    if not colon:
        return _public(path, module)
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        listed = ", ".join(f.__name__ for f in _defined(module)[:20]) or "none"
        raise ToolLoadError(path, f"'{module_name}' has no function '{name}'; name one of its functions: {listed}")
    return [function]


def _public(path: str, module: ModuleType) -> list[Callable[..., Any]]:
    listed = getattr(module, "__all__", None)
    if listed is None:
        found = _defined(module)
    else:
        missing = next((name for name in listed if not hasattr(module, name)), None)
        if missing is not None:
            raise ToolLoadError(path, f"its __all__ names '{missing}', which it does not have; correct __all__")
        found = [f for f in (getattr(module, name) for name in listed) if inspect.isfunction(f)]
    if not found:
        raise ToolLoadError(path, "it has no public function; define one or name another module")
    return list(dict.fromkeys(found))


def _defined(module: ModuleType) -> list[Callable[..., Any]]:
    members = [member for name, member in vars(module).items() if not name.startswith("_")]
    return [m for m in members if inspect.isfunction(m) and m.__module__ == module.__name__]


def _tool(path: str, function: Callable[..., Any], default_timeout: float) -> _Tool:
    options: _Options = getattr(function, _OPTIONS, _Options())
    try:
        made = described(function, ToolContext, name=options.name)
    except FunctionError as error:
        raise ToolLoadError(path, str(error)) from error
    timeout = default_timeout if options.timeout is None else options.timeout
    if timeout <= 0:
        raise ToolLoadError(path, f"the timeout of '{made.name}' is {timeout:g} s; set one above 0")
    schema = ToolSchema(
        name=made.name,
        description=made.description,
        parameters_json=made.parameters_json,
        executor=Executor.SERVER,
        requires_approval=options.requires_approval,
        idempotent=options.idempotent,
        parallel_safe=options.parallel_safe,
    )
    return _Tool(made, schema, timeout)
