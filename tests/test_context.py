"""The cached history of a conversation: always what a fresh encoding gives, bounded, and never behind the store."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_service.domain.content import Image, Part
from agent_service.domain.event import Event, MessageStored
from agent_service.domain.message import (
    AssistantContent,
    Content,
    Message,
    SummaryContent,
    ToolCallsContent,
    ToolReturnContent,
)
from agent_service.domain.message import UserContent as User
from agent_service.domain.tool import Outcome, ToolCall
from agent_service.engine import context
from agent_service.engine.context import Contexts, History
from agent_service.models.openai_chat import OpenAIChatModel
from tests.scripted_openai import calls, says
from tests.service import SECRET, returned, scripted

pytestmark = pytest.mark.anyio

BORN = 7
"""When the conversations were made."""
TENANT, CONVERSATION = "acme", "conv_1"


class Conversations:
    """Keeps messages as a store does, tells of new ones, and counts what is read."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], list[Message]] = {}
        self.read: list[int] = []
        self.contexts: list[Contexts] = []

    async def messages(
        self, tenant: str, conversation_id: str, after: int, limit: int, *, descending: bool
    ) -> tuple[Message, ...]:
        """As RunStore.messages, newest first: others go on meanwhile."""
        assert descending
        page = tuple(reversed(self.kept.get((tenant, conversation_id), ())[: after - 1]))[:limit]
        await asyncio.sleep(0)
        self.read.append(len(page))
        return page

    def open(self, max_bytes: int = 1 << 20, *, told: bool = True) -> Contexts:
        """A cache in front of these; without `told` it does not hear of new ones, as of those of another process."""
        contexts = Contexts(self, max_bytes)  # type: ignore[arg-type]  # all of the store that is needed here
        if told:
            self.contexts.append(contexts)
        return contexts

    def append(self, *contents: Content, conversation_id: str = CONVERSATION, tenant: str = TENANT) -> int:
        """Stores messages in one transaction; the position of the last."""
        kept = self.kept.setdefault((tenant, conversation_id), [])
        new = [
            Message(f"msg_{number}", conversation_id, "run_1", f"step_{number}", number, 0, content)
            for number, content in enumerate(contents, len(kept) + 1)
        ]
        kept.extend(new)
        events = tuple(Event("run_1", message.position, "", 0, MessageStored(message)) for message in new)
        for contexts in self.contexts:
            contexts.observe(tenant, events)
        return len(kept)

    def fresh(self, model: OpenAIChatModel, last: int, conversation_id: str = CONVERSATION) -> bytes:
        """What is shown of the messages up to `last`, encoded at once."""
        kept = self.kept[TENANT, conversation_id][:last]
        summary = next((m for m in reversed(kept) if isinstance(m.content, SummaryContent)), None)
        if summary is None:
            return model.encode(kept)
        assert isinstance(summary.content, SummaryContent)
        after = kept[summary.content.through_position :]
        return model.encode([summary, *(m for m in after if not isinstance(m.content, SummaryContent))])


@functools.cache
def unused() -> OpenAIChatModel:
    """A model client that encodes and is never asked anything."""
    return OpenAIChatModel(base_url="http://127.0.0.1:9/v1", api_key="none")


@pytest.fixture
async def model() -> AsyncIterator[OpenAIChatModel]:
    """The model client whose encoding is cached."""
    client = OpenAIChatModel(base_url="http://127.0.0.1:9/v1", api_key="none")
    yield client
    await client.close()


def joined(history: History) -> bytes:
    """The pieces of a history as a request holds them."""
    return b",".join(piece for piece in history.pieces if piece)


def exchange(number: int) -> tuple[Content, ...]:
    """A call and its return."""
    call = ToolCall(f"call_{number}", "get", '{"n": 1}')
    return ToolCallsContent((call,)), ToolReturnContent(call.tool_call_id, "get", Outcome.RETURNED, f"got {number} 🙂")


async def history(contexts: Contexts, model: OpenAIChatModel, last: int, conversation: str = CONVERSATION) -> bytes:
    """The cached history in one piece."""
    return joined(await contexts.history(TENANT, conversation, model, last, BORN))


async def test_each_step_reads_and_encodes_only_what_is_new(model: OpenAIChatModel) -> None:
    """After the first read the cache takes along what is committed here: the store is not read again."""
    store = Conversations()
    contexts = store.open()
    last = store.append(User("Hi"))
    assert await history(contexts, model, last) == store.fresh(model, last)
    for number in range(20):
        last = store.append(*exchange(number))
        assert await history(contexts, model, last) == store.fresh(model, last)
    assert store.read == [1]


