"""What the model reads of a result of an MCP server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from agent_service.engine.tools import ToolOutput
from agent_service.tools.output import bounded, failed


def output_of(result: CallToolResult, max_bytes: int) -> ToolOutput:
    """The texts, then what is structured unless a text says the same, then what was left out; at most `max_bytes`."""
    text = "\n".join(_parts(result))
    if result.is_error:
        return replace(bounded(failed(text or "the tool does not say why").text, max_bytes), failed=True)
    return bounded(text, max_bytes)


def _parts(result: CallToolResult) -> Iterator[str]:
    texts = [text for block in result.content if (text := _text(block)) is not None]
    yield from texts
    structured = result.structured_content
    if structured is not None and not any(_says(text, structured) for text in texts):
        yield json.dumps(structured, ensure_ascii=False, separators=(",", ":"))
    left_out = Counter(kind for block in result.content if (kind := _left_out(block)))
    for kind, count in left_out.items():
        yield f"[left out: {count} {kind}]"


def _text(block: ContentBlock) -> str | None:
    match block:
        case TextContent(text=text) | EmbeddedResource(resource=TextResourceContents(text=text)):
            return text
        case ResourceLink(uri=uri, name=name):
            return f"[{name}: {uri}]"
    return None


def _left_out(block: ContentBlock) -> str:
    match block:
        case ImageContent(mime_type=kind):
            return f"image ({kind})"
        case AudioContent(mime_type=kind):
            return f"audio ({kind})"
        case EmbeddedResource(resource=resource) if not isinstance(resource, TextResourceContents):
            return f"resource ({resource.mime_type or 'of unknown type'})"
    return ""


def _says(text: str, structured: Any) -> bool:
    """Whether a text is the structured content, written as JSON, or the one value that a wrapper holds."""
    inner = structured["result"] if isinstance(structured, dict) and structured.keys() == {"result"} else structured
    if text == inner:
        return True
    try:
        return json.loads(text) in (structured, inner)
    except ValueError:
        return False
