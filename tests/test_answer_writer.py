"""What is shown of a call whose name comes after the first piece of its arguments, as some endpoints send it."""

from __future__ import annotations

import pytest

from agent_service.domain.event import ArgumentsDelta
from agent_service.engine.answer import AnswerWriter
from agent_service.engine.hub import Hub
from tests.store_contract import counter

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("held", "shown"),
    [((), '{"q":1}'), (("other",), '{"q":1}'), (("search",), '{"q":1,"n":7}')],
    ids=["nothing is held", "another tool is", "this tool is"],
)
async def test_a_name_that_comes_late_decides_what_is_shown(held: tuple[str, ...], shown: str) -> None:
    """The arguments as they were written, or for a tool whose arguments are held back once, as they are stored."""
    hub = Hub(16)
    with hub.own("acme", "run_1", 0) as channel, hub.subscribe("acme", "run_1", deltas=True) as subscription:
        writer = AnswerWriter(channel, lambda: 1, counter(), frozenset(held))
        writer.arguments(0, "", '{"q":')
        writer.arguments(0, "search", "1}")
        writer.tell_held(0, "search", '{"q":1,"n":7}')
        bodies = [event.body for event in subscription.drain()]
    deltas = [body for body in bodies if isinstance(body, ArgumentsDelta)]
    assert "".join(delta.text for delta in deltas) == shown
    assert deltas[-1].name == "search"
