"""What input and tool returns are made of where plain text does not suffice: text and images, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ImageDetail(StrEnum):
    """How closely a model looks at an image."""

    AUTO = "auto"
    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its bytes with their type, or a URL, which only the model endpoint fetches."""

    data: bytes = b""
    mime_type: str = ""
    url: str = ""
    detail: ImageDetail = ImageDetail.AUTO


@dataclass(frozen=True, slots=True)
class Part:
    """Text, or an image if there is one."""

    text: str = ""
    image: Image | None = None


Parts = tuple[Part, ...]
"""The parts of a content that has an image; empty for one that is text alone."""


def images_of(parts: Parts) -> tuple[Image, ...]:
    """The images, in their order."""
    return tuple(part.image for part in parts if part.image is not None)


def size_of_parts(parts: Parts) -> int:
    """About what they take, in bytes: characters of text and URLs, and the bytes of images."""
    images = images_of(parts)
    return sum(len(part.text) for part in parts) + sum(len(image.data) + len(image.url) for image in images)
