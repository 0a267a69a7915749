"""How server-sent events look on the wire: all the shapes that the standard allows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Framing:
    """The shape of the event stream. A correct client reads the same answer from each.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6.
    """

    newline: Literal["\n", "\r\n", "\r"] = "\n"
    # A `: ping` line before each event, as proxies and some providers send to keep a line open.
    comments: bool = False
    # An `event:` line in each event.
    event_lines: bool = False
    # JSON over several `data:` lines.
    multi_line: bool = False
    # One space after the colon; the standard makes it optional.
    space: bool = True
    # Write each event in pieces that end inside a UTF-8 sequence or a line, and inside the
    # line end. Turn it off for very long streams: it costs three writes for each event.
    cut: bool = True

    def event(self, payload: Mapping[str, Any] | str) -> list[bytes]:
        """One event in the pieces in which it is to be written; a str is sent verbatim."""
        raw = self._encode(payload if isinstance(payload, str) else self._dump(payload))
        return _pieces(raw) if self.cut else [raw]

    def _dump(self, payload: Mapping[str, Any]) -> str:
        if self.multi_line:
            return json.dumps(payload, ensure_ascii=False, indent=1)
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))

    def _encode(self, data: str) -> bytes:
        colon = ": " if self.space else ":"
        lines = [": ping", ""] if self.comments else []
        if self.event_lines:
            lines.append(f"event{colon}message")
        lines += [f"data{colon}{line}" for line in data.split("\n")]
        return "".join(line + self.newline for line in [*lines, ""]).encode()


def _pieces(raw: bytes) -> list[bytes]:
    lead = next((at for at, byte in enumerate(raw) if byte >= 0x80), None)
    middle = len(raw) // 2 if lead is None else lead + 1
    return [raw[:middle], raw[middle:-1], raw[-1:]]
