"""How the Python client makes one account of events that are told in pieces, twice, or with gaps."""

from __future__ import annotations

from typing import Any

from agentrpc.v1 import events_pb2
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from agent_service.client.events import (
    Event,
    MessageStored,
    OtherEvent,
    Reader,
    ReasoningDelta,
    Restarted,
    TextDelta,
    ToolArgumentsDelta,
)


def event(sequence: int, **payload: Any) -> events_pb2.RunEvent:
    """An event of run_1."""
    return ParseDict({"runId": "run_1", "sequence": sequence, **payload}, events_pb2.RunEvent())


def piece(sequence: int, offset: int, text: str, message: str = "msg_1") -> events_pb2.RunEvent:
    """A delta of a text."""
    return event(sequence, textDelta={"messageId": message, "offset": offset, "text": text})


def stored(sequence: int, text: str, message: str = "msg_1") -> events_pb2.RunEvent:
    """The whole text."""
    return event(sequence, messageStored={"message": {"messageId": message, "assistant": {"text": text}}})


def read(*events: events_pb2.RunEvent, tokens: bool = True) -> list[Event]:
    """What is told of these."""
    reader = Reader(tokens=tokens)
    return [told for one in events for told in reader.read(one)]


def texts(events: list[Event]) -> list[tuple[int, str]]:
    """Offset and text of the pieces of text."""
    return [(e.offset, e.text) for e in events if isinstance(e, TextDelta)]


def test_a_durable_event_is_told_once() -> None:
    """However often it comes."""
    started = event(2, runStarted={})
    assert [type(one) for one in read(started, started, event(1, runAccepted={}), stored(3, ""))] == [
        OtherEvent,
        MessageStored,
    ]


def test_signs_of_life_are_not_told() -> None:
    """Neither heartbeats nor that a watcher has caught up."""
    assert read(event(1, heartbeat={}), event(1, live={})) == []


def test_a_message_that_is_sent_again_from_its_beginning_goes_on() -> None:
    """As after attaching anew."""
    assert texts(read(piece(1, 0, "Good"), piece(1, 0, "Good day"), piece(1, 8, "."))) == [
        (0, "Good"),
        (4, " day"),
        (8, "."),
    ]


def test_what_lies_beyond_a_gap_is_told_when_the_message_is_stored() -> None:
    """A piece was lost; the pieces still join to the message."""
    told = read(piece(1, 0, "Good"), piece(1, 8, "."), stored(2, "Good day."))
    assert texts(told) == [(0, "Good"), (4, " day.")]
    assert isinstance(told[-1], MessageStored)


def test_a_message_without_pieces_is_told_as_one() -> None:
    """As of a process that does not work on the run; offsets count code points, not bytes."""
    call = {"toolCallId": "call_1", "name": "f", "argumentsJson": '{"a": "ä"}'}
    told = read(
        event(1, messageStored={"message": {"messageId": "m", "reasoning": {"text": "hm"}}}),
        event(2, messageStored={"message": {"messageId": "n", "toolCall": {"toolCalls": [call, call]}}}),
    )
    assert [type(one) for one in told] == [
        ReasoningDelta,
        MessageStored,
        ToolArgumentsDelta,
        ToolArgumentsDelta,
        MessageStored,
    ]
    second = told[3]
    assert isinstance(second, ToolArgumentsDelta)
    assert (second.index, second.name, second.text, second.sequence) == (1, "f", '{"a": "ä"}', 1)


def test_input_has_no_pieces() -> None:
    """A message of the user is told whole."""
    message = {"messageId": "m", "user": {"text": "Hi"}}
    assert [type(one) for one in read(event(1, messageStored={"message": message}))] == [MessageStored]


def test_without_tokens_there_are_no_pieces() -> None:
    """Whole messages only."""
    assert texts(read(piece(1, 0, "Good"), stored(2, "Good day."), tokens=False)) == []


def test_a_restart_drops_what_was_told() -> None:
    """It names the messages that will not be stored."""
    told = read(piece(1, 0, "Goo"), event(2, stepRestarted={"reason": "it broke off"}), piece(2, 0, "Hi", "msg_2"))
    (restarted,) = (one for one in told if isinstance(one, Restarted))
    assert (restarted.dropped, restarted.reason) == (("msg_1",), "it broke off")
    (recovered,) = (one for one in read(piece(1, 0, "Goo"), event(2, runResumed={})) if isinstance(one, Restarted))
    assert recovered.dropped == ("msg_1",)
    assert [type(one) for one in read(event(2, runResumed={}))] == [OtherEvent]


def test_a_piece_of_a_stored_message_is_old() -> None:
    """It came by another way, and late."""
    assert texts(read(stored(2, "Hi"), piece(2, 0, "Hi"))) == [(0, "Hi")]


@given(st.text(max_size=40), st.data())
def test_pieces_join_to_the_message(text: str, data: st.DataObject) -> None:
    """Whatever is cut, lost or repeated of it, each piece begins where the one before ended."""
    bounds = st.integers(0, len(text))
    spans = data.draw(st.lists(st.tuples(bounds, bounds).map(sorted), max_size=8))
    pieces = [piece(1, start, text[start:end]) for start, end in spans]
    joined = ""
    for offset, new in texts(read(*pieces, stored(2, text))):
        assert offset == len(joined)
        assert new
        joined += new
    assert joined == text
