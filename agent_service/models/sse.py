"""Splits a stream of server-sent events, as it arrives, into the data of each event.

Source of the rules: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 8 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """A line or the data of one event is larger than allowed."""


class SseParser:
    """Takes the bytes of a stream in any pieces and gives the data of each complete event, several lines joined by LF.

    Events without data are left out, and so is one whose closing blank line never came. Names, ids and retry times are
    read over: no endpoint needs them. The data is not decoded, so invalid UTF-8 is for the reader of the data to find.
    """

    __slots__ = ("_data", "_first", "_max_bytes", "_partial", "_partial_bytes", "_size", "_skip_lf")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_event_bytes
        self._data: list[bytes] = []
        self._size = 0
        # A line whose end has not arrived, in the pieces in which it came: joined once, not once per piece.
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._skip_lf = False
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that this piece completes. Raises EventTooLargeError."""
        if b"\r" in chunk or self._skip_lf:
            chunk = self._with_line_feeds(chunk)
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep(chunk)
            return []
        found: list[bytes] = []
        self._read_lines(self._take_partial(chunk[: end + 1]), found)
        if end + 1 < len(chunk):
            self._keep(chunk[end + 1 :])
        return found

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        """The chunk with LF for each line end; a CRLF may be cut between two chunks."""
        if not chunk:
            return chunk
        if self._skip_lf and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._skip_lf = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._partial.append(piece)
            self._partial_bytes += len(piece)
            self._check(self._partial_bytes)

    def _take_partial(self, rest: bytes) -> bytes:
        if self._partial:
            rest = b"".join((*self._partial, rest))
            self._partial.clear()
            self._partial_bytes = 0
        if self._first:
            self._first = False
            rest = rest.removeprefix(_BOM)
        return rest

    def _read_lines(self, lines: bytes, found: list[bytes]) -> None:
        """Reads complete lines. The ordinary event, one `data: ` line at an event border, is cut out as it stands."""
        blocks = lines.split(b"\n\n")
        last = blocks.pop()
        for block in blocks:
            if not self._data and block.startswith(b"data: ") and b"\n" not in block:
                self._check(len(block))
                if len(block) > 6:
                    found.append(block[6:])
            else:
                self._read_block(block, found)
                self._end_event(found)
        if last:
            # It ends in LF, as all of `lines` does.
            self._read_block(last[:-1], found)

    def _read_block(self, block: bytes, found: list[bytes]) -> None:
        for line in block.split(b"\n"):
            if not line:
                self._end_event(found)
            elif line.startswith(b"data"):
                self._read_data(line)

    def _read_data(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(line)
            self._check(self._size)

    def _end_event(self, found: list[bytes]) -> None:
        if self._data:
            data = b"\n".join(self._data)
            self._data.clear()
            self._size = 0
            if data:
                found.append(data)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise EventTooLargeError(f"an event of the stream is larger than {self._max_bytes} bytes")
