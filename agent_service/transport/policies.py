"""Context policies from and to protobuf."""

from __future__ import annotations

from agentrpc.v1 import agents_pb2 as pb

from agent_service.domain.policy import DEFAULT_KEEP, DEFAULT_THRESHOLD, ContextPolicy, Strategy

STRATEGIES = {
    Strategy.SUMMARY: pb.COMPACTION_STRATEGY_SUMMARY,
    Strategy.SLIDING_WINDOW: pb.COMPACTION_STRATEGY_SLIDING_WINDOW,
    Strategy.NONE: pb.COMPACTION_STRATEGY_NONE,
}
_OF_NUMBER = {number: strategy for strategy, number in STRATEGIES.items()}
_OF_NUMBER[pb.COMPACTION_STRATEGY_UNSPECIFIED] = Strategy.SUMMARY


def read_policy(policy: pb.ContextPolicy) -> ContextPolicy | None:
    """The policy, not checked yet; None if its strategy is unknown."""
    strategy = _OF_NUMBER.get(policy.strategy)
    if strategy is None:
        return None
    return ContextPolicy(
        window_tokens=policy.window_tokens,
        strategy=strategy,
        threshold=policy.threshold or DEFAULT_THRESHOLD,
        keep=policy.keep or DEFAULT_KEEP,
        summary_prompt=policy.summary_prompt,
        summary_model=policy.summary_model,
    )


def context_policy(policy: ContextPolicy) -> pb.ContextPolicy:
    """A policy."""
    return pb.ContextPolicy(
        window_tokens=policy.window_tokens,
        strategy=STRATEGIES[policy.strategy],
        threshold=policy.threshold,
        keep=policy.keep,
        summary_prompt=policy.summary_prompt,
        summary_model=policy.summary_model,
    )
