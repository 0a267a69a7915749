"""The client of Chat Completions endpoints: what it sends, what it reads, and what it makes of failures."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_service.domain.content import Image, Part
from agent_service.domain.errors import Reason
from agent_service.domain.message import (
    ApprovalContent,
    AssistantContent,
    Content,
    Message,
    ReasoningContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.run import AgentKind, Pinned, Usage
from agent_service.domain.tool import Executor, Outcome, ToolCall, ToolChoice, ToolChoiceMode, ToolSchema
from agent_service.domain.values import replace
from agent_service.engine.model import (
    AnsweredCall,
    Expect,
    FinishReason,
    ModelAnswer,
    ModelClient,
    ModelError,
    ModelRequest,
    ToolMode,
)
from agent_service.models.answer import AnswerLimits
from agent_service.models.endpoint import Timeouts
from agent_service.models.openai_chat import OpenAIChatModel
from tests import scripted_openai as script
from tests.scripted_openai import Framing, Rules, ScriptedOpenAI
from tests.scripted_openai.refusals import error_body
from tests.scripted_openai.replies import Delta, Ending, Failure, Raw, Reply

pytestmark = pytest.mark.anyio

KEY = "sk-secret-0123456789"
WEATHER = ToolSchema(
    "get_weather",
    "The weather.",
    '{"type": "object", "properties": {"city": {"type":"string"}}, "x": 1.0}',
    Executor.CLIENT,
)
TIME = ToolSchema("get_time", "", '{"type":"object","properties":{}}', Executor.SERVER)


class RecordingSink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def text(self, fragment: str) -> None:
        """A piece of the text."""
        self.seen.append(("text", fragment))

    def reasoning(self, fragment: str) -> None:
        """A piece of the reasoning."""
        self.seen.append(("reasoning", fragment))

    def arguments(self, index: int, name: str, fragment: str) -> None:
        """A piece of the arguments."""
        self.seen.append(("arguments", index, name, fragment))


def pinned(*tools: ToolSchema, prompt: str = "Be kind.", parallel: bool | None = None) -> Pinned:
    """An agent with these tools."""
    return Pinned("a", AgentKind.LLM, "scripted-model", "p", prompt, tools, parallel_tool_calls=parallel)


def message(content: Content, step_id: str = "") -> Message:
    """A stored message."""
    return Message("m", "c", "r", step_id, 1, 0, content)


def call(call_id: str, name: str = "get_weather", arguments: str = "{}") -> ToolCall:
    """A call of the model."""
    return ToolCall(call_id, name, arguments)


def returned(call_id: str, text: str = "sunny", name: str = "get_weather") -> Message:
    """The return of a call."""
    return message(ToolReturnContent(call_id, name, Outcome.RETURNED, text, stdout="out", stderr="err"), "s1")


def request(
    history: Sequence[bytes] = (b'{"role":"user","content":"hi"}',),
    *tools: ToolSchema,
    choice: ToolChoice | None = None,
    after_return: bool = False,
    agent: Pinned | None = None,
) -> ModelRequest:
    """A request with this history and these tools."""
    return ModelRequest(agent or pinned(*tools), history, choice or ToolChoice(), after_return)


@asynccontextmanager
async def model_at(base_url: str, **options: Any) -> AsyncIterator[OpenAIChatModel]:
    """A client without retries, closed at the end."""
    model = OpenAIChatModel(base_url=base_url, **{"api_key": KEY, "max_retries": 0, **options})
    try:
        yield model
    finally:
        await model.close()


async def ask(
    reply: Reply, *tools: ToolSchema, choice: ToolChoice | None = None, **options: Any
) -> tuple[ModelAnswer, list[tuple[object, ...]]]:
    """The answer to one request, and what the sink was told."""
    sink = RecordingSink()
    rules = Rules(any_schema="tool_mode" in options)
    async with ScriptedOpenAI([reply], rules=rules) as server, model_at(server.base_url, **options) as model:
        answer = await model.complete(
            model.build(request((b'{"role":"user","content":"hi"}',), *tools, choice=choice)), sink
        )
    return answer, sink.seen


async def refused(reply: Reply | Sequence[Reply], **options: Any) -> ModelError:
    """The error of one request."""
    replies = [reply] if isinstance(reply, Reply) else reply
    async with ScriptedOpenAI(replies, expect_all_used=True) as server, model_at(server.base_url, **options) as model:
        with pytest.raises(ModelError) as caught:
            await model.complete(model.build(request()), RecordingSink())
    assert "\n" not in caught.value.message
    assert str(caught.value) == caught.value.message
    return caught.value


def stream_of(*events: dict[str, Any] | str, ending: Ending = Ending.CLOSED) -> Reply:
    """A stream of these events; `[DONE]` is not added."""
    raw = tuple(Raw(event if isinstance(event, str) else json.dumps(event)) for event in events)
    return Reply(raw, ending=ending, opening=False)


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def fragment(arguments: str, **fields: Any) -> dict[str, Any]:
    """A chunk with a piece of a tool call; `name` goes where it belongs."""
    function = {"arguments": arguments} | ({"name": fields.pop("name")} if "name" in fields else {})
    return chunk(tool_calls=[{**fields, "function": function}])


# What is sent.


def native() -> OpenAIChatModel:
    """A client to encode with."""
    return OpenAIChatModel(base_url="http://127.0.0.1:1/v1", api_key=KEY)


def by_schema(**options: Any) -> OpenAIChatModel:
    """A client for an endpoint that constrains its output."""
    return OpenAIChatModel(base_url="http://127.0.0.1:1/v1", tool_mode=ToolMode.JSON_SCHEMA, **options)


def encoded(*messages: Message, model: ModelClient | None = None) -> list[dict[str, Any]]:
    """The messages as the endpoint sees them."""
    found: list[dict[str, Any]] = json.loads(b"[" + (model or native()).encode(messages) + b"]")
    return found


def test_it_is_a_model_client() -> None:
    """It fits the port, and its name holds no secret."""
    client: ModelClient = native()
    assert client.name == "openai_chat"


def test_input_messages_keep_their_text_and_name() -> None:
    """A name that the API would refuse is made to fit."""
    assert encoded(
        message(UserContent("héllo")), message(UserContent("x", "Ann <a>")), message(SystemContent("rule"))
    ) == [
        {"role": "user", "content": "héllo"},
        {"role": "user", "content": "x", "name": "Ann__a_"},
        {"role": "system", "content": "rule"},
    ]


def test_one_answer_is_one_message_followed_by_its_returns_in_order() -> None:
    """Reasoning and approvals are not sent, nor what tools printed; returns follow in the order of the calls."""
    calls = ToolCallsContent((call("c1", arguments='{"city": "Rome"}'), call("c2", "get_time")))
    assert encoded(
        message(ReasoningContent("hm"), "s1"),
        message(AssistantContent("I look."), "s1"),
        message(calls, "s1"),
        message(ApprovalContent("c1", True), "s1"),
        returned("c2", "noon"),
        returned("c1"),
    ) == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
                },
                {"id": "c2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
    ]


def test_answers_of_two_steps_are_two_messages() -> None:
    """Only messages of the same step belong together; without a step each stands alone."""
    assert [
        m["content"] for m in encoded(message(AssistantContent("a"), "s1"), message(AssistantContent("b"), "s2"))
    ] == [
        "a",
        "b",
    ]
    assert len(encoded(message(AssistantContent("a")), message(AssistantContent("b")))) == 2


def test_calls_without_text_have_null_content_and_reasoning_alone_is_nothing() -> None:
    """The API takes null only together with calls, and no message without either."""
    assert encoded(message(ToolCallsContent((call("c1"),)), "s1"), returned("c1"))[0]["content"] is None
    assert encoded(message(ReasoningContent("hm"), "s1")) == []


@pytest.mark.parametrize(("written", "sent"), [("", "unknown"), ("get weather!", "get_weather_"), ("é" * 70, "_" * 64)])
def test_tool_names_that_the_api_refuses_in_a_history_are_made_to_fit(written: str, sent: str) -> None:
    """A model can write any name; the endpoint would refuse every later request of the conversation."""
    found = encoded(message(ToolCallsContent((call("c1", written),)), "s1"), returned("c1"))
    assert found[0]["tool_calls"][0]["function"]["name"] == sent


@pytest.mark.parametrize("model", [native(), by_schema()])
def test_a_call_without_return_and_the_reverse_are_errors(model: ModelClient) -> None:
    """Such a history would be refused by the endpoint for good."""
    with pytest.raises(ValueError, match="c1 has no return"):
        model.encode([message(ToolCallsContent((call("c1"),)), "s1")])
    with pytest.raises(ValueError, match="c1"):
        model.encode([returned("c1")])


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    """It cannot be sent in UTF-8."""
    assert encoded(message(UserContent("a\ud800b"))) == [{"role": "user", "content": "a\ufffdb"}]


PHOTO = Part(image=Image(b"\xff\xd8\xff", "image/jpeg"))


def photographed(call_id: str) -> Message:
    """A return with an image."""
    return message(ToolReturnContent(call_id, "photograph", Outcome.RETURNED, "", parts=(PHOTO, PHOTO)), "s4")


TURNS = st.one_of(
    st.text(max_size=5).map(lambda text: [message(UserContent(text))]),
    st.text(max_size=5).map(lambda text: [message(ReasoningContent(text), "s1")]),
    st.text(max_size=5).map(lambda text: [message(AssistantContent(text), "s2")]),
    st.integers(1, 3).map(
        lambda n: [
            message(AssistantContent("t"), "s3"),
            message(ToolCallsContent(tuple(call(f"c{i}") for i in range(n))), "s3"),
            *(returned(f"c{i}") for i in reversed(range(n))),
        ]
    ),
    st.just([message(UserContent("x", "Ann", (Part("x"), PHOTO)))]),
    st.just([message(ToolCallsContent((call("c0"), call("c1"))), "s4"), photographed("c1"), photographed("c0")]),
)


@settings(deadline=None)
@given(turns=st.lists(TURNS, max_size=6), cut=st.integers(0, 6), by_json=st.booleans())
def test_encoding_in_parts_equals_encoding_at_once(turns: list[list[Message]], cut: int, by_json: bool) -> None:
    """Bytes kept from earlier requests can be joined with new ones."""
    model = by_schema() if by_json else native()
    numbered = [_renumbered(turn, at) for at, turn in enumerate(turns)]
    whole, first, rest = ([m for turn in part for m in turn] for part in (numbered, numbered[:cut], numbered[cut:]))
    assert model.encode(whole) == b",".join(filter(None, (model.encode(first), model.encode(rest))))


def _renumbered(turn: list[Message], at: int) -> list[Message]:
    """The turn in a step of its own."""
    return [message(_own_ids(m.content, at), m.step_id and f"{m.step_id}-{at}") for m in turn]


def _own_ids(content: Content, at: int) -> Content:
    if isinstance(content, ToolCallsContent):
        return ToolCallsContent(tuple(call(f"{at}-{c.tool_call_id}") for c in content.calls))
    if isinstance(content, ToolReturnContent):
        return replace(content, tool_call_id=f"{at}-{content.tool_call_id}")
    return content


def test_the_body_is_these_bytes() -> None:
    """Tool parameters are the exact text that was registered; pieces of history are joined as they are."""
    history = [b'{"role":"user","content":"hi"}', b"", b'{"role":"user","content":"you"}']
    built = native().build(
        request(history, agent=pinned(WEATHER, TIME, parallel=False), choice=ToolChoice(ToolChoiceMode.REQUIRED))
    )
    assert built.expect is Expect.NATIVE
    assert built.body.decode() == (
        '{"model":"scripted-model","messages":[{"role":"system","content":"Be kind."},'
        '{"role":"user","content":"hi"},{"role":"user","content":"you"}],'
        '"tools":[{"type":"function","function":{"name":"get_weather","description":"The weather.",'
        '"parameters":{"type": "object", "properties": {"city": {"type":"string"}}, "x": 1.0}}},'
        '{"type":"function","function":{"name":"get_time","parameters":{"type":"object","properties":{}}}}],'
        '"tool_choice":"required","parallel_tool_calls":false,'
        '"stream":true,"stream_options":{"include_usage":true}}'
    )


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("{}", '{"type":"object","properties":{}}'),
        (" { } ", '{"type":"object","properties":{} } '),
        ('{"type": "object"}', '{"properties":{},"type": "object"}'),
        ('{ "properties":{"a":{}}, "x": 1.0}', '{"type":"object", "properties":{"a":{}}, "x": 1.0}'),
        ('{"const":{"type":1}}', '{"type":"object","properties":{},"const":{"type":1}}'),
    ],
)
def test_parameters_are_sent_as_the_schema_of_an_object(written: str, sent: str) -> None:
    """What endpoints insist on is put in front; the rest stays as it was written. A call by JSON gets the same."""
    tool = replace(TIME, parameters_json=written)
    assert f'"parameters":{sent}}}'.encode() in native().build(request(agent=pinned(tool))).body
    constrained = by_schema().build(request(agent=pinned(tool), choice=REQUIRED))
    assert f'"arguments":{sent}}},"required"'.encode() in constrained.body


def test_what_is_not_set_is_left_out() -> None:
    """No system message without prompt; no tool fields without tools, whatever the choice."""
    agent = pinned(prompt="", parallel=True)
    built = native().build(request(agent=agent, choice=ToolChoice(ToolChoiceMode.NONE)))
    assert json.loads(built.body) == {
        "model": "scripted-model",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (ToolChoice(), None),
        (ToolChoice(ToolChoiceMode.NONE), "none"),
        (ToolChoice(ToolChoiceMode.REQUIRED), "required"),
        (ToolChoice(tool_name="get_time"), {"type": "function", "function": {"name": "get_time"}}),
    ],
)
def test_tool_choice(choice: ToolChoice, sent: object) -> None:
    """AUTO is the endpoint's default and not sent; a name wins over the mode."""
    assert json.loads(native().build(request((), WEATHER, TIME, choice=choice)).body).get("tool_choice") == sent


