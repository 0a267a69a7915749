"""Python functions as tools: described by their type hints and docstring, called with JSON arguments.

Server tools and the tools of Python clients are made of it; so it imports nothing of either.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import textwrap
import threading
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema, PydanticSerializationError, to_json

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_PROBLEMS = 5
_MAX_ERROR = 1000
# An entry of a dedented Google style section: its name, a type in parentheses, and text up to the next entry.
_ENTRY = re.compile(r"^(\w+)(?: *\(.*?\))? *:(.*(?:\n(?:[ \t]+.*|[ \t]*$))*)", re.MULTILINE)


class FunctionError(ValueError):
    """A function cannot be a tool; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call: a text; or a problem, in words for the model, and the exception behind it if the function
    raised one.

    `result` is what the function returned, before it was made a text.
    """

    text: str = ""
    problem: str = ""
    error: BaseException | None = None
    result: Any = None


@dataclass(frozen=True, slots=True)
class Function:
    """A function that can be called with JSON.

    `parameters` are the function's parameters by the field of `arguments` that holds each; `contexts` get the context
    of a call.
    """

    function: Callable[..., Any]
    name: str
    description: str
    parameters_json: str
    arguments: type[BaseModel]
    parameters: dict[str, str]
    contexts: tuple[str, ...]

    async def call(self, arguments_json: str, context: Any, seconds: float | None) -> Outcome:
        """Validates the arguments and executes the function, for at most so many `seconds` (None: without end).

        Coroutine functions run in the event loop, others in a thread of their own. A thread cannot be stopped: after a
        timeout or a cancellation its function still runs to its end. Never raises for what the function does.
        """
        try:
            values = self._values(arguments_json, context)
        except ValidationError as error:
            return Outcome(problem=f"not executed, the arguments do not fit: {_problems(error)}")
        except Exception as error:  # of a validator of the tool
            return Outcome(problem=in_words(error), error=error)
        return await self._execute(values, seconds)

    async def _execute(self, values: dict[str, Any], seconds: float | None) -> Outcome:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                result = await _invoke(self.function, values)
            return Outcome(_text(result), result=result)
        except PydanticSerializationError as error:
            return Outcome(problem=f"executed, but its result cannot be written as JSON: {error}", result=result)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return Outcome(problem=in_words(error), error=error)
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return Outcome(problem=too_long(seconds or 0))
            return Outcome(problem=in_words(error), error=error)

    def _values(self, arguments_json: str, context: Any) -> dict[str, Any]:
        """The function's arguments. Raises ValidationError or what a validator of the tool raises."""
        # Strict is about types: no "3" for 3. Dates, enums and the like are still made of their JSON form.
        arguments = self.arguments.model_validate_json(arguments_json, strict=True)
        values = {parameter: getattr(arguments, field) for field, parameter in self.parameters.items()}
        return values | dict.fromkeys(self.contexts, context)


def described(function: Callable[..., Any], context: type, *, name: str | None = None) -> Function:
    """The function as a tool; parameters annotated as `context` are not the model's. Raises FunctionError."""
    name = function.__name__ if name is None else name
    if not _NAME.fullmatch(name):
        raise FunctionError(
            f"the name '{name}' is not 1 to 64 of A-Z a-z 0-9 _ -; set another by the decorator (name=...)"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise FunctionError(f"'{function.__name__}' is a generator; return a list instead")
    description, about = _documentation(function)
    hints = _hints(function, context)
    contexts = tuple(parameter for parameter, hint in hints.items() if hint is context)
    parameters = {f"argument_{index}": p for index, p in enumerate(p for p in hints if p not in contexts)}
    arguments, parameters_json = _arguments(function, hints, parameters, about)
    return Function(function, name, description, parameters_json, arguments, parameters, contexts)


def too_long(seconds: float) -> str:
    """The problem of a tool that was started and did not end in time."""
    return f"timed out after {seconds:g} s; its outcome is unknown, it may have been executed"


def in_words(error: BaseException) -> str:
    """The problem of a tool that raised."""
    message = short(str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def short(message: str) -> str:
    """As much of an error's message as the model is to read."""
    return message[:_MAX_ERROR]


def _problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_PROBLEMS]
    return "; ".join(f"at /{'/'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)


async def _invoke(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**values)
    result = await in_thread(function, **values)
    # A decorator may hide that the function is a coroutine function.
    return await result if inspect.isawaitable(result) else result


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Like asyncio.to_thread, but each call has a thread of its own, which ends with the process: one that hangs holds
    up neither other calls nor the end of the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    variables = contextvars.copy_context()

    def tell(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def work() -> None:
        try:
            told = (future.set_result, variables.run(_run, function, args, kwargs))
        except BaseException as error:  # Also SystemExit: who called decides.
            told = (future.set_exception, error)
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=work, name="tool", daemon=True).start()
    return await future


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
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


def _hints(function: Callable[..., Any], context: type) -> dict[str, Any]:
    """The type of each parameter, all of which can be given by name."""
    where = f"'{function.__name__}'"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise FunctionError(
            f"a type hint of {where} cannot be read: {error}; import its type when the module runs"
        ) from error
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise FunctionError(f"parameter '{name}' of {where} is {parameter.kind.description}; name each parameter")
        if name not in hints:
            raise FunctionError(f"parameter '{name}' of {where} has no type; annotate it")
        if hints[name] is not context and _holds(hints[name], context):
            # Else the model could write the context itself.
            raise FunctionError(f"parameter '{name}' of {where} must be annotated as plain {context.__name__}")
        found[name] = hints[name]
    return found


def _holds(hint: Any, context: type) -> bool:
    return hint is context or any(_holds(part, context) for part in typing.get_args(hint))


class _JsonSchema(GenerateJsonSchema):
    """Without titles made of names: they cost tokens and tell the model nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate(self, schema: CoreSchema, mode: Any = "validation") -> dict[str, Any]:
        made = super().generate(schema, mode)
        made.pop("title", None)
        return made


def _arguments(
    function: Callable[..., Any],
    hints: dict[str, Any],
    parameters: dict[str, str],
    about: dict[str, str],
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
            if name in about and FieldInfo.from_annotation(hint).description is None:
                info["description"] = about[name]
            fields[field] = (hint, Field(**info))
        model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
        return model, to_json(model.model_json_schema(schema_generator=_JsonSchema)).decode()
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FunctionError(
            f"the parameters of '{function.__name__}' have no JSON Schema: {first}; use types that JSON can hold"
        ) from error


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The docstring without its `Args:` section, and what that section says of each parameter."""
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.rstrip() == "Args:"), len(lines))
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith((" ", "\t"))):
        end += 1
    section = textwrap.dedent("\n".join(lines[start + 1 : end]))
    about = {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}
    return "\n".join([*lines[:start], *lines[end:]]).strip(), about
