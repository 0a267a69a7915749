"""The scripted endpoint behaves as the real one does, as seen by the real OpenAI client."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from tests.scripted_openai import (
    Framing,
    Gate,
    Reply,
    Request,
    Rules,
    ScriptedOpenAI,
    Usage,
    breaks_off,
    calls,
    check_histories,
    content_filter,
    cut_by_length,
    empty,
    error_in_stream,
    fails,
    garbage,
    gated,
    hangs_up,
    says,
    silent,
)

pytestmark = pytest.mark.anyio

LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


def user(content: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def asked(*ids: str, arguments: Any = "{}") -> dict[str, Any]:
    function = {"name": "look_up", "arguments": arguments}
    found = [{"id": call_id, "type": "function", "function": function} for call_id in ids]
    return {"role": "assistant", "content": None, "tool_calls": found}


def returned(call_id: str, content: Any = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {**LOOK_UP["function"], **fields}}  # type: ignore[dict-item]  # the JSON of a request


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "stream": True, "messages": list(messages or (user(),)), **fields}


@asynccontextmanager
async def client(upstream: ScriptedOpenAI) -> AsyncIterator[openai.AsyncOpenAI]:
    # verify=False only spares the time to load certificates: the endpoint speaks plain HTTP.
    http = openai.DefaultAsyncHttpxClient(verify=False)
    async with openai.AsyncOpenAI(
        base_url=upstream.base_url, api_key="secret", max_retries=0, http_client=http
    ) as made:
        yield made


class Answer:
    """What the client made of one streamed answer."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning = ""
        self.calls: dict[int, dict[str, str]] = {}
        self.call_order: list[int] = []
        self.finish_reason: str | None = None
        self.usage: openai.types.CompletionUsage | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def take(self, chunk: openai.types.chat.ChatCompletionChunk) -> None:
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            self.texts += [choice.delta.content] if choice.delta.content else []
            self.reasoning += (choice.delta.model_extra or {}).get("reasoning_content", "")
            for part in choice.delta.tool_calls or []:
                self._take_call(part)

    def _take_call(self, part: Any) -> None:
        self.call_order.append(part.index)
        call = self.calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
        call["id"] += part.id or ""
        call["name"] += part.function.name or ""
        call["arguments"] += part.function.arguments or ""


async def ask(upstream: ScriptedOpenAI, *messages: Any, answer: Answer | None = None, **fields: Any) -> Answer:
    """One streamed answer; `answer` keeps what arrived before an error."""
    found = answer or Answer()
    async with client(upstream) as made:
        stream = await made.chat.completions.create(**body(*messages, **fields))
        async for chunk in stream:
            found.take(chunk)
    return found


async def test_text_arrives_in_chunks_with_reasoning_and_finish_reason() -> None:
    """A text answer is streamed in several chunks, the reasoning apart from it."""
    async with ScriptedOpenAI([says("The code is 42", reasoning="Let me see")]) as upstream:
        answer = await ask(upstream)
    assert (answer.text, answer.reasoning) == ("The code is 42", "Let me see")
    assert len(answer.texts) > 1
    assert answer.finish_reason == "stop"


async def test_text_given_in_pieces_arrives_in_these_pieces() -> None:
    """A test can choose the chunks: all of them, or how many."""
    async with ScriptedOpenAI([says(["a", "bcd"]), says("abcdef", chunks=3)]) as upstream:
        first, second = await ask(upstream), await ask(upstream)
    assert first.texts == ["a", "bcd"]
    assert second.texts == ["ab", "cd", "ef"]


@pytest.mark.parametrize(
    "framing",
    [
        Framing(),
        Framing(newline="\r\n"),
        Framing(newline="\r"),
        Framing(comments=True, event_lines=True),
        Framing(multi_line=True, newline="\r\n", comments=True),
        Framing(space=False, cut=False),
    ],
    ids=lambda framing: str(framing).removeprefix("Framing"),
)
async def test_every_framing_carries_the_same_text(framing: Framing) -> None:
    """Line ends, comments, event lines and multi-line data are all read alike."""
    text = 'žluťoučký 🐎 "quoted"\n\u2028 and\r\nlines\x85'
    async with ScriptedOpenAI([says(text)], framing=framing) as upstream:
        assert (await ask(upstream)).text == text


