"""Server tools made of Python functions: what is loaded, what the model is told, and what comes of a call."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from structlog.testing import capture_logs

from agent_service.domain.tool import Executor
from agent_service.engine.schemas import schema_problem, text_violation
from agent_service.engine.tools import ToolContext, ToolOutput
from agent_service.tools import PythonTools, ToolLoadError, load_tools, server_tool

pytestmark = pytest.mark.anyio

CONTEXT = ToolContext("acme", "run_1", "conv_1", "call_1")
NUMBERS = count(1)

WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteModule]:
    """Writes a module that can be imported during the test, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(source: str) -> str:
        name = f"tool_module_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def load(*functions: Callable[..., Any], max_result_bytes: int = 1000, timeout: float = 60) -> PythonTools:
    """These functions as tools, from a module of their own."""
    module = ModuleType(f"tool_module_{next(NUMBERS)}")
    for function in functions:
        setattr(module, function.__name__, function)
    sys.modules[module.__name__] = module
    try:
        paths = [f"{module.__name__}:{function.__name__}" for function in functions]
        return load_tools(paths, max_result_bytes=max_result_bytes, default_timeout=timeout)
    finally:
        del sys.modules[module.__name__]


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON Schema of a function's parameters, which must be one that the engine accepts."""
    schema = load(function).schema(function.__name__)
    assert schema is not None
    assert schema_problem(schema.parameters_json, max_bytes=65536, max_depth=32) == ""
    result: dict[str, Any] = json.loads(schema.parameters_json)
    return result


async def call(function: Callable[..., Any], *, limit: int = 1000, seconds: float = 60, **arguments: Any) -> ToolOutput:
    """What comes of calling a function as a tool."""
    tools = load(function, max_result_bytes=limit, timeout=seconds)
    return await tools.call(function.__name__, json.dumps(arguments), CONTEXT)


def problem(*paths: str) -> str:
    """The one line that says why these paths cannot be loaded."""
    with pytest.raises(ToolLoadError) as caught:
        load_tools(paths, max_result_bytes=1000)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"tool '{paths[-1]}': ")
    return text


def function_problem(function: Callable[..., Any]) -> str:
    """Why a function cannot be a tool."""
    with pytest.raises(ToolLoadError) as caught:
        load(function)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_function_is_named_by_module_and_function(write_module: WriteModule) -> None:
    """`package.module:function` loads that function and no other."""
    module = write_module("def one(): return '1'\ndef two(): return '2'\n")
    tools = load_tools([f"{module}:two"], max_result_bytes=1000)
    assert tools.names == ("two",)
    assert await tools.call("two", "{}", CONTEXT) == ToolOutput("2")


def test_a_module_gives_the_public_functions_it_defines(write_module: WriteModule) -> None:
    """Imported functions, private ones and classes are no tools; a second name of a function is no second tool."""
    module = write_module(
        "from textwrap import dedent\nclass Thing: pass\ndef b(): ...\ndef a(): ...\ndef _hidden(): ...\nalias = b\n"
    )
    assert load_tools([module], max_result_bytes=1000).names == ("b", "a")


def test_all_decides_which_functions_a_module_gives(write_module: WriteModule) -> None:
    """`__all__` wins: its functions, also imported ones, in its order; what is no function is passed over."""
    inner = write_module("def imported(): ...\n")
    module = write_module(
        f"from {inner} import imported\n__all__ = ['b', 'imported', 'LIMIT']\nLIMIT = 1\ndef a(): ...\ndef b(): ...\n"
    )
    assert load_tools([module], max_result_bytes=1000).names == ("b", "imported")


def test_all_must_name_what_exists(write_module: WriteModule) -> None:
    """A name in `__all__` that the module lacks is refused."""
    assert "its __all__ names 'gone'" in problem(write_module("__all__ = ['gone']\n"))


def test_a_module_without_functions_is_refused(write_module: WriteModule) -> None:
    """A module that gives no tool is a mistake; an empty `__all__` gives none."""
    assert "no public function" in problem(write_module("LIMIT = 1\n"))
    assert "no public function" in problem(write_module("__all__ = []\ndef a(): ...\n"))


@pytest.mark.parametrize("path", ["", ":", "no_such_module_here", "no_such_module_here:f", ".relative", "a b"])
def test_a_path_that_cannot_be_imported_is_refused(path: str) -> None:
    """The line says that the module cannot be imported, why, and how a path is written."""
    text = problem(path)
    assert "cannot import" in text
    assert "package.module:function" in text


