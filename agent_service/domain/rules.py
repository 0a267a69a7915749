"""Rules about the tool calls of a run, and what a run keeps for them: frozen values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from enum import StrEnum

from agent_service.domain.values import replace

MAX_TOOL_NAME = 64
"""Characters of a tool's name."""
_KEPT_OUTPUT = 200
"""Characters of an output that are kept as they are; of a longer one, or of what is no Unicode text, its digest."""


_PLAIN_DIGITS = 20
"""Up to this power of ten a number is kept without an exponent."""


class RuleKind(StrEnum):
    """The kinds of rules; the values are the names in the contract."""

    RUN_FIRST = "run_first"
    TERMINAL = "terminal"
    CONTINUE_RUN = "continue_run"
    CHILD = "child"
    CONDITIONAL = "conditional"
    MAX_COUNT = "max_count"
    PARENT_LAST = "parent_last"
    REQUIRED_BEFORE_EXIT = "required_before_exit"
    REQUIRES_APPROVAL = "requires_approval"


_OPPOSITE = {RuleKind.TERMINAL: RuleKind.CONTINUE_RUN, RuleKind.CONTINUE_RUN: RuleKind.TERMINAL}


@dataclass(frozen=True, slots=True)
class NextTool:
    """A tool that may come next, and the argument values that are given then: a JSON object, or empty for none."""

    tool_name: str
    arguments_json: str = ""


@dataclass(frozen=True, slots=True)
class ToolRule:
    """One rule about `tool_name`. What is beside it depends on the kind.

    RUN_FIRST: `arguments_json`, as in NextTool. CHILD and PARENT_LAST: `children` (the latter without arguments).
    CONDITIONAL: `tools_by_output` (pairs), `default_tool` or an empty name, `require_output_mapping`. MAX_COUNT: the
    number.
    """

    kind: RuleKind
    tool_name: str
    arguments_json: str = ""
    children: tuple[NextTool, ...] = ()
    tools_by_output: tuple[tuple[str, str], ...] = ()
    default_tool: str = ""
    require_output_mapping: bool = False
    max_count: int = 0

    @property
    def names(self) -> Iterator[tuple[str, str]]:
        """Every tool it names, with its place in the rule."""
        yield "tool_name", self.tool_name
        for index, child in enumerate(self.children):
            where = f"children[{index}]"
            yield f"{where}.tool_name" if self.kind is RuleKind.CHILD else where, child.tool_name
        for output, name in self.tools_by_output:
            yield f'tools_by_output["{output[:MAX_TOOL_NAME]}"]', name
        if self.default_tool:
            yield "default_tool", self.default_tool


@dataclass(frozen=True, slots=True)
class RuleState:
    """What rules need to know of a run so far: how often each tool was called, which was called last, and what came of
    that call (None before its outcome; see `output_key`)."""

    counts: tuple[tuple[str, int], ...] = ()
    last_tool: str = ""
    last_call_id: str = ""
    last_output: str | None = None

    def count(self, tool: str) -> int:
        """How often the tool was called."""
        return dict(self.counts).get(tool, 0)

    def after_call(self, tool: str, tool_call_id: str) -> RuleState:
        """The state once this call is made."""
        counts = dict(self.counts)
        counts[tool] = counts.get(tool, 0) + 1
        return RuleState(tuple(counts.items()), tool, tool_call_id)

    def after_outcome(self, tool_call_id: str, text: str) -> RuleState:
        """The state once the model can be told this of a call."""
        if tool_call_id != self.last_call_id:
            return self
        return replace(self, last_output=output_key(text))


NO_CALLS = RuleState()
"""The state at the start of a run."""


def output_key(text: str) -> str:
    """Equal for texts that are the same output: equal but for white space around them, or equal JSON scalars. A JSON
    string equals its content, and numbers are equal by value. Of a long text it is a digest."""
    key = text.strip()
    scalar = _scalar(key)
    if isinstance(scalar, str):
        key = scalar.strip()
        scalar = _scalar(key)
    if scalar is not None and not isinstance(scalar, str):
        key = _number_key(scalar) if isinstance(scalar, Decimal) else json.dumps(scalar)
    encoded = key.encode(errors="surrogatepass")
    if len(key) <= _KEPT_OUTPUT and encoded == key.encode(errors="replace"):
        return key
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def _scalar(text: str) -> str | bool | Decimal | None:
    """The JSON scalar that a text is; None for null (which is written in one way only) and for any other text."""
    if text[:1] in ("{", "["):
        return None
    try:
        value = json.loads(text, parse_int=Decimal, parse_float=Decimal)
    except (ValueError, ArithmeticError):
        return None
    return value if isinstance(value, str | bool | Decimal) else None


