"""Tool rules as pure functions: what they permit after any calls, against each rule in plain words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent_service.domain.permit import note, permitted, rules_text, uncalled
from agent_service.domain.rules import (
    NO_CALLS,
    NextTool,
    RuleKind,
    RuleState,
    ToolRule,
    merged,
    output_key,
    problems,
)
from agent_service.domain.values import replace
from agent_service.engine.calls import with_given
from agent_service.stores import codec
from tests.store_contract import new_run

TOOLS = ("a", "b", "c", "d")
OUTPUTS = ("yes", "no", "true", "7")
NAMES = st.sampled_from(TOOLS)
MANY = 128


@dataclass(frozen=True)
class Made:
    """A call that was made, and its output if it has come."""

    name: str
    output: str | None


@st.composite
def rule(draw: Any) -> ToolRule:
    """A rule about one of the tools, or about one that the run does not have."""
    kind, name = draw(st.sampled_from(RuleKind)), draw(st.sampled_from((*TOOLS, "absent")))
    names = st.lists(st.sampled_from((*TOOLS, "absent")), min_size=1, max_size=3, unique=True)
    match kind:
        case RuleKind.CHILD | RuleKind.PARENT_LAST:
            return ToolRule(kind, name, children=tuple(map(NextTool, draw(names))))
        case RuleKind.CONDITIONAL:
            outputs = draw(st.dictionaries(st.sampled_from(OUTPUTS), NAMES, min_size=1))
            default = draw(st.sampled_from(("", *TOOLS)))
            required = not default and draw(st.booleans())
            return ToolRule(
                kind,
                name,
                tools_by_output=tuple(outputs.items()),
                default_tool=default,
                require_output_mapping=required,
            )
        case RuleKind.MAX_COUNT:
            return ToolRule(kind, name, max_count=draw(st.integers(1, 3)))
        case _:
            return ToolRule(kind, name)


RULES = st.lists(rule(), max_size=6, unique_by=lambda each: (each.kind, each.tool_name)).map(tuple)


def lawful(rules: tuple[ToolRule, ...], made: list[Made], name: str) -> bool:
    """Whether a call of the tool is in order after these calls, by the rules one by one."""
    last = made[-1] if made else Made("", None)
    firsts = [each.tool_name for each in rules if each.kind is RuleKind.RUN_FIRST]
    if not made and firsts and name not in firsts:
        return False
    parents = [
        each.tool_name for each in rules if each.kind is RuleKind.PARENT_LAST and NextTool(name) in each.children
    ]
    if parents and last.name not in parents:
        return False
    return all(_obeys(each, rules, made, last, name) for each in rules)


def _obeys(each: ToolRule, rules: tuple[ToolRule, ...], made: list[Made], last: Made, name: str) -> bool:
    called = [call.name for call in made]
    match each.kind:
        case RuleKind.MAX_COUNT:
            return name != each.tool_name or called.count(name) < each.max_count
        case RuleKind.CHILD:
            return last.name != each.tool_name or NextTool(name) in each.children
        case RuleKind.TERMINAL if name == each.tool_name:
            required = {r.tool_name for r in rules if r.kind is RuleKind.REQUIRED_BEFORE_EXIT} - {name}
            return required <= set(called)
        case RuleKind.CONDITIONAL if last.name == each.tool_name:
            if last.output is None:
                return False
            chosen = dict(each.tools_by_output).get(last.output, each.default_tool)
            return name == chosen if chosen else not each.require_output_mapping
        case _:
            return True


def stored(state: RuleState) -> RuleState:
    """The state as another process reads it from the run's row."""
    text = codec.encode(replace(new_run().run, rule_state=state))
    return codec.decode_run(codec.CODEC_VERSION, text).rule_state


ATTEMPTS = st.lists(st.tuples(NAMES, st.none() | st.sampled_from((*OUTPUTS, "else"))), max_size=8)