async def test_what_a_start_appended_is_not_read(model: OpenAIChatModel) -> None:
    """The messages at hand that follow the known ones are taken; where some between are missing, all are read."""
    store = Conversations()
    contexts = store.open(told=False)

    async def with_newest(last: int, count: int) -> bytes:
        appended = tuple(store.kept[TENANT, CONVERSATION][-count:])
        return joined(await contexts.history(TENANT, CONVERSATION, model, last, BORN, appended=appended))

    last = store.append(User("Hi"), User("Well?"))
    assert await with_newest(last, 2) == store.fresh(model, last)
    assert store.read == []
    store.append(*exchange(1))
    last = store.append(User("More"))
    assert await with_newest(last, 1) == store.fresh(model, last)
    assert store.read == [3]


async def test_what_another_process_stored_is_read(model: OpenAIChatModel) -> None:
    """A cache that was not told is behind; it reads the rest, and only that."""
    store = Conversations()
    contexts = store.open(told=False)
    last = store.append(User("Hi"), *exchange(1))
    assert await history(contexts, model, last) == store.fresh(model, last)
    last = store.append(*exchange(2), AssistantContent("Done."), User("More"))
    assert await history(contexts, model, last) == store.fresh(model, last)
    assert store.read == [3, 4]


async def test_a_gap_in_what_was_told_is_read(model: OpenAIChatModel) -> None:
    """A message that does not come right after the known ones is not taken along out of order."""
    store = Conversations()
    contexts = store.open()
    await history(contexts, model, store.append(User("Hi")))
    store.contexts.clear()
    store.append(AssistantContent("Hello."))
    store.contexts.append(contexts)
    last = store.append(User("More"))
    assert await history(contexts, model, last) == store.fresh(model, last)