def _number_key(number: Decimal) -> str:
    if not number:
        return "0"
    exact = Context(prec=len(number.as_tuple().digits), Emin=MIN_EMIN, Emax=MAX_EMAX)
    number = number.normalize(exact)
    return f"{number:f}" if abs(number.adjusted()) <= _PLAIN_DIGITS else str(number)


def merged(of_agent: Sequence[ToolRule], of_request: Sequence[ToolRule]) -> tuple[ToolRule, ...]:
    """The rules of a run: a rule of the request takes the place of the agent's of the same kind about the same tool,
    and of one that says the opposite."""
    replaced = {(rule.kind, rule.tool_name) for rule in of_request}
    replaced |= {(_OPPOSITE[rule.kind], rule.tool_name) for rule in of_request if rule.kind in _OPPOSITE}
    return (*(rule for rule in of_agent if (rule.kind, rule.tool_name) not in replaced), *of_request)


def problems(rules: Sequence[ToolRule], most: int) -> Iterator[tuple[str, str]]:
    """What is wrong with a list of rules: each place in it, such as "[0].child.children", and why. `most` bounds the
    rules and what one of them names."""
    if len(rules) > most:
        yield "", f"{len(rules)} rules; at most {most} are allowed"
        return
    first: dict[tuple[RuleKind, str], int] = {}
    for index, rule in enumerate(rules):
        where = f"[{index}].{rule.kind}"
        for field, text in _problems_of(rule, most):
            yield f"{where}.{field}", text
        for kind in filter(None, (rule.kind, _OPPOSITE.get(rule.kind))):
            if (kind, rule.tool_name) in first:
                other = first[kind, rule.tool_name]
                yield (
                    f"{where}.tool_name",
                    f"there is a {kind} rule about '{rule.tool_name[:MAX_TOOL_NAME]}' in [{other}]",
                )
        first.setdefault((rule.kind, rule.tool_name), index)


def _problems_of(rule: ToolRule, most: int) -> Iterator[tuple[str, str]]:
    names = list(rule.names)
    if len(names) > most:
        yield "tool_name", f"the rule names {len(names)} tools; at most {most} are allowed"
        return
    for field, name in names:
        if not name:
            yield field, "is empty; name a tool"
        elif len(name) > MAX_TOOL_NAME:
            yield field, f"{name[:MAX_TOOL_NAME]!r} is no tool's name: {len(name)} characters; at most {MAX_TOOL_NAME}"
    if rule.kind in (RuleKind.CHILD, RuleKind.PARENT_LAST):
        yield from _problems_of_children([child.tool_name for child in rule.children])
    if rule.kind is RuleKind.CONDITIONAL:
        yield from _problems_of_outputs(rule)
    if rule.kind is RuleKind.MAX_COUNT and rule.max_count < 1:
        yield "max_count", f"{rule.max_count} is below 1; send 1 or more"


def _problems_of_children(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    if not names:
        yield "children", "is empty; name at least one tool"
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"children[{index}]", f"'{name[:MAX_TOOL_NAME]}' is named twice"


def _problems_of_outputs(rule: ToolRule) -> Iterator[tuple[str, str]]:
    if not rule.tools_by_output:
        yield "tools_by_output", "is empty; map at least one output to a tool"
    if rule.default_tool and rule.require_output_mapping:
        yield "default_tool", "set together with require_output_mapping; send one of them"
    keys = [output_key(output) for output, _ in rule.tools_by_output]
    for index, (output, _) in enumerate(rule.tools_by_output):
        if keys[index] in keys[:index]:
            yield "tools_by_output", f"{output[:MAX_TOOL_NAME]!r} is the same output as another one"
