"""Images in input and in tool returns: to the model in its own format, kept once, and back to callers as they came."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from agentrpc.v1 import (
    agent_service_pb2,
    content_pb2,
    messages_pb2,
    run_service_pb2,
    runs_pb2,
    tools_pb2,
)

from tests.modes import MODES, resume, start
from tests.pictures import FILES, KIB, PNG, URL, asking, part, png, said, shown
from tests.scripted_openai import ScriptedOpenAI, calls, says
from tests.service import SECRET, Client, refusal, returned, scripted, serving, step, submit

pytestmark = pytest.mark.anyio

LOW = content_pb2.IMAGE_DETAIL_LOW
ASKS = calls(("get_secret_code", {"name": "Alice"}))
CHECKED = tools_pb2.ClientToolSchema(name="get_secret_code", result_schema_json='{"type": "integer"}')


# Input.


@pytest.mark.parametrize("mode", MODES)
async def test_images_of_input_go_to_the_model_in_their_place(store: str, mode: str) -> None:
    """Bytes as a data URL, a URL as it is; what is stored and given back has the parts, and all text in one."""
    async with scripted([says("Two cats."), says("Yes.")], store) as (client, upstream):
        request = asking(
            part("What "), part("is "), part(data=PNG, detail=LOW), part(""), part("and"), part(url=URL), part("?")
        )
        request.input_messages[0].name = "Ann"
        built = await client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(step=request))
        done = await start(client, mode, request)
        assert built.request_json.encode() == upstream.requests[0].raw
        (sent,) = upstream.requests[0].history
        assert sent == {
            "role": "user",
            "name": "Ann",
            "content": [
                said("What is "),
                shown(PNG, detail="low"),
                said("and"),
                {"type": "image_url", "image_url": {"url": URL}},
                said("?"),
            ],
        }
        user = done.messages[0].user
        assert user == messages_pb2.UserMessage(
            text="What is and?",
            name="Ann",
            parts=[
                part("What is "),
                part(data=PNG, detail=LOW, mime_type="image/png"),
                part("and"),
                part(url=URL, detail=content_pb2.IMAGE_DETAIL_AUTO),
                part("?"),
            ],
        )
        assert await client.messages(done.run.conversation_id) == done.messages
        later = await client.ask("Sure?", conversation_id=done.run.conversation_id)
        assert later.run.status == runs_pb2.RUN_STATUS_COMPLETED
        upstream.check_histories()


@pytest.mark.parametrize("kind", FILES)
async def test_the_type_of_an_image_is_read_from_its_bytes(store: str, kind: str) -> None:
    """And may be said as well; it is given back either way."""
    async with scripted([says("A cat.")], store) as (client, upstream):
        done = await client.agent.Step(asking(part(data=FILES[kind]), part(data=FILES[kind], mime_type=kind)))
        assert upstream.requests[0].history[0]["content"] == [shown(FILES[kind], kind)] * 2
        assert [p.image.mime_type for p in done.messages[0].user.parts] == [kind, kind]
        assert done.messages[0].user.text == ""


async def test_parts_of_text_alone_are_a_text(store: str) -> None:
    """As if they had been sent as one: to the model, to readers, and for a repeat of the start."""
    async with scripted([says("Hello.")], store) as (client, upstream):
        request = asking(part("He"), part("llo"), run_id="run-1")
        done = await client.agent.Step(request)
        assert upstream.requests[0].history == [{"role": "user", "content": "Hello"}]
        assert done.messages[0].user == messages_pb2.UserMessage(text="Hello")
        assert await client.ask("Hello", run_id="run-1") == done


async def test_a_responder_takes_images(store: str) -> None:
    """They need no tools."""
    async with scripted([says("A cat.")], store) as (client, upstream):
        await client.agent.Step(asking(part(data=PNG), agent_id="responder"))
        assert upstream.requests[0].history[0]["content"] == [shown(PNG)]


async def test_an_image_is_part_of_what_a_start_is(store: str) -> None:
    """The same bytes join the run; others, or another detail, are another request."""
    async with scripted([says("A cat.")], store) as (client, _):
        first = await client.agent.Step(asking(part(data=PNG), run_id="run-1"))
        assert await client.agent.Step(asking(part(data=PNG, mime_type="image/png"), run_id="run-1")) == first
        for other in (part(data=PNG + b"x"), part(data=PNG, detail=LOW), part(url=URL)):
            assert (await refusal(client.agent.Step(asking(other, run_id="run-1")))).reason == "RUN_ID_REUSED"


async def test_a_queued_run_keeps_its_images(store: str) -> None:
    """They join the conversation when its turn comes."""
    async with scripted([ASKS, says("ONE."), says("A cat.")], store) as (client, upstream):
        paused = (await client.ask("Code?", SECRET)).run
        queued = await client.agent.Step(
            asking(
                part("And this?"),
                part(data=PNG),
                conversation_id=paused.conversation_id,
                on_busy=agent_service_pb2.ON_BUSY_ENQUEUE,
                background=True,
            )
        )
        assert queued.run.status == runs_pb2.RUN_STATUS_QUEUED
        await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "ONE"))
        await client.watch(queued.run.run_id)
        assert upstream.requests[2].last["content"] == [said("And this?"), shown(PNG)]
        upstream.check_histories()


# Tool returns.


@pytest.mark.parametrize("mode", MODES)
async def test_images_of_a_return_follow_the_returns_of_its_answer(store: str, mode: str) -> None:
    """The API takes text only in tool messages; each return's images come in a user message that names its call."""
    both = calls(("get_secret_code", {"name": "Alice"}), ("get_secret_code", {"name": "Bob"}))
    async with scripted([both, says("Cats."), says("Yes.")], store) as (client, upstream):
        paused = await start(client, mode, step("Photos?", SECRET))
        alice, bob = paused.run.pending_tool_calls
        one = returned(alice, "", parts=[part("Her "), part(data=PNG), part("cat."), part(url=URL)], stdout="out")
        two = returned(bob, "", parts=[part(data=FILES["image/gif"])], status=tools_pb2.TOOL_RETURN_STATUS_ERROR)
        request = submit(paused.run.run_id, two, one)
        built = await client.agent.BuildRequest(agent_service_pb2.BuildRequestRequest(submit=request))
        done = await resume(client, mode, paused.run, request)
        assert built.request_json.encode() == upstream.requests[1].raw
        a, b = alice.tool_call_id, bob.tool_call_id
        assert upstream.requests[1].history[2:] == [
            {"role": "tool", "tool_call_id": a, "content": "Her cat."},
            {"role": "tool", "tool_call_id": b, "content": "1 image returned; see below."},
            {
                "role": "user",
                "content": [
                    said(f"2 images returned by the tool get_secret_code ({a}):"),
                    shown(PNG),
                    {"type": "image_url", "image_url": {"url": URL}},
                ],
            },
            {
                "role": "user",
                "content": [
                    said(f"1 image returned by the tool get_secret_code ({b}):"),
                    shown(FILES["image/gif"], "image/gif"),
                ],
            },
        ]
        auto = content_pb2.IMAGE_DETAIL_AUTO
        second, first = done.messages[0].tool_return, done.messages[1].tool_return
        assert (first.text, first.stdout, first.outcome) == ("Her cat.", "out", tools_pb2.TOOL_CALL_OUTCOME_RETURNED)
        assert list(first.parts) == [
            part("Her "),
            part(data=PNG, mime_type="image/png", detail=auto),
            part("cat."),
            part(url=URL, detail=auto),
        ]
        assert (second.text, second.outcome) == ("", tools_pb2.TOOL_CALL_OUTCOME_FAILED)
        assert list(second.parts) == [part(data=FILES["image/gif"], mime_type="image/gif", detail=auto)]
        assert (await client.messages(done.run.conversation_id))[-len(done.messages) :] == done.messages
        await client.ask("Sure?", conversation_id=done.run.conversation_id)
        upstream.check_histories()