@given(RULES, ATTEMPTS)
def test_a_call_is_refused_exactly_if_a_rule_forbids_it(
    rules: tuple[ToolRule, ...], attempts: list[tuple[str, str | None]]
) -> None:
    """After any calls, of which some have no output yet; what is kept of them is small and survives being stored."""
    state, made = NO_CALLS, list[Made]()
    for name, output in attempts:
        permit = permitted(rules, state, TOOLS)
        assert permit.names == tuple(tool for tool in TOOLS if lawful(rules, made, tool))
        assert {tool for tool in TOOLS if permit.refusal(tool)} == set(TOOLS) - set(permit.names)
        if permit.refusal(name):
            continue
        state = state.after_call(name, f"call_{len(made)}")
        if output is not None:
            state = state.after_outcome(f"call_{len(made)}", output)
        made.append(Made(name, output))
        state = stored(state)
    called = [call.name for call in made]
    assert dict(state.counts) == {name: called.count(name) for name in called}
    assert len(state.counts) <= len(TOOLS)


@given(RULES, ATTEMPTS)
def test_a_run_is_at_a_dead_end_exactly_if_it_must_call_and_may_not(
    rules: tuple[ToolRule, ...], attempts: list[tuple[str, str | None]]
) -> None:
    """Or if it lacks a tool without which it may not end, or may call nothing and has such a tool still to call."""
    state, made = NO_CALLS, list[Made]()
    for name, output in attempts:
        if lawful(rules, made, name):
            state = state.after_call(name, "call").after_outcome("call", output or "")
            made.append(Made(name, output or ""))
    permit = permitted(rules, state, TOOLS)
    lacks = any(each.kind is RuleKind.REQUIRED_BEFORE_EXIT and each.tool_name == "absent" for each in rules)
    stuck = not permit.names and bool(permit.demand or uncalled(rules, state))
    assert bool(permit.dead_end) == (lacks or stuck)


@given(RULES)
def test_without_a_rule_about_it_a_tool_is_never_demanded_nor_forbidden(rules: tuple[ToolRule, ...]) -> None:
    """Rules about other tools than those of the run leave it alone, unless they demand a call."""
    others = tuple(each for each in rules if all(name == "absent" for _, name in each.names))
    permit = permitted(others, NO_CALLS, TOOLS)
    assume(not permit.demand)
    assert permit.names == TOOLS


def test_the_order_of_calls_in_one_answer_counts() -> None:
    """A child may follow its parent at once; what may follow an output has to wait for it."""
    child = ToolRule(RuleKind.CHILD, "a", children=(NextTool("b"),))
    by_output = ToolRule(RuleKind.CONDITIONAL, "a", tools_by_output=(("yes", "b"),), default_tool="c")
    state = NO_CALLS.after_call("a", "call_1")
    assert permitted((child,), state, TOOLS).names == ("b",)
    waiting = permitted((by_output,), state, TOOLS)
    assert waiting.names == ()
    assert "the output of 'a' decides what comes next, so wait for it" in waiting.refusal("b")
    assert permitted((by_output,), state.after_outcome("call_0", "yes"), TOOLS).names == ()
    assert permitted((by_output,), state.after_outcome("call_1", "yes"), TOOLS).names == ("b",)
    assert permitted((by_output,), state.after_outcome("call_1", "no"), TOOLS).names == ("c",)


def test_a_refusal_says_why_and_what_may_be_called() -> None:
    """In words for the model."""
    rules = (ToolRule(RuleKind.MAX_COUNT, "a", max_count=1), ToolRule(RuleKind.MAX_COUNT, "b", max_count=2))
    state = NO_CALLS.after_call("a", "call_1")
    assert permitted(rules, state, TOOLS).refusal("a") == (
        "Error: not called, 'a' was called once, which is the most in a run. Tools that may be called now: b, c, d."
    )
    alone = permitted(rules, state, ("a",))
    assert alone.refusal("a").endswith("Answer without a call.")
    assert not alone.dead_end


REFUSALS: list[tuple[tuple[ToolRule, ...], str]] = [
    ((ToolRule(RuleKind.RUN_FIRST, "b"), ToolRule(RuleKind.RUN_FIRST, "c")), "the first call must be of 'b' or 'c'"),
    (
        (ToolRule(RuleKind.PARENT_LAST, "b", children=(NextTool("a"),)),),
        "'a' may only be called right after 'b'",
    ),
    (
        (ToolRule(RuleKind.TERMINAL, "a"), ToolRule(RuleKind.REQUIRED_BEFORE_EXIT, "c")),
        "the run ends with 'a', so first call 'c'",
    ),
]


