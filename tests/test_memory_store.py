"""What every store guarantees of memory blocks: as they are kept, and in the moves of runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent_service.domain.draft import Draft
from agent_service.domain.errors import AgentServiceError, Reason, StaleClaimError
from agent_service.domain.memory import BlockFilter, BlockRecord, MemoryBlock
from agent_service.domain.memory_edit import edit_memory
from agent_service.domain.run import Claim
from agent_service.domain.tool import CallState
from agent_service.domain.values import replace
from agent_service.engine.loop import moved
from agent_service.stores.postgres import PostgresStore
from tests.registry_contract import ALL, Kept, opened, server
from tests.store_contract import OTHER, TENANT

pytestmark = pytest.mark.anyio

HUMAN = MemoryBlock("human", "human", "Ada", "Who.", 5000)


def block(block_id: str, value: str = "", **fields: Any) -> MemoryBlock:
    """A block whose label is its id."""
    return MemoryBlock(block_id, fields.pop("label", block_id), value, "", 5000, **fields)


def put(value: str, etag: str = "") -> Callable[[BlockRecord], MemoryBlock]:
    """An edit of the value that expects an etag."""

    def edit(record: BlockRecord) -> MemoryBlock:
        record.expect(etag)
        return replace(record.block, value=value)

    return edit


def adds(record: BlockRecord) -> MemoryBlock:
    """An edit that builds upon what is there."""
    return replace(record.block, value=record.block.value + "x")


async def refused(work: Awaitable[object]) -> Reason:
    """Why this is refused."""
    with pytest.raises(AgentServiceError) as error:
        await work
    return error.value.reason


async def waiting_edit(kept: Kept, run_id: str, label: str = "human") -> tuple[Claim, Callable[[Draft], Any]]:
    """A run whose model has called memory_append; its claim, and the move that executes it."""
    await kept.start(run_id)
    await kept.answer(run_id, replace(server(f"call_{run_id}"), name="memory_append"))
    claim = Claim(TENANT, run_id, (await kept.run(run_id)).epoch)
    arguments = {"label": label, "text": run_id}
    return claim, moved(edit_memory, f"call_{run_id}", arguments, 1000)


async def test_a_block_is_kept_as_it_was_made(store: str) -> None:
    """With revision 1 and the time; an equal create is answered with it, another one refused."""
    async with opened(store) as kept:
        made = await kept.registry.create_block(TENANT, HUMAN)
        assert made == BlockRecord(HUMAN, 1, 1_000, 1_000)
        kept.clock.now = 2_000
        assert await kept.registry.create_block(TENANT, HUMAN) == made
        other = kept.registry.create_block(TENANT, replace(HUMAN, value="Bob"))
        assert await refused(other) is Reason.MEMORY_BLOCK_ID_REUSED
        assert await kept.registry.get_block(TENANT, "human") == made


async def test_a_change_counts_the_revision(store: str) -> None:
    """A change to what it is already is none; one that is refused changes nothing."""
    async with opened(store) as kept:
        made = await kept.registry.create_block(TENANT, HUMAN)
        kept.clock.now = 2_000
        changed = await kept.registry.update_block(TENANT, "human", put("Bob", made.etag))
        assert changed == BlockRecord(replace(HUMAN, value="Bob"), 2, 1_000, 2_000)
        assert changed.etag != made.etag
        assert await kept.registry.update_block(TENANT, "human", put("Bob")) == changed
        assert await refused(kept.registry.update_block(TENANT, "human", put("Eve", made.etag))) is Reason.ETAG_MISMATCH
        assert await kept.registry.get_block(TENANT, "human") == changed
        assert await refused(kept.registry.delete_block(TENANT, "human", made.etag)) is Reason.ETAG_MISMATCH
        await kept.registry.delete_block(TENANT, "human", changed.etag)
        for work in (
            kept.registry.get_block(TENANT, "human"),
            kept.registry.update_block(TENANT, "human", put("x")),
            kept.registry.delete_block(TENANT, "human", ""),
        ):
            assert await refused(work) is Reason.MEMORY_BLOCK_NOT_FOUND


async def test_racing_changes_see_each_other(store: str) -> None:
    """Each builds upon the one before."""
    async with opened(store) as kept:
        await kept.registry.create_block(TENANT, HUMAN)
        await asyncio.gather(*(kept.registry.update_block(TENANT, "human", adds) for _ in range(10)))
        assert (await kept.registry.get_block(TENANT, "human")).block.value == "Ada" + "x" * 10


async def test_racing_creates_make_one_block(store: str) -> None:
    """All are answered with it."""
    async with opened(store) as kept:
        made = await asyncio.gather(*(kept.registry.create_block(TENANT, HUMAN) for _ in range(5)))
        assert made == [made[0]] * 5


async def test_blocks_are_listed_by_id(store: str) -> None:
    """Strictly after an id, by ids and by label; each tenant has its own."""
    async with opened(store) as kept:
        for block_id in ("c", "a", "B"):
            await kept.registry.create_block(TENANT, block(block_id, label="x" if block_id == "a" else "y"))
        await kept.registry.create_block(OTHER, block("d"))

        async def ids(which: BlockFilter, after: str = "", limit: int = ALL) -> list[str]:
            found = await kept.registry.list_blocks(TENANT, which, after, limit)
            return [record.block.memory_block_id for record in found]

        assert await ids(BlockFilter()) == ["B", "a", "c"]
        assert await ids(BlockFilter(), "B", 1) == ["a"]
        assert await ids(BlockFilter(label="y")) == ["B", "c"]
        assert await ids(BlockFilter(frozenset({"c", "a", "d"}))) == ["a", "c"]
        assert await ids(BlockFilter(frozenset())) == []


async def test_blocks_are_read_in_the_order_asked_for(store: str) -> None:
    """Those that are not there, or of another tenant, are left out."""
    async with opened(store) as kept:
        for tenant, block_id in ((TENANT, "a"), (TENANT, "b"), (OTHER, "c")):
            await kept.registry.create_block(tenant, block(block_id))
        found = await kept.store.memory_blocks(TENANT, ("b", "c", "none", "a"))
        assert [record.block.memory_block_id for record in found] == ["b", "a"]
        assert await kept.store.memory_blocks(TENANT, ()) == ()


async def test_an_edit_and_its_outcome_are_stored_together(store: str) -> None:
    """By the owner alone: a stale one changes neither."""
    async with opened(store) as kept:
        await kept.registry.create_block(TENANT, HUMAN)
        claim, move = await waiting_edit(kept, "run_1")
        with pytest.raises(StaleClaimError):
            await kept.store.owner_move(replace(claim, epoch=claim.epoch + 1), move, block_ids=("human",))
        assert (await kept.registry.get_block(TENANT, "human")).block == HUMAN
        snapshot = await kept.store.owner_move(claim, move, block_ids=("human",))
        assert [call.state for call in snapshot.calls] == [CallState.RETURNED]
        edited = await kept.registry.get_block(TENANT, "human")
        assert (edited.block.value, edited.revision) == ("Ada\nrun_1", 2)


async def test_a_move_that_raises_changes_no_block(store: str) -> None:
    """Nor does the next one see anything of it."""
    async with opened(store) as kept:
        await kept.registry.create_block(TENANT, HUMAN)
        claim, move = await waiting_edit(kept, "run_1")

        def fails(draft: Draft) -> None:
            move(draft)
            raise AgentServiceError(Reason.INTERNAL, "broken")

        assert await refused(kept.store.owner_move(claim, fails, block_ids=("human",))) is Reason.INTERNAL
        assert (await kept.registry.get_block(TENANT, "human")).revision == 1
        await kept.store.owner_move(claim, move, block_ids=("human",))
        assert (await kept.registry.get_block(TENANT, "human")).revision == 2


async def test_edits_of_many_runs_at_once_are_all_there(store: str) -> None:
    """Also where they are written together: each sees the one before. Callers' changes stand between them."""
    async with opened(store) as kept:
        await kept.registry.create_block(TENANT, HUMAN)
        await kept.registry.create_block(TENANT, block("other"))
        edits = [await waiting_edit(kept, f"run_{n}", "human" if n % 3 else "other") for n in range(30)]
        orders = [("human", "other"), ("other", "human")]
        await asyncio.gather(
            *(kept.store.owner_move(claim, move, block_ids=orders[n % 2]) for n, (claim, move) in enumerate(edits)),
            *(kept.registry.update_block(TENANT, "human", adds) for _ in range(5)),
        )
        human = (await kept.registry.get_block(TENANT, "human")).block.value
        assert sorted(line.rstrip("x") for line in human.split("\n")[1:]) == sorted(
            f"run_{n}" for n in range(30) if n % 3
        )
        assert human.count("x") == 5
        other = (await kept.registry.get_block(TENANT, "other")).block.value
        assert sorted(other.split("\n")) == sorted(f"run_{n}" for n in range(0, 30, 3))


async def test_moves_without_blocks_ask_the_database_nothing_more(
    shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statement about blocks is executed for a run that has none."""

    async def asked(*_: object) -> None:
        raise AssertionError("the blocks were asked for")

    async with opened(shared_store) as kept:
        module = "postgres_block_rows" if isinstance(kept.store, PostgresStore) else "sqlite_block_rows"
        names = ("lock_blocks", "update_blocks") if module.startswith("postgres") else ("load_blocks", "put_blocks")
        for name in names:
            monkeypatch.setattr(f"agent_service.stores.{module}.{name}", asked)
        await kept.completed("run_1")