async def test_a_long_conversation_is_read_in_pages(model: OpenAIChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, and no further than asked for."""
    monkeypatch.setattr(context, "PAGE", 3)
    store = Conversations()
    contexts = store.open()
    store.append(*(User(str(number)) for number in range(10)))
    assert await history(contexts, model, 7) == store.fresh(model, 7)
    assert store.read == [3, 3, 1]
    assert await history(contexts, model, 10) == store.fresh(model, 10)


async def test_conversations_tenants_and_clients_are_kept_apart(model: OpenAIChatModel) -> None:
    """The same id of another tenant, or another conversation, shares nothing."""
    store = Conversations()
    contexts = store.open()
    for tenant, conversation, text in ((TENANT, "conv_1", "a"), (TENANT, "conv_2", "b"), ("globex", "conv_1", "c")):
        store.append(User(text), conversation_id=conversation, tenant=tenant)
        pieces = await contexts.history(tenant, conversation, model, 1, BORN)
        assert joined(pieces) == model.encode(store.kept[tenant, conversation])
    store.append(User("more of b"), conversation_id="conv_2")
    assert await history(contexts, model, 1) == store.fresh(model, 1)


async def test_a_look_ahead_keeps_nothing(model: OpenAIChatModel) -> None:
    """`peek` is the history with messages that are not stored; the history afterwards is as if it had not been."""
    store = Conversations()
    contexts = store.open()
    last = store.append(User("Hi"), ToolCallsContent((ToolCall("call_1", "get", "{}"),)))
    planned = Message(
        "msg_x", CONVERSATION, "run_1", "", 3, 0, ToolReturnContent("call_1", "get", Outcome.RETURNED, "x")
    )
    seen = joined(await contexts.peek(TENANT, CONVERSATION, model, last, BORN, [planned]))
    assert seen == model.encode([*store.kept[TENANT, CONVERSATION], planned])
    last = store.append(ToolReturnContent("call_1", "get", Outcome.FAILED, "y"))
    assert await history(contexts, model, last) == store.fresh(model, last)


async def test_a_history_that_was_given_never_changes(model: OpenAIChatModel) -> None:
    """A request that is being built keeps its pieces while the conversation goes on."""
    store = Conversations()
    contexts = store.open()
    before = await contexts.history(TENANT, CONVERSATION, model, store.append(User("Hi")), BORN)
    copy = joined(before)
    await contexts.history(TENANT, CONVERSATION, model, store.append(AssistantContent("Hello."), User("More")), BORN)
    assert joined(before) == copy


async def test_the_longest_unused_conversation_is_forgotten_first(model: OpenAIChatModel) -> None:
    """Above the bound the oldest goes, is read again when it is needed, and is right."""
    store = Conversations()
    contexts = store.open(max_bytes=20_000)
    for name in ("conv_1", "conv_2", "conv_3"):
        store.append(User("x" * 7_000), conversation_id=name)
        if name == "conv_3":
            await history(contexts, model, 1, "conv_1")
            store.read.clear()
        await history(contexts, model, 1, name)
    assert store.read == [1]
    assert await history(contexts, model, 1, "conv_1") == store.fresh(model, 1)
    assert store.read == [1]
    await history(contexts, model, 1, "conv_2")
    assert store.read == [1, 1]


@pytest.mark.parametrize("size", [1, 50, 5_000], ids=lambda size: f"{size} bytes")
async def test_the_cache_stays_within_its_bound(model: OpenAIChatModel, size: int) -> None:
    """However many conversations there are, small or large, and also by what they take along after their last use."""
    store = Conversations()
    contexts = store.open(max_bytes=100_000)
    for number in range(300):
        name = f"conv_{number}"
        store.append(User("x" * size), conversation_id=name)
        await history(contexts, model, 1, name)
        store.append(AssistantContent("y" * size), conversation_id=name)
    held = 0
    for entry in contexts._entries.values():
        waiting = [message.content for message in entry.waiting]
        held += 1_000 + sum(map(len, entry.pieces))
        held += sum(len(content.text) for content in waiting if isinstance(content, AssistantContent))
    assert held <= 100_000
    assert contexts._entries
    assert {key for keys in contexts._keys.values() for key in keys} == set(contexts._entries)


async def test_a_conversation_above_the_bound_is_not_kept(model: OpenAIChatModel) -> None:
    """It is right all the same, and the bound holds."""
    store = Conversations()
    contexts = store.open(max_bytes=1_000)
    last = store.append(User("x" * 5_000))
    for _ in range(2):
        assert await history(contexts, model, last) == store.fresh(model, last)
    assert not contexts._entries
    assert contexts._size == 0


@pytest.mark.parametrize("used", [False, True], ids=["taken along", "encoded"])
async def test_images_count_for_the_bound(model: OpenAIChatModel, used: bool) -> None:
    """Before they are encoded as well as after: an entry with one that is too large is forgotten."""
    store = Conversations()
    contexts = store.open(max_bytes=30_000)
    last = store.append(User("Hi"))
    await history(contexts, model, last)
    assert contexts._entries
    for size in (10_000, 15_000):
        parts = (Part(image=Image(b"\xff" * size, "image/png")),)
        call, returned = ToolCall(f"call_{size}", "get", "{}"), Outcome.RETURNED
        store.append(User("", parts=parts))
        last = store.append(
            ToolCallsContent((call,)), ToolReturnContent(call.tool_call_id, "get", returned, "", parts=parts)
        )
        if used:
            assert await history(contexts, model, last) == store.fresh(model, last)
    assert not contexts._entries
    assert contexts._size == 0


async def test_what_a_summary_stands_for_is_not_read(model: OpenAIChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the conversation was: only what came after it, and the page it is in."""
    monkeypatch.setattr(context, "PAGE", 5)
    store = Conversations()
    store.append(*(User(str(number)) for number in range(500)))
    store.append(SummaryContent("All that.", 498))
    last = store.append(AssistantContent("Hm."), *exchange(1))
    assert await history(store.open(), model, last) == store.fresh(model, last)
    assert store.read == [5, 1]


async def test_a_summary_that_is_told_costs_no_more_than_what_it_keeps(model: OpenAIChatModel) -> None:
    """The cache goes on from it: what is kept is read once, and then nothing."""
    store = Conversations()
    contexts = store.open()
    last = store.append(*(User(str(number)) for number in range(500)))
    await history(contexts, model, last)
    last = store.append(SummaryContent("All that.", 490))
    assert await history(contexts, model, last) == store.fresh(model, last)
    assert store.read == [500, 10]
    for number in range(5):
        last = store.append(*exchange(number))
        assert await history(contexts, model, last) == store.fresh(model, last)
    assert store.read == [500, 10]


async def test_the_newest_summary_counts_whoever_stored_it(model: OpenAIChatModel) -> None:
    """Told of or not, behind what is cached or before it; peeks see it, too."""
    store = Conversations()
    here, there = store.open(told=False), store.open()
    last = store.append(*(User(str(number)) for number in range(20)))
    for contexts in (here, there):
        await history(contexts, model, last)
    last = store.append(SummaryContent("To 10.", 10), AssistantContent("a"), SummaryContent("To 15.", 15), User("b"))
    for contexts in (here, there, store.open()):
        assert joined(await contexts.peek(TENANT, CONVERSATION, model, last, BORN, [])) == store.fresh(model, last)
        assert await history(contexts, model, last) == store.fresh(model, last)
    last = store.append(User("c"), SummaryContent("", 25))
    for contexts in (here, there):
        found = await contexts.history(TENANT, CONVERSATION, model, last, BORN)
        assert (joined(found), found.tokens) == (b"", 0)


async def test_estimates_are_the_same_warm_and_cold(model: OpenAIChatModel) -> None:
    """Group by group, whether a conversation was followed step by step or is read at once."""
    store = Conversations()
    contexts = store.open()
    store.append(User("Hi"), *exchange(0), SummaryContent("Long ago.", 3))
    for number in range(1, 5):
        last = store.append(User("x" * number), *exchange(number))
        warm = await contexts.history(TENANT, CONVERSATION, model, last, BORN)
        cold = await store.open().history(TENANT, CONVERSATION, model, last, BORN)
        assert (list(warm.groups), warm.tokens, warm.summary) == (list(cold.groups), cold.tokens, cold.summary)
    assert warm.message_tokens == sum(group.tokens for group in warm.groups) > 0


def boundary(store: Conversations, chance: int) -> int:
    """Somewhere between two messages of which neither is a call, and not before an earlier summary's place."""
    kept = store.kept[TENANT, CONVERSATION]
    earlier = max((m.content.through_position for m in kept if isinstance(m.content, SummaryContent)), default=0)
    good = [m.position for m in kept if not isinstance(m.content, ToolCallsContent) and m.position >= earlier]
    return good[chance % len(good)]


STEP = st.one_of(
    st.tuples(st.just("user"), st.text(max_size=5)),
    st.tuples(st.just("assistant"), st.text(min_size=1, max_size=5)),
    st.tuples(st.just("exchange"), st.none()),
    st.tuples(st.just("summary"), st.text(max_size=3)),
    st.tuples(st.sampled_from(["use", "use twice", "peek", "silence", "hear"]), st.none()),
)


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(STEP, max_size=30), max_bytes=st.sampled_from([10, 3_000, 100_000]))
def test_it_is_never_stale(steps: list[tuple[str, str | None]], max_bytes: int) -> None:
    """Whatever is stored, heard of or not, used or not, by one task or two at once: equal to a fresh encoding."""

    async def scenario() -> None:
        model = unused()
        store = Conversations()
        contexts = store.open(max_bytes)
        last = store.append(User("Hi"))
        for number, (action, text) in enumerate(steps):
            if action == "silence":
                store.contexts.clear()
            elif action == "hear":
                store.contexts[:] = [contexts]
            elif action == "peek":
                assert joined(await contexts.peek(TENANT, CONVERSATION, model, last, BORN, [])) == store.fresh(
                    model, last
                )
            elif action == "use twice":
                uses = await asyncio.gather(history(contexts, model, last), history(contexts, model, last))
                assert set(uses) == {store.fresh(model, last)}
            elif action == "use":
                assert await history(contexts, model, last) == store.fresh(model, last)
            elif action == "exchange":
                last = store.append(*exchange(number))
            elif action == "summary":
                last = store.append(SummaryContent(text or "", boundary(store, number)))
            else:
                last = store.append(User(text or "") if action == "user" else AssistantContent(text or ""))
        assert await history(contexts, model, last) == store.fresh(model, last)

    asyncio.run(scenario())


async def test_a_server_without_a_cache_sends_the_same_requests(tmp_path: Path) -> None:
    """Over pauses and several runs the endpoint receives the same bytes, but for ids, with the cache and without."""
    sent = []
    for size in (0, 1 << 20):
        script = [calls(("get_secret_code", {"name": "Alice"})), says("A-1."), says("Still A-1.")]
        path = str(tmp_path / f"{size}.sqlite3")
        async with scripted(script, path, limits={"context_cache_bytes": size}) as (client, upstream):
            paused = await client.ask("Code?", SECRET)
            (call,) = paused.run.pending_tool_calls
            await client.answer(paused.run.run_id, returned(call, "A-1"))
            await client.ask("And now?", conversation_id=paused.run.conversation_id)
            upstream.check_histories()
            sent.append([request.raw.replace(call.tool_call_id.encode(), b"call") for request in upstream.requests])
    assert sent[0] == sent[1]
    assert len(sent[0]) == 3
