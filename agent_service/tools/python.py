"""Server tools that are Python functions: found by module path, described by their type hints and docstring."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
import re
import textwrap
import threading
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema, PydanticSerializationError, to_json

from agent_service.domain.tool import Executor, ToolSchema
from agent_service.engine.schemas import JsonError, parse_json
from agent_service.engine.tools import ToolContext, ToolOutput
from agent_service.tools.output import bounded, failed, raised, timed_out

F = TypeVar("F", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_PROBLEMS = 5
_OPTIONS = "__server_tool__"
# An entry of a dedented Google style section: its name, a type in parentheses, and text up to the next entry.
_ENTRY = re.compile(r"^(\w+)(?: *\(.*?\))? *:(.*(?:\n(?:[ \t]+.*|[ \t]*$))*)", re.MULTILINE)


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
    """`parameters` are the function's parameters by the field of `arguments` that holds each; `contexts` get the
    ToolContext.
    """

    function: Callable[..., Any]
    arguments: type[BaseModel]
    parameters: dict[str, str]
    contexts: tuple[str, ...]
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
            values = _values(tool, arguments_json, context)
        except _ArgumentsError as error:
            return failed(f"not executed, {error}")
        except Exception as error:  # of a validator of the tool
            return raised(name, error, context)
        return await self._execute(tool, values, context)

    async def _execute(self, tool: _Tool, values: dict[str, Any], context: ToolContext) -> ToolOutput:
        limit = asyncio.timeout(tool.timeout)
        try:
            async with limit:
                result = await _invoke(tool.function, values)
            return bounded(_text(result), self._max_result_bytes)
        except PydanticSerializationError as error:
            return failed(f"executed, but its result cannot be written as JSON: {error}")
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return raised(tool.schema.name, error, context)
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return timed_out(tool.timeout)
            return raised(tool.schema.name, error, context)


class _ArgumentsError(Exception):
    """Arguments that do not fit; says where."""


def _values(tool: _Tool, arguments_json: str, context: ToolContext) -> dict[str, Any]:
    """The function's arguments. Raises _ArgumentsError or what a validator of the tool raises."""
    try:
        parse_json(arguments_json)
        # Strict is about types: no "3" for 3. Dates, enums and the like are still made of their JSON form.
        arguments = tool.arguments.model_validate_json(arguments_json, strict=True)
    except JsonError as error:
        raise _ArgumentsError(f"the arguments are not valid JSON: {error}") from None
    except ValidationError as error:
        raise _ArgumentsError(f"the arguments do not fit: {_problems(error)}") from None
    values = {parameter: getattr(arguments, field) for field, parameter in tool.parameters.items()}
    return values | dict.fromkeys(tool.contexts, context)