@pytest.mark.parametrize("marked", [False, True])
async def test_by_schema_a_return_is_told_with_its_images(store: str, marked: bool) -> None:
    """There it is a user message anyway."""
    called = says('{"tool": "get_secret_code", "arguments": {"name": "Alice"}}')
    script = [called, says("A cat." if marked else '{"text": "A cat."}')]
    settings = {"tool_mode": "json_schema", "answers_after_return": marked}
    async with scripted(script, store, **settings) as (client, upstream):
        run = (await client.ask("Photo?", SECRET)).run
        (call,) = run.pending_tool_calls
        await client.answer(run.run_id, returned(call, "", parts=[part(data=PNG)]))
        told, image = upstream.requests[1].last["content"]
        assert told["text"].startswith("The tool get_secret_code returned 1 image")
        assert told["text"].endswith("Answer my question in one sentence.") == marked
        assert image == shown(PNG)


async def test_an_image_is_part_of_what_an_outcome_is(store: str) -> None:
    """The same again is the same receipt; another image is another outcome."""
    async with scripted([ASKS, says("A cat.")], store) as (client, upstream):
        run = (await client.ask("Photo?", SECRET)).run
        (call,) = run.pending_tool_calls
        first = await client.answer(run.run_id, returned(call, "", parts=[part("x"), part(data=PNG)]))
        assert await client.answer(run.run_id, returned(call, "", parts=[part("x"), part(data=PNG)])) == first
        named = await client.answer(run.run_id, returned(call, "", parts=[part("x"), part(data=PNG)]), request_id="r")
        assert list(named.receipt.already_settled_tool_call_ids) == [call.tool_call_id]
        others = (
            [part("x"), part(data=PNG + b"x")],
            [part(data=PNG), part("x")],
            [part("x")],
            [part("x"), part(url=URL)],
        )
        for other in others:
            refused = await refusal(client.answer(run.run_id, returned(call, "", parts=other)))
            assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "CALL_ALREADY_SETTLED")
        assert upstream.request_count == 2


