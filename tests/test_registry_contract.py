"""What every store guarantees of agents, of conversations, and of forgetting runs and conversations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.message import ToolReturnContent
from agent_service.domain.moves import CANCELLED_UNANSWERED, UNKNOWN_OUTCOME, cancel, start_calls
from agent_service.domain.registry import AgentRecord, Conversation, Page
from agent_service.domain.run import AgentDefinition, Claim, RunStatus
from agent_service.domain.tool import Outcome
from agent_service.engine.loop import moved
from agent_service.engine.store import TOMBSTONE_SECONDS
from tests.registry_contract import ALL, agent, client, new_run, opened, server
from tests.store_contract import OTHER, TENANT

pytestmark = pytest.mark.anyio

SALES = agent("sales", model="model-2", server_tools=("add", "find"), description="Sells.", message_tool="speak")


async def refused(work: Awaitable[object]) -> AgentServiceError:
    """The error that this ends with."""
    with pytest.raises(AgentServiceError) as error:
        await work
    return error.value


def instructions(text: str, etag: str = "") -> Callable[[AgentRecord], AgentDefinition]:
    """An edit of the instructions that expects an etag."""

    def edit(record: AgentRecord) -> AgentDefinition:
        record.expect(etag)
        return replace(record.definition, instructions=text)

    return edit


async def test_an_agent_is_kept_as_it_was_made(store: str) -> None:
    """With revision 1 and the time; an equal create is answered with it and changes nothing."""
    async with opened(store) as kept:
        made = await kept.registry.create_agent(TENANT, SALES)
        assert made == AgentRecord(SALES, 1, 1_000, 1_000)
        kept.clock.now = 2_000
        assert await kept.registry.create_agent(TENANT, SALES) == made
        assert await kept.registry.get_agent(TENANT, "sales") == made


async def test_an_agent_id_names_one_agent(store: str) -> None:
    """A create with another content is AGENT_ID_REUSED, whichever field differs, and changes nothing."""
    async with opened(store) as kept:
        made = await kept.registry.create_agent(TENANT, SALES)
        fields: dict[str, Any] = {"instructions": "x", "server_tools": ("find", "add"), "message_argument": "x"}
        for name, value in fields.items():
            error = await refused(kept.registry.create_agent(TENANT, replace(SALES, **{name: value})))
            assert (error.reason, error.metadata) == (Reason.AGENT_ID_REUSED, {"agent_id": "sales"})
        assert await kept.registry.get_agent(TENANT, "sales") == made


async def test_agents_are_listed_by_id_page_by_page(store: str) -> None:
    """Strictly after an id, also one that is not there."""
    async with opened(store) as kept:
        for agent_id in ("c", "a", "B", "e"):
            await kept.registry.create_agent(TENANT, agent(agent_id))
        found = {
            after: [record.definition.agent_id for record in await kept.registry.list_agents(TENANT, after, 2)]
            for after in ("", "a", "d", "e")
        }
        assert found == {"": ["B", "a"], "a": ["c", "e"], "d": ["e"], "e": []}


async def test_a_change_of_an_agent_counts_its_revision_and_changes_its_etag(store: str) -> None:
    """A change to what it is already is none."""
    async with opened(store) as kept:
        made = await kept.registry.create_agent(TENANT, SALES)
        kept.clock.now = 2_000
        changed = await kept.registry.update_agent(TENANT, "sales", instructions("Be long.", made.etag))
        assert changed == AgentRecord(replace(SALES, instructions="Be long."), 2, 1_000, 2_000)
        assert changed.etag != made.etag
        kept.clock.now = 3_000
        assert await kept.registry.update_agent(TENANT, "sales", instructions("Be long.")) == changed
        assert await kept.registry.get_agent(TENANT, "sales") == changed


async def test_a_refused_change_of_an_agent_changes_nothing(store: str) -> None:
    """The etag of another state is refused with the present one; the edit's own errors reach the caller."""
    async with opened(store) as kept:
        made = await kept.registry.create_agent(TENANT, SALES)
        error = await refused(kept.registry.update_agent(TENANT, "sales", instructions("x", "another")))
        assert (error.reason, error.metadata) == (Reason.ETAG_MISMATCH, {"etag": made.etag})
        error = await refused(kept.registry.delete_agent(TENANT, "sales", "another"))
        assert (error.reason, error.metadata) == (Reason.ETAG_MISMATCH, {"etag": made.etag})
        assert await kept.registry.get_agent(TENANT, "sales") == made
        error = await refused(kept.registry.update_agent(TENANT, "nobody", instructions("x")))
        assert (error.reason, error.message) == (Reason.AGENT_NOT_FOUND, "agent_id: no agent 'nobody'")


