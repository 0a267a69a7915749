"""The stored form of values: every one comes back equal, and a form this program does not know is refused."""

from __future__ import annotations

import types
from collections.abc import Callable
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_service.domain.draft import Receipt
from agent_service.domain.event import DURABLE_TYPES, Heartbeat, MessageStored, TextDelta, ToolReturnsAccepted
from agent_service.domain.message import CONTENT_TYPES, MessageType, ToolReturnContent
from agent_service.domain.registry import AgentRecord
from agent_service.domain.run import Pinned, Run, RunStatus, StopReason, Usage
from agent_service.domain.tool import Call, CallState, Executor, Outcome, PendingCall, PendingKind
from agent_service.stores import codec

_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    int: st.integers(-(2**63), 2**63 - 1),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that a field of this type can have."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*map(values_of, arguments))
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(*map(values_of, arguments), max_size=3)
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    return st.builds(kind, **{name: values_of(hint) for name, hint in get_type_hints(kind).items()})


Decode = Callable[[int, str], object]


def _content(kind: MessageType) -> Decode:
    return lambda version, text: codec.decode_content(version, kind.value, text)


def _body(kind: str) -> Decode:
    return lambda version, text: codec.decode_body(version, kind, text)


_STORED: dict[str, tuple[type, Decode]] = {
    **{f"message {kind.value}": (content, _content(kind)) for kind, content in CONTENT_TYPES.items()},
    **{f"event {kind}": (body, _body(kind)) for kind, body in DURABLE_TYPES.items() if body is not MessageStored},
    "run": (Run, codec.decode_run),
    "call": (Call, codec.decode_call),
    "pinned": (Pinned, codec.decode_pinned),
    "receipt": (Receipt, codec.decode_receipt),
    "agent": (AgentRecord, codec.decode_agent),
}
_SAMPLE = {name: values_of(kind) for name, (kind, _) in _STORED.items()}


@pytest.mark.parametrize("name", _STORED)
def test_every_stored_value_comes_back_equal(name: str) -> None:
    """Whatever its fields hold: any text, numbers up to 64 bits, none or many."""
    _, decode = _STORED[name]

    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(_SAMPLE[name])
    def comes_back(value: object) -> None:
        text = codec.encode(value)
        assert decode(codec.CODEC_VERSION, text) == value
        assert codec.encode(decode(codec.CODEC_VERSION, text)) == text

    comes_back()


@pytest.mark.parametrize("name", _STORED)
@pytest.mark.parametrize("version", [codec.CODEC_VERSION + 1, 0, -1])
def test_an_unknown_form_is_refused(name: str, version: int) -> None:
    """Even if the text could be read: it may mean something else."""
    _, decode = _STORED[name]
    with pytest.raises(codec.UnknownCodecError, match=f"form {version};"):
        decode(version, "{}")


def test_what_is_not_stored_has_no_stored_name() -> None:
    """Deltas and heartbeats never reach the log; each durable body has one name."""
    for body in (TextDelta("m", 0, "t", 1), Heartbeat()):
        with pytest.raises(KeyError):
            codec.body_kind(body)
    assert codec.body_kind(ToolReturnsAccepted("r", (), (), ())) == "tool_returns_accepted"


_WRITTEN: dict[str, tuple[str, object]] = {
    "run": (
        '{"run_id":"r","conversation_id":"c","agent_id":"a","model":"m","digest":"d","status":"paused","max_steps":3,'
        '"create_time":1,"update_time":2,"stop_reason":"requires_approval","usage":{"prompt_tokens":7}}',
        Run("r", "c", "a", "m", "d", RunStatus.PAUSED, 3, 1, 2, StopReason.REQUIRES_APPROVAL, None, Usage(7)),
    ),
    "call": (
        '{"tool_call_id":"t","provider_call_id":"p","step_id":"s","step":1,"index":0,"name":"n",'
        '"arguments_json":"{\\"a\\": 1}","executor":"client","state":"pending"}',
        Call("t", "p", "s", 1, 0, "n", '{"a": 1}', Executor.CLIENT, CallState.PENDING),
    ),
    "message tool_return": (
        '{"tool_call_id":"t","name":"n","outcome":"returned","text":"x"}',
        ToolReturnContent("t", "n", Outcome.RETURNED, "x"),
    ),
    "receipt": (
        '{"request_id":"q","digest":"d","sequence":6,"body":{"request_id":"q","accepted":["t"],"already_settled":[],'
        '"remaining":[{"tool_call_id":"u","name":"n","arguments_json":"{}","kind":"approval","index":1}]}}',
        Receipt(
            "q", "d", 6, ToolReturnsAccepted("q", ("t",), (), (PendingCall("u", "n", "{}", PendingKind.APPROVAL, 1),))
        ),
    ),
}


@pytest.mark.parametrize("name", _WRITTEN)
def test_what_was_written_in_the_first_form_can_be_read(name: str) -> None:
    """Fields that came later have their defaults; names and values of the form never change."""
    text, value = _WRITTEN[name]
    assert _STORED[name][1](1, text) == value