@pytest.mark.parametrize(
    "source", ["def broken(:\n", "1 / 0\n", "raise SystemExit(2)\n", "raise ValueError('a\\nb')\n"]
)
def test_a_module_that_fails_at_import_is_refused(write_module: WriteModule, source: str) -> None:
    """Whatever a module raises when it is imported becomes one line."""
    assert "cannot import" in problem(write_module(source))


@pytest.mark.parametrize("name", ["gone", "LIMIT", "Thing", "", "a:a"])
def test_a_path_must_lead_to_a_function(write_module: WriteModule, name: str) -> None:
    """A missing name, or one that is no function, is refused with the names that would do."""
    module = write_module("LIMIT = 1\nclass Thing: ...\ndef a(): ...\n")
    assert f"has no function '{name}'; name one of its functions: a" in problem(f"{module}:{name}")


@pytest.mark.parametrize("name", ["", "a" * 65, "two words", "a.b", "naïve", "a\n"])
def test_a_name_must_be_one_that_models_accept(name: str) -> None:
    """A name is 1 to 64 of letters, digits, _ and -."""

    @server_tool(name=name)
    def tool() -> None: ...

    assert "is not 1 to 64 of A-Z a-z 0-9 _ -" in function_problem(tool)


def test_two_tools_of_one_name_are_refused(write_module: WriteModule) -> None:
    """Names are unique over all paths."""
    first, second = write_module("def same(): ...\n"), write_module("def same(): ...\n")
    assert "another tool named 'same'" in problem(first, second)


def test_a_parameter_without_a_type_is_refused() -> None:
    """The model must be told the type of each argument."""

    def tool(a: int, b=1): ...  # type: ignore[no-untyped-def]  # the missing type is what is tested

    assert "parameter 'b' of 'tool' has no type; annotate it" in function_problem(tool)


def test_parameters_without_a_name_of_their_own_are_refused() -> None:
    """*args, **kwargs and positional-only parameters cannot be given by name."""

    def rest(*args: int) -> None: ...

    def more(**kwargs: int) -> None: ...

    def positional(a: int, /) -> None: ...

    assert "'args' of 'rest' is variadic positional" in function_problem(rest)
    assert "'kwargs' of 'more' is variadic keyword" in function_problem(more)
    assert "'a' of 'positional' is positional-only" in function_problem(positional)


def test_a_type_that_json_cannot_hold_is_refused() -> None:
    """A parameter whose type has no JSON Schema is found at load, not at the first call."""

    def lock(held: threading.Thread) -> None: ...

    def callback(then: Callable[[], None]) -> None: ...

    assert "the parameters of 'lock' have no JSON Schema" in function_problem(lock)
    assert "the parameters of 'callback' have no JSON Schema" in function_problem(callback)


def test_a_type_hint_that_cannot_be_read_is_refused(write_module: WriteModule) -> None:
    """A hint that names what the module does not have when it runs is found at load."""
    module = write_module("def tool(a: 'Missing'): ...\n")
    assert "a type hint of 'tool' cannot be read: name 'Missing'" in problem(module)


def test_a_generator_is_refused() -> None:
    """A tool returns one result."""

    def tool() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    assert "'tool' is a generator" in function_problem(tool)
    assert "'later' is a generator" in function_problem(later)


def test_a_plain_function_has_the_default_options() -> None:
    """Without the decorator: the function's name, no approval, not idempotent, run by the server."""

    def plain() -> None:
        """Does nothing."""

    schema = load(plain).schema("plain")
    assert schema is not None
    assert (schema.name, schema.description, schema.executor) == ("plain", "Does nothing.", Executor.SERVER)
    assert (schema.requires_approval, schema.idempotent, schema.parallel_safe) == (False, False, False)
    assert schema.parameters_json == '{"additionalProperties":false,"properties":{},"type":"object"}'


async def test_the_decorator_sets_options() -> None:
    """`server_tool` sets the name, approval and idempotency, and leaves the function as it was."""

    @server_tool(name="send-mail", requires_approval=True, idempotent=True, parallel_safe=True)
    def send() -> str:
        return "sent"

    tools = load(send)
    schema = tools.schema("send-mail")
    assert tools.names == ("send-mail",)
    assert schema is not None
    assert (schema.requires_approval, schema.idempotent, schema.parallel_safe) == (True, True, True)
    assert send() == "sent"


