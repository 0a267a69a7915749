"""What the tool rules of a run permit next, and how the model is told: pure functions of rules, state and tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent_service.domain.rules import NextTool, RuleKind, RuleState, ToolRule, output_key


@dataclass(frozen=True, slots=True)
class Permit:
    """Which tools may be called next, in the order of the run's tools; `demand` says why one of them must be, and is
    empty if none must. `given` are those whose arguments are given. `refusals` says of each other tool why not.

    `dead_end` says why the run cannot go on, and is empty if it can.
    """

    names: tuple[str, ...]
    demand: str
    given: tuple[NextTool, ...]
    refusals: tuple[tuple[str, str], ...]
    dead_end: str

    def refusal(self, name: str) -> str:
        """Why the tool may not be called, for the model; empty if it may."""
        why = dict(self.refusals).get(name)
        if why is None:
            return ""
        now = f"Tools that may be called now: {', '.join(self.names)}." if self.names else "Answer without a call."
        return f"Error: not called, {why}. {now}"

    def arguments_of(self, name: str) -> str:
        """The arguments that are given in a call of the tool; empty if none are."""
        return next((tool.arguments_json for tool in self.given if tool.tool_name == name), "")


@dataclass(frozen=True, slots=True)
class _Demand:
    """The next call has to be of one of these tools."""

    tools: tuple[NextTool, ...]
    why: str

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.tool_name for tool in self.tools)


def permitted(rules: Sequence[ToolRule], state: RuleState, tools: Sequence[str]) -> Permit:
    """What may be called next in a run with these tools."""
    if not rules:
        return Permit(tuple(tools), "", (), (), "")
    demands = list(_demands(rules, state))
    gates = _Gates(rules, state, tools)
    refusals = {}
    for name in tools:
        unwanted = (demand.why for demand in demands if name not in demand.names)
        if why := next(unwanted, "") or gates.refusal(name):
            refusals[name] = why
    names = tuple(name for name in tools if name not in refusals)
    given = tuple(
        tool for demand in demands for tool in demand.tools if tool.arguments_json and tool.tool_name in names
    )
    dead_end = gates.missing or ("" if names else _dead_end(gates, demands) or gates.never)
    return Permit(names, "; ".join(demand.why for demand in demands), given, tuple(refusals.items()), dead_end)


def uncalled(rules: Sequence[ToolRule], state: RuleState) -> tuple[str, ...]:
    """The tools that have to be called before the run may end."""
    required = (rule.tool_name for rule in rules if rule.kind is RuleKind.REQUIRED_BEFORE_EXIT)
    return tuple(name for name in required if not state.count(name))


def note(names: Sequence[str]) -> str:
    """What the model is told when it ends its turn without these tools."""
    return f"Do not end your turn yet: first call {_listed(names, 'and')}."


def about(rules: Sequence[ToolRule], kind: RuleKind) -> frozenset[str]:
    """The tools that rules of this kind are about."""
    return frozenset(rule.tool_name for rule in rules if rule.kind is kind)


def tools_with_given_arguments(rules: Sequence[ToolRule]) -> frozenset[str]:
    """The tools whose arguments a rule may change."""
    given = [tool for rule in rules for tool in (NextTool(rule.tool_name, rule.arguments_json), *rule.children)]
    return frozenset(tool.tool_name for tool in given if tool.arguments_json)


def _demands(rules: Sequence[ToolRule], state: RuleState) -> Iterator[_Demand]:
    first = [rule for rule in rules if rule.kind is RuleKind.RUN_FIRST]
    if first and not state.last_tool:
        tools = tuple(NextTool(rule.tool_name, rule.arguments_json) for rule in first)
        yield _Demand(tools, f"the first call must be of {_listed((tool.tool_name for tool in tools), 'or')}")
    for rule in rules:
        if rule.tool_name != state.last_tool:
            continue
        if rule.kind is RuleKind.CHILD:
            children = _listed((child.tool_name for child in rule.children), "or")
            yield _Demand(rule.children, f"the call after '{rule.tool_name}' must be of {children}")
        elif rule.kind is RuleKind.CONDITIONAL:
            yield from _demands_by_output(rule, state.last_output)


def _demands_by_output(rule: ToolRule, output: str | None) -> Iterator[_Demand]:
    name = rule.tool_name
    if output is None:
        yield _Demand((), f"the output of '{name}' decides what comes next, so wait for it")
        return
    chosen = next((tool for key, tool in rule.tools_by_output if output_key(key) == output), rule.default_tool)
    if chosen:
        yield _Demand((NextTool(chosen),), f"the call after this output of '{name}' must be of '{chosen}'")
    elif rule.require_output_mapping:
        yield _Demand((), f"no tool is mapped to the output {output!r} of '{name}'")


class _Gates:
    """What keeps a tool from being called whatever is demanded. Made once for all tools."""

    def __init__(self, rules: Sequence[ToolRule], state: RuleState, tools: Sequence[str]) -> None:
        self._tools = frozenset(tools)
        self._counts = dict(state.counts)
        self._last = state.last_tool
        self._most = {rule.tool_name: rule.max_count for rule in rules if rule.kind is RuleKind.MAX_COUNT}
        self._ending = about(rules, RuleKind.TERMINAL)
        self._uncalled = uncalled(rules, state)
        self._parents: dict[str, list[str]] = {}
        for rule in rules:
            for child in rule.children if rule.kind is RuleKind.PARENT_LAST else ():
                self._parents.setdefault(child.tool_name, []).append(rule.tool_name)
        self._absent = sorted(about(rules, RuleKind.REQUIRED_BEFORE_EXIT) - self._tools)

    @property
    def missing(self) -> str:
        """What the run cannot end without and does not have."""
        return "; ".join(
            f"'{name}' must be called before the end, but is not a tool of this run" for name in self._absent
        )

    @property
    def never(self) -> str:
        """What the run cannot end without and may not call, when no tool may be called."""
        return "; ".join(f"'{name}' must be called before the end, but {self.refusal(name)}" for name in self._uncalled)

    def refusal(self, name: str) -> str:
        """Why the tool may not be called; empty if it may."""
        if name not in self._tools:
            return f"'{name}' is not a tool of this run"
        most = self._most.get(name, 0)
        if most and self._counts.get(name, 0) >= most:
            return f"'{name}' was called {_times(most)}, which is the most in a run"
        parents = self._parents.get(name, [])
        if parents and self._last not in parents:
            return f"'{name}' may only be called right after {_listed(parents, 'or')}"
        before = [required for required in self._uncalled if required != name] if name in self._ending else []
        return f"the run ends with '{name}', so first call {_listed(before, 'and')}" if before else ""


def _dead_end(gates: _Gates, demands: Sequence[_Demand]) -> str:
    """What is demanded, and why it cannot be; empty if nothing is."""
    if not demands:
        return ""
    wanted = frozenset.intersection(*(demand.names for demand in demands))
    blocked = " and ".join(gates.refusal(name) for name in sorted(wanted))
    return ", but ".join(filter(None, ("; ".join(demand.why for demand in demands), blocked)))


def rules_text(rules: Sequence[ToolRule], tools: Sequence[str]) -> str:
    """The rules in words, for the model; empty if none is about these tools."""
    lines = [line for rule in rules if rule.tool_name in tools for line in _line(rule)]
    first = [rule for rule in rules if rule.kind is RuleKind.RUN_FIRST and rule.tool_name in tools]
    if first:
        chosen = _choice(NextTool(rule.tool_name, rule.arguments_json) for rule in first)
        lines.insert(0, f"The first call must be of {chosen}.")
    return "\n- ".join(("Rules for your tool calls:", *lines)) if lines else ""


def _line(rule: ToolRule) -> tuple[str, ...]:
    told = _LINES.get(rule.kind)
    return (told(rule, f"'{rule.tool_name}'"),) if told is not None else ()


_LINES: dict[RuleKind, Callable[[ToolRule, str], str]] = {
    RuleKind.TERMINAL: lambda rule, tool: f"After {tool} you are done: its return ends your work.",
    RuleKind.CONTINUE_RUN: lambda rule, tool: f"After {tool} go on: it does not end your work.",
    RuleKind.CHILD: lambda rule, tool: f"The call after {tool} must be of {_choice(rule.children)}.",
    RuleKind.CONDITIONAL: lambda rule, tool: _conditional_line(rule, tool),
    RuleKind.MAX_COUNT: lambda rule, tool: f"Call {tool} at most {_times(rule.max_count)}.",
    RuleKind.PARENT_LAST: lambda rule, tool: (
        f"Call {_listed((child.tool_name for child in rule.children), 'and')} only right after {tool}."
    ),
    RuleKind.REQUIRED_BEFORE_EXIT: lambda rule, tool: f"Call {tool} before you end your turn.",
    RuleKind.REQUIRES_APPROVAL: lambda rule, tool: f"A person decides about each call of {tool}.",
}


def _conditional_line(rule: ToolRule, tool: str) -> str:
    cases = [f"after {output!r} it must be of '{name}'" for output, name in rule.tools_by_output]
    if rule.default_tool:
        cases.append(f"after any other output of '{rule.default_tool}'")
    return f"The output of {tool} decides the next call: {'; '.join(cases)}. Wait for it."


def _choice(tools: Iterable[NextTool]) -> str:
    return " or ".join(
        f"'{tool.tool_name}'" + (f" (given arguments: {tool.arguments_json})" if tool.arguments_json else "")
        for tool in tools
    )


def _listed(names: Iterable[str], word: str) -> str:
    return f" {word} ".join(f"'{name}'" for name in names)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