async def test_a_strict_endpoint_takes_what_is_encoded() -> None:
    """Odd names, empty texts, returns out of order and large bodies (sent in pieces) pass the API's rules."""
    calls = ToolCallsContent((call("c1", "odd name", "{not json"), call("c2", "")))
    messages = [
        message(UserContent("", "Ann Lee")),
        message(AssistantContent(""), "s0"),
        message(calls, "s1"),
        returned("c2", ""),
        returned("c1", "x" * 1_500_000),
        message(AssistantContent("fine"), "s2"),
        message(SystemContent("é")),
    ]
    async with ScriptedOpenAI([script.says("ok")], api_key=KEY) as server, model_at(server.base_url) as model:
        built = model.build(request([model.encode(messages)], WEATHER))
        await model.complete(built, RecordingSink())
    assert server.requests[0].raw == built.body
    assert server.requests[0].headers["Content-Type"] == "application/json"


async def test_nothing_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither credentials nor headers nor, for an endpoint on this host, a proxy."""
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "leak")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://leak.invalid")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Leak: leak\nAuthorization: leak")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with ScriptedOpenAI([script.says("ok")] * 2) as server:
        for key, sent in ((KEY, f"Bearer {KEY}"), ("", None)):
            async with model_at(server.base_url, api_key=key) as model:
                await model.complete(model.build(request()), RecordingSink())
            headers = server.requests[-1].headers
            assert headers.get("Authorization") == sent
            assert "leak" not in str(headers)
    assert str(OpenAIChatModel()._endpoint._client.base_url) == "https://api.openai.com/v1/"


def test_the_package_is_light() -> None:
    """`import openai` takes about a second: importing the package of the models does not."""
    code = "import sys, agent_service.models; sys.exit('openai' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


# What is read.


@pytest.mark.parametrize(
    "framing",
    [
        Framing(),
        Framing(newline="\r\n", comments=True),
        Framing(newline="\r", event_lines=True),
        Framing(multi_line=True, space=False),
    ],
)
async def test_text_and_reasoning_stream_through(framing: Framing) -> None:
    """The pieces reach the sink as they come, and the answer holds the whole, in any framing."""
    usage = script.Usage(prompt=7, completion=9, cached=3, reasoning=2)
    answer, seen = await ask(script.says(["Grüß ", "dich 👋"], reasoning="hm", usage=usage, framing=framing))
    assert seen == [("reasoning", "hm"), ("text", "Grüß "), ("text", "dich 👋")]
    assert answer == ModelAnswer("Grüß dich 👋", "hm", (), FinishReason.STOP, Usage(7, 9, 16, 3, 2), 1)


async def test_reasoning_under_its_other_name() -> None:
    """Endpoints call it `reasoning_content` or `reasoning`."""
    answer, _ = await ask(script.says("a", reasoning="hm", reasoning_field="reasoning"))
    assert answer.reasoning == "hm"


async def test_parallel_calls_come_interleaved() -> None:
    """Fragments alternate; each call keeps its id, name and exact arguments."""
    reply = script.calls(("get_weather", '{"city":  "Rome"}'), ("get_time", {}), text="I look.", ids=["a", "b"])
    answer, seen = await ask(reply, WEATHER, TIME)
    assert answer.text == "I look."
    assert answer.calls == (AnsweredCall("a", "get_weather", '{"city":  "Rome"}'), AnsweredCall("b", "get_time", "{}"))
    assert answer.finish is FinishReason.STOP
    told = [s for s in seen if s[0] == "arguments"]
    assert told[:2] == [("arguments", 0, "get_weather", ""), ("arguments", 1, "get_time", "")]
    assert "".join(str(s[3]) for s in told if s[1] == 0) == '{"city":  "Rome"}'


async def test_call_fragments_without_index_go_by_id_and_position() -> None:
    """Some endpoints leave the index out."""
    answer, _ = await ask(
        stream_of(
            fragment("{", id="a", name="get_weather"),
            fragment("}"),
            fragment("[", id="b", name="get_time"),
            fragment(" ", id="a"),
            fragment("]"),
            "[DONE]",
        )
    )
    assert answer.calls == (AnsweredCall("a", "get_weather", "{} "), AnsweredCall("b", "get_time", "[]"))


async def test_calls_that_share_an_index_are_told_apart_by_id() -> None:
    """Some endpoints number each of several calls 0."""
    answer, _ = await ask(
        stream_of(
            fragment("{}", index=0, id="a", name="get_weather"),
            fragment("[]", index=0, id="b", name="get_time"),
            chunk("tool_calls"),
        )
    )
    assert answer.calls == (AnsweredCall("a", "get_weather", "{}"), AnsweredCall("b", "get_time", "[]"))


async def test_a_refusal_is_text() -> None:
    """The model's own refusal is what it says."""
    answer, seen = await ask(Reply((Delta({"refusal": "I will not."}),)))
    assert answer.text == "I will not."
    assert seen == [("text", "I will not.")]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", FinishReason.STOP),
        ("tool_calls", FinishReason.STOP),
        ("function_call", FinishReason.STOP),
        ("eos", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
    ],
)
async def test_a_finish_reason_ends_an_answer_without_done(reason: str, finish: FinishReason) -> None:
    """`[DONE]` may be missing; usage too."""
    answer, _ = await ask(stream_of(chunk(content="a"), chunk(reason)))
    assert (answer.text, answer.finish, answer.usage) == ("a", finish, Usage())