def test_a_timeout_must_be_above_zero() -> None:
    """A timeout of 0 seconds is a mistake, not "none"."""

    @server_tool(timeout=0)
    def tool() -> None: ...

    assert "the timeout of 'tool' is 0 s" in function_problem(tool)


def test_an_unknown_tool_has_no_schema() -> None:
    """None says that there is no such tool."""
    assert load().schema("gone") is None


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: float
    y: float = 0.0


def test_the_schema_comes_from_the_type_hints() -> None:
    """Defaults are not required; no other property is allowed; titles that repeat names are left out."""

    def tool(a: int, kind: Literal["x", "y"], tags: list[str], b: str | None = None, c: bool = True) -> None: ...

    assert parameters(tool) == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "kind": {"enum": ["x", "y"], "type": "string"},
            "tags": {"items": {"type": "string"}, "type": "array"},
            "b": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "c": {"default": True, "type": "boolean"},
        },
        "required": ["a", "kind", "tags"],
        "additionalProperties": False,
    }


def test_nested_types_are_local_references() -> None:
    """Models and enums are in `$defs`, and the engine's own validator can follow the references."""

    def tool(points: list[Point], color: Color) -> None: ...

    schema = parameters(tool)
    assert schema["properties"]["points"]["items"] == {"$ref": "#/$defs/Point"}
    assert schema["$defs"]["Color"]["enum"] == ["red", "blue"]
    right, wrong = '{"points": [{"x": 1}], "color": "red"}', '{"points": [{"x": "1"}], "color": "red"}'
    assert text_violation(json.dumps(schema), right) == ""
    assert text_violation(json.dumps(schema), wrong) != ""


def test_the_schema_is_compact_json() -> None:
    """No spaces are spent on the model's tokens."""

    def tool(a: int) -> None: ...

    schema = load(tool).schema("tool")
    assert schema is not None
    assert schema.parameters_json == (
        '{"additionalProperties":false,"properties":{"a":{"type":"integer"}},"required":["a"],"type":"object"}'
    )


def test_the_docstring_describes_the_tool_and_its_parameters() -> None:
    """The `Args:` section goes to the parameters, also over several lines; the rest is the tool's description."""

    def tool(city: str, days: int = 1, unit: str = "C") -> None:
        """Tells the weather.

        Covers Europe.

        Args:
            city: The city's name: no country,
                no street. note: in English.
            days (int, optional): How many days.

            unknown: Not a parameter.

        Returns:
            A text.
        """

    schema = load(tool).schema("tool")
    assert schema is not None
    assert schema.description == "Tells the weather.\n\nCovers Europe.\n\nReturns:\n    A text."
    properties = parameters(tool)["properties"]
    assert properties["city"]["description"] == "The city's name: no country, no street. note: in English."
    assert properties["days"]["description"] == "How many days."
    assert "description" not in properties["unit"]


def test_a_field_describes_and_limits_a_parameter() -> None:
    """`Field` in `Annotated` or as the default works as in pydantic, and wins over the docstring."""

    def tool(a: Annotated[int, Field(description="From the field.", ge=1)], b: int = Field(5, le=9)) -> None:
        """Does it.

        Args:
            a: From the docstring.
            b: Also from the docstring.
        """

    schema = parameters(tool)
    assert schema["properties"]["a"] == {"description": "From the field.", "minimum": 1, "type": "integer"}
    assert schema["properties"]["b"] == {
        "default": 5,
        "description": "Also from the docstring.",
        "maximum": 9,
        "type": "integer",
    }
    assert schema["required"] == ["a"]


async def test_any_parameter_name_works() -> None:
    """Names that mean something to pydantic are names like others."""

    def tool(copy: int, json: str, model_config: bool, _private: int = 4) -> list[Any]:
        return [copy, json, model_config, _private]

    assert set(parameters(tool)["properties"]) == {"copy", "json", "model_config", "_private"}
    assert await call(tool, copy=1, json="2", model_config=True) == ToolOutput('[1,"2",true,4]')


async def test_the_context_is_injected() -> None:
    """A parameter annotated ToolContext gets the call's context and is not shown to the model."""

    def tool(a: int, context: ToolContext) -> str:
        return f"{a} {context.tenant} {context.tool_call_id}"

    assert list(parameters(tool)["properties"]) == ["a"]
    assert await call(tool, a=1) == ToolOutput("1 acme call_1")