@pytest.mark.parametrize(("rules", "why"), REFUSALS)
def test_each_kind_of_refusal_has_its_words(rules: tuple[ToolRule, ...], why: str) -> None:
    """At the start of a run, of tool a."""
    assert why in permitted(rules, NO_CALLS, TOOLS).refusal("a")


DEAD_ENDS: list[tuple[tuple[ToolRule, ...], str]] = [
    (
        (ToolRule(RuleKind.RUN_FIRST, "absent"),),
        "the first call must be of 'absent', but 'absent' is not a tool of this run",
    ),
    (
        (ToolRule(RuleKind.RUN_FIRST, "a"), ToolRule(RuleKind.PARENT_LAST, "b", children=(NextTool("a"),))),
        "the first call must be of 'a', but 'a' may only be called right after 'b'",
    ),
    (
        (ToolRule(RuleKind.REQUIRED_BEFORE_EXIT, "absent"),),
        "'absent' must be called before the end, but is not a tool of this run",
    ),
    (
        (
            ToolRule(RuleKind.REQUIRED_BEFORE_EXIT, "a"),
            ToolRule(RuleKind.PARENT_LAST, "absent", children=tuple(map(NextTool, TOOLS))),
        ),
        "'a' must be called before the end, but 'a' may only be called right after 'absent'",
    ),
]


@pytest.mark.parametrize(("rules", "why"), DEAD_ENDS)
def test_a_dead_end_says_what_was_demanded_and_why_it_cannot_be(rules: tuple[ToolRule, ...], why: str) -> None:
    """So that whoever wrote the rules can correct them."""
    assert permitted(rules, NO_CALLS, TOOLS).dead_end == why


def test_what_is_required_stays_required_until_it_was_called() -> None:
    """Whatever came of the call. The note names all that is missing."""
    rules = (ToolRule(RuleKind.REQUIRED_BEFORE_EXIT, "a"), ToolRule(RuleKind.REQUIRED_BEFORE_EXIT, "b"))
    assert uncalled(rules, NO_CALLS) == ("a", "b")
    assert uncalled(rules, NO_CALLS.after_call("a", "call_1")) == ("b",)
    assert note(("a", "b")) == "Do not end your turn yet: first call 'a' and 'b'."


SAME = [
    ("yes", ' "yes"\n'),
    ("1", "1.0", "1e0", '"1"', "10E-1"),
    ("100", "1e2", "100.00"),
    ("0", "-0", "0.0", "0e7"),
    ("true", '"true"'),
    ("null", '"null"'),
    ("12345678901234567890123456789012345678901", "12345678901234567890123456789012345678901.0"),
    ('{"a": 1}', ' {"a": 1} '),
    ("", '""', " "),
]
OTHER = [("yes", "Yes"), ("true", "True"), ("1", "1.0000001"), ("null", ""), ('{"a":1}', '{"a": 1}'), ("NaN", "null")]


@pytest.mark.parametrize("texts", SAME)
def test_equal_outputs_have_one_key(texts: tuple[str, ...]) -> None:
    """Plain text, a JSON string with that content, and numbers by value."""
    assert len({output_key(text) for text in texts}) == 1


@pytest.mark.parametrize("texts", OTHER)
def test_other_outputs_have_other_keys(texts: tuple[str, ...]) -> None:
    """Nothing is taken for something else."""
    assert len({output_key(text) for text in texts}) == len(texts)


@given(st.text() | st.floats(allow_nan=False, allow_infinity=False).map(json.dumps) | st.integers().map(json.dumps))
def test_any_text_has_a_short_key_that_can_be_stored(text: str) -> None:
    """Also one that is no JSON, is long or holds half of a surrogate pair; a key is its own key."""
    for written in (text, json.dumps(text), text * 300):
        key = output_key(written)
        assert len(key.encode()) < 1024
        assert stored(RuleState(last_output=key)).last_output == key
        assert key.startswith("sha256:") or output_key(key) == key