async def test_of_racing_changes_with_one_etag_one_wins(store: str) -> None:
    """The others learn the winner's etag; without an etag each sees the one before and none is lost."""
    async with opened(store) as kept:
        made = await kept.registry.create_agent(TENANT, SALES)
        racing = [
            kept.registry.update_agent(TENANT, "sales", instructions(f"v{number}", made.etag)) for number in range(8)
        ]
        results = await asyncio.gather(*racing, return_exceptions=True)
        (won,) = [result for result in results if isinstance(result, AgentRecord)]
        lost = [result for result in results if isinstance(result, AgentServiceError)]
        assert len(lost) == 7
        assert {error.metadata["etag"] for error in lost} == {won.etag}

        def append(record: AgentRecord) -> AgentDefinition:
            return replace(record.definition, instructions=record.definition.instructions + "!")

        await asyncio.gather(*[kept.registry.update_agent(TENANT, "sales", append) for _ in range(8)])
        last = await kept.registry.get_agent(TENANT, "sales")
        assert (last.revision, last.definition.instructions) == (10, won.definition.instructions + "!" * 8)


async def test_a_deleted_agent_is_gone_and_its_id_free(store: str) -> None:
    """A repeat is AGENT_NOT_FOUND; an agent made anew has another etag than the old one."""
    async with opened(store) as kept:
        made = await kept.registry.create_agent(TENANT, SALES)
        await kept.registry.delete_agent(TENANT, "sales", made.etag)
        for work in (kept.registry.delete_agent(TENANT, "sales", ""), kept.registry.get_agent(TENANT, "sales")):
            assert (await refused(work)).reason is Reason.AGENT_NOT_FOUND
        assert await kept.registry.list_agents(TENANT, "", ALL) == ()
        kept.clock.now += 1
        anew = await kept.registry.create_agent(TENANT, replace(SALES, instructions="Other."))
        assert (anew.revision, anew.etag != made.etag) == (1, True)


async def test_a_conversation_is_kept_as_it_was_made(store: str) -> None:
    """Empty, with its labels and time; an equal create is answered with it as it is now."""
    async with opened(store) as kept:
        made = await kept.registry.create_conversation(TENANT, "conv_1", {"team": "a", "where": "Zürich"})
        assert made == Conversation("conv_1", 1_000, {"team": "a", "where": "Zürich"})
        kept.clock.now = 2_000
        await kept.start("run_1", "conv_1")
        again = await kept.registry.create_conversation(TENANT, "conv_1", {"where": "Zürich", "team": "a"})
        assert again == replace(made, message_count=1, active_run_id="run_1")
        error = await refused(kept.registry.create_conversation(TENANT, "conv_1", {"team": "a"}))
        assert (error.reason, error.metadata) == (Reason.CONVERSATION_ID_REUSED, {"conversation_id": "conv_1"})


async def test_a_conversation_that_began_with_a_run_has_no_labels(store: str) -> None:
    """The labels of a run are its own."""
    async with opened(store) as kept:
        await kept.start("run_1", labels={"team": "a"})
        found = await kept.registry.get_conversation(TENANT, "conv_run_1")
        assert found == Conversation("conv_run_1", 1_000, {}, 1, "run_1")
        assert await kept.registry.create_conversation(TENANT, "conv_run_1", {}) == found


async def test_a_conversation_counts_its_messages_and_names_its_active_run(store: str) -> None:
    """RUNNING and PAUSED are active; INTERRUPTED and what is over are not."""
    async with opened(store) as kept:

        async def now() -> tuple[int, str]:
            found = await kept.registry.get_conversation(TENANT, "conv_run_1")
            return found.message_count, found.active_run_id

        await kept.start("run_1")
        assert await now() == (1, "run_1")
        await kept.answer("run_1", client("call_1"))
        assert await now() == (2, "run_1")
        await kept.returned("run_1", "call_1")
        await kept.interrupted("run_1")
        assert await now() == (3, "")
        await kept.completed("run_2", "conv_run_1")
        assert await now() == (5, "")
        await kept.store.delete_run(TENANT, "run_2")
        assert await now() == (5, "")


async def test_conversations_are_listed_by_time_and_labels(store: str) -> None:
    """In both directions, page by page; those of one moment by id."""
    async with opened(store) as kept:
        labels = {"a": {"team": "x"}, "c": {"team": "x", "env": "prod"}, "b": {"team": "y"}, "d": {}}
        for conversation_id, own in labels.items():
            await kept.registry.create_conversation(TENANT, conversation_id, own)
            kept.clock.now += conversation_id == "b"

        async def ids(page: Page, *wanted: tuple[str, str]) -> list[str]:
            found = await kept.registry.list_conversations(TENANT, wanted, page)
            return [conversation.conversation_id for conversation in found]

        assert await ids(Page(ALL)) == ["a", "b", "c", "d"]
        assert await ids(Page(3, True)) == ["d", "c", "b"]
        assert await ids(Page(2, True, 1_000, "b")) == ["a"]
        assert await ids(Page(2, False, 1_000, "b")) == ["c", "d"]
        assert await ids(Page(ALL), ("team", "x")) == ["a", "c"]
        assert await ids(Page(ALL), ("env", "prod"), ("team", "x")) == ["c"]
        assert await ids(Page(ALL), ("env", "prod"), ("team", "y")) == []
        (listed,) = await kept.registry.list_conversations(TENANT, (("team", "y"),), Page(ALL))
        assert listed == await kept.registry.get_conversation(TENANT, "b")


