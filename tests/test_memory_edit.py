"""Edits of memory blocks: each tool against an oracle that works line by line, and the move that makes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.domain.draft import Draft, RunState
from agent_service.domain.event import MessageStored
from agent_service.domain.memory import BlockRecord, MemoryBlock, memory_text
from agent_service.domain.memory_edit import EditError, MemoryTool, edit_memory, edited
from agent_service.domain.message import ToolReturnContent
from agent_service.domain.moves import record_answer
from agent_service.domain.run import RunStatus
from agent_service.domain.tool import CallState, Outcome
from agent_service.domain.values import replace
from tests.store_contract import counter, new_run, server, step

TEXT = st.text(alphabet="ab\n\U0001f600", max_size=8)
SOME = TEXT.filter(bool)
ARGUMENTS = st.one_of(
    st.tuples(st.just(MemoryTool.APPEND), st.fixed_dictionaries({"text": SOME})),
    st.tuples(st.just(MemoryTool.REPLACE), st.fixed_dictionaries({"old_text": SOME, "new_text": TEXT})),
    st.tuples(st.just(MemoryTool.INSERT), st.fixed_dictionaries({"text": SOME}, optional={"line": st.integers(-1, 5)})),
    st.tuples(st.just(MemoryTool.RETHINK), st.fixed_dictionaries({"value": TEXT})),
)


def oracle(tool: MemoryTool, value: str, arguments: dict[str, Any]) -> str | None:
    """What the edit leads to, found in another way; None if it is not made."""
    lines = value.splitlines(keepends=True)
    match tool:
        case MemoryTool.RETHINK:
            return str(arguments["value"])
        case MemoryTool.REPLACE:
            old, new = arguments["old_text"], arguments["new_text"]
            places = [i for i in range(len(value)) if value[i:].startswith(old)]
            return new.join((value[: places[0]], value[places[0] + len(old) :])) if len(places) == 1 else None
    text, line = arguments["text"], arguments.get("line", -1)
    if line > len(lines):
        return None
    if line in (-1, len(lines)):
        ended = [each if each.endswith("\n") else f"{each}\n" for each in lines]
        return "".join((*ended, text))
    return "".join((*lines[:line], text if text.endswith("\n") else f"{text}\n", *lines[line:]))


@given(value=TEXT, edit=ARGUMENTS)
def test_each_tool_does_what_an_oracle_says(value: str, edit: tuple[MemoryTool, dict[str, Any]]) -> None:
    """Whatever the value and the arguments are; what cannot be done changes nothing."""
    tool, arguments = edit
    wanted = oracle(tool, value, arguments)
    if wanted is None:
        with pytest.raises(EditError):
            edited(tool, value, arguments)
    else:
        assert edited(tool, value, arguments) == wanted


def record(value: str = "", *, block_id: str = "notes", revision: int = 1, **fields: Any) -> BlockRecord:
    """A block as it is kept."""
    wanted = {"label": block_id, "description": "", "limit": 20, **fields}
    return BlockRecord(MemoryBlock(memory_block_id=block_id, value=value, **wanted), revision, 1, 1)


def draft(*blocks: BlockRecord, saw: tuple[BlockRecord, ...] | None = None) -> Draft:
    """A run whose model was shown these blocks and called memory_rethink and memory_append."""
    run = replace(new_run().run, status=RunStatus.RUNNING, epoch=1)
    made = Draft(RunState(run, (), 1, None, 5, blocks), counter())
    planned = (replace(server("c1"), name="memory_rethink"), replace(server("c2"), name="memory_append"))
    record_answer(made, step(*planned, memory=tuple(each.seen for each in (blocks if saw is None else saw))))
    return made


def told(made: Draft) -> list[str]:
    """The texts of the tool returns so far."""
    change = made.change()
    assert change is not None
    bodies = [event.body for event in change.events]
    contents = [body.message.content for body in bodies if isinstance(body, MessageStored)]
    return [content.text for content in contents if isinstance(content, ToolReturnContent)]


def test_the_edit_and_the_outcome_are_one_change() -> None:
    """The call has never started, and the block has its next revision."""
    made = draft(record("old"))
    edit_memory(made, "c1", {"label": "notes", "value": "new"}, 1000)
    change = made.change()
    assert change is not None
    (block,) = change.blocks
    assert (block.block.value, block.revision, block.update_time) == ("new", 2, 5)
    call = made.call("c1")
    assert call is not None
    assert (call.state, call.attempts) == (CallState(Outcome.RETURNED.value), 0)
    with pytest.raises(ValueError, match="cannot start"):
        edit_memory(made, "c1", {"label": "notes", "value": "again"}, 1000)


def test_an_edit_to_what_it_is_changes_no_block() -> None:
    """Its call has returned all the same."""
    made = draft(record("same"))
    edit_memory(made, "c1", {"label": "notes", "value": "same"}, 1000)
    change = made.change()
    assert change is not None
    assert (change.blocks, told(made)) == ((), ["Memory block 'notes' now has 4 of at most 20 characters."])


def test_an_own_edit_upon_one_of_others_is_not_one_the_model_saw() -> None:
    """An append is made upon the edit of others; a new value after it would still overwrite theirs."""
    made = draft(record("A\nB", revision=2), saw=(record("A"),))
    edit_memory(made, "c2", {"label": "notes", "text": "C"}, 1000)
    edit_memory(made, "c1", {"label": "notes", "value": "lost"}, 1000)
    assert made.blocks[0].block.value == "A\nB\nC"
    assert told(made)[1].endswith("its value now is:\nA\nB\nC")


def test_a_block_that_the_model_has_not_seen_is_not_overwritten() -> None:
    """Such as one that was made again after the request."""
    made = draft(record("A"), saw=())
    edit_memory(made, "c1", {"label": "notes", "value": "lost"}, 3)
    assert made.blocks[0].block.value == "A"


def test_a_block_that_cannot_be_changed_any_more_is_not_proposed() -> None:
    """The others that the model was shown are, but for those that were read-only then."""
    saw = (record("A"), record(block_id="other"), record(block_id="law", read_only=True))
    for now in ((record("A", read_only=True),), ()):
        made = draft(*now, saw=saw)
        edit_memory(made, "c2", {"label": "notes", "text": "B"}, 1000)
        assert told(made)[0].endswith(". Blocks that can be changed: 'other'")


def test_of_two_blocks_with_one_label_none_is_changed() -> None:
    """The model cannot say which one it means; one of them was deleted and made again with the label of the other."""
    made = draft(record("A", label="x"), record("B", block_id="other", label="x"))
    edit_memory(made, "c2", {"label": "x", "text": "C"}, 1000)
    assert [each.block.value for each in made.blocks] == ["A", "B"]
    assert told(made) == ["Error: not changed, 2 memory blocks are labelled 'x', so none of them can be changed"]


def test_a_long_value_is_not_shown_in_an_error() -> None:
    """It is in the instructions."""
    made = draft(record("A" * 4), saw=())
    edit_memory(made, "c1", {"label": "notes", "value": "lost"}, 3)
    assert told(made)[0].endswith("Its value now is in your instructions; decide anew")


@given(values=st.lists(TEXT, min_size=1, max_size=4), at=st.integers(0, 3), text=TEXT)
def test_a_change_of_one_block_leaves_the_prompt_before_it(values: list[str], at: int, text: str) -> None:
    """And equal blocks are an equal prompt, whatever their revisions and times."""
    blocks = [record(value, block_id=f"b{i}") for i, value in enumerate(values)]
    again = [replace(each, revision=7, update_time=9, create_time=3) for each in blocks]
    assert memory_text(blocks) == memory_text(again)
    at %= len(blocks)
    changed = [*blocks]
    changed[at] = replace(blocks[at], block=replace(blocks[at].block, value=text))
    shown = memory_text(blocks)
    assert memory_text(changed).startswith(shown[: shown.index(f"[memory block 'b{at}'")])


def test_read_only_blocks_come_first() -> None:
    """Then the others; each kind in the order of the agent."""
    blocks = [record(block_id=name, read_only=name in "bd") for name in "abcd"]
    shown = memory_text(blocks)
    assert sorted("abcd", key=lambda name: shown.index(f"[memory block '{name}'")) == ["b", "d", "a", "c"]
    assert memory_text(()) == ""
