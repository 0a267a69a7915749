"""Proves that nothing was lost and nothing doubled, or says what was. Each rule is a function that yields findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.chaos import call_rules, journal_rules, memory_rules, model_rules, run_rules
from tests.chaos.evidence import Evidence
from tests.chaos.journal import Journal

Rule = Callable[[Journal, Evidence], Iterable[str]]

RULES: tuple[Rule, ...] = (
    *run_rules.RULES,
    *journal_rules.RULES,
    *call_rules.RULES,
    *model_rules.RULES,
    *memory_rules.RULES,
)


def check(journal: Journal, evidence: Evidence) -> list[str]:
    """All findings, each with the name of its rule."""
    found = []
    for rule in RULES:
        found += [f"{rule.__name__}: {finding}" for finding in rule(journal, evidence)]
    return found