@pytest.mark.parametrize("paused", [False, True])
async def test_a_conversation_with_an_active_run_is_not_deleted(store: str, paused: bool) -> None:
    """RUN_ACTIVE names the run; all of it stays."""
    async with opened(store) as kept:
        await kept.completed("run_1")
        await kept.start("run_2", "conv_run_1")
        if paused:
            await kept.answer("run_2", client("call_1"))
        error = await refused(kept.registry.delete_conversation(TENANT, "conv_run_1"))
        assert (error.reason, error.metadata) == (Reason.RUN_ACTIVE, {"run_id": "run_2"})
        assert ("PAUSED" if paused else "RUNNING") in error.message
        assert await kept.run_ids() == ["run_1", "run_2"]
        assert len(await kept.messages("conv_run_1")) == (4 if paused else 3)


async def test_a_deleted_conversation_is_gone_with_its_messages_and_runs(store: str) -> None:
    """Also one with an interrupted run that left calls open. Others stay, and the id begins an empty one."""
    async with opened(store) as kept:
        await kept.completed("run_1")
        await kept.start("run_2", "conv_run_1")
        await kept.answer("run_2", client("call_1"), server("call_2"))
        await kept.interrupted("run_2")
        await kept.completed("run_3")
        await kept.registry.delete_conversation(TENANT, "conv_run_1")
        for work in (
            kept.registry.delete_conversation(TENANT, "conv_run_1"),
            kept.registry.get_conversation(TENANT, "conv_run_1"),
            kept.messages("conv_run_1"),
            kept.store.start(TENANT, new_run("run_4", "conv_run_1")),
        ):
            assert (await refused(work)).reason is Reason.CONVERSATION_NOT_FOUND
        for run_id in ("run_1", "run_2"):
            assert (await refused(kept.store.get_run(TENANT, run_id))).reason is Reason.RUN_NOT_FOUND
        assert (await kept.run_ids(), await kept.call_ids()) == (["run_3"], [])
        # A start that arrives once more, late, is not executed a second time.
        assert (await refused(kept.store.start(TENANT, new_run("run_1")))).reason is Reason.RUN_ID_REUSED
        await kept.registry.create_conversation(TENANT, "conv_run_1", {})
        assert await kept.messages("conv_run_1") == ()
        started = await kept.start("run_5", "conv_run_1")
        assert started.run.first_position == 1


@pytest.mark.parametrize("paused", [False, True])
async def test_an_active_run_is_not_deleted(store: str, paused: bool) -> None:
    """RUN_ACTIVE says how it stands, and nothing changes."""
    async with opened(store) as kept:
        await kept.start("run_1")
        if paused:
            await kept.answer("run_1", client("call_1"))
        before = await kept.store.get_run(TENANT, "run_1")
        error = await refused(kept.store.delete_run(TENANT, "run_1"))
        assert (error.reason, error.metadata) == (Reason.RUN_ACTIVE, {"run_id": "run_1"})
        assert error.message == f"run_id: run_1 is {'PAUSED' if paused else 'RUNNING'}; cancel it first"
        assert await kept.store.get_run(TENANT, "run_1") == before


async def test_a_deleted_run_is_gone_and_its_messages_stay(store: str) -> None:
    """Every read and write of it is RUN_NOT_FOUND, and the conversation goes on after what was said."""
    async with opened(store) as kept:
        await kept.completed("run_1")
        claim = Claim(TENANT, "run_1", 1)
        await kept.store.delete_run(TENANT, "run_1")
        for work in (
            kept.store.delete_run(TENANT, "run_1"),
            kept.store.get_run(TENANT, "run_1"),
            kept.store.get_pinned(TENANT, "run_1"),
            kept.store.events(TENANT, "run_1", 0, ALL),
            kept.store.move(TENANT, "run_1", moved(cancel)),
            kept.store.preview(TENANT, "run_1", moved(cancel)),
            kept.store.owner_move(claim, moved(cancel)),
        ):
            assert (await refused(work)).reason is Reason.RUN_NOT_FOUND
        assert await kept.run_ids() == []
        assert [message.run_id for message in await kept.messages("conv_run_1")] == ["run_1", "run_1"]
        assert (await kept.start("run_2", "conv_run_1")).run.first_position == 3