async def test_done_ends_an_answer_without_finish_reason() -> None:
    """What comes after it is not read."""
    answer, _ = await ask(stream_of(chunk(content="a"), "[DONE]", "garbage"))
    assert (answer.text, answer.finish) == ("a", FinishReason.STOP)


async def test_a_break_after_the_finish_reason_harms_nothing() -> None:
    """The answer was whole."""
    answer, _ = await ask(stream_of(chunk("stop", content="a"), ending=Ending.CUT))
    assert answer.text == "a"


async def test_usage_is_read_as_far_as_it_is_there() -> None:
    """Details and the total may be missing, and a strange one does not spoil the answer."""
    first, _ = await ask(
        stream_of(chunk("stop", content="a"), {"choices": [], "usage": {"prompt_tokens": 3}}, "[DONE]")
    )
    assert first.usage == Usage(3, 0, 3)
    strange, _ = await ask(stream_of(chunk("stop", content="a") | {"usage": {"prompt_tokens": "many"}}, "[DONE]"))
    assert strange.usage == Usage()


async def test_half_of_an_escaped_pair_becomes_the_replacement_character() -> None:
    """Models do write them, when an emoji is cut at the border of a token."""
    event = r'{"choices":[{"index":0,"delta":{"content":"a\ud83d"},"finish_reason":"stop"}]}'
    answer, seen = await ask(stream_of(event))
    assert answer.text == "a\ufffd"
    assert seen == [("text", "a\ufffd")]


