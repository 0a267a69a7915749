"""Images that tests send, and how the model gets them."""

from __future__ import annotations

import base64
from typing import Any

from agentrpc.v1 import agent_service_pb2, content_pb2, messages_pb2

KIB, MIB = 1024, 1024 * 1024
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
FILES = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/gif": b"GIF89a",
    "image/webp": b"RIFF\n\x00\r\xffWEBPVP8 ",
}
URL = "https://example.org/a.png?sig=%2F"


def part(text: str = "", **image: Any) -> content_pb2.ContentPart:
    """A part: an image if anything of one is given, else text."""
    return content_pb2.ContentPart(image=content_pb2.Image(**image)) if image else content_pb2.ContentPart(text=text)


def png(size: int) -> bytes:
    """An image of so many bytes."""
    return PNG[:8] + b"\xff" * (size - 8)


def asking(*parts: content_pb2.ContentPart, **fields: Any) -> agent_service_pb2.StepRequest:
    """A start with one user message of these parts."""
    return agent_service_pb2.StepRequest(input_messages=[messages_pb2.InputMessage(parts=parts)], **fields)


def shown(data: bytes, kind: str = "image/png", **fields: str) -> dict[str, Any]:
    """An image as the model gets it."""
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def said(text: str) -> dict[str, Any]:
    """A text as the model gets it among images."""
    return {"type": "text", "text": text}
