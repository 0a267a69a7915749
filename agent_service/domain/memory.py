"""Memory blocks: texts that agents keep over conversations, how the model sees them, and how its tools change them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.etags import etag_of, expect_etag

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,64}")
CHANGEABLE = ("value", "description", "limit", "read_only")
"""The fields of a block that callers can change."""
FIELDS = ("label", *CHANGEABLE)
"""Those that they can set."""


@dataclass(frozen=True, slots=True)
class MemoryBlock:
    """A block; agents know it by its `label`. `limit` is the most its value may hold, in Unicode code points.

    `read_only` is for agents; callers may change it.
    """

    memory_block_id: str
    label: str
    value: str
    description: str
    limit: int
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A block as it is kept. Times are Unix nanoseconds; `revision` counts its changes from 1."""

    block: MemoryBlock
    revision: int
    create_time: int
    update_time: int

    @property
    def etag(self) -> str:
        """Tells this state of the block from every other, also from those of an earlier block of the same id."""
        return etag_of(self.create_time, self.revision)

    @property
    def seen(self) -> SeenBlock:
        """What a run keeps of it once its model was shown it."""
        block = self.block
        return SeenBlock(block.memory_block_id, block.label, self.revision, self.etag, block.read_only)

    def changed(self, block: MemoryBlock, now: int) -> BlockRecord:
        """The next revision; the same one if nothing is different."""
        if block == self.block:
            return self
        return replace(self, block=block, revision=self.revision + 1, update_time=now)

    def expect(self, etag: str) -> None:
        """Raises ETAG_MISMATCH unless the etag is empty or the present one."""
        expect_etag(etag, self.etag, f"memory block '{self.block.memory_block_id}'")


@dataclass(frozen=True, slots=True)
class SeenBlock:
    """A block as the last answer of a run was told it. `etag` is newer if nobody but the run changed it since."""

    memory_block_id: str
    label: str
    revision: int
    etag: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class BlockFilter:
    """Which blocks; `block_ids` None and an empty `label` do not count."""

    block_ids: frozenset[str] | None = None
    label: str = ""

    def takes(self, block: MemoryBlock) -> bool:
        """Whether it is one of them."""
        wanted = self.block_ids is None or block.memory_block_id in self.block_ids
        return wanted and self.label in ("", block.label)


def check_same_block(existing: BlockRecord, block: MemoryBlock) -> BlockRecord:
    """The existing block if it has this content, else MEMORY_BLOCK_ID_REUSED."""
    if existing.block != block:
        raise AgentServiceError(
            Reason.MEMORY_BLOCK_ID_REUSED,
            f"memory_block.memory_block_id: there is another memory block '{block.memory_block_id}'; "
            "choose another id, or update it",
            metadata={"memory_block_id": block.memory_block_id},
        )
    return existing


def label_problem(label: str) -> str:
    """What is wrong with a label, and what is allowed; empty if nothing is."""
    return "" if _LABEL.fullmatch(label) else f"{label[:64]!r} is not 1 to 64 letters, digits, '_' or '-'"


def problems(
    block: MemoryBlock, max_limit: int, max_description_bytes: int, changed: Collection[str] = FIELDS
) -> Iterator[tuple[str, str]]:
    """What is wrong with the fields that are `changed`: the field, what was found and what is allowed."""
    if "label" in changed and (problem := label_problem(block.label)):
        yield "label", problem
    size = len(block.value)
    if "limit" in changed and not 1 <= block.limit <= max_limit:
        yield "limit", f"{block.limit} is not 1 to {max_limit}, or 0 for the default"
    elif "value" in changed and size > block.limit:
        yield "value", f"{size} characters; at most {block.limit}, the block's limit, are allowed"
    elif "limit" in changed and size > block.limit:
        yield "limit", f"{block.limit} is less than the {size} characters of its value; shorten that, too, or first"
    size = len(block.description.encode())
    if "description" in changed and size > max_description_bytes:
        yield "description", f"{size} bytes; at most {max_description_bytes} are allowed"


def memory_text(blocks: Sequence[BlockRecord]) -> str:
    """The blocks for the end of the system prompt; empty without any.

    Those that the agent cannot change come first. It says nothing that changes while a block does not, so that equal
    memory is an equal prompt, and a changed block leaves what stands before it as it was.
    """
    if not blocks:
        return ""
    ordered = sorted((record.block for record in blocks), key=lambda block: not block.read_only)
    return "\n\n".join(("Your memory, as it is now. It outlives this conversation.", *map(_block_text, ordered)))


def _block_text(block: MemoryBlock) -> str:
    mark = ", read-only" if block.read_only else ""
    lines = [f"[memory block '{block.label}', at most {block.limit} characters{mark}]"]
    if block.description:
        lines.append(f"Description: {block.description}")
    return "\n".join((*lines, "Value:", block.value, f"[end of '{block.label}']"))