async def test_length_without_content_is_an_answer() -> None:
    """A model that used up its tokens before it wrote anything has not failed."""
    answer, _ = await ask(script.cut_by_length("abc", after=0))
    assert (answer.text, answer.finish) == ("", FinishReason.LENGTH)


# What goes wrong.


@pytest.mark.parametrize(
    ("reply", "reason", "message"),
    [
        (script.fails(400, "Too many\n messages", code="x"), Reason.LLM_REFUSED, "answered 400: Too many messages"),
        (script.fails(404, "no such model"), Reason.LLM_REFUSED, "no such model"),
        (script.fails(401, f"Incorrect API key: {KEY}"), Reason.LLM_REFUSED, "check OPENAI_API_KEY"),
        (script.fails(403, f"not for {KEY}"), Reason.LLM_REFUSED, "check OPENAI_API_KEY"),
        (script.fails(402, "pay"), Reason.LLM_INSUFFICIENT_CREDITS, "pay"),
        (script.fails(429, "quota", code="insufficient_quota"), Reason.LLM_INSUFFICIENT_CREDITS, "quota"),
        (script.fails(429, "slow down"), Reason.LLM_UNAVAILABLE, "slow down"),
        (script.fails(408), Reason.LLM_UNAVAILABLE, "408"),
        (script.fails(409), Reason.LLM_UNAVAILABLE, "409"),
        (script.fails(500, f"oops {KEY}"), Reason.LLM_UNAVAILABLE, r"oops \*\*\*$"),
        (script.fails(502, body="<html>Bad gateway</html>"), Reason.LLM_UNAVAILABLE, "answered 502$"),
        (script.fails(422, body='{"error": "plain words"}'), Reason.LLM_REFUSED, "plain words"),
    ],
)
async def test_http_errors(reply: Reply, reason: Reason, message: str) -> None:
    """Each status has its meaning; the endpoint's words are shown, the key never."""
    error = await refused(reply)
    assert error.reason is reason
    error_matches = pytest.raises(ModelError, match=message)
    with error_matches:
        raise error
    assert KEY not in str(error)
    assert reply.failure is not None
    assert (error.http_status, error.attempts, error.started) == (reply.failure.status, 1, False)