def test_numbers_too_large_to_write_out_are_compared_all_the_same() -> None:
    """No number makes work that its text does not."""
    assert output_key("1e1000000") == output_key("10e999999") != output_key("1e999999")
    assert output_key("1e99999999999999999999") == "1e99999999999999999999"
    assert output_key('"\\ud800"') != output_key('"\\ud801"')


def test_rules_of_a_request_take_the_place_of_the_same_ones() -> None:
    """Of the same kind about the same tool; an end and its opposite exclude each other. Others stand side by side."""
    once, twice = (ToolRule(RuleKind.MAX_COUNT, "a", max_count=count) for count in (1, 2))
    ends, goes_on = ToolRule(RuleKind.TERMINAL, "a"), ToolRule(RuleKind.CONTINUE_RUN, "a")
    other = ToolRule(RuleKind.MAX_COUNT, "b", max_count=1)
    assert merged((once, ends, other), (twice,)) == (ends, other, twice)
    assert merged((ends, once), (goes_on,)) == (once, goes_on)
    assert merged((goes_on,), (ends,)) == (ends,)
    assert merged((once,), ()) == (once,)


WRONG: list[tuple[tuple[ToolRule, ...], dict[str, str]]] = [
    ((ToolRule(RuleKind.TERMINAL, ""),), {"[0].terminal.tool_name": "is empty; name a tool"}),
    (
        (ToolRule(RuleKind.TERMINAL, "x" * 65),),
        {"[0].terminal.tool_name": f"'{'x' * 64}' is no tool's name: 65 characters; at most 64"},
    ),
    ((ToolRule(RuleKind.CHILD, "a"),), {"[0].child.children": "is empty; name at least one tool"}),
    (
        (ToolRule(RuleKind.PARENT_LAST, "a", children=(NextTool("b"), NextTool("b"))),),
        {"[0].parent_last.children[1]": "'b' is named twice"},
    ),
    (
        (ToolRule(RuleKind.CHILD, "a", children=(NextTool(""),)),),
        {"[0].child.children[0].tool_name": "is empty; name a tool"},
    ),
    ((ToolRule(RuleKind.MAX_COUNT, "a"),), {"[0].max_count.max_count": "0 is below 1; send 1 or more"}),
    (
        (ToolRule(RuleKind.CONDITIONAL, "a"),),
        {"[0].conditional.tools_by_output": "is empty; map at least one output to a tool"},
    ),
    (
        (ToolRule(RuleKind.CONDITIONAL, "a", tools_by_output=(("1", "b"), ("1.0", "c"))),),
        {"[0].conditional.tools_by_output": "'1.0' is the same output as another one"},
    ),
    (
        (
            ToolRule(
                RuleKind.CONDITIONAL,
                "a",
                tools_by_output=(("1", "b"),),
                default_tool="c",
                require_output_mapping=True,
            ),
        ),
        {"[0].conditional.default_tool": "set together with require_output_mapping; send one of them"},
    ),
    (
        (ToolRule(RuleKind.TERMINAL, "a"), ToolRule(RuleKind.TERMINAL, "b"), ToolRule(RuleKind.TERMINAL, "a")),
        {"[2].terminal.tool_name": "there is a terminal rule about 'a' in [0]"},
    ),
    (
        (ToolRule(RuleKind.TERMINAL, "a"), ToolRule(RuleKind.CONTINUE_RUN, "a")),
        {"[1].continue_run.tool_name": "there is a terminal rule about 'a' in [0]"},
    ),
]


@pytest.mark.parametrize(("rules", "found"), WRONG)
def test_what_is_wrong_with_rules_is_said_with_its_place(rules: tuple[ToolRule, ...], found: dict[str, str]) -> None:
    """As a path in the contract, and what to do."""
    assert dict(problems(rules, MANY)) == found


def test_rules_and_what_they_name_are_bounded() -> None:
    """The number of rules, and of tools in one."""
    rules = [ToolRule(RuleKind.TERMINAL, f"t{number}") for number in range(3)]
    assert list(problems(rules, 2)) == [("", "3 rules; at most 2 are allowed")]
    wide = ToolRule(RuleKind.PARENT_LAST, "a", children=tuple(map(NextTool, "bcd")))
    assert list(problems([wide], 3)) == [("[0].parent_last.tool_name", "the rule names 4 tools; at most 3 are allowed")]


