"""How a conversation is kept within the context window of the model: the policy of an agent, pinned on its runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Strategy(StrEnum):
    """What is done with the older messages."""

    SUMMARY = "summary"
    SLIDING_WINDOW = "sliding_window"
    NONE = "none"


DEFAULT_THRESHOLD = 0.8
DEFAULT_KEEP = 0.3
MAX_WINDOW_TOKENS = 2**31 - 1
MAX_MODEL_CHARS = 256


@dataclass(frozen=True, slots=True)
class ContextPolicy:
    """Above `threshold` of the window a conversation is compacted, so that its newest messages fill at most `keep`.

    `window_tokens` 0 means unknown (in a definition: the server's setting). An empty `summary_prompt` is the built-in
    one, an empty `summary_model` that of the run.
    """

    window_tokens: int = 0
    strategy: Strategy = Strategy.SUMMARY
    threshold: float = DEFAULT_THRESHOLD
    keep: float = DEFAULT_KEEP
    summary_prompt: str = ""
    summary_model: str = ""


DEFAULT_POLICY = ContextPolicy()


def problems(policy: ContextPolicy, max_prompt_bytes: int) -> Iterator[tuple[str, str]]:
    """What is wrong with a policy: each field, and in words what was found and what is allowed."""
    if not 0 <= policy.window_tokens <= MAX_WINDOW_TOKENS:
        yield "window_tokens", f"{policy.window_tokens} is not between 0 and {MAX_WINDOW_TOKENS}"
    if not 0 < policy.threshold <= 1:
        yield "threshold", f"{policy.threshold:g} is not above 0 and at most 1"
    elif not 0 < policy.keep < policy.threshold:
        yield "keep", f"{policy.keep:g} is not above 0 and below the threshold, {policy.threshold:g}"
    size = len(policy.summary_prompt.encode(errors="replace"))
    if size > max_prompt_bytes:
        yield "summary_prompt", f"has {size} bytes; at most {max_prompt_bytes} are allowed"
    if len(policy.summary_model) > MAX_MODEL_CHARS:
        yield "summary_model", f"has {len(policy.summary_model)} characters; at most {MAX_MODEL_CHARS} are allowed"
