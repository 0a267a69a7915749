"""The splitter of server-sent events, against the standard and against the openai SDK's own decoder."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from agent_service.models.sse import EventTooLargeError, SseParser

# Text that holds what a parser stumbles over: line ends, colons, spaces, characters of 1 to 4 bytes.
_VALUES = st.text(alphabet=" :{}a\0é\u20ac\u2028\U0001f600", max_size=12)
_FIELDS = st.sampled_from(["data", "event", "id", "retry", "", "datax", "dat", "other"])
_LINES = st.one_of(
    st.builds("{}{}{}".format, _FIELDS, st.sampled_from([":", ": ", ":  "]), _VALUES),
    st.just("data"),
    st.just("data:"),
    st.just(""),
    st.just(""),
    _VALUES,
)
_STREAMS = st.lists(st.tuples(_LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=20).map(
    lambda lines: "".join(line + end for line, end in lines).encode()
)


def _split(stream: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(borders)]


def _parse(*chunks: bytes) -> list[bytes]:
    parser = SseParser()
    return [data for chunk in chunks for data in parser.feed(chunk)]


@given(stream=_STREAMS, cuts=st.lists(st.integers(min_value=0), max_size=12))
def test_any_stream_in_any_pieces_equals_the_sdks_decoder(stream: bytes, cuts: list[int]) -> None:
    """However a stream is cut, the data found is what the SDK finds; it also reports events without data."""
    sdk = SSEDecoder().iter_bytes(iter([stream]))
    assert _parse(*_split(stream, cuts)) == [event.data.encode() for event in sdk if event.data]


@given(stream=_STREAMS)
def test_byte_by_byte_equals_the_sdks_decoder(stream: bytes) -> None:
    """One byte at a time, inside of UTF-8 sequences and of CRLF, makes no difference."""
    sdk = SSEDecoder().iter_bytes(iter([stream]))
    single = [stream[at : at + 1] for at in range(len(stream))]
    assert _parse(*single) == [event.data.encode() for event in sdk if event.data]


def test_several_data_lines_are_joined_by_line_feeds() -> None:
    """An event may spread its data over lines."""
    assert _parse(b"data: {\ndata:  \ndata: }\n\n") == [b"{\n \n}"]


def test_other_fields_and_comments_are_read_over() -> None:
    """`event`, `id`, `retry`, comments and unknown fields neither end nor change the data."""
    stream = b": ping\n\nevent: message\nid: 1\ndata: a\nretry: 3\n: inside\nwhat: ever\n\ndata:b\n\n"
    assert _parse(stream) == [b"a", b"b"]


@pytest.mark.parametrize("cut", range(1, 24))
def test_crlf_cut_between_chunks_is_one_line_end(cut: int) -> None:
    """Wherever CRLF is cut, no line is seen twice."""
    stream = b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n"
    assert _parse(stream[:cut], stream[cut:]) == [b"a\nb", b"c"]


def test_an_event_that_ends_in_cr_is_given_at_once() -> None:
    """Nobody waits for the LF that may follow a CR."""
    parser = SseParser()
    assert parser.feed(b"data: a\r\r") == [b"a"]
    assert parser.feed(b"\ndata: b\r\r") == [b"b"]


@pytest.mark.parametrize("cut", range(12))
def test_a_byte_order_mark_at_the_beginning_is_ignored(cut: int) -> None:
    """Only there: elsewhere it belongs to the text."""
    stream = b"\xef\xbb\xbfdata: \xef\xbb\xbfa\n\n"
    assert _parse(stream[:cut], stream[cut:]) == [b"\xef\xbb\xbfa"]


def test_an_event_without_its_blank_line_is_not_given() -> None:
    """What a cut stream ends with is not an event."""
    assert _parse(b"data: a\n\ndata: b\n") == [b"a"]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: " + b"x" * 100, id="line without end"),
        pytest.param(b"data: " + b"x" * 100 + b"\n\n", id="ordinary event"),
        pytest.param(b"data: xxxxxxxxxx\n" * 10 + b"\n", id="many lines"),
        pytest.param(b": " + b"x" * 100, id="comment"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_lines_and_events_are_bounded(stream: bytes, piece: int) -> None:
    """Above the limit the parser says so instead of filling the memory."""
    parser = SseParser(max_event_bytes=64)
    with pytest.raises(EventTooLargeError, match="64 bytes"):
        for at in range(0, len(stream), piece):
            parser.feed(stream[at : at + piece])


def test_many_small_events_are_not_one_large_one() -> None:
    """The limit is for each event."""
    assert len(SseParser(max_event_bytes=64).feed(b"data: x\n\n" * 1000)) == 1000