async def test_messages_are_cut_and_hold_no_part_of_the_key() -> None:
    """500 characters suffice, and the key is taken out before the cut."""
    error = await refused(script.fails(400, "x" * 465 + KEY + "y" * 1000))
    assert len(error.message) == 500
    assert KEY[:8] not in error.message


def _failure(status: int, **headers: str) -> Reply:
    body = error_body("busy", code=None)
    return Reply(failure=Failure(status, body, {"Content-Type": "application/json", **headers}))


async def test_retries_are_counted_in_answers_and_errors() -> None:
    """The SDK retries before the answer begins, after the pause that the endpoint asks for."""
    busy = _failure(429, **{"retry-after-ms": "1"})
    replies = [busy, busy, script.says("ok")]
    async with ScriptedOpenAI(replies) as server, model_at(server.base_url, max_retries=2) as model:
        answer = await model.complete(model.build(request()), RecordingSink())
    assert answer.attempts == 3
    assert len({made.raw for made in server.requests}) == 1
    error = await refused([busy, _failure(503, **{"retry-after-ms": "1500"})], max_retries=1)
    assert (error.attempts, error.retry_after, error.http_status) == (2, 1.5, 503)


async def test_a_large_body_is_sent_again_whole() -> None:
    """Also a body that is sent in pieces can be retried."""
    replies = [_failure(500, **{"retry-after-ms": "1"}), script.says("ok")]
    async with ScriptedOpenAI(replies) as server, model_at(server.base_url, max_retries=1) as model:
        large = model.encode([message(UserContent("x" * 2_000_000))])
        answer = await model.complete(model.build(request([large])), RecordingSink())
    assert answer.attempts == 2
    assert server.requests[0].raw == server.requests[1].raw


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:30 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "inf", "retry-after": "2"}, 2.0),
        ({}, None),
    ],
)
async def test_retry_after(header: dict[str, str], seconds: float | None) -> None:
    """Milliseconds, seconds or a date; the clock here shows 60 seconds after 1970."""
    error = await refused(_failure(503, **header), now=lambda: 60.0)
    assert error.retry_after == seconds


