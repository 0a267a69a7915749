"""What the model is told of the server's own tools for memory blocks."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from agent_service.domain.memory import BlockRecord
from agent_service.domain.memory_edit import MemoryTool
from agent_service.domain.tool import Executor, ToolSchema

_LABEL = {"type": "string", "description": "The label of the memory block."}


def _tool(tool: MemoryTool, description: str, required: dict[str, object], **optional: object) -> ToolSchema:
    parameters = {
        "type": "object",
        "properties": {"label": _LABEL, **required, **optional},
        "required": ["label", *required],
        "additionalProperties": False,
    }
    return ToolSchema(tool.value, description, json.dumps(parameters), Executor.SERVER, edits_memory=True)


def _text(description: str, **more: object) -> dict[str, object]:
    return {"type": "string", "description": description, **more}


MEMORY_TOOLS: dict[str, ToolSchema] = {
    schema.name: schema
    for schema in (
        _tool(
            MemoryTool.APPEND,
            "Adds a text to the end of a memory block, on a new line.",
            {"text": _text("What to add.", minLength=1)},
        ),
        _tool(
            MemoryTool.REPLACE,
            "Replaces a part of a memory block.",
            {
                "old_text": _text("The part to replace, to the letter; it must be in the block once.", minLength=1),
                "new_text": _text("What takes its place; empty deletes the part."),
            },
        ),
        _tool(
            MemoryTool.INSERT,
            "Inserts a text into a memory block, as lines of its own.",
            {"text": _text("What to insert.", minLength=1)},
            line={
                "type": "integer",
                "minimum": -1,
                "description": "Before which line, counted from 0; -1, or left out, means the end.",
            },
        ),
        _tool(
            MemoryTool.RETHINK,
            "Gives a memory block a whole new value.",
            {"value": _text("All that the block is to hold.")},
        ),
    )
}
"""The memory tools by name, in the order the model sees."""


def offered(server_tools: Sequence[str], replaced: Collection[str], blocks: Sequence[BlockRecord]) -> tuple[str, ...]:
    """The names of the memory tools of an agent: those it names among its server tools, or all if it names none; but
    none that another server tool takes the place of, and none at all if it has no block that it may change."""
    if all(record.block.read_only for record in blocks):
        return ()
    own = [name for name in MEMORY_TOOLS if name not in replaced]
    return tuple(name for name in own if name in server_tools) or tuple(own)
