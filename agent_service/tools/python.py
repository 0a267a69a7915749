"""Server tools that are Python functions: found by module path, described by their type hints and docstring."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_json

from agent_service.domain.tool import Executor, ToolSchema
from agent_service.engine.tools import ToolContext, ToolOutput

log = structlog.get_logger()
F = TypeVar("F", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_ERROR = 1000
_OPTIONS = "__server_tool__"
_PARAMETER = re.compile(r"^\s+(\w+)(?:\s*\([^)]*\))?:\s*(.+)$")


class ToolLoadError(Exception):
    """A server tool cannot be used; one line says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class _Options:
    name: str = ""
    requires_approval: bool = False
    idempotent: bool = False
    timeout: float | None = None


def server_tool(
    *, name: str = "", requires_approval: bool = False, idempotent: bool = False, timeout: float | None = None
) -> Callable[[F], F]:
    """Sets the options of a function that is a server tool.

    `name` empty means the function's. With `requires_approval` a caller decides about each call before it runs.
    `idempotent` allows running a call again after a crash. `timeout` is in seconds; None means the server's default.
    """

    def mark(function: F) -> F:
        setattr(function, _OPTIONS, _Options(name, requires_approval, idempotent, timeout))
        return function

    return mark


@dataclass(frozen=True, slots=True)
class _Tool:
    """`context_name` is the parameter that gets the ToolContext, or empty."""

    function: Callable[..., Any]
    arguments: type[BaseModel]
    schema: ToolSchema
    timeout: float
    context_name: str


def load_tools(paths: Sequence[str], *, max_result_bytes: int, default_timeout: float = 60.0) -> PythonTools:
    """The tools at these paths: `package.module:function`, or `package.module` for the public functions it defines.

    Raises ToolLoadError.
    """
    tools: dict[str, _Tool] = {}
    for path in paths:
        for function in _functions(path):
            tool = _tool(path, function, default_timeout)
            if tool.schema.name in tools:
                raise ToolLoadError(f"{path}: there are two tools named '{tool.schema.name}'; rename one")
            tools[tool.schema.name] = tool
    return PythonTools(tools, max_result_bytes)


class PythonTools:
    """Implements ServerTools. Coroutine functions run in the event loop, others in a thread."""

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
        """See ServerTools."""
        tool = self._tools.get(name)
        if tool is None:
            return ToolOutput(f"Error: the tool '{name}' no longer exists.", failed=True)
        try:
            arguments = tool.arguments.model_validate_json(arguments_json)
        except ValidationError as error:
            return ToolOutput(f"Error: not executed, {_first_problem(error)}.", failed=True)
        return await self._execute(tool, arguments, context)

    async def _execute(self, tool: _Tool, arguments: BaseModel, context: ToolContext) -> ToolOutput:
        name = tool.schema.name
        values: dict[str, Any] = {field: getattr(arguments, field) for field in type(arguments).model_fields}
        if tool.context_name:
            values[tool.context_name] = context
        try:
            async with asyncio.timeout(tool.timeout) as limit:
                result = await _invoke(tool.function, values)
            text = result if isinstance(result, str) else to_json(result).decode()
        except TimeoutError as error:
            if not limit.expired():
                return _raised(name, error)
            late = f"Error: timed out after {tool.timeout:g} s; the outcome is unknown, it may have been executed."
            return ToolOutput(late, failed=True)
        except PydanticSerializationError:
            return ToolOutput(f"Error: the tool returned a {type(result).__name__}, which is no JSON.", failed=True)
        except Exception as error:
            return _raised(name, error)
        return _bounded(text, self._max_result_bytes)


async def _invoke(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**values)
    return await asyncio.to_thread(function, **values)


def _raised(name: str, error: Exception) -> ToolOutput:
    log.warning("tool.failed", tool=name, exc_info=error)
    return ToolOutput(f"Error: {type(error).__name__}: {str(error)[:_MAX_ERROR]}", failed=True)


def _bounded(text: str, most: int) -> ToolOutput:
    """The text, cut between two code points and marked if it is too long."""
    data = text.encode()
    if len(data) <= most:
        return ToolOutput(text)
    mark = f"\n[cut: {len(data)} bytes in all]"
    kept = data[: max(most - len(mark), 0)].decode(errors="ignore")
    return ToolOutput((kept + mark)[:most], truncated=True)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    path = "/".join(str(part) for part in problem["loc"])
    return f"at /{path}: {problem['msg']}"


def _functions(path: str) -> list[Callable[..., Any]]:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ToolLoadError(f"{path}: cannot import {module_name}: {type(error).__name__}: {error}") from error
    if name:
        function = getattr(module, name, None)
        if not inspect.isfunction(function):
            raise ToolLoadError(f"{path}: {module_name} has no function '{name}'")
        return [function]
    found = _public(module)
    if not found:
        raise ToolLoadError(f"{path}: {module_name} defines no public function; name one as {module_name}:function")
    return found


def _public(module: ModuleType) -> list[Callable[..., Any]]:
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    functions = [getattr(module, name) for name in names]
    return [f for f in functions if inspect.isfunction(f) and f.__module__ == module.__name__]


def _tool(path: str, function: Callable[..., Any], default_timeout: float) -> _Tool:
    options: _Options = getattr(function, _OPTIONS, _Options())
    name = options.name or function.__name__
    if not _NAME.fullmatch(name):
        raise ToolLoadError(f"{path}: '{name}' is not 1 to 64 letters, digits, '_' or '-'; set another name")
    summary, described = _documentation(function)
    context_name, fields = _fields(path, function, described)
    arguments = create_model(name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields)
    schema = arguments.model_json_schema()
    schema.pop("title", None)
    return _Tool(
        function=function,
        arguments=arguments,
        schema=ToolSchema(
            name=name,
            description=summary,
            parameters_json=to_json(schema).decode(),
            executor=Executor.SERVER,
            requires_approval=options.requires_approval,
            idempotent=options.idempotent,
        ),
        timeout=options.timeout or default_timeout,
        context_name=context_name,
    )


def _fields(path: str, function: Callable[..., Any], described: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """The name of the context's parameter, and the model fields of the others."""
    hints = typing.get_type_hints(function, include_extras=True)
    context_name, fields = "", {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ToolLoadError(f"{path}: {function.__name__} takes {parameter}; a tool has named parameters only")
        if name not in hints:
            raise ToolLoadError(f"{path}: parameter '{name}' of {function.__name__} has no type; annotate it")
        if hints[name] is ToolContext:
            context_name = name
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=described.get(name)))
    return context_name, fields


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The docstring without its `Args:` section, and what that section says of each parameter."""
    text = inspect.getdoc(function) or ""
    summary, marker, rest = text.partition("\nArgs:\n")
    described: dict[str, str] = {}
    kept: list[str] = []
    inside = bool(marker)
    for line in rest.splitlines():
        inside = inside and (not line.strip() or line.startswith(" "))
        match = _PARAMETER.match(line) if inside else None
        if match:
            described[match[1]] = match[2].strip()
        elif inside and line.strip() and described:
            last = next(reversed(described))
            described[last] += " " + line.strip()
        elif not inside:
            kept.append(line)
    return "\n".join([summary.strip(), *kept]).strip(), described
