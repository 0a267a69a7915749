"""Which memory blocks an agent may name."""

from __future__ import annotations

from agent_service.domain.errors import FieldViolation, invalid
from agent_service.domain.memory import BlockRecord
from agent_service.domain.run import AgentDefinition
from agent_service.engine.limits import Limits
from agent_service.engine.store import RunStore


async def check_blocks(store: RunStore, tenant: str, definition: AgentDefinition, limits: Limits) -> None:
    """Raises INVALID_FIELD unless each block is there, and they are not too many and have different labels."""
    path, block_ids = "agent.memory_block_ids", definition.memory_block_ids
    if len(block_ids) > limits.max_memory_blocks:
        text = f"{len(block_ids)} memory blocks; at most {limits.max_memory_blocks} are allowed"
        raise invalid(FieldViolation(path, text))
    records = await store.memory_blocks(tenant, tuple(dict.fromkeys(block_ids))) if block_ids else ()
    found = {record.block.memory_block_id: record for record in records}
    texts = (_problem(block_id, block_ids[:index], found) for index, block_id in enumerate(block_ids))
    problems = [FieldViolation(f"{path}[{index}]", text) for index, text in enumerate(texts) if text]
    if problems:
        raise invalid(*problems)


def _problem(block_id: str, before: tuple[str, ...], found: dict[str, BlockRecord]) -> str:
    if block_id not in found:
        return f"no memory block '{block_id}'; make it first (CreateMemoryBlock)"
    if block_id in before:
        return f"'{block_id}' is named twice"
    label = found[block_id].block.label
    same = next((other for other in before if other in found and found[other].block.label == label), "")
    return f"its label '{label}' is that of '{same}', too; the blocks of an agent have different labels" if same else ""