def test_events_are_cut_inside_characters_and_line_ends() -> None:
    """The pieces of an event end inside a UTF-8 sequence and inside the line end."""
    first, *_, last = Framing(newline="\r\n").event("é")
    assert first.endswith("é".encode()[:1])
    assert last == b"\n"


async def test_usage_is_sent_only_when_asked_for() -> None:
    """The usage chunk comes with stream_options.include_usage, and else there is none."""
    usage = Usage(prompt=11, completion=7, cached=3, reasoning=2)
    async with ScriptedOpenAI([says("a", usage=usage)] * 2) as upstream:
        without = await ask(upstream)
        told = (await ask(upstream, stream_options={"include_usage": True})).usage
    assert without.usage is None
    assert told is not None
    assert (told.prompt_tokens, told.completion_tokens, told.total_tokens) == (11, 7, 18)


async def test_parallel_calls_arrive_interleaved_with_ids_that_repeat() -> None:
    """Fragments of parallel calls alternate, and each answer uses call_0, call_1 again."""
    wanted = ("look_up", {"word": "one"}), ("look_up", {"word": "two"})
    async with ScriptedOpenAI([calls(*wanted, text="Wait."), calls(*wanted)]) as upstream:
        first = await ask(upstream, tools=[LOOK_UP])
        second = await ask(upstream, tools=[LOOK_UP])
    assert first.call_order[:4] == [0, 1, 0, 1]
    assert [call["id"] for call in first.calls.values()] == ["call_0", "call_1"]
    assert [json.loads(call["arguments"]) for call in first.calls.values()] == [
        {"word": "one"},
        {"word": "two"},
    ]
    assert (first.text, first.finish_reason) == ("Wait.", "tool_calls")
    assert second.calls == first.calls


@pytest.mark.parametrize(
    "arguments",
    ['{"word": ', '{"n": 1234567890123456789}', json.dumps({"word": "ž" * 2**20})],
    ids=["malformed", "19 digits", "1 MiB"],
)
async def test_raw_arguments_arrive_as_written(arguments: str) -> None:
    """Arguments given as text reach the client character by character."""
    async with ScriptedOpenAI([calls(("look_up", arguments))]) as upstream:
        answer = await ask(upstream, tools=[LOOK_UP])
    assert answer.calls[0]["arguments"] == arguments


async def test_a_call_can_come_in_one_piece_with_its_own_id() -> None:
    """Providers that do not stream arguments are covered too."""
    whole = calls(("look_up", {"word": "a"}), ids=["chosen"], fragments=1)
    async with ScriptedOpenAI([whole]) as upstream:
        answer = await ask(upstream, tools=[LOOK_UP])
    assert answer.call_order == [0]
    assert answer.calls[0] == {"id": "chosen", "name": "look_up", "arguments": '{"word": "a"}'}


async def test_http_errors_carry_the_error_json() -> None:
    """Status, message, code and Retry-After are what the script says."""
    reply = fails(429, "Slow down", code="rate_limit_exceeded", retry_after=0.5)
    async with ScriptedOpenAI([reply, fails(502, body="<html>")]) as upstream:
        with pytest.raises(openai.RateLimitError, match="Slow down") as caught:
            await ask(upstream)
        with pytest.raises(openai.InternalServerError) as page:
            await ask(upstream)
    assert (page.value.status_code, page.value.response.text) == (502, "<html>")
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "0.5"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (breaks_off(says(["a", "b"]), after=1), openai.APIConnectionError),
        (error_in_stream("Overloaded", reply=says(["a", "b"])), openai.APIError),
        (breaks_off(says(["a", "b"]), after=1, politely=True), None),
    ],
    ids=["cut", "error event", "end without finish reason"],
)
async def test_streams_that_fail_deliver_what_came_before(reply: Reply, error: type[Exception] | None) -> None:
    """A failing stream gives its first chunk, and never a finish reason."""
    answer = Answer()
    async with ScriptedOpenAI([reply]) as upstream:
        if error is None:
            await ask(upstream, answer=answer)
        else:
            with pytest.raises(error):
                await ask(upstream, answer=answer)
    assert answer.texts == ["a"]
    assert answer.finish_reason is None
    assert not upstream.disconnected.is_set()


async def test_a_connection_can_break_before_any_answer() -> None:
    """The client sees a connection error, not a status."""
    async with ScriptedOpenAI([hangs_up()]) as upstream:
        with pytest.raises(openai.APIConnectionError):
            await ask(upstream)


