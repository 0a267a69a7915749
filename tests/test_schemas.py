"""JSON Schemas of strangers: what is checked, what is refused, and that nothing takes for ever."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_service.engine import schema_work
from agent_service.engine.schema_work import TooMuchWorkError, Work
from agent_service.engine.schemas import JsonError, parse_json, schema_problem, text_violation

TOO_LONG = "cannot be checked: it would take too long with this schema"

NESTED = '{"a":' * 200 + "1" + "}" * 200


def problem(schema: dict[str, Any]) -> str:
    """Why the schema cannot be used."""
    return schema_problem(json.dumps(schema), max_bytes=64 * 1024, max_depth=32)


def doubling(levels: int, keyword: str) -> dict[str, Any]:
    """A schema each level of which asks for the next one twice."""
    level = {f"a{n}": {keyword: [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/a0", "$defs": {**level, f"a{levels}": {"type": "object"}}}


ENDLESS = {
    "references that double": (doubling(400, "allOf"), "{}"),
    "alternatives that double": (doubling(400, "anyOf"), "{}"),
    "doubling at each level of the value": (
        {"type": "object", "allOf": [{"properties": {"a": {"$ref": "#"}}}] * 2},
        NESTED,
    ),
    "many checks of many items": (
        {"properties": {"a": {"items": {"allOf": [{"type": "integer"}] * 3000}}}},
        json.dumps({"a": [1] * 100_000}),
    ),
    "a long enumeration for many items": (
        {"properties": {"a": {"items": {"enum": [f"value {n}" for n in range(4000)]}}}},
        json.dumps({"a": ["other"] * 100_000}),
    ),
    "a backtracking pattern for many items": (
        {"properties": {"a": {"items": {"pattern": "^(?=.)(a+)+\\1$"}}}},
        json.dumps({"a": ["a" * 30 + "b"] * 20_000}),
    ),
}


@pytest.mark.parametrize("case", ENDLESS)
@pytest.mark.timeout(20)
def test_what_would_take_for_ever_is_told_apart_and_not_begun(case: str) -> None:
    """A schema of a few lines, or one together with a large value, cannot hold up the process."""
    schema, text = ENDLESS[case]
    assert problem(schema) == ""
    assert text_violation(json.dumps(schema), text) == TOO_LONG


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|aa)+$", "^(?=a)(a+)+$", "(x+x+)+y", "[01]*1[01]{500}2"])
@pytest.mark.timeout(20)
def test_no_pattern_backtracks_without_end(pattern: str) -> None:
    """A text that the pattern would try in countless ways simply does not match."""
    schema = {"properties": {"a": {"pattern": pattern}}}
    assert problem(schema) == ""
    text = "a" * 60 + "x" * 60 + "01" * 60 + "b"
    assert "does not match" in text_violation(json.dumps(schema), json.dumps({"a": text}))


@pytest.mark.timeout(20)
def test_a_pattern_that_goes_back_too_often_is_given_up() -> None:
    """One with a back reference cannot be matched in one pass; the text counts as a violation that says so."""
    schema = json.dumps({"properties": {"a": {"pattern": "^(a|aa)+\\1c$"}}})
    assert "limit for backtracking" in text_violation(schema, json.dumps({"a": "a" * 60 + "b"}))


def test_a_pattern_that_compiles_into_megabytes_is_refused() -> None:
    """Its repetitions multiply."""
    assert "is not a" in problem({"properties": {"a": {"pattern": "(.{1000}){1000}"}}})


@pytest.mark.parametrize(
    ("schema", "ref"),
    [
        ({"$ref": "#"}, "#"),
        ({"allOf": [{"$ref": "#/$defs/b"}], "$defs": {"b": {"anyOf": [{"$ref": "#"}]}}}, "#"),
        ({"$dynamicRef": "#top", "$dynamicAnchor": "top"}, "#top"),
    ],
)
def test_a_reference_that_leads_back_to_itself_is_refused(schema: dict[str, Any], ref: str) -> None:
    """On its way it never goes into a part of the value, so checking it has no end."""
    assert problem(schema) == f"$ref '{ref}' leads back to itself"


def test_ids_inside_a_schema_are_refused() -> None:
    """They would give the references below them another meaning."""
    assert problem({"properties": {"a": {"$id": "https://example.com/a", "type": "string"}}}).startswith("$id: only")
    assert problem({"$id": "https://example.com/a", "type": "object"}) == ""


USUAL: dict[str, tuple[dict[str, Any], str, str]] = {
    "a recursive type": (
        {
            "properties": {"e": {"$ref": "#/$defs/e"}},
            "$defs": {
                "e": {
                    "oneOf": [
                        {"type": "integer"},
                        {
                            "type": "object",
                            "properties": {"add": {"items": {"$ref": "#/$defs/e"}}},
                            "required": ["add"],
                        },
                        {"type": "object", "properties": {"not": {"$ref": "#/$defs/e"}}, "required": ["not"]},
                    ]
                }
            },
        },
        '{"e": {"add": [1, {"not": {"add": [2, {"not": 3}]}}]}}',
        '{"e": {"add": [1, {"nor": 3}]}}',
    ),
    "a deep value of a recursive type": (
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}}},
        NESTED,
        '{"a": "x"}',
    ),
    "many objects": (
        {"properties": {"a": {"items": {"properties": {"x": {"type": "integer"}, "y": {"type": "string"}}}}}},
        json.dumps({"a": [{"x": n, "y": "text"} for n in range(30_000)]}),
        json.dumps({"a": [{"x": n, "y": n} for n in range(30_000)]}),
    ),
    "a large text with a pattern": (
        {"properties": {"a": {"pattern": r"^[\w ]+$"}}},
        json.dumps({"a": "word " * 200_000}),
        json.dumps({"a": "word-" * 200_000}),
    ),
    "a lookahead": ({"properties": {"a": {"pattern": "^(?!-)[a-z-]+$"}}}, '{"a": "a-b"}', '{"a": "-b"}'),
    "conditions": (
        {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "dependentSchemas": {"b": {"required": ["c"]}}},
        '{"a": 1, "b": 2, "c": 3}',
        '{"a": 1, "b": 2}',
    ),
    "properties that are named like keywords": (
        {
            "properties": {"$ref": {"type": "string"}, "enum": {"type": "string"}, "required": {"type": "integer"}},
            "default": {"required": 5, "enum": 3, "dependentSchemas": 4},
        },
        '{"$ref": "x", "enum": "y", "required": 1}',
        '{"$ref": 1}',
    ),
    "an escaped pointer": (
        {"properties": {"a": {"$ref": "#/$defs/x~1y%20z"}}, "$defs": {"x/y z": {"type": "string"}}},
        '{"a": "x"}',
        '{"a": 1}',
    ),
}


@pytest.mark.parametrize("case", USUAL)
def test_what_people_write_is_checked_as_ever(case: str) -> None:
    """Recursion, large values, lookaheads: none of it is taken for an attack."""
    schema, right, wrong = USUAL[case]
    text = json.dumps(schema)
    assert problem(schema) == ""
    assert text_violation(text, right) == ""
    found = text_violation(text, wrong)
    assert found.startswith("at /")


LEAVES = st.one_of(st.integers(), st.text(max_size=5), st.booleans())
VALUES = st.recursive(
    LEAVES, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.sampled_from("ab"), part, max_size=2)
)
SCHEMAS = st.recursive(
    st.sampled_from([{}, {"type": "integer"}, {"$ref": "#/$defs/x"}, {"enum": [1, 2]}]),
    lambda part: st.one_of(
        st.builds(lambda some: {"allOf": some}, st.lists(part, min_size=1, max_size=2)),
        st.builds(lambda some: {"anyOf": some}, st.lists(part, min_size=1, max_size=2)),
        st.builds(lambda one: {"properties": {"a": one}}, part),
        st.builds(lambda one: {"items": one}, part),
        st.builds(lambda one: {"additionalProperties": one}, part),
    ),
    max_leaves=6,
)


@given(schema=SCHEMAS, shared=SCHEMAS, value=VALUES)
def test_the_quick_bound_is_never_below_the_exact_count(schema: Any, shared: Any, value: Any) -> None:
    """So what is let through by the bound alone is little work indeed."""
    whole = {"allOf": [schema], "$defs": {"x": {"properties": {"a": shared}}}}
    work = Work(whole, frozenset())
    text = json.dumps(value)
    values = 1 + sum(text.count(mark) for mark in ",:[{")
    exact = work._count(whole, value, {})
    assert exact <= work._most.values * values + work._most.characters * len(text)


def test_the_count_stops_at_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting is work as well."""
    monkeypatch.setattr(schema_work, "MAX_STATES", 10)
    schema = {"properties": {"a": {"items": {"$ref": "#/properties/a"}}}}
    work = Work(schema, frozenset())
    work.check({"a": [1]}, '{"a": [1]}')
    with pytest.raises(TooMuchWorkError):
        work.check({"a": list(range(20))}, json.dumps({"a": list(range(20))}))