async def test_the_text_beside_images_satisfies_the_result_schema(store: str) -> None:
    """Images have no schema."""
    async with scripted([ASKS, says("A cat.")], store) as (client, _):
        run = (await client.ask("Photo?", CHECKED)).run
        (call,) = run.pending_tool_calls
        refused = await refusal(client.answer(run.run_id, returned(call, "", parts=[part("x"), part(data=PNG)])))
        assert (refused.reason, refused.fields) == ("SCHEMA_VIOLATION", ("tool_returns[0].text",))
        done = await client.answer(run.run_id, returned(call, "", parts=[part("7"), part(data=PNG)]))
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


# What is kept.


def longest(path: str) -> dict[str, int]:
    """The size of the longest body in each table of a SQLite file."""
    with closing(sqlite3.connect(path)) as db:
        return {
            table: db.execute(f"SELECT ifnull(max(length(body)), 0) FROM {table}").fetchone()[0]
            for table in ("messages", "events", "runs", "calls", "receipts", "pins")
        }


async def with_images(client: Client) -> runs_pb2.Run:
    """A paused run with an image in its input and a larger one in a tool return."""
    run = (await client.agent.Step(asking(part(data=png(100 * KIB)), client_tools=[SECRET]))).run
    (call,) = run.pending_tool_calls
    paused: runs_pb2.Run = (await client.answer(run.run_id, returned(call, "", parts=[part(data=png(200 * KIB))]))).run
    return paused


async def waiting(client: Client, conversation_id: str) -> runs_pb2.Run:
    """A queued run with an image."""
    request = asking(
        part(data=png(100 * KIB)),
        conversation_id=conversation_id,
        on_busy=agent_service_pb2.ON_BUSY_ENQUEUE,
        background=True,
    )
    return (await client.agent.Step(request)).run


async def test_images_outlive_the_server(shared_store: str) -> None:
    """The run that goes on in another process tells the model the same bytes."""
    async with ScriptedOpenAI([ASKS, ASKS, says("Cats.")]) as upstream:
        async with serving(upstream, shared_store) as client:
            run = await with_images(client)
        async with serving(upstream, shared_store) as client:
            done = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "x"))
            assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED
        upstream.check_histories()
        assert upstream.requests[2].history[0]["content"] == [shown(png(100 * KIB))]


async def test_an_image_is_stored_once(tmp_path: Path) -> None:
    """In its message alone, in base64."""
    path = str(tmp_path / "runs.sqlite3")
    async with scripted([ASKS, ASKS], path) as (client, _):
        await with_images(client)
        sizes = longest(path)
        assert 200 * KIB * 4 // 3 <= sizes.pop("messages") <= 200 * KIB * 4 // 3 + KIB
        assert max(sizes.values()) < 4 * KIB


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_holds_the_images_of_its_input_only_while_it_is_queued(tmp_path: Path, cancelled: bool) -> None:
    """Then they are in the conversation, or, where it was cancelled before, nowhere."""
    path = str(tmp_path / "runs.sqlite3")
    async with ScriptedOpenAI([ASKS, says("ONE."), says("A cat.")]) as upstream, serving(upstream, path) as client:
        paused = (await client.ask("Code?", SECRET)).run
        queued = await waiting(client, paused.conversation_id)
        assert longest(path)["runs"] > 100 * KIB
        if cancelled:
            await client.cancel(queued.run_id)
        await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "ONE"))
        await client.watch(queued.run_id)
        assert longest(path)["runs"] < 4 * KIB


async def test_a_watcher_of_another_time_gets_the_image_as_well(store: str) -> None:
    """The events of a run are read from its messages."""
    async with scripted([says("A cat.")], store) as (client, _):
        done = await client.agent.Step(asking(part(data=PNG)))
        request = run_service_pb2.WatchRunRequest(run_id=done.run.run_id)
        stored = [r.event.message_stored.message async for r in client.runs.WatchRun(request)]
        assert [m for m in stored if m.HasField("user")] == [done.messages[0]]
