"""How a memory tool changes a block: the edit and the outcome of its call are one move, so there is none in doubt."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from agent_service.domain.draft import Draft
from agent_service.domain.memory import BlockRecord, SeenBlock
from agent_service.domain.moves import CallResult, finish_calls, startable
from agent_service.domain.run import Run
from agent_service.domain.values import replace


class MemoryTool(StrEnum):
    """The server's own tools for memory blocks, by their names."""

    APPEND = "memory_append"
    REPLACE = "memory_replace"
    INSERT = "memory_insert"
    RETHINK = "memory_rethink"


_BLIND = frozenset({MemoryTool.APPEND, MemoryTool.REPLACE})
"""These mean the same whatever else is in the block; the others rest on what the model saw."""
END = -1
"""The line of an insert that stands for the end."""


class EditError(Exception):
    """The edit is not made; the text tells the model what is, what is allowed and what to do."""


def edited_blocks(run: Run, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of the blocks that `edit_memory` needs: of those the model saw, the one of the label. It waits for no
    other one, such as one that all agents share."""
    return tuple(seen.memory_block_id for seen in run.memory_seen if seen.label == arguments["label"])


def edit_memory(draft: Draft, tool_call_id: str, arguments: Mapping[str, Any], max_shown_bytes: int) -> None:
    """Executes a call of a memory tool, whose arguments satisfy its schema. An error return shows a value of at most so
    many bytes."""
    call = startable(draft, tool_call_id)
    try:
        result = CallResult(tool_call_id, _edit(draft, MemoryTool(call.name), arguments, max_shown_bytes))
    except EditError as error:
        text = f"Error: not changed, {error}".encode(errors="replace").decode()  # a lone surrogate has no UTF-8
        result = CallResult(tool_call_id, text, failed=True)
    finish_calls(draft, (result,))


def edited(tool: MemoryTool, value: str, arguments: Mapping[str, Any]) -> str:
    """The value after an edit. Raises EditError."""
    match tool:
        case MemoryTool.APPEND:
            return _appended(value, arguments["text"])
        case MemoryTool.REPLACE:
            return _replaced(value, arguments["old_text"], arguments["new_text"])
        case MemoryTool.INSERT:
            return _inserted(value, arguments["text"], int(arguments.get("line", END)))
        case MemoryTool.RETHINK:
            return str(arguments["value"])


def _edit(draft: Draft, tool: MemoryTool, arguments: Mapping[str, Any], max_shown_bytes: int) -> str:
    record = _writable(draft, arguments["label"])
    block = record.block
    seen = next((s for s in draft.run.memory_seen if s.memory_block_id == block.memory_block_id), None)
    current = seen if seen is not None and seen.etag == record.etag else None
    if current is None and tool not in _BLIND:
        raise EditError(_changed_meanwhile(block.label, block.value, max_shown_bytes))
    value = edited(tool, block.value, arguments)
    if len(value) > block.limit:
        raise EditError(
            f"memory block '{block.label}' would have {len(value)} characters; at most {block.limit} are allowed. "
            f"It has {len(block.value)} now. Write less, or shorten it first"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise EditError("the text holds half of a surrogate pair, which is no character. Write it without") from None
    after = record.changed(replace(block, value=value), draft.now)
    if after is not record:
        draft.put_block(after)
        if current is not None:
            _keep_seen(draft, current, after)
    return f"Memory block '{block.label}' now has {len(value)} of at most {block.limit} characters."


def _writable(draft: Draft, label: str) -> BlockRecord:
    found = [record for record in draft.blocks if record.block.label == label]
    if len(found) == 1 and not found[0].block.read_only:
        return found[0]
    if len(found) > 1:  # One was made anew with the label of another.
        raise EditError(f"{len(found)} memory blocks are labelled '{label}', so none of them can be changed")
    others = [seen for seen in draft.run.memory_seen if seen.label != label and not seen.read_only]
    names = ", ".join(f"'{seen.label}'" for seen in others) or "none"
    problem = f"memory block '{label}' is read-only" if found else f"there is no memory block '{label[:64]}'"
    raise EditError(f"{problem}. Blocks that can be changed: {names}")


def _changed_meanwhile(label: str, value: str, max_shown_bytes: int) -> str:
    problem = f"memory block '{label}' was changed by someone else since you saw it."
    if len(value.encode()) > max_shown_bytes:
        return f"{problem} Its value now is in your instructions; decide anew"
    return f"{problem} Decide anew; its value now is:\n{value}"


def _keep_seen(draft: Draft, before: SeenBlock, after: BlockRecord) -> None:
    """The model knows what it did: only the edits of others come between what it saw and its next edit."""
    kept = replace(before, etag=after.etag)
    draft.run = replace(draft.run, memory_seen=tuple(kept if s is before else s for s in draft.run.memory_seen))


def _appended(value: str, text: str) -> str:
    gap = "" if not value or value.endswith("\n") else "\n"
    return f"{value}{gap}{text}"


def _replaced(value: str, old_text: str, new_text: str) -> str:
    at = value.find(old_text)
    if at < 0:
        raise EditError("old_text is not in the memory block. It has to be a part of the value, to the letter")
    if value.find(old_text, at + 1) >= 0:
        raise EditError("old_text is in the memory block more than once. Take more of what stands around it")
    return value[:at] + new_text + value[at + len(old_text) :]


def _inserted(value: str, text: str, line: int) -> str:
    lines = value.removesuffix("\n").split("\n") if value else []
    if line in (END, len(lines)):
        return _appended(value, text)
    if not 0 <= line < len(lines):
        raise EditError(
            f"there is no line {line}. The memory block has {len(lines)} lines: send 0 to insert before the first, "
            f"{len(lines)} or {END} for the end"
        )
    at = sum(len(each) + 1 for each in lines[:line])
    return f"{value[:at]}{text.removesuffix(chr(10))}\n{value[at:]}"