def test_a_key_that_stands_twice_among_very_many_is_found_at_once() -> None:
    """The time grows with the text, not with its square, which would be minutes here."""
    text = "{" + "".join(f'"k{i}":0,' for i in range(100_000)) + '"k99999":1}'
    begun = time.thread_time()
    with pytest.raises(JsonError, match="'k99999' twice"):
        parse_json(text)
    assert time.thread_time() - begun < 2


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": {"pattern": "^(a+)+b"}},
        {"required": [f"r{i}" for i in range(3_000)]},
        {"anyOf": [{"required": [f"r{i}"]} for i in range(1_000)]},
        {"oneOf": [{"required": [f"r{i}"]} for i in range(1_000)]},
        {"additionalProperties": {"type": "integer"}},
    ],
    ids=lambda schema: next(iter(schema)),
)
def test_a_value_with_very_many_errors_is_refused_at_once(schema: dict[str, Any]) -> None:
    """One error is told, and the others are not even made: each would hold the whole value."""
    value = {f"a{i}": "aaaaaaaaaaaaaaaaaaaaaaaa!" for i in range(4_000)}
    begun = time.thread_time()
    assert text_violation(json.dumps(schema), json.dumps(value))
    assert time.thread_time() - begun < 2


def test_many_patterns_together_take_as_much_as_one() -> None:
    """Patterns of which each alone could be used are refused when together they would fill the memory."""
    pattern = "(a{1,99}){1,40}"
    assert problem({"patternProperties": {pattern: True}}) == ""
    assert "regex" in problem({"patternProperties": {f"{pattern}{i}": True for i in range(300)}})