async def test_the_model_cannot_write_the_context() -> None:
    """A context among the arguments is refused, and so is a parameter that would take one from them."""

    def tool(context: ToolContext) -> str:
        return context.tenant

    def optional(context: ToolContext | None = None) -> None: ...

    output = await call(tool, context={"tenant": "globex"})
    assert output.failed
    assert "at /context" in output.text
    assert "must be annotated as plain ToolContext" in function_problem(optional)


async def test_a_coroutine_function_runs_in_the_event_loop() -> None:
    """It is awaited where the caller runs."""

    async def tool() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    assert await call(tool) == ToolOutput(threading.current_thread().name)


async def test_other_functions_run_in_a_thread() -> None:
    """They do not block the event loop, and see the caller's context variables."""
    variable = contextvars.ContextVar("variable", default="unset")

    def tool() -> list[Any]:
        return [variable.get(), threading.current_thread() is threading.main_thread()]

    variable.set("set")
    assert await call(tool) == ToolOutput('["set",false]')


async def test_a_decorated_coroutine_function_is_awaited() -> None:
    """A decorator that hides the coroutine function changes nothing."""

    async def tool() -> str:
        return "awaited"

    @functools.wraps(tool)
    def decorated() -> Any:
        return tool()

    assert await call(decorated) == ToolOutput("awaited")


async def test_arguments_are_converted_to_their_types() -> None:
    """Models, enums and dates arrive as such; an omitted argument as its default."""

    def tool(point: Point, color: Color, day: date, ratio: float, pair: tuple[int, int] = (1, 2)) -> str:
        return repr((point, color, day, ratio, pair))

    output = await call(tool, point={"x": 1}, color="red", day="2024-02-29", ratio=1)
    assert output.text == repr((Point(x=1), Color.RED, date(2024, 2, 29), 1.0, (1, 2)))


@pytest.mark.parametrize("value", ['"3"', "3.5", "true", "null", "1e400", "NaN"])
async def test_numbers_are_strict(value: str) -> None:
    """A number in a string, a fraction or a boolean is no integer."""

    def tool(a: int) -> int:
        return a

    output = await load(tool).call("tool", f'{{"a":{value}}}', CONTEXT)
    assert output.failed
    assert output.text.startswith("Error: not executed, ")


async def test_a_violation_names_the_path() -> None:
    """Arguments that do not fit fail the call before the function runs, with the path and cause of each problem."""
    ran = []

    def tool(points: list[Point]) -> None:
        ran.append(points)

    output = await call(tool, points=[{"x": 1}, {"x": "1"}], more=1)
    assert output.text == (
        "Error: not executed, the arguments do not fit: at /points/1/x: Input should be a valid number; "
        "at /more: Extra inputs are not permitted"
    )
    assert (output.failed, ran) == (True, [])


@pytest.mark.parametrize("arguments", ["", "{", "[]", "null", '{"a":1,"a":2}', '{"argument_0":1}', "{}"])
async def test_arguments_must_be_one_strict_json_object(arguments: str) -> None:
    """Broken JSON, something else than an object, a key twice or a missing argument fail the call."""

    def tool(a: int) -> int:
        return a

    output = await load(tool).call("tool", arguments, CONTEXT)
    assert output.failed
    assert output.text.startswith("Error: not executed, the arguments ")


async def test_a_call_times_out() -> None:
    """After the server's timeout the outcome is unknown, and the text says so."""

    async def tool() -> None:
        await asyncio.Event().wait()

    output = await call(tool, seconds=0.01)
    text = "Error: timed out after 0.01 s; its outcome is unknown, it may have been executed"
    assert output == ToolOutput(text, failed=True)


async def test_a_tool_has_its_own_timeout() -> None:
    """The decorator's timeout wins over the server's; it also ends the wait for a thread."""
    release = threading.Event()

    @server_tool(timeout=0.01)
    def tool() -> None:
        release.wait(10)

    try:
        output = await call(tool)
    finally:
        release.set()
    assert output.text.startswith("Error: timed out after 0.01 s;")


async def test_a_timeout_inside_a_tool_is_its_error() -> None:
    """A TimeoutError that the tool raises is not reported as the tool's own timeout."""

    async def tool() -> None:
        raise TimeoutError("no answer from the API")

    assert await call(tool) == ToolOutput("Error: TimeoutError: no answer from the API", failed=True)


@pytest.mark.parametrize("in_thread", [True, False])
async def test_an_exception_fails_the_call(in_thread: bool) -> None:
    """The model gets type and message; the traceback goes to the log only."""

    def sync_tool() -> None:
        raise ValueError("no such city")

    async def async_tool() -> None:
        raise ValueError("no such city")

    with capture_logs() as logs:
        output = await call(sync_tool if in_thread else async_tool)
    assert output == ToolOutput("Error: ValueError: no such city", failed=True)
    assert (logs[0]["event"], logs[0]["tool_call_id"]) == ("tool.failed", "call_1")
    assert logs[0]["exc_info"].__traceback__ is not None