async def test_truncated_and_filtered_answers_tell_their_finish_reason() -> None:
    """The finish reasons length and content_filter, also in the middle of arguments."""
    cut_call = cut_by_length(calls(("look_up", {"word": "a long word"})))
    async with ScriptedOpenAI([cut_by_length("Once upon a time"), cut_call]) as upstream:
        text = await ask(upstream)
        call = await ask(upstream, tools=[LOOK_UP])
    assert "Once upon a time".startswith(text.text)
    assert text.finish_reason == call.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.calls[0]["arguments"])
    async with ScriptedOpenAI([content_filter(), empty()]) as upstream:
        assert (await ask(upstream)).finish_reason == "content_filter"
        nothing = await ask(upstream)
    assert (nothing.text, nothing.calls, nothing.finish_reason) == ("", {}, "stop")


async def test_garbage_is_sent_as_it_is() -> None:
    """An event may hold what is not JSON, or JSON without choices."""
    async with ScriptedOpenAI([garbage("{not json"), garbage({"object": "list"})]) as upstream:
        with pytest.raises(json.JSONDecodeError):
            await ask(upstream)
        async with client(upstream) as made:
            stream = await made.chat.completions.create(**body())
            assert [chunk.choices async for chunk in stream] == [None]


async def test_a_gate_holds_each_step_until_the_test_releases_it() -> None:
    """Nothing is sent before its release; the end of the stream is a step of its own."""
    gate = Gate()
    async with ScriptedOpenAI([says(["a", "b"], gate=gate)]) as upstream, client(upstream) as made:
        stream = await made.chat.completions.create(**body())
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        gate.release()
        await gate.reached(1)
        assert (await anext(stream)).choices[0].delta.content == "a"
        with pytest.raises(TimeoutError, match="steps sent: 1, not 2"):
            await gate.reached(2, timeout=0)
        gate.release(2)
        await gate.reached(3)
        rest = [chunk.choices[0] async for chunk in stream]
    assert [(choice.delta.content, choice.finish_reason) for choice in rest] == [
        ("b", None),
        (None, "stop"),
    ]


async def test_a_gate_works_across_threads_and_holds_errors() -> None:
    """The endpoint may run in another thread; an HTTP error is one step."""
    gate = Gate()
    with ScriptedOpenAI([gated(fails(500), gate), gated(says("a"), gate)]) as upstream:
        waiting = asyncio.create_task(ask(upstream))
        await upstream.wait_for_requests(1)
        assert not waiting.done()
        gate.release()
        with pytest.raises(openai.InternalServerError):
            await waiting
        gate.open()
        assert (await ask(upstream)).text == "a"


@pytest.mark.parametrize("reply", [silent(), silent(says(["a"]), after=1)], ids=["mute", "later"])
async def test_a_silent_endpoint_tells_that_the_client_went_away(reply: Reply) -> None:
    """After the headers nothing comes, and closing the connection is recorded."""
    async with ScriptedOpenAI([reply]) as upstream, client(upstream) as made:
        stream = await made.chat.completions.create(**body())
        assert not upstream.disconnected.is_set()
        await stream.close()
        await upstream.disconnected.wait()
        assert upstream.disconnected.count == 1


async def test_an_endpoint_can_be_silent_before_the_headers() -> None:
    """Cancelling the waiting request is recorded as a disconnect too."""
    async with ScriptedOpenAI([silent(before_headers=True)]) as upstream:
        waiting = asyncio.create_task(ask(upstream))
        await upstream.wait_for_requests(1)
        waiting.cancel()
        await upstream.disconnected.wait()


async def test_leaving_the_context_ends_replies_that_are_held() -> None:
    """A held reply keeps nobody waiting, and its end is not a disconnect of the client."""
    async with ScriptedOpenAI([silent()]) as upstream:
        waiting = asyncio.create_task(ask(upstream))
        await upstream.wait_for_requests(1)
    with pytest.raises(openai.APIConnectionError):
        await waiting
    assert not upstream.disconnected.is_set()


def test_a_sync_client_can_use_it_from_another_thread() -> None:
    """Started with a plain `with`, it serves clients that block, and lists its models."""
    with ScriptedOpenAI([says("hello")], models=["small"]) as upstream:
        with openai.OpenAI(base_url=upstream.base_url, api_key="any", max_retries=0) as made:
            assert [model.id for model in made.models.list()] == ["small"]
            chunks = list(made.chat.completions.create(**body()))
        upstream.wait_for_requests_sync(1)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "hello"