async def test_nobody_listens() -> None:
    """A connection that cannot be made is named with host and port."""
    async with ScriptedOpenAI([]) as server:
        url = server.base_url
    async with model_at(url) as model:
        with pytest.raises(ModelError, match=r"no answer from http://127\.0\.0\.1:\d+: ") as caught:
            await model.complete(model.build(request()), RecordingSink())
        with pytest.raises(ModelError, match="no answer"):
            await model.list_models()
    assert (caught.value.reason, caught.value.attempts) == (Reason.LLM_UNAVAILABLE, 1)


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "localhost:8080/v1", "http://", "ftp://host"])
def test_a_base_url_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    """Also one with credentials, which would clash with the key; they are not repeated."""
    with pytest.raises(ValueError, match="base URL must") as caught:
        OpenAIChatModel(base_url=url)
    assert "secret" not in str(caught.value)


async def test_the_endpoint_hangs_up_before_it_answers() -> None:
    """Retryable, and nothing has started."""
    error = await refused(script.hangs_up())
    assert (error.reason, error.started) == (Reason.LLM_UNAVAILABLE, False)


@pytest.mark.parametrize("politely", [False, True])
async def test_a_cut_stream_is_not_an_answer(politely: bool) -> None:
    """Neither `[DONE]` nor a finish reason came: whatever was said may be half."""
    error = await refused(script.breaks_off(after=2, politely=politely))
    assert (error.reason, error.started, error.retryable) == (Reason.LLM_UNAVAILABLE, True, True)


@pytest.mark.parametrize(("before_headers", "after"), [(True, 0), (False, 0), (False, 1)])
async def test_silence_ends_the_wait(before_headers: bool, after: int) -> None:
    """Before the first byte, after the headers and between two pieces; an answer has started with its headers."""
    reply = script.silent("abcdefgh", after=after, before_headers=before_headers)
    error = await refused(reply, timeouts=Timeouts(silence=0.5))
    assert (error.reason, error.started) == (Reason.LLM_UNAVAILABLE, not before_headers)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"message": "overloaded", "type": "server_error"}, Reason.LLM_UNAVAILABLE),
        ("overloaded", Reason.LLM_UNAVAILABLE),
        ({"message": "m", "code": 503}, Reason.LLM_UNAVAILABLE),
        ({"message": "m", "code": "insufficient_quota"}, Reason.LLM_INSUFFICIENT_CREDITS),
        ({"message": "m", "code": 402}, Reason.LLM_INSUFFICIENT_CREDITS),
        ({"message": "m", "type": "invalid_request_error"}, Reason.LLM_REFUSED),
    ],
)
async def test_an_error_in_the_stream(error: object, reason: Reason) -> None:
    """It ends the answer with the endpoint's words."""
    found = await refused(stream_of(chunk(content="a"), {"error": error}))
    assert (found.reason, found.started) == (reason, True)
    assert ("overloaded" if "overloaded" in str(error) else "m") in found.message


async def test_the_content_filter() -> None:
    """Its answer is withheld, and asking again would not help."""
    error = await refused(script.content_filter())
    assert (error.reason, error.message) == (
        Reason.LLM_REFUSED,
        "the endpoint's content filter stopped the answer",
    )


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (script.empty(), "empty answer"),
        (script.garbage(), "cannot be read"),
        (script.garbage({"object": "list"}), "not a chat completion chunk"),
        (script.garbage('{"choices": "no"}'), "cannot be read"),
        (script.garbage("[" * 100_000), "cannot be read"),
        (script.garbage("x" * 9_000_000, framing=Framing(cut=False)), "larger than 8388608 bytes"),
        (Reply(failure=Failure(200, "{}", {"Content-Type": "application/json"})), "application/json instead of"),
        (Reply(failure=Failure(200, "hi", {"Content-Type": "text/html"})), "text/html instead of"),
        (stream_of(chunk(tool_calls=[{"index": i} for i in range(129)])), "more than 128 tool calls"),
    ],
)
async def test_answers_that_are_none(reply: Reply, message: str) -> None:
    """What does not follow the API is said so, not guessed at."""
    error = await refused(reply)
    assert error.reason is Reason.LLM_INVALID_RESPONSE
    assert message in error.message


async def test_answers_are_bounded() -> None:
    """Text and reasoning together, in bytes of UTF-8; the arguments of calls by themselves."""
    limits = AnswerLimits(text_bytes=10, arguments_bytes=20)
    assert (await ask(script.says(["é" * 4], reasoning="ab"), limits=limits))[0].text == "é" * 4
    error = await refused(script.says(["é" * 4, "x"], reasoning="ab"), limits=limits)
    assert (error.reason, error.started) == (Reason.LLM_INVALID_RESPONSE, True)
    error = await refused(stream_of(fragment("x" * 20, index=0, id="a", name="b")), limits=limits)
    assert "larger than 20 bytes" in error.message