async def test_a_long_message_is_cut() -> None:
    """Of an exception's message 1000 characters are kept; without a message its type is named."""

    def tool(size: int) -> None:
        raise KeyError if size == 0 else ValueError("é" * size)

    assert (await call(tool, size=2000)).text == "Error: ValueError: " + "é" * 1000
    assert (await call(tool, size=0)).text == "Error: KeyError"


async def test_a_validator_may_raise_anything() -> None:
    """An exception of the tool's own validator fails the call as well."""

    class Broken(BaseModel):
        a: int

        def model_post_init(self, _: Any) -> None:
            raise KeyError("lost")

    def tool(value: Any) -> None: ...

    tool.__annotations__["value"] = Broken
    assert await call(tool, value={"a": 1}) == ToolOutput("Error: KeyError: 'lost'", failed=True)


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("end"), asyncio.CancelledError("inner")])
async def test_nothing_that_a_tool_raises_gets_out(error: BaseException) -> None:
    """Not even what ends a process, an iteration or a task, as long as the call itself is not cancelled."""

    def sync_tool() -> None:
        raise error

    async def async_tool() -> None:
        raise error

    for tool in (sync_tool, async_tool):
        output = await call(tool, seconds=5)
        assert output.failed
        assert "timed out" not in output.text


async def test_a_cancelled_call_is_cancelled() -> None:
    """Cancelling the call cancels the tool, and is not turned into an output."""
    started = asyncio.Event()
    ended = []

    async def tool() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(call(tool))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_an_unknown_tool_fails_the_call() -> None:
    """A tool that was there when the run started may be gone."""
    assert await load().call("gone", "{}", CONTEXT) == ToolOutput(
        "Error: there is no tool 'gone' any more", failed=True
    )


@dataclass
class Weather:
    day: datetime
    degrees: float


class Shade(str, Enum):  # noqa: UP042 - the kind whose str() is not its text
    DARK = "dark"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ('as "it" is\n', 'as "it" is\n'),
        (Shade.DARK, "dark"),
        (None, ""),
        (0, "0"),
        (False, "false"),
        ({"é": [1, None]}, '{"é":[1,null]}'),
        (Point(x=1), '{"x":1.0,"y":0.0}'),
        (Weather(datetime(2024, 2, 29, tzinfo=UTC), 1.5), '{"day":"2024-02-29T00:00:00Z","degrees":1.5}'),
        (float("nan"), '"NaN"'),
        ("a\ud800", "a?"),
    ],
)
async def test_a_result_becomes_text(result: Any, text: str) -> None:
    """A str as it is, None as no text, all else as strict JSON; what has no UTF-8 is replaced."""

    def tool() -> Any:
        return result

    assert await call(tool) == ToolOutput(text)


async def test_a_result_without_a_json_form_fails_the_call() -> None:
    """The model is told that the tool was executed and that its result is lost."""
    circular: list[Any] = []
    circular.append(circular)

    def tool(which: int) -> Any:
        return [object(), circular][which]

    output = await call(tool, which=0)
    assert output.failed
    assert output.text.startswith("Error: executed, but its result cannot be written as JSON: ")
    assert (await call(tool, which=1)).failed


async def test_a_long_result_is_cut() -> None:
    """It is cut between two characters, a last line says how many bytes are missing, and all of it fits the limit."""

    def tool() -> str:
        return "€" * 100

    output = await call(tool, limit=100)
    kept = output.text.count("€")
    assert output == ToolOutput("€" * kept + f"\n[{300 - 3 * kept} bytes were cut here]", truncated=True)
    assert 97 <= len(output.text.encode()) <= 100


async def test_a_result_at_the_limit_is_whole() -> None:
    """The limit counts bytes of UTF-8 and includes its last byte."""

    def tool() -> str:
        return "€" * 10

    assert await call(tool, limit=30) == ToolOutput("€" * 10)
    assert (await call(tool, limit=29)).truncated


async def test_a_tiny_limit_still_holds() -> None:
    """Even a limit too small for the mark is kept."""

    def tool() -> str:
        return "€" * 10

    output = await call(tool, limit=5)
    assert output.truncated
    assert len(output.text.encode()) <= 5
