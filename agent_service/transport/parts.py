"""Reads content that comes in parts: text and images, whose types and sizes are checked here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from agentrpc.v1 import content_pb2

from agent_service.domain.content import Image, ImageDetail, Part, Parts, images_of
from agent_service.engine.limits import Limits

_MAGIC = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
"""How the files of each type begin."""
_TYPES = ", ".join(_MAGIC)
_URL = re.compile(r"[!-~]+")
_MESSAGE_OVERHEAD = 64 * 1024
"""Room in an event for what is neither text nor image of its message, in bytes."""
_SHOWN = 64

AddProblem = Callable[[str, str], None]
"""Notes a field and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ReadContent:
    """All text of a content, and its parts if one of them is an image."""

    text: str
    parts: Parts = ()


class PartsReader:
    """Reads the contents of one request, and counts its images."""

    def __init__(self, limits: Limits, add: AddProblem) -> None:
        self._limits = limits
        self._add = add
        self._image_bytes = 0

    def read(self, path: str, text: str, parts: Sequence[content_pb2.ContentPart], *, required: bool) -> ReadContent:
        """What is said in `text` or in `parts`."""
        if text and parts:
            self._add(f"{path}.parts", "set together with text; send one of them")
        if required and not text and not parts:
            self._add(f"{path}.text", "is empty, and so is parts; send one of them")
        if len(parts) > self._limits.max_parts:
            self._add(f"{path}.parts", f"{len(parts)} parts; at most {self._limits.max_parts} are allowed")
            return ReadContent("")
        found = _joined(self._part(f"{path}.parts[{i}]", part) for i, part in enumerate(parts))
        images = images_of(found)
        most = self._limits.max_images_per_message
        if len(images) > most:
            self._add(f"{path}.parts", f"{len(images)} images; at most {most} are allowed")
        if required and parts and not any(part.WhichOneof("content") != "text" or part.text for part in parts):
            self._add(f"{path}.parts", "has neither text nor an image; send one of them")
        told = text or "".join(part.text for part in found)
        return ReadContent(told, found if images else ())

    def refuse_images(self, path: str, parts: Parts) -> None:
        """Where the model takes text only."""
        if parts:
            self._add(f"{path}.parts", "an image in a message with ROLE_SYSTEM; send images with ROLE_USER")

    def check_size(self, path: str, content: ReadContent, *others: str) -> None:
        """A message with images has to fit into an event, in which its text stands twice."""
        if not content.parts:
            return
        texts = (content.text, content.text, *others)
        images = sum(len(image.data) + len(image.url.encode()) for image in images_of(content.parts))
        size = images + sum(len(each.encode()) for each in texts)
        most = self._limits.max_response_bytes - _MESSAGE_OVERHEAD
        if size > most:
            self._add(f"{path}.parts", f"{size} bytes with all text, which is told twice; at most {most} are allowed")

    def check_total(self, field: str) -> None:
        """All images of the request together."""
        most = self._limits.max_images_bytes
        if self._image_bytes > most:
            self._add(field, f"{self._image_bytes} bytes of images; at most {most} are allowed; send URLs, or fewer")

    def _part(self, path: str, part: content_pb2.ContentPart) -> Part:
        match part.WhichOneof("content"):
            case "image":
                return Part(image=self._image(f"{path}.image", part.image))
            case "text":
                return Part(part.text)
        self._add(path, "has no content; set text or image")
        return Part()

    def _image(self, path: str, image: content_pb2.Image) -> Image:
        detail = self._detail(f"{path}.detail", image.detail)
        match image.WhichOneof("source"):
            case "data":
                return Image(image.data, self._type_of(path, image), detail=detail)
            case "url":
                self._check_url(f"{path}.url", image.url)
                if image.mime_type:
                    self._add(f"{path}.mime_type", "set together with url; it is for data only")
                return Image(url=image.url, detail=detail)
        self._add(path, "has no source; set data or url")
        return Image()

    def _type_of(self, path: str, image: content_pb2.Image) -> str:
        """The type that the bytes say."""
        size, most = len(image.data), self._limits.max_image_bytes
        self._image_bytes += size
        if size > most:
            self._add(f"{path}.data", f"{size} bytes; at most {most} are allowed; make it smaller, or send a URL")
        found = next((name for name, magic in _MAGIC.items() if magic.match(image.data)), "")
        if image.mime_type and image.mime_type not in _MAGIC:
            self._add(f"{path}.mime_type", f"{image.mime_type[:_SHOWN]!r} is not one of {_TYPES}")
        elif not found:
            self._add(f"{path}.data", f"does not begin as an image of these types does: {_TYPES}")
        elif image.mime_type not in ("", found):
            self._add(f"{path}.mime_type", f"{image.mime_type}, but the data is {found}")
        return found

    def _check_url(self, field: str, url: str) -> None:
        schemes = ("https", "http") if self._limits.http_image_urls else ("https",)
        size, most = len(url.encode()), self._limits.max_image_url_bytes
        scheme, host, credentials = _split(url)
        if size > most:
            self._add(field, f"{size} bytes; at most {most} are allowed")
        elif scheme == "data":
            self._add(field, "a data URL; send the bytes in data")
        elif scheme not in schemes:
            self._add(field, f"{url[:_SHOWN]!r} is not an {' or '.join(schemes)} URL")
        elif not host or not _URL.fullmatch(url):
            self._add(field, f"{url[:_SHOWN]!r} is not a URL of printable ASCII with a host")
        elif credentials:
            self._add(field, "holds credentials, which would be stored and shown; send a signed URL, or the bytes")

    def _detail(self, field: str, number: int) -> ImageDetail:
        detail = _DETAILS.get(number)
        if detail is None:
            self._add(field, f"{number} is not a value of ImageDetail")
        return detail or ImageDetail.AUTO


_DETAILS: dict[int, ImageDetail] = {
    content_pb2.IMAGE_DETAIL_UNSPECIFIED: ImageDetail.AUTO,
    content_pb2.IMAGE_DETAIL_AUTO: ImageDetail.AUTO,
    content_pb2.IMAGE_DETAIL_LOW: ImageDetail.LOW,
    content_pb2.IMAGE_DETAIL_HIGH: ImageDetail.HIGH,
}


def _split(url: str) -> tuple[str, str, bool]:
    """Scheme, host, and whether it names a user; empty for what is no URL."""
    try:
        split = urlsplit(url)
        split.port  # noqa: B018 - raises ValueError for one that is no port
        # As it is written: endpoints look for "https://".
        return url[: len(split.scheme)], split.hostname or "", "@" in split.netloc
    except ValueError:
        return "", "", False


def _joined(parts: Iterable[Part]) -> Parts:
    """The parts with neighbouring texts in one, and without empty ones."""
    result: list[Part] = []
    texts: list[str] = []
    for part in (*parts, None):
        if part is not None and part.image is None:
            texts.append(part.text)
            continue
        if text := "".join(texts):
            result.append(Part(text))
        texts = []
        if part is not None:
            result.append(part)
    return tuple(result)
