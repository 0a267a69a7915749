"""Writes docs/errors.md from the comments of ErrorReason in the contract and the table of codes in the transport; with
--check, only tells whether the page is up to date.

Reads the descriptors in generated/, so that `scripts/proto.sh` comes first. A comment's form is told above the enum.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from agent_service.domain.errors import Reason
from agent_service.transport.status import CODES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
DESCRIPTORS = ROOT / "generated" / "agentrpc" / "v1" / "agentrpc.binpb"

_FILE = "agentrpc/v1/errors.proto"
_PREFIX = "ERROR_REASON_"
# Numbers of fields in descriptor.proto: FileDescriptorProto.enum_type, EnumDescriptorProto.value.
_ENUM, _VALUE = 5, 2

_INTRODUCTION = """\
# Errors

<!-- Generated from proto/agentrpc/v1/errors.proto by `make docs`; change the comments there. -->

A gRPC error means that the call changed nothing. Its message alone suffices for a person. Programs read the details in
its trailers, which are `google.rpc` messages: `ErrorInfo` always (domain `agentrpc.v1`, the reason, metadata as text),
`BadRequest` where fields are at fault, `PreconditionFailure` with FAILED_PRECONDITION, `RetryInfo` where a repeat may
help. UNAVAILABLE, DEADLINE_EXCEEDED and CANCELLED, and INTERNAL on a call that changes something, mean *unknown*: look
it up, or repeat with the same id.

What happened to a run is no gRPC error: the call is answered with OK, and `run.error` has a reason of the second list.
INTERRUPTED means that it may pass (`retryable`); FAILED is for good.

Below, `ERROR_REASON_` is left out before each name.
"""


class FormError(Exception):
    """A comment of the enum is not of its form, or does not fit the code; says which and why."""


@dataclass(frozen=True)
class Documented:
    """What the contract says about one reason. What it does not say is empty."""

    name: str
    number: int
    meaning: str
    code: str
    run: str
    metadata: str
    message: str

    @property
    def metadata_keys(self) -> tuple[str, ...]:
        """The keys that the metadata may have."""
        return tuple(re.split(r"[ ,;(]", part.strip(), maxsplit=1)[0] for part in self.metadata.split(";") if part)


def documented() -> dict[str, Documented]:
    """Every reason but UNSPECIFIED by its short name, in the order of the contract. Raises FormError."""
    files = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    file = next(file for file in files.file if file.name == _FILE)
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    index, enum = next((i, enum) for i, enum in enumerate(file.enum_type) if enum.name == "ErrorReason")
    found = {}
    for position, value in enumerate(enum.value):
        if value.number:
            name = value.name.removeprefix(_PREFIX)
            comment = comments.get((_ENUM, index, _VALUE, position), "")
            found[name] = _read(name, value.number, comment)
    return found


def _read(name: str, number: int, comment: str) -> Documented:
    parts = {"Meaning": ""}
    label = "Meaning"
    for line in comment.splitlines():
        begun = re.match(r"(Code|Run|Metadata|Message): ", line.strip())
        if begun:
            label = begun[1]
        parts[label] = f"{parts.get(label, '')} {line.strip().removeprefix(f'{label}: ')}".strip()
    message = parts.get("Message", "").removeprefix('"').removesuffix('"')
    code, run = (parts.get(label, "").rstrip(".") for label in ("Code", "Run"))
    if not parts["Meaning"] or not message or not (code or run):
        raise FormError(f"{_PREFIX}{name}: the comment lacks its meaning, its message, or both of code and run")
    in_table = CODES[Reason(name)].name if Reason(name) in CODES else ""
    if code != in_table:
        raise FormError(f"{_PREFIX}{name}: the comment says code {code or 'none'}, the program {in_table or 'none'}")
    return Documented(name, number, parts["Meaning"], code, run, parts.get("Metadata", "").rstrip("."), message)


def page() -> str:
    """The text of docs/errors.md."""
    reasons = documented().values()
    refused = [reason for reason in reasons if reason.code]
    ended = [reason for reason in reasons if reason.run]
    parts = [_INTRODUCTION, "## Reasons of refused calls", _codes(refused), *map(_section, refused)]
    parts += ["## Reasons of runs", _runs(ended), *(_section(reason) for reason in ended if not reason.code)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _codes(reasons: list[Documented]) -> str:
    codes = dict.fromkeys(reason.code for reason in reasons)
    rows = [f"| {code} | {_links(reason for reason in reasons if reason.code == code)} |" for code in codes]
    return "\n".join(["| code | reasons |", "|---|---|", *rows])


def _runs(reasons: list[Documented]) -> str:
    ends = dict.fromkeys(reason.run for reason in reasons)
    rows = [
        f"| {end.replace(' with STOP_REASON_', ' | ')} | {_links(reason for reason in reasons if reason.run == end)} |"
        for end in ends
    ]
    return "\n".join(["| status | stop reason | reasons |", "|---|---|---|", *rows])


def _links(reasons: Iterable[Documented]) -> str:
    return ", ".join(f"[{reason.name}](#{reason.name.lower()})" for reason in reasons)


def _section(reason: Documented) -> str:
    facts = []
    if reason.code:
        facts.append(f"Code {reason.code}.")
    if reason.run:
        facts.append(f"A run is {reason.run}.")
    facts.append(f"Metadata: {reason.metadata}." if reason.metadata else "No metadata.")
    return f"### {reason.name}\n\n{reason.meaning}\n\n{' '.join(facts)}\n\n```text\n{reason.message}\n```"


def main() -> int:
    """Returns 1 if a comment is not of its form, or the page was checked and is not up to date."""
    try:
        wanted = page()
    except FormError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if "--check" in sys.argv:
        if PAGE.exists() and PAGE.read_text() == wanted:
            return 0
        sys.stderr.write("error: docs/errors.md is not up to date: run make docs\n")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
