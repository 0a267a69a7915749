"""How much work it is to check a value against a JSON Schema, before it is begun.

A few lines of schema can ask for more than any machine can do: references that double at each level, of the schema or
of the value. What is too much is told apart here, in time that grows with what is counted, not with what it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

MAX_WORK = 5_000_000
"""Checks of one schema node against one value, about; takes a quarter of a second at most."""
MAX_STATES = 50_000
"""Pairs of schema node and value that are looked at to count the work exactly."""
BACKTRACKING = 1000
"""What a pattern that may backtrack costs for each text, in checks."""

Node = dict[str, Any]

_ONE = ("not", "if", "then", "else")
_MANY = ("allOf", "anyOf", "oneOf")
_EACH_PROPERTY = ("additionalProperties", "unevaluatedProperties")
_EACH_ITEM = ("items", "contains", "unevaluatedItems")


class TooMuchWorkError(Exception):
    """Checking the value would take too long."""


class LoopError(Exception):
    """A reference leads back to itself without going into the value; holds one such reference."""


@dataclass(frozen=True, slots=True)
class _Weight:
    """Checks for each value, and for each character of a text."""

    values: float
    characters: float

    def __add__(self, other: _Weight) -> _Weight:
        return _Weight(self.values + other.values, self.characters + other.characters)


_ENDLESS = _Weight(math.inf, math.inf)


class Work:
    """The work that a schema makes. `backtracks` says which patterns may. Raises LoopError."""

    def __init__(self, schema: Node, backtracks: frozenset[str]) -> None:
        self._schema = schema
        self._backtracks = backtracks
        self._references = References(schema)
        self._refuse_loops()
        self._weights: dict[int, _Weight | None] = {}
        try:
            self._most = self._weight(schema)
        except RecursionError:
            self._most = _ENDLESS

    def check(self, value: Any, text: str) -> float:
        """The checks of this value, whose JSON text is given, or more. Raises TooMuchWorkError if it is too much."""
        bound = self._most.values * (1 + sum(text.count(mark) for mark in ",:[{"))
        if bound + self._most.characters * len(text) <= MAX_WORK:
            return bound
        try:
            return self._count(self._schema, value, {})
        except RecursionError:
            raise TooMuchWorkError from None

    def _refuse_loops(self) -> None:
        """Depth first along what is checked against the same value; without recursion, as chains may be long."""
        done: set[int] = set()
        for start in self._all():
            path: set[int] = set()
            stack = [(start, False)]
            while stack:
                node, left = stack.pop()
                if left:
                    path.discard(id(node))
                    done.add(id(node))
                elif id(node) in path:
                    raise LoopError(node.get("$ref") or node.get("$dynamicRef") or "#")
                elif id(node) not in done:
                    path.add(id(node))
                    stack.append((node, True))
                    stack.extend((target, False) for target in self._same(node))

    def _all(self) -> list[Node]:
        """Every schema that may be asked."""
        found, stack = {id(self._schema): self._schema}, [self._schema]
        while stack:
            node = stack.pop()
            for target in (*self._same(node), *_below(node)):
                if id(target) not in found:
                    found[id(target)] = target
                    stack.append(target)
        return list(found.values())

    def _weight(self, node: Node) -> _Weight:
        """If each part of a value is checked by all that the schema has; endless if the schema contains itself."""
        key = id(node)
        if key in self._weights:
            return self._weights[key] or _ENDLESS
        self._weights[key] = None
        total = self._own(node)
        for target in self._same(node):
            total += self._weight(target)
        for target in _below(node):
            total += self._weight(target)
        self._weights[key] = total
        return total

    def _own(self, node: Node) -> _Weight:
        values, characters = 1 + len(node.get("enum", ())) + len(node.get("required", ())), 0
        for pattern in (node.get("pattern"), *node.get("patternProperties", ())):
            if pattern in self._backtracks:
                values += BACKTRACKING
            elif pattern is not None:
                characters += 1 + len(pattern) // 8
        return _Weight(values, characters)

    def _count(self, node: Node, value: Any, known: dict[tuple[int, int], float]) -> float:
        key = (id(node), id(value))
        if key in known:
            return known[key]
        if len(known) >= MAX_STATES:
            raise TooMuchWorkError
        known[key] = 0
        own = self._own(node)
        total = own.values + own.characters * (len(value) if isinstance(value, str) else 1)
        for target in self._same(node):
            total += self._count(target, value, known)
        for target, part in _parts(node, value):
            total += self._count(target, part, known)
        if total > MAX_WORK:
            raise TooMuchWorkError
        known[key] = total
        return total

    def _same(self, node: Node) -> Iterator[Node]:
        """What is checked against the same value."""
        for key in ("$ref", "$dynamicRef"):
            if isinstance(ref := node.get(key), str):
                yield from _schemas(self._references.target(ref))
        for key in _ONE:
            yield from _schemas(node.get(key))
        for key in _MANY:
            yield from _schemas(*node.get(key, ()))
        yield from _schemas(*node.get("dependentSchemas", {}).values())


class References:
    """Where references inside a schema lead."""

    def __init__(self, schema: Node) -> None:
        self._schema = schema
        self._anchors = {anchor: node for node in nodes(schema) for anchor in _anchors(node)}

    def target(self, ref: str) -> Any:
        """What "#", "#/pointer" or "#anchor" names. Raises LookupError, TypeError or ValueError if there is nothing."""
        fragment = unquote(ref[1:])
        if fragment and not fragment.startswith("/"):
            return self._anchors[fragment]
        found: Any = self._schema
        for part in fragment.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found


def nodes(schema: Node) -> Iterator[Node]:
    """All objects in a schema, whether they are schemas or not: a reference may lead to any."""
    stack: list[Any] = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _anchors(node: Node) -> Iterator[str]:
    for key in ("$anchor", "$dynamicAnchor"):
        if isinstance(anchor := node.get(key), str):
            yield anchor


def _schemas(*values: Any) -> Iterator[Node]:
    """Those that are schemas with something to check."""
    return (value for value in values if isinstance(value, dict))


def _below(node: Node) -> Iterator[Node]:
    """What is checked against parts of a value."""
    for key in (*_EACH_PROPERTY, *_EACH_ITEM, "propertyNames"):
        yield from _schemas(node.get(key))
    for key in ("properties", "patternProperties"):
        yield from _schemas(*node.get(key, {}).values())
    yield from _schemas(*node.get("prefixItems", ()))


def _parts(node: Node, value: Any) -> Iterator[tuple[Node, Any]]:
    """What may be checked against which part of this value."""
    if isinstance(value, dict):
        named = node.get("properties", {})
        for name in named.keys() & value.keys() if named else ():
            yield from ((target, value[name]) for target in _schemas(named[name]))
        keyed = (node.get(key) for key in _EACH_PROPERTY)
        each = [*_schemas(*keyed), *_schemas(*node.get("patternProperties", {}).values())]
        names = list(_schemas(node.get("propertyNames")))
        # Most nodes have neither, and a value may be long.
        for name, part in value.items() if each or names else ():
            yield from ((target, part) for target in each)
            yield from ((target, name) for target in names)
    elif isinstance(value, list):
        for target, part in zip(node.get("prefixItems", ()), value, strict=False):
            yield from ((schema, part) for schema in _schemas(target))
        each = list(_schemas(*(node.get(key) for key in _EACH_ITEM)))
        for part in value if each else ():
            yield from ((target, part) for target in each)
