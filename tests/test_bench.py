"""The parts of bench/ that only calculate: figures, tables, slopes, and what the scripted endpoint says."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import msgspec
import pytest

from bench.figures import Goal, Report, Row, markdown, short, slope, table
from bench.page import filled
from bench.profile import hottest
from bench.soak import growth
from bench.stored import Paused, copies, copy
from bench.upstream import TOKEN, Script, burst, pieces, script

ROW = Row("part", "what", "ms", "reference", 3.0, 2.0, Goal(at_most=1.6))


@pytest.mark.parametrize(
    ("ours", "theirs", "goal", "verdict"),
    [
        (3.0, 2.0, Goal(at_most=1.5), "pass"),
        (3.1, 2.0, Goal(at_most=1.5), "MISSED"),
        (3.0, 2.0, Goal(at_least=1.5), "pass"),
        (2.9, 2.0, Goal(at_least=1.5), "MISSED"),
        (3.0, 2.0, None, ""),
        (3.0, None, Goal(at_most=1.5), "not measured"),
        (None, 2.0, None, "not measured"),
    ],
)
def test_a_row_says_whether_its_goal_was_reached(
    ours: float | None, theirs: float | None, goal: Goal | None, verdict: str
) -> None:
    """By the ratio of our figure to that of the reference, the bound included."""
    assert Row("part", "what", "ms", "reference", ours, theirs, goal).verdict == verdict


def test_a_row_outlives_its_file() -> None:
    """What is written as JSON is read as the same row, with and without a goal."""
    missing = Row("part", "what", "ms", "reference", note="not installed")
    for row in (ROW, missing):
        assert Row.of(json.loads(json.dumps(row.record()))) == row


def test_tables_hold_every_row() -> None:
    """One line for each, with goal, both figures, ratio and verdict; the same in the terminal and on a page."""
    head, line = table([ROW]).splitlines()
    assert head.split()[:2] == ["part", "what"]
    assert line.split() == ["part", "what", "<=", "1.6", "3.00", "reference", "2.00", "ms", "1.50", "pass"]
    assert markdown([ROW]).splitlines()[2] == "| part | what | <= 1.6 | 3.00 | reference | 2.00 | ms | 1.50 | pass |"


def test_a_row_without_figures_says_why() -> None:
    """In place of figures stand dashes, and the note is shown."""
    line = table([Row("part", "what", "ms", "reference", note="not installed")]).splitlines()[1]
    assert line.split() == ["part", "what", "-", "reference", "-", "ms", "not", "measured;", "not", "installed"]


def test_figures_are_short() -> None:
    """Three digits, and no exponent however large."""
    figures = (0.01234, 1.234, 12.34, 123.4, 1_234_567.0, None)
    assert [short(figure) for figure in figures] == ["0.012", "1.23", "12.3", "123", "1234567", "-"]


async def test_those_compared_take_turns() -> None:
    """A B A B, so that what disturbs the machine for a while meets both; the figure is the median."""
    order: list[str] = []
    values = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 6.0, 7.0])}

    async def measure(name: str) -> float:
        order.append(name)
        return next(values[name])

    report = Report()
    found = await report.compare("ms", {name: lambda name=name: measure(name) for name in values}, 3)  # type: ignore[misc]  # mypy does not see the type of a default
    assert order == ["a", "b"] * 3
    assert found == {"a": 2.0, "b": 6.0}
    assert report.samples == {"ms, a": [1.0, 9.0, 2.0], "ms, b": [5.0, 6.0, 7.0]}


def test_a_slope_is_not_moved_by_a_point_far_off() -> None:
    """It is the median of the slopes of all pairs; nothing grows where there is nothing to compare."""
    assert slope([(x, 2.0 * x + 1) for x in range(10)]) == 2.0
    assert slope([*((x, 2.0 * x) for x in range(10)), (10, 1e6)]) == 2.0
    assert slope([(1, 5.0)]) == slope([(1, 5.0), (1, 7.0)]) == 0.0


def test_growth_leaves_the_beginning_out() -> None:
    """What fills caches in the first quarter of the time is no growth; the rest is told by the hour."""
    names = ("open files", "threads", "store", "rounds")
    memory = (10.0, 50.0, 51.0, 52.0)
    samples = [{"seconds": 36.0 * n, "memory": each, **dict.fromkeys(names, 7.0)} for n, each in enumerate(memory)]
    assert growth(samples) == {"memory": pytest.approx(100.0), **dict.fromkeys(names, 0.0)}


def test_the_page_gets_the_figures_between_its_marks() -> None:
    """And nothing else of it changes; done again, nothing does."""
    results = json.dumps({"time": "2030-01-02T03:04:05", "seconds": 7, "machine": {"CPU": "2"}, "rows": [ROW.record()]})
    page = filled("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n", results)
    assert page.startswith("before\n<!-- figures -->\nRun on 2030-01-02 in 7 s")
    assert page.endswith("| 1.50 | pass |\n<!-- /figures -->\nafter\n")
    assert "- CPU: 2\n" in page
    assert filled(page, results) == page


def test_functions_are_ranked_by_their_samples() -> None:
    """Samples count for the innermost function alone, and for each that it was called by once, however deep."""
    stacks = ["main (app.py:1);work (lib/pkg/agent_service/a.py:5) 3", "main (app.py:2);main (app.py:3) 1"]
    lines = hottest(stacks).splitlines()
    assert lines[1].split() == ["75.0%", "75.0%", "work", "(pkg/agent_service/a.py)"]
    assert lines[2].split() == ["100.0%", "25.0%", "main", "(app.py)"]
    assert lines[-1].split() == ["75.0%", "work", "(pkg/agent_service/a.py)"]


def test_the_name_of_the_model_says_what_it_answers() -> None:
    """Kind, number of tokens and their rate; another name is refused."""
    assert script("text:200") == Script("text", 200, 0.0)
    assert script("mixed:10@50") == Script("mixed", 10, 50.0)
    assert script("tool") == Script("tool")
    with pytest.raises(ValueError, match="'gpt' says nothing"):
        script("gpt")


def test_a_burst_has_its_tokens_in_order() -> None:
    """One HTTP chunk each, by turns of text and reasoning where that is asked for, then the end of the answer."""
    body, events = burst("mixed", 3), []
    while body != b"0\r\n\r\n":
        size, _, rest = body.partition(b"\r\n")
        event, body = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        events.append(event.removeprefix(b"data: ").removesuffix(b"\n\n"))
    assert events.pop() == b"[DONE]"
    deltas = [msgspec.json.decode(event)["choices"][0]["delta"] for event in events]
    assert deltas[1:-1] == [{"content": TOKEN}, {"reasoning_content": TOKEN}, {"content": TOKEN}]
    assert len(pieces("mixed", 3)) == 3


def test_a_paused_run_is_copied_under_other_ids(tmp_path: Path) -> None:
    """Each copy has keys and ids of its own, also within the stored JSON; triggers are there again afterwards."""
    path = tmp_path / "store"
    first = Paused("run_00ab", "call_00cd", 3)
    with sqlite3.connect(path) as db:
        db.executescript(
            """CREATE TABLE conversations (conversation_key INTEGER PRIMARY KEY, conversation_id TEXT);
            CREATE TABLE runs (run_key INTEGER PRIMARY KEY, conversation_key INTEGER, run_id TEXT, body TEXT);
            CREATE TABLE messages (conversation_key INTEGER, position INTEGER, run_id TEXT);
            CREATE TABLE events (run_key INTEGER, sequence INTEGER, body TEXT);
            CREATE TABLE calls (tool_call_id TEXT, run_key INTEGER);
            CREATE TRIGGER kept BEFORE UPDATE ON calls BEGIN SELECT RAISE(ABORT, 'no'); END;
            INSERT INTO conversations VALUES (1, 'conv_00ef');
            INSERT INTO runs VALUES (1, 1, 'run_00ab', '{"run_id":"run_00ab","in":"conv_00ef"}');
            INSERT INTO messages VALUES (1, 1, 'run_00ab'), (1, 2, 'run_00ab');
            INSERT INTO events VALUES (1, 1, '{"call":"call_00cd"}');
            INSERT INTO calls VALUES ('call_00cd', 1);"""
        )
    copies(path, first, 17)
    last = copy(first, 17)
    assert last == Paused("run_0011", "call_0011", 3)
    db = sqlite3.connect(path)
    run = db.execute("SELECT run_key, conversation_key, body FROM runs WHERE run_id = ?", (last.run_id,)).fetchone()
    assert run == (18, 18, '{"run_id":"run_0011","in":"conv_0011"}')
    assert db.execute("SELECT count(*) FROM messages WHERE conversation_key = 18").fetchone() == (2,)
    assert db.execute("SELECT body FROM events WHERE run_key = 18").fetchone() == ('{"call":"call_0011"}',)
    assert db.execute("SELECT run_key FROM calls WHERE tool_call_id = ?", (last.call_id,)).fetchone() == (18,)
    assert db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall() == [("kept",)]
    db.close()