@given(RULES)
def test_rules_that_can_be_used_have_nothing_wrong_with_them(rules: tuple[ToolRule, ...]) -> None:
    """But for an end that is none."""
    ends = {each.tool_name for each in rules if each.kind is RuleKind.TERMINAL}
    assume(not ends & {each.tool_name for each in rules if each.kind is RuleKind.CONTINUE_RUN})
    assert list(problems(rules, MANY)) == []


def test_the_rules_are_told_in_words() -> None:
    """Those about the run's tools, the first call in front; nothing if there are none."""
    rules = (
        ToolRule(RuleKind.TERMINAL, "a"),
        ToolRule(RuleKind.CONTINUE_RUN, "b"),
        ToolRule(RuleKind.CHILD, "a", children=(NextTool("b", '{"x":1}'), NextTool("c"))),
        ToolRule(RuleKind.CONDITIONAL, "b", tools_by_output=(("no", "a"), ("yes", "c")), default_tool="d"),
        ToolRule(RuleKind.MAX_COUNT, "c", max_count=2),
        ToolRule(RuleKind.PARENT_LAST, "c", children=(NextTool("b"), NextTool("d"))),
        ToolRule(RuleKind.REQUIRED_BEFORE_EXIT, "d"),
        ToolRule(RuleKind.REQUIRES_APPROVAL, "d"),
        ToolRule(RuleKind.RUN_FIRST, "c", '{"y":2}'),
        ToolRule(RuleKind.RUN_FIRST, "absent"),
        ToolRule(RuleKind.MAX_COUNT, "absent", max_count=1),
    )
    assert rules_text(rules, TOOLS).splitlines() == [
        "Rules for your tool calls:",
        """- The first call must be of 'c' (given arguments: {"y":2}).""",
        "- After 'a' you are done: its return ends your work.",
        "- After 'b' go on: it does not end your work.",
        """- The call after 'a' must be of 'b' (given arguments: {"x":1}) or 'c'.""",
        "- The output of 'b' decides the next call: after 'no' it must be of 'a'; after 'yes' it must be of 'c'; "
        "after any other output of 'd'. Wait for it.",
        "- Call 'c' at most 2 times.",
        "- Call 'b' and 'd' only right after 'c'.",
        "- Call 'd' before you end your turn.",
        "- A person decides about each call of 'd'.",
    ]
    assert rules_text(rules, ("other",)) == ""


KEYS = st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


@given(OBJECTS, OBJECTS, st.booleans(), st.sampled_from([None, 1]))
def test_given_arguments_take_the_place_of_the_models(
    own: dict[str, Any], forced: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    """In JSON of any form; nothing else changes."""
    texts = [json.dumps(each, ensure_ascii=ascii_only, indent=indent) for each in (own, forced)]
    assert json.loads(with_given(*texts)) == own | forced
    assert with_given(texts[0], "") == texts[0]


def test_other_arguments_stay_as_the_model_wrote_them() -> None:
    """To the last digit; what is no object stays whole, for the model to be told."""
    written = '{ "id": 1234567890123456789 , "rate": 1.10, "q":"caf\\u00e9" }'
    assert with_given(written, '{"q": "tea"}') == '{"id": 1234567890123456789, "rate": 1.10, "q": "tea"}'
    assert with_given("{}", '{"q": 1}') == '{"q": 1}'
    for text in ("[1]", "{broken", '{"a": 1, "a": 2}', "7"):
        assert with_given(text, '{"q": 1}') == text


def test_only_a_call_that_is_permitted_gets_arguments() -> None:
    """A refused one stays as the model wrote it, and so does a later one."""
    first = ToolRule(RuleKind.RUN_FIRST, "a", '{"x": 1}')
    gate = ToolRule(RuleKind.PARENT_LAST, "b", children=(NextTool("a"),))
    assert permitted((first,), NO_CALLS, TOOLS).arguments_of("a") == '{"x": 1}'
    assert permitted((first,), NO_CALLS, TOOLS).arguments_of("b") == ""
    assert permitted((first, gate), NO_CALLS, TOOLS).arguments_of("a") == ""
    assert permitted((first,), NO_CALLS.after_call("a", "call_1"), TOOLS).arguments_of("a") == ""