def _problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_PROBLEMS]
    return "; ".join(f"at /{'/'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)


async def _invoke(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**values)
    result = await _in_thread(function, values)
    # A decorator may hide that the function is a coroutine function.
    return await result if inspect.isawaitable(result) else result


async def _in_thread(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    """Like asyncio.to_thread, but each call has a thread of its own, which ends with the process: one that hangs holds
    up neither other calls nor the end of the server."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    variables = contextvars.copy_context()

    def tell(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def work() -> None:
        try:
            told = (future.set_result, variables.run(_run, function, values))
        except BaseException as error:  # Also SystemExit: who called decides.
            told = (future.set_exception, error)
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=work, name="tool", daemon=True).start()
    return await future


def _run(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    try:
        return function(**values)
    except StopIteration as error:
        # A future cannot carry it, so that the await would never end (Python 3.11).
        raise RuntimeError("the function raised StopIteration") from error


def _is_cancelled() -> bool:
    """Whether this task is being cancelled, as opposed to a CancelledError that the tool itself let out."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _text(result: Any) -> str:
    if result is None:
        return ""
    # str.__str__: the text of an enum that is a str, not the name of its member.
    return str.__str__(result) if isinstance(result, str) else to_json(result, inf_nan_mode="strings").decode()


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
    name = function.__name__ if options.name is None else options.name
    if not _NAME.fullmatch(name):
        raise ToolLoadError(
            path, f"the name '{name}' is not 1 to 64 of A-Z a-z 0-9 _ -; set another with @server_tool(name=...)"
        )
    timeout = default_timeout if options.timeout is None else options.timeout
    if timeout <= 0:
        raise ToolLoadError(path, f"the timeout of '{name}' is {timeout:g} s; set one above 0")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ToolLoadError(path, f"'{function.__name__}' is a generator; return a list instead")
    description, described = _documentation(function)
    hints = _hints(path, function)
    contexts = tuple(parameter for parameter, hint in hints.items() if hint is ToolContext)
    parameters = {f"argument_{index}": p for index, p in enumerate(p for p in hints if p not in contexts)}
    arguments, parameters_json = _arguments(path, function, hints, parameters, described)
    schema = ToolSchema(
        name=name,
        description=description,
        parameters_json=parameters_json,
        executor=Executor.SERVER,
        requires_approval=options.requires_approval,
        idempotent=options.idempotent,
        parallel_safe=options.parallel_safe,
    )
    return _Tool(function, arguments, parameters, contexts, schema, timeout)


def _hints(path: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The type of each parameter, all of which can be given by name."""
    where = f"'{function.__name__}'"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ToolLoadError(
            path, f"a type hint of {where} cannot be read: {error}; import its type when the module runs"
        ) from error
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ToolLoadError(
                path, f"parameter '{name}' of {where} is {parameter.kind.description}; name each parameter"
            )
        if name not in hints:
            raise ToolLoadError(path, f"parameter '{name}' of {where} has no type; annotate it")
        if hints[name] is not ToolContext and _holds_context(hints[name]):
            # Else the model could write the context itself.
            raise ToolLoadError(path, f"parameter '{name}' of {where} must be annotated as plain ToolContext")
        found[name] = hints[name]
    return found


def _holds_context(hint: Any) -> bool:
    return hint is ToolContext or any(_holds_context(part) for part in typing.get_args(hint))


class _JsonSchema(GenerateJsonSchema):
    """Without titles made of names: they cost tokens and tell the model nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate(self, schema: CoreSchema, mode: Any = "validation") -> dict[str, Any]:
        made = super().generate(schema, mode)
        made.pop("title", None)
        return made


def _arguments(
    path: str,
    function: Callable[..., Any],
    hints: dict[str, Any],
    parameters: dict[str, str],
    described: dict[str, str],
) -> tuple[type[BaseModel], str]:
    """The model of the arguments and its JSON Schema.

    Parameters are aliases of fields, because a field must not be named like a method of BaseModel (`json`, `copy`).
    """
    signature = inspect.signature(function).parameters
    fields: dict[str, Any] = {}
    try:
        for field, name in parameters.items():
            hint, default = hints[name], signature[name].default
            info: dict[str, Any] = {"alias": name}
            if isinstance(default, FieldInfo):
                hint = typing.Annotated[hint, default]
            elif default is not inspect.Parameter.empty:
                info["default"] = default
            if name in described and FieldInfo.from_annotation(hint).description is None:
                info["description"] = described[name]
            fields[field] = (hint, Field(**info))
        model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
        return model, to_json(model.model_json_schema(schema_generator=_JsonSchema)).decode()
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ToolLoadError(
            path, f"the parameters of '{function.__name__}' have no JSON Schema: {first}; use types that JSON can hold"
        ) from error


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The docstring without its `Args:` section, and what that section says of each parameter."""
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.rstrip() == "Args:"), len(lines))
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith((" ", "\t"))):
        end += 1
    section = textwrap.dedent("\n".join(lines[start + 1 : end]))
    described = {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}
    return "\n".join([*lines[:start], *lines[end:]]).strip(), described