async def test_a_function_answers_by_the_request() -> None:
    """A script may be a function, which sees the request as it was sent."""

    def script(request: Request) -> Reply:
        return says(f"{request.number}: {request.system} {request.last['content']}")

    async with ScriptedOpenAI(script) as upstream:
        await ask(upstream)
        answer = await ask(upstream, {"role": "system", "content": "Be brief."}, user("é"))
    assert answer.text == "2: Be brief. é"
    assert upstream.requests[1].history == [user("é")]
    assert json.loads(upstream.requests[1].raw) == upstream.requests[1].body
    assert upstream.requests[1].headers["authorization"] == "Bearer secret"


async def test_replies_can_be_added_while_it_runs() -> None:
    """A list may grow with the conversation."""
    async with ScriptedOpenAI([]) as upstream:
        upstream.add(says("late"))
        assert (await ask(upstream)).text == "late"
    assert (upstream.request_count, upstream.unused_replies) == (1, 0)


async def test_a_key_is_required_when_one_is_set() -> None:
    """Another key is answered with 401 and counts as a rejection."""
    async with ScriptedOpenAI([], api_key="other", allow_rejected=True) as upstream:
        with pytest.raises(openai.AuthenticationError):
            await ask(upstream)
    assert [rejection.status for rejection in upstream.rejected] == [401]
    async with ScriptedOpenAI([says("a")], api_key="secret") as upstream:
        await ask(upstream)


async def test_an_unknown_path_is_refused() -> None:
    """Only chat completions and models are served."""
    async with ScriptedOpenAI([], allow_rejected=True) as upstream, client(upstream) as made:
        with pytest.raises(openai.NotFoundError):
            await made.post("/responses", body={}, cast_to=object)


TWO_TOOLS = [LOOK_UP, tool(name="other")]
MISFITS: dict[str, tuple[Reply, dict[str, Any], str]] = {
    "no tools": (calls(("look_up", {})), {}, "on offer"),
    "unknown tool": (calls(("lookup", {})), {"tools": [LOOK_UP]}, "on offer"),
    "none": (calls(("look_up", {})), {"tools": [LOOK_UP], "tool_choice": "none"}, "'none'"),
    "required": (says("a"), {"tools": [LOOK_UP], "tool_choice": "required"}, "'required'"),
    "forced": (
        calls(("other", {})),
        {
            "tools": TWO_TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "look_up"}},
        },
        "forced",
    ),
    "not parallel": (
        calls(("look_up", {}), ("look_up", {})),
        {"tools": [LOOK_UP], "parallel_tool_calls": False},
        "parallel",
    ),
}


@pytest.mark.parametrize(("reply", "fields", "problem"), MISFITS.values(), ids=list(MISFITS))
async def test_a_reply_that_no_model_could_give_is_a_problem(
    reply: Reply, fields: dict[str, Any], problem: str
) -> None:
    """The request fails with 500, and so does the test when it leaves the context."""
    with pytest.raises(AssertionError, match=problem):
        async with ScriptedOpenAI([reply]) as upstream:
            with pytest.raises(openai.InternalServerError):
                await ask(upstream, **fields)
            assert len(upstream.problems) == 1


async def test_an_unruly_reply_may_break_what_was_asked() -> None:
    """A test can play a model that calls a tool it does not have."""
    async with ScriptedOpenAI([calls(("lookup", {}), unruly=True)]) as upstream:
        assert (await ask(upstream)).calls[0]["name"] == "lookup"


async def test_a_script_that_does_not_suffice_is_a_problem() -> None:
    """No reply left, and a function that raises, both fail the test."""

    def broken(request: Request) -> Reply:
        raise KeyError(request.number)

    for script, problem in (([], "no reply left"), (broken, "KeyError")):
        with pytest.raises(AssertionError, match=problem):
            async with ScriptedOpenAI(script) as upstream:
                with pytest.raises(openai.InternalServerError):
                    await ask(upstream)


async def test_unused_replies_fail_the_test_if_it_wants_so() -> None:
    """With expect_all_used a reply that nobody asked for is an error."""
    with pytest.raises(AssertionError, match="1 replies were not used"):
        async with ScriptedOpenAI([says("a")], expect_all_used=True):
            pass