async def test_cancelling_closes_the_connection() -> None:
    """The endpoint sees at once that nobody listens any more, before its answer begins and in the middle of it."""
    for reply in (script.silent(before_headers=True), script.silent("abcdefgh", after=1)):
        async with ScriptedOpenAI([reply]) as server, model_at(server.base_url) as model:
            task = asyncio.create_task(model.complete(model.build(request()), RecordingSink()))
            await server.wait_for_requests(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.disconnected.wait()


async def test_an_error_of_the_sink_is_not_the_endpoints() -> None:
    """It comes through as it is, and closes the connection."""

    class Full(RecordingSink):
        def text(self, fragment: str) -> None:
            raise OSError("disk full")

    async with ScriptedOpenAI([script.silent("abcdefgh", after=1)]) as server, model_at(server.base_url) as model:
        with pytest.raises(OSError, match="disk full"):
            await model.complete(model.build(request()), Full())
        await server.disconnected.wait()


@asynccontextmanager
async def serving(answer: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that sends these bytes to every request; gives its URL and the number of requests per connection."""
    requests: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = len(requests)
        requests.append(0)
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or b"0")
            await reader.readexactly(length)
            requests[connection] += 1
            writer.write(answer)
            await writer.drain()

    async def until_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(until_gone, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", requests
    finally:
        server.close()


async def test_a_connection_is_used_again_after_an_answer() -> None:
    """Also when the stream ends a little after `[DONE]`."""
    events = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(events), events)
    async with serving(answer) as (url, requests), model_at(url) as model:
        for _ in range(3):
            await model.complete(model.build(request()), RecordingSink())
    assert requests == [3]


async def test_a_compressed_stream_is_read() -> None:
    """Proxies compress what they please."""
    events = gzip.compress(b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n')
    head = f"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: {len(events)}\r\n\r\n"
    async with serving(b"HTTP/1.1 200 OK\r\n" + head.encode() + events) as (url, _), model_at(url) as model:
        answer = await model.complete(model.build(request()), RecordingSink())
    assert answer.text == "a"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"no HTTP at all\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 500 X\r\nContent-Length: zzz\r\n\r\n", id="bad header"),
    ],
)
async def test_what_is_not_http_is_an_unavailable_endpoint(answer: bytes) -> None:
    """A wrong port, a broken proxy."""
    async with serving(answer) as (url, _), model_at(url) as model:
        with pytest.raises(ModelError, match="no answer from") as caught:
            await model.complete(model.build(request()), RecordingSink())
    assert caught.value.reason is Reason.LLM_UNAVAILABLE


async def test_models_are_listed() -> None:
    """In the endpoint's order, with the same errors as answers."""
    async with ScriptedOpenAI([], api_key=KEY, models=("b", "a"), allow_rejected=True) as server:
        async with model_at(server.base_url) as model:
            assert await model.list_models() == ("b", "a")
        async with model_at(server.base_url, api_key="wrong") as model:
            with pytest.raises(ModelError, match="check OPENAI_API_KEY"):
                await model.list_models()


@pytest.mark.parametrize("body", ["[]", '{"data": 1}', "<html>"])
async def test_a_list_of_models_that_is_none(body: str) -> None:
    """Said so."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    async with serving((head + body).encode()) as (url, _), model_at(url) as model:
        with pytest.raises(ModelError, match="cannot be read"):
            await model.list_models()


# Endpoints that constrain their output by a JSON schema.

SAYS_CALL = '{ "tool": "get_weather", "arguments": {"n": 12345678901234567890123, "f": 1.0} }'
REQUIRED = ToolChoice(ToolChoiceMode.REQUIRED)


def test_a_forced_tool_becomes_the_schema_of_its_call() -> None:
    """Only that tool is described, and only in the system text of this request; no `tools` are sent."""
    built = by_schema().build(request((), WEATHER, TIME, choice=ToolChoice(tool_name="get_weather")))
    sent = json.loads(built.body)
    assert built.expect is Expect.CALL
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "schema": {
                "type": "object",
                "properties": {"tool": {"const": "get_weather"}, "arguments": json.loads(WEATHER.parameters_json)},
                "required": ["tool", "arguments"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
    system = sent["messages"][0]["content"]
    assert system.startswith("Be kind.\n\n")
    assert "get_weather" in system
    assert "get_time" not in system
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(sent)


def test_several_tools_are_alternatives_and_auto_adds_text() -> None:
    """REQUIRED: one of the calls; AUTO: one of them or text."""
    required = json.loads(by_schema().build(request((), WEATHER, TIME, choice=REQUIRED)).body)
    names = [s["properties"]["tool"]["const"] for s in required["response_format"]["json_schema"]["schema"]["anyOf"]]
    assert names == ["get_weather", "get_time"]
    auto = by_schema().build(request((), TIME))
    assert auto.expect is Expect.EITHER
    either = json.loads(auto.body)["response_format"]["json_schema"]["schema"]["anyOf"]
    assert [list(s["properties"]) for s in either] == [["tool", "arguments"], ["text"]]


@pytest.mark.parametrize(
    ("asked", "marked"),
    [
        (request((), WEATHER, choice=ToolChoice(ToolChoiceMode.NONE)), False),
        (request(()), False),
        (request((), WEATHER, after_return=True), True),
    ],
)
def test_free_text_is_asked_for_without_schema(asked: ModelRequest, marked: bool) -> None:
    """NONE, no tools, or a return for a model that answers after one: tools are not even mentioned."""
    built = by_schema(answers_after_return=marked).build(asked)
    assert built.expect is Expect.TEXT
    assert "response_format" not in json.loads(built.body)
    assert b"get_weather" not in built.body


def test_an_unmarked_model_may_call_again_after_a_return() -> None:
    """Only models that need it are kept from calling."""
    assert by_schema().build(request((), WEATHER, after_return=True)).expect is Expect.EITHER


def test_a_history_of_json_calls_is_plain_text() -> None:
    """The call as the model wrote it, the return as the user's words."""
    calls = ToolCallsContent((call("c1", 'we"ird', '{"a": 1.0}'),))
    assert encoded(
        message(AssistantContent("Hm."), "s1"), message(calls, "s1"), returned("c1", name="w"), model=by_schema()
    ) == [
        {"role": "assistant", "content": 'Hm.\n{"tool":"we\\"ird","arguments":{"a": 1.0}}'},
        {"role": "user", "content": 'The tool w returned {"result":"sunny"}'},
    ]


def test_a_model_that_answers_after_a_return_is_asked_to() -> None:
    """It does not see its own call, which it would repeat; a return that is a JSON object is told as it is."""
    calls = ToolCallsContent((call("c1", "w"),))
    model = by_schema(answers_after_return=True)
    assert encoded(message(calls, "s1"), returned("c1", '{"sky": "blue"}', name="w"), model=model) == [
        {"role": "user", "content": 'The tool w returned {"sky": "blue"}\n\nAnswer my question in one sentence.'},
    ]


@pytest.mark.parametrize(("choice", "at"), [(REQUIRED, ""), (ToolChoice(), "/anyOf/0")])
def test_references_inside_parameters_hold_in_the_schema_of_the_call(choice: ToolChoice, at: str) -> None:
    """They count from the root of the whole schema, where the parameters are only a part."""
    parameters = {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"type": "string"}}}
    tool = replace(WEATHER, parameters_json=json.dumps(parameters))
    sent = json.loads(by_schema().build(request((), tool, choice=choice)).body)
    schema = sent["response_format"]["json_schema"]["schema"]
    reference = f"#{at}/properties/arguments/$defs/P"
    assert reference in json.dumps(schema)
    for part in reference.removeprefix("#/").split("/"):
        schema = schema[int(part)] if isinstance(schema, list) else schema[part]
    assert schema == {"type": "string"}


