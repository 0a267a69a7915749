"""What images a request may have, and that nothing grows beyond its bound by them."""

from __future__ import annotations

from typing import Any

import pytest
from agentrpc.v1 import agent_registry_service_pb2 as registry_pb
from agentrpc.v1 import (
    content_pb2,
    messages_pb2,
    runs_pb2,
    server_service_pb2,
)

from agent_service.engine.limits import Limits
from tests.modes import MODES, start
from tests.pictures import KIB, MIB, PNG, URL, asking, part, png, shown
from tests.scripted_openai import calls, says
from tests.service import SECRET, kinds, refusal, returned, scripted

pytestmark = pytest.mark.anyio

ASKS = calls(("get_secret_code", {"name": "Alice"}))

# What is refused.

SMALL: dict[str, Any] = {
    "limits": {
        "max_image_bytes": 300,
        "max_images_per_message": 2,
        "max_images_bytes": 500,
        "max_image_url_bytes": 40,
        "max_response_bytes": 64 * KIB + 400,
    }
}
BAD: dict[str, tuple[list[content_pb2.ContentPart], str, str]] = {
    "no source": (
        [part("a"), content_pb2.ContentPart(image=content_pb2.Image())],
        "[1].image",
        "has no source; set data or url",
    ),
    "no image": (
        [part(data=b"%PDF-1.7")],
        "[0].image.data",
        "does not begin as an image of these types does: image/png",
    ),
    "empty": ([part(data=b"")], "[0].image.data", "does not begin as an image"),
    "cut magic": ([part(data=PNG[:7])], "[0].image.data", "does not begin as an image"),
    "sound": ([part(data=b"RIFF\0\0\0\0WAVE")], "[0].image.data", "does not begin as an image"),
    "other type": (
        [part(data=PNG, mime_type="image/jpeg")],
        "[0].image.mime_type",
        "image/jpeg, but the data is image/png",
    ),
    "unknown type": (
        [part(data=PNG, mime_type="image/svg+xml")],
        "[0].image.mime_type",
        "'image/svg+xml' is not one of",
    ),
    "type of a url": ([part(url=URL, mime_type="image/png")], "[0].image.mime_type", "set together with url"),
    "large": ([part(data=png(301))], "[0].image.data", "301 bytes; at most 300 are allowed"),
    "many": ([part(url=URL)] * 3, "", "3 images; at most 2 are allowed"),
    "detail": ([part(url=URL, detail=9)], "[0].image.detail", "9 is not a value of ImageDetail"),
    "http": ([part(url="http://example.org/a.png")], "[0].image.url", "'http://example.org/a.png' is not an https URL"),
    "file": ([part(url="file:///etc/passwd")], "[0].image.url", "is not an https URL"),
    "capitals": ([part(url="HTTPS://example.org/a.png")], "[0].image.url", "is not an https URL"),
    "no port": ([part(url="https://example.org:99999/a.png")], "[0].image.url", "is not an https URL"),
    "no URL": ([part(url="a.png")], "[0].image.url", "'a.png' is not an https URL"),
    "broken URL": ([part(url="https://[::1/a.png")], "[0].image.url", "is not an https URL"),
    "data URL": ([part(url="data:image/png;base64,AAAA")], "[0].image.url", "a data URL; send the bytes in data"),
    "no host": ([part(url="https:///a.png")], "[0].image.url", "is not a URL of printable ASCII with a host"),
    "space": ([part(url="https://example.org/a b")], "[0].image.url", "is not a URL of printable ASCII"),
    "not ASCII": ([part(url="https://example.org/ä")], "[0].image.url", "is not a URL of printable ASCII"),
    "credentials": ([part(url="https://a:b@example.org/")], "[0].image.url", "holds credentials"),
    "long URL": ([part(url="https://example.org/" + "a" * 21)], "[0].image.url", "41 bytes; at most 40 are allowed"),
    "large with URLs": (
        [part("é" * 90), *[part(url="https://example.org/" + "a" * 20)] * 2],
        "",
        "440 bytes with all text, which is told twice; at most 400",
    ),
    "large in all": (
        [part("é" * 60), part(data=png(200))],
        "",
        "440 bytes with all text, which is told twice; at most 400",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_image_is_named_with_what_is_allowed(store: str, case: str) -> None:
    """In input and in a return, each by its path; nothing is stored, and the pause stands."""
    parts, path, problem = BAD[case]
    async with scripted([ASKS], store, **SMALL) as (client, upstream):
        request = asking(*parts, run_id="run-1")
        found = await refusal(client.agent.Step(request))
        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert found.fields == (f"input_messages[0].parts{path}",)
        assert found.message.startswith(f"input_messages[0].parts{path}: ") and problem in found.message
        assert (await refusal(client.run("run-1"))).code == "NOT_FOUND"
        run = (await client.ask("Photo?", SECRET)).run
        (call,) = run.pending_tool_calls
        found = await refusal(client.answer(run.run_id, returned(call, "", parts=parts)))
        assert found.fields == (f"tool_returns[0].parts{path}",)
        assert problem in found.message
        assert await client.run(run.run_id) == run
        assert upstream.request_count == 1


async def test_parts_without_text_or_image_are_no_message(store: str) -> None:
    """As an empty text is none. A return may be empty in either way."""
    async with scripted([ASKS, says("Nothing.")], store) as (client, _):
        found = await refusal(client.agent.Step(asking(part(""), part(""))))
        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert found.message == "input_messages[0].parts: has neither text nor an image; send one of them"
        run = (await client.ask("Photo?", SECRET)).run
        ended = await client.answer(run.run_id, returned(run.pending_tool_calls[0], "", parts=[part("")]))
        assert ended.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_images_are_counted_over_the_whole_request(store: str) -> None:
    """Bytes only: URLs cost the server nothing."""
    async with scripted([calls(*[("get_secret_code", {"name": "A"})] * 2), says("Cats.")], store, **SMALL) as (
        client,
        _,
    ):
        many = asking(part(data=png(251)))
        many.input_messages.add(parts=[part(data=png(250)), part(url=URL)])
        found = await refusal(client.agent.Step(many))
        assert found.fields == ("input_messages",)
        assert "501 bytes of images; at most 500 are allowed; send URLs, or fewer" in found.message
        run = (await client.ask("Photos?", SECRET)).run
        one, two = run.pending_tool_calls
        first, second = (returned(one, "", parts=[part(data=png(251))]), returned(two, "", parts=[part(data=png(250))]))
        found = await refusal(client.answer(run.run_id, first, second))
        assert found.fields == ("tool_returns",) and "501 bytes of images" in found.message
        await client.answer(run.run_id, first)
        done = await client.answer(run.run_id, second)
        assert done.run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_limits_of_images_are_inclusive(store: str) -> None:
    """What is exactly at them is taken."""
    async with scripted([says("Cats.")], store, **SMALL) as (client, _):
        request = asking(part(data=png(300)), part(data=png(100)))
        request.input_messages.add(
            parts=[part("é" * 65), part(data=png(100)), part(url="https://example.org/" + "a" * 20)]
        )
        assert (await client.agent.Step(request)).run.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_what_a_return_prints_counts_for_the_size_of_its_message(store: str) -> None:
    """It stands in the same event as the images."""
    async with scripted([ASKS], store, **SMALL) as (client, _):
        run = (await client.ask("Photo?", SECRET)).run
        (call,) = run.pending_tool_calls
        answer = returned(call, "", parts=[part(data=png(200))], stdout="o" * 101, stderr="e" * 100)
        found = await refusal(client.answer(run.run_id, answer))
        assert found.fields == ("tool_returns[0].parts",) and "401 bytes with all text" in found.message


async def test_an_instruction_takes_no_images(store: str) -> None:
    """Models take them from users only."""
    async with scripted([], store) as (client, _):
        request = asking(part(data=PNG))
        request.input_messages[0].role = messages_pb2.ROLE_SYSTEM
        found = await refusal(client.agent.Step(request))
        assert found.fields == ("input_messages[0].parts",)
        assert "an image in a message with ROLE_SYSTEM" in found.message


async def test_http_urls_are_taken_where_the_operator_says_so(store: str) -> None:
    """For endpoints that reach what is in the same network."""
    url = "http://10.0.0.7/a.png"
    async with scripted([says("A cat.")], store, limits={"http_image_urls": True}) as (client, upstream):
        info = await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        assert info.limits.http_image_urls and {"images", "structured_output"} <= set(info.capabilities)
        await client.agent.Step(asking(part(url=url)))
        assert upstream.requests[0].history[0]["content"][0]["image_url"] == {"url": url}
        found = await refusal(client.agent.Step(asking(part(url="ftp://10.0.0.7/a.png"))))
        assert "is not an https or http URL" in found.message


# Sizes.


def test_the_largest_message_fits_into_an_event() -> None:
    """With the limits as they are: all of the text that a message may have beside images, or all of the images."""
    limits = Limits()
    assert limits.max_images_bytes + 64 * KIB < limits.max_response_bytes
    assert limits.max_image_bytes <= limits.max_images_bytes
    assert limits.max_images_bytes + limits.max_input_bytes < limits.max_request_bytes


@pytest.mark.parametrize("mode", MODES)
async def test_the_largest_images_are_streamed_stored_and_listed(store: str, mode: str) -> None:
    """Each event and each page stays within the bound, whatever a conversation holds."""
    limits = Limits()
    room = limits.max_response_bytes - 64 * KIB - limits.max_images_bytes
    images = [part(data=png(limits.max_image_bytes)), part(data=png(limits.max_images_bytes - limits.max_image_bytes))]
    async with scripted([says("Cats."), says("Cats.")], store) as (client, upstream):
        first = await start(client, mode, asking(part("x" * (room // 2)), *images))
        again = await start(client, mode, asking(*images, conversation_id=first.run.conversation_id))
        assert again.run.status == runs_pb2.RUN_STATUS_COMPLETED
        for run in (first.run, again.run):
            for event in await client.watch(run.run_id):
                assert event.ByteSize() <= limits.max_response_bytes
        token = ""
        listed: list[messages_pb2.Message] = []
        while not listed or token:
            request = registry_pb.ListMessagesRequest(conversation_id=first.run.conversation_id, page_token=token)
            page = await client.registry.ListMessages(request)
            assert page.ByteSize() <= limits.max_response_bytes
            listed += page.messages
            token = page.next_page_token
        assert kinds(listed) == ["user", "assistant"] * 2
        assert [len(p.image.data) for p in listed[0].user.parts[1:]] == [len(p.image.data) for p in images]
        sent = upstream.requests[1].history[0]["content"]
        assert sent[1:] == [shown(p.image.data) for p in images]


async def test_an_answer_leaves_out_what_it_has_no_room_for(store: str) -> None:
    """The oldest messages, as always; a cursor says where to read them."""
    async with scripted([ASKS, says("Cats.")], store) as (client, _):
        large = asking(part(data=png(MIB)))
        large.input_messages.add(parts=[part(data=png(MIB // 2))])
        large.client_tools.append(SECRET)
        limited = await client.agent.Step(large)
        assert not limited.messages_truncated
        (call,) = limited.run.pending_tool_calls
        done = await client.answer(limited.run.run_id, returned(call, "", parts=[part(data=png(3 * MIB // 2))]))
        assert kinds(done.messages) == ["tool_return", "assistant"]
    async with scripted([says("Cats.")], store, limits={"max_response_bytes": MIB}) as (client, _):
        small = asking(part(data=png(600 * KIB)))
        small.input_messages.add(parts=[part(data=png(600 * KIB))])
        cut = await client.agent.Step(small)
        assert cut.messages_truncated and kinds(cut.messages) == ["user", "assistant"]
        events = await client.watch(cut.run.run_id, cut.read_after_sequence)
        assert sum(event.HasField("message_stored") for event in events) == 3