async def test_a_deleted_interrupted_run_leaves_no_call_without_outcome(store: str) -> None:
    """Its open calls are settled as by the next message, so that the conversation it leaves can be sent to a model."""
    async with opened(store) as kept:
        await kept.start("run_1")
        await kept.answer("run_1", server("call_1"), client("call_2"))
        claim = Claim(TENANT, "run_1", (await kept.run("run_1")).epoch)
        await kept.store.owner_move(claim, moved(start_calls, ("call_1",)))
        await kept.interrupted("run_1")
        assert (await kept.run("run_1")).status is RunStatus.INTERRUPTED
        await kept.store.delete_run(TENANT, "run_1")
        left = [message.content for message in await kept.messages("conv_run_1")][2:]
        assert left == [
            ToolReturnContent("call_1", "work", Outcome.FAILED, UNKNOWN_OUTCOME),
            ToolReturnContent("call_2", "look_up", Outcome.CANCELLED, CANCELLED_UNANSWERED),
        ]
        assert await kept.call_ids() == []
        assert (await kept.start("run_2", "conv_run_1")).run.first_position == 5


async def test_the_id_of_a_deleted_run_is_refused_until_its_tombstone_expires(store: str) -> None:
    """To a start and to its preview, equal or not, for seven days by the store's clock."""
    async with opened(store) as kept:
        await kept.completed("run_1")
        await kept.store.delete_run(TENANT, "run_1")
        kept.clock.now += TOMBSTONE_SECONDS * 10**9 - 1
        for start in (kept.store.start, kept.store.preview_start):
            error = await refused(start(TENANT, new_run("run_1", "conv_run_1")))
            assert (error.reason, error.metadata) == (Reason.RUN_ID_REUSED, {"run_id": "run_1"})
            assert "deleted" in error.message
        assert len(await kept.messages("conv_run_1")) == 2
        kept.clock.now += 1
        assert not (await kept.start("run_1", "conv_run_1")).joined
        assert TOMBSTONE_SECONDS == 7 * 24 * 3600


async def test_a_run_that_takes_a_forgotten_id_does_not_occupy_the_old_conversation(store: str) -> None:
    """After the tombstone the id is one like any other, and the run's conversation is its own."""
    async with opened(store) as kept:
        await kept.completed("run_1")
        await kept.store.delete_run(TENANT, "run_1")
        kept.clock.now += TOMBSTONE_SECONDS * 10**9
        await kept.registry.create_conversation(TENANT, "elsewhere", {})
        await kept.start("run_1", "elsewhere")
        assert (await kept.registry.get_conversation(TENANT, "conv_run_1")).active_run_id == ""
        await kept.start("run_2", "conv_run_1")


async def test_the_registry_shows_and_takes_nothing_of_another_tenant(store: str) -> None:
    """Equal ids of two tenants are two agents, two conversations and two runs."""
    async with opened(store) as kept:
        registry = kept.registry
        mine = await registry.create_agent(TENANT, SALES)
        assert (await refused(registry.get_agent(OTHER, "sales"))).reason is Reason.AGENT_NOT_FOUND
        assert (await refused(registry.delete_agent(OTHER, "sales", ""))).reason is Reason.AGENT_NOT_FOUND
        edit = instructions("Theirs.")
        assert (await refused(registry.update_agent(OTHER, "sales", edit))).reason is Reason.AGENT_NOT_FOUND
        assert await registry.list_agents(OTHER, "", ALL) == ()
        theirs = await registry.create_agent(OTHER, replace(SALES, instructions="Theirs."))
        await registry.delete_agent(OTHER, "sales", theirs.etag)
        assert await registry.get_agent(TENANT, "sales") == mine

        await kept.completed("run_1")
        for work in (
            registry.get_conversation(OTHER, "conv_run_1"),
            registry.delete_conversation(OTHER, "conv_run_1"),
            kept.store.delete_run(OTHER, "run_1"),
        ):
            assert (await refused(work)).reason in (Reason.CONVERSATION_NOT_FOUND, Reason.RUN_NOT_FOUND)
        assert await registry.list_conversations(OTHER, (), Page(ALL)) == ()
        await registry.create_conversation(OTHER, "conv_run_1", {"team": "theirs"})
        await kept.completed("run_1", "conv_run_1", tenant=OTHER)
        assert (await registry.get_conversation(TENANT, "conv_run_1")).labels == {}
        await registry.delete_conversation(OTHER, "conv_run_1")
        assert (len(await kept.messages("conv_run_1")), await kept.run_ids()) == (2, ["run_1"])
        await kept.completed("run_2")
        await kept.store.delete_run(TENANT, "run_2")
        assert not (await kept.start("run_2", tenant=OTHER)).joined