async def test_a_json_call_is_a_call_with_exact_arguments() -> None:
    """It reaches the sink whole, as arguments and never as text."""
    answer, seen = await ask(script.says(SAYS_CALL), WEATHER, choice=REQUIRED, tool_mode=ToolMode.JSON_SCHEMA)
    arguments = '{"n": 12345678901234567890123, "f": 1.0}'
    assert (answer.text, answer.calls) == ("", (AnsweredCall("", "get_weather", arguments),))
    assert seen == [("arguments", 0, "get_weather", ""), ("arguments", 0, "get_weather", arguments)]


@pytest.mark.parametrize(("said", "text"), [(SAYS_CALL, ""), ('{"text": "Hi \\ud83d"}', "Hi \ufffd")])
async def test_either_a_call_or_text(said: str, text: str) -> None:
    """AUTO: what the model chose."""
    answer, seen = await ask(script.says(said), WEATHER, tool_mode=ToolMode.JSON_SCHEMA)
    assert (answer.text, len(answer.calls)) == (text, 0 if text else 1)
    assert seen[0][0] == ("text" if text else "arguments")


@pytest.mark.parametrize(
    "said", ["It is sunny.", "{}", '{"tool": "get_weather"}', '{"text": "a"}', "[]", SAYS_CALL + "x"]
)
async def test_a_json_answer_that_is_none(said: str) -> None:
    """The endpoint did not constrain its output."""
    with pytest.raises(ModelError, match="not the JSON object") as caught:
        await ask(script.says(said), WEATHER, choice=REQUIRED, tool_mode=ToolMode.JSON_SCHEMA)
    assert (caught.value.reason, caught.value.retryable) == (Reason.LLM_INVALID_RESPONSE, False)


@pytest.mark.parametrize(
    ("said", "text", "calls"),
    [
        ('{"tool":"get_weather","arguments": {"city": "Ro', "", (AnsweredCall("", "get_weather", '{"city": "Ro'),)),
        ('{"tool":"get_we', "", ()),
        ('{"text": "It is \\"sun\\u00', 'It is "sun', ()),
        ("", "", ()),
    ],
)
async def test_a_json_answer_cut_by_length(said: str, text: str, calls: tuple[AnsweredCall, ...]) -> None:
    """What was written is kept, so that the reader sees why it is incomplete."""
    answer, _ = await ask(script.cut_by_length(script.says([said]), after=1), WEATHER, tool_mode=ToolMode.JSON_SCHEMA)
    assert (answer.text, answer.calls, answer.finish) == (text, calls, FinishReason.LENGTH)