async def test_an_error_in_the_test_is_not_hidden_by_problems() -> None:
    """What the test itself raised is what is reported."""
    with pytest.raises(ZeroDivisionError):
        async with ScriptedOpenAI([]) as upstream:
            with pytest.raises(openai.InternalServerError):
                await ask(upstream)
            raise ZeroDivisionError


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
STRICT = {
    "type": "object",
    "properties": {"a": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/b"}]}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"b": {"type": "object", "properties": {}, "additionalProperties": False}},
}


def formatted(schema: Any, **fields: Any) -> dict[str, Any]:
    """A response format of this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema} | fields}


def image(url: Any, **fields: Any) -> dict[str, Any]:
    """A user message of an image."""
    return user([{"type": "image_url", "image_url": {"url": url} | fields}])


ACCEPTED: dict[str, dict[str, Any]] = {
    "tools": body(tools=TWO_TOOLS, tool_choice="auto", parallel_tool_calls=True),
    "forced tool": body(tools=[LOOK_UP], tool_choice=MISFITS["forced"][1]["tool_choice"]),
    "settings": body(temperature=0, max_completion_tokens=1, stop=["a"], seed=1, user="u"),
    "returns in any order": body(user(), asked("a", "b"), returned("b"), returned("a"), user()),
    "two rounds": body(user(), asked("a"), returned("a"), asked("b"), returned("b", "")),
    "parts": body(
        {"role": "developer", "content": [{"type": "text", "text": "x"}]},
        user([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]),
    ),
    "name": body(user(name="Alice")),
    "images": body(
        user(
            [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
            ]
        )
    ),
    "any schema": body(response_format=formatted({"type": "object", "properties": {"a": {}}}, strict=False)),
    "strict schema": body(response_format=formatted(STRICT, strict=True)),
    "any text": body(response_format={"type": "text"}),
}


@pytest.mark.parametrize("sent", ACCEPTED.values(), ids=list(ACCEPTED))
async def test_valid_requests_are_accepted(sent: dict[str, Any]) -> None:
    """What the API allows is answered."""
    async with ScriptedOpenAI([says("a", unruly=True)]) as upstream, client(upstream) as made:
        await made.chat.completions.create(**sent)
    assert upstream.requests[0].body == sent


ASSISTANT = {"role": "assistant", "content": "a"}
CALL = asked("a")["tool_calls"][0]
REFUSED: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "parse the JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "parse the JSON"),
    "NaN": (b'{"temperature": NaN}', "NaN"),
    "half a surrogate pair": (rb'{"model": "\ud800"}', "surrogates"),
    "too deep": (b"[" * 200_000, "recursion"),
    "not an object": ([], "expected an object"),
    "no model": ({"stream": True, "messages": [user()]}, "model"),
    "empty model": (body(model=""), "model"),
    "no messages": ({"stream": True, "model": "m"}, "messages"),
    "empty messages": (body() | {"messages": []}, "empty array"),
    "messages not an array": (body() | {"messages": {}}, "messages"),
    "not streaming": (body(stream=False), "stream"),
    "unknown field": (body(foo=1), "Unrecognized request argument"),
    "null field": (body(temperature=None), "temperature"),
    "null tools": (body(tools=None), "tools"),
    "wrong value": (body(temperature=3), "temperature"),
    "both limits": (body(max_tokens=1, max_completion_tokens=1), "max_completion_tokens"),
    "message not an object": (body("hi"), "expected an object"),
    "unknown role": (body({"role": "robot", "content": "x"}), "'robot'"),
    "unknown message field": (body(user(foo=1)), r"messages\[0\].foo"),
    "null content": (body(user(None)), "content"),
    "number as content": (body(user(1)), "content"),
    "empty parts": (body(user([])), "empty array"),
    "unknown part": (body(user([{"type": "x", "x": 1}])), "'x'"),
    "part without value": (body(user([{"type": "text"}])), "Missing required"),
    "part with unknown field": (body(user([{"type": "text", "text": "a", "b": 1}])), "Unknown"),
    "number as text": (body(user([{"type": "text", "text": 1}])), "a string"),
    "bad image": (body(user([{"type": "image_url", "image_url": {"url": "a"}}])), "URL"),
    "image in a return": (body(asked("a"), returned("a", [{"type": "image_url"}])), "image_url"),
    "bad name": (body(user(name="Alice B")), "pattern"),
    "null name": (body(user(name=None)), "null"),
    "empty assistant": (body({"role": "assistant", "content": None}), "content"),
    "no calls": (body(ASSISTANT | {"tool_calls": []}), "empty array"),
    "null calls": (body(ASSISTANT | {"tool_calls": None}), "null"),
    "call without id": (body(ASSISTANT | {"tool_calls": [{"type": "function"}]}), "id"),
    "call of another type": (body(ASSISTANT | {"tool_calls": [CALL | {"type": "x"}]}), "type"),
    "call with index": (body(ASSISTANT | {"tool_calls": [CALL | {"index": 0}]}), "index"),
    "arguments not text": (body(asked("a", arguments={}), returned("a")), "arguments"),
    "long id": (body(asked("a" * 41), returned("a" * 41)), "maximum length 40"),
    "id twice in a message": (body(asked("a", "a"), returned("a")), "Duplicate"),
    "id twice in the history": (
        body(asked("a"), returned("a"), asked("a"), returned("a")),
        "Duplicate",
    ),
    "missing return at the end": (body(user(), asked("a")), "did not have response.*: a$"),
    "missing return before a message": (body(asked("a", "b"), returned("a"), user()), ": b$"),
    "late return": (body(asked("a"), user(), returned("a")), "did not have response"),
    "second return": (body(asked("a"), returned("a"), returned("a")), "second tool message"),
    "unknown return": (body(asked("a"), returned("b")), "'b' not found"),
    "return without call": (body(user(), returned("a")), "preceding message"),
    "return without id": (body({"role": "tool", "content": "a"}), "tool_call_id"),
    "empty tools": (body(tools=[]), "empty array"),
    "tool names twice": (body(tools=[LOOK_UP, LOOK_UP]), "Duplicate function name"),
    "bad tool name": (body(tools=[tool(name="look up")]), "pattern"),
    "long tool name": (body(tools=[tool(name="a" * 65)]), "pattern"),
    "long description": (body(tools=[tool(description="a" * 1025)]), "too long"),
    "unknown tool field": (body(tools=[tool(foo=1)]), "foo"),
    "tool of another type": (body(tools=[{"type": "x"}]), "type"),
    "parameters not an object": (body(tools=[tool(parameters=[])]), "expected an object"),
    "schema of an array": (body(tools=[tool(parameters={"type": "array"})]), "type: .object"),
    "schema without properties": (
        body(tools=[tool(parameters={"type": "object"})]),
        "missing properties",
    ),
    "array without items": (
        body(tools=[tool(parameters={"type": "object", "properties": {"a": {"type": "array"}}})]),
        "missing items",
    ),
    "choice without tools": (body(tool_choice="auto"), "only allowed when 'tools'"),
    "unknown choice": (body(tools=[LOOK_UP], tool_choice="any"), "'any'"),
    "choice of an unknown tool": (
        body(tools=[LOOK_UP], tool_choice={"type": "function", "function": {"name": "x"}}),
        "'x' is not one of",
    ),
    "image detail": (body(image("https://example.org/a.png", detail="x")), "'x'"),
    "unknown field of an image": (body(image("https://example.org/a.png", x=1)), "image_url.x"),
    "image of another type": (body(image(f"data:image/svg+xml;base64,{PNG}")), "data URL"),
    "image not in base64": (body(image("data:image/png;base64,?")), "unsupported image"),
    "image that is none": (body(image("data:image/png;base64,AAAA")), "unsupported image"),
    "unknown format": (body(response_format={"type": "xml"}), "'xml'"),
    "format without schema": (body(response_format={"type": "json_schema"}), "Missing required"),
    "format with unknown field": (body(response_format=formatted(STRICT, x=1)), "json_schema.x"),
    "flat format": (body(response_format={"type": "json_schema", "schema": STRICT}), "response_format.schema"),
    "format without name": (
        body(response_format={"type": "json_schema", "json_schema": {"schema": STRICT}}),
        "json_schema.name",
    ),
    "bad name of a format": (body(response_format=formatted(STRICT, name="a b")), "pattern"),
    "format of an array": (body(response_format=formatted({"type": "array"})), "type: .object"),
    "schema as text": (body(response_format=formatted("{}")), "expected an object"),
    "strict as text": (body(response_format=formatted(STRICT, strict="yes")), "a boolean"),
    "strict and open": (
        body(response_format=formatted({"type": "object", "properties": {}}, strict=True)),
        "'additionalProperties' is required",
    ),
    "strict and optional": (
        body(response_format=formatted(STRICT | {"required": []}, strict=True)),
        "including every key.*'a'",
    ),
    "strict and open within": (
        body(response_format=formatted(STRICT | {"$defs": {"b": {"type": "object"}}}, strict=True)),
        r"context=\('\$defs', 'b'\)",
    ),
    "strict and allOf": (body(response_format=formatted(STRICT | {"allOf": []}, strict=True)), "'allOf'"),
    "parallel without tools": (body(parallel_tool_calls=True), "only allowed when 'tools'"),
}


@pytest.mark.parametrize(("sent", "message"), REFUSED.values(), ids=list(REFUSED))
async def test_invalid_requests_are_refused_with_the_error_shape(sent: Any, message: str) -> None:
    """Each broken rule is a 400 that names it; no reply is used and nothing is recorded."""
    content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    headers = {"Content-Type": "application/json"}
    async with ScriptedOpenAI([says("a")], allow_rejected=True) as upstream:
        async with client(upstream) as made:
            with pytest.raises(openai.BadRequestError, match=message) as caught:
                await made.post("/chat/completions", content=content, cast_to=object, options={"headers": headers})
        assert (upstream.request_count, upstream.unused_replies) == (0, 1)
        assert upstream.rejected[0].raw == content
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


async def test_a_refused_request_fails_the_test() -> None:
    """Unless the test allows it, leaving the context tells the refusal."""
    with pytest.raises(AssertionError, match=r"refused with 400: .*foo"):
        async with ScriptedOpenAI([]) as upstream:
            with pytest.raises(openai.BadRequestError):
                await ask(upstream, extra_body={"foo": 1})


async def test_rules_can_take_what_other_providers_take() -> None:
    """Extra fields can be allowed, of the request and of messages."""
    rules = Rules(frozenset({"top_k"}), frozenset({"reasoning_content"}))
    thought = {"role": "assistant", "content": "a", "reasoning_content": "b"}
    async with ScriptedOpenAI([says("a")], rules=rules) as upstream:
        await ask(upstream, user(), thought, user(), extra_body={"top_k": 1})


def log(*histories: list[dict[str, Any]]) -> list[Request]:
    return [Request(number, body(*messages), b"", {}) for number, messages in enumerate(histories, start=1)]


ROUND = [user("a"), asked("x"), returned("x", "42")]


def test_conversations_that_extend_themselves_pass() -> None:
    """Retries, a changed system message and a twin that begins alike are all right."""
    system = {"role": "system", "content": "s"}
    requests = log(
        [user("a")],
        [user("a")],
        ROUND,
        [system, *ROUND],
        [user("a"), ASSISTANT, user("b")],
        [*ROUND, ASSISTANT, user("c")],
    )
    groups = check_histories(requests)
    assert sorted([r.number for r in group] for group in groups) == [[1, 5], [2, 3, 4, 6]]


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ([user("a"), ASSISTANT, user("c")], "request 3 does not extend.*first 1 messages"),
        ([user("a"), asked("x"), returned("x", "43")], "request 3 does not extend"),
        ([ASSISTANT, user("c")], "request 3 does not extend"),
    ],
    ids=["rewritten", "other return", "forgotten"],
)
def test_a_conversation_that_rewrites_its_history_is_found(history: list[dict[str, Any]], problem: str) -> None:
    """A request with a history that was not told before names itself and the nearest."""
    requests = log([user("a")], ROUND, history)
    with pytest.raises(AssertionError, match=problem):
        check_histories(requests)
    check_histories(requests[:2])


def test_keys_and_expected_restarts_decide_where_conversations_begin() -> None:
    """With a key only the first request may begin anew, but for those that the test expects."""
    requests = log([user("a")], [user("b")], [returned("x", "42")], [returned("x", "43")])
    with pytest.raises(AssertionError, match="request 2 does not extend"):
        check_histories(requests[:2], conversation=lambda request: "one")
    with pytest.raises(AssertionError, match="another return for x than request 3"):
        check_histories(requests, conversation=lambda request: "one", may_restart=lambda request: True)
