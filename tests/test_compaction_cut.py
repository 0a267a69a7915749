"""Where a conversation is cut: for any history, between what belongs together, and near what was asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_service.domain.compaction import Group, cut, grouped
from agent_service.domain.message import (
    ApprovalContent,
    AssistantContent,
    Content,
    Message,
    ReasoningContent,
    SystemContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.domain.policy import ContextPolicy, Strategy
from agent_service.domain.run import AgentKind, Pinned
from agent_service.domain.tool import Outcome, ToolCall
from agent_service.engine.compaction import Fit
from agent_service.engine.context import History
from agent_service.engine.tokens import BY_SIZE, BYTES_PER_TOKEN, MESSAGE_TOKENS

WEIGHTS = st.lists(st.integers(0, 100), max_size=12)


@st.composite
def histories(draw: st.DrawFn) -> list[Message]:
    """Runs of a conversation, each with its input and some steps, as they are stored."""
    messages: list[Message] = []

    def add(content: Content, run: int, step_id: str = "") -> None:
        position = len(messages) + 1
        messages.append(Message(f"msg_{position}", "conv_1", f"run_{run}", step_id, position, 0, content))

    for run in range(draw(st.integers(1, 4))):
        for _ in range(draw(st.integers(1, 2))):
            add(UserContent("x" * draw(st.integers(0, 90))), run)
        for step in range(draw(st.integers(0, 4))):
            step_id = f"step_{run}_{step}"
            if draw(st.booleans()):
                add(ReasoningContent("hm"), run, step_id)
            add(AssistantContent("y" * draw(st.integers(1, 90))), run, step_id)
            calls = [ToolCall(f"call_{len(messages)}_{n}", "get", "{}") for n in range(draw(st.integers(0, 3)))]
            if calls:
                add(ToolCallsContent(tuple(calls)), run, step_id)
            for call in draw(st.permutations(calls)):
                if draw(st.booleans()):
                    add(ApprovalContent(call.tool_call_id, True), run, step_id)
                text = "z" * draw(st.integers(0, 200))
                add(ToolReturnContent(call.tool_call_id, "get", Outcome.RETURNED, text), run, step_id)
            if draw(st.booleans()):
                add(SystemContent("Call another tool first."), run, step_id)
    return messages


def by_characters(message: Message) -> int:
    """A count that the test can follow."""
    return len(getattr(message.content, "text", ""))


@given(messages=histories(), most=st.integers(0, 400))
def test_a_cut_never_parts_what_belongs_together(messages: list[Message], most: int) -> None:
    """An answer is whole, and so is each call with its return; the newest group stays; what stays is within the bound,
    unless it is that group alone, and no group more than needed goes."""
    groups = grouped(messages, by_characters)
    assert sum(group.count for group in groups) == len(messages)
    number = cut(groups, most)
    through = groups[number - 1].last_position if number else 0
    gone, kept = messages[:through], messages[through:]
    assert kept
    answers = {message.step_id for message in gone if message.step_id}
    assert not answers & {message.step_id for message in kept}
    left = sum(map(by_characters, kept))
    assert left <= most or number == len(groups) - 1
    if number:
        assert left + groups[number - 1].tokens > most


@given(weights=WEIGHTS, most=st.integers(0, 300))
def test_a_cut_of_any_groups_leaves_the_newest(weights: list[int], most: int) -> None:
    """Also of those that weigh nothing; of none there is nothing to cut."""
    groups = [Group(("run", str(number)), number + 1, weight) for number, weight in enumerate(weights)]
    assert 0 <= cut(groups, most) <= max(len(groups) - 1, 0)


def test_a_call_and_its_return_stay_together_whatever_comes_between() -> None:
    """Even if a message of another run were stored there."""
    call = ToolCall("call_1", "get", "{}")
    contents: list[tuple[str, str, Content]] = [
        ("run_1", "step_1", ToolCallsContent((call,))),
        ("run_2", "", UserContent("Hi")),
        ("run_1", "step_1", ToolReturnContent("call_1", "get", Outcome.RETURNED, "x")),
        ("run_2", "step_2", AssistantContent("Hello")),
    ]
    messages = [Message("m", "c", run, step, at, 0, content) for at, (run, step, content) in enumerate(contents, 1)]
    assert [group.last_position for group in grouped(messages, by_characters)] == [3, 4]


@given(
    weights=WEIGHTS,
    fixed=st.integers(MESSAGE_TOKENS, 1200),
    policy=st.sampled_from([(0.8, 0.3), (0.5, 0.2), (1.0, 0.9)]),
)
def test_a_compaction_leaves_room_for_more(weights: list[int], fixed: int, policy: tuple[float, float]) -> None:
    """It is due above the threshold only. Then half of what prompt and tools leave below it is free again, and another
    one is not due, unless the newest group alone is too much."""
    groups = [Group(("run", str(number)), number + 1, weight) for number, weight in enumerate(weights)]
    context = ContextPolicy(1000, Strategy.SLIDING_WINDOW, *policy)
    shown = Pinned("a", AgentKind.LLM, "m", "p", "x" * BYTES_PER_TOKEN * (fixed - MESSAGE_TOKENS), context=context)
    before = Fit(shown, History([], groups, None, 0, sum(weights)), BY_SIZE)
    assert before.fixed == fixed
    plan = before.plan
    if plan is None:
        return
    assert fixed + sum(weights) > context.threshold * 1000
    kept = [group for group in groups if group.last_position > plan.through_position]
    assert plan.kept == sum(group.tokens for group in kept)
    half = max(context.threshold * 1000 - fixed, 0) / 2
    assert plan.kept <= min(context.keep * 1000, half) or len(kept) == 1
    assert Fit(shown, History([], kept, None, 0, plan.kept), BY_SIZE).plan is None


def test_prompt_and_tools_are_not_counted_where_no_window_is_known() -> None:
    """A run without a window does not pay for a window; after a refusal of the endpoint they are."""
    counted: list[str] = []

    class Counter:
        name = "listening"

        def count(self, text: str) -> int:
            counted.append(text)
            return len(text)

    fitting = Fit(Pinned("a", AgentKind.LLM, "m", "p", "Be kind."), History([], [], None, 0, 0), Counter())
    assert (fitting.error, fitting.plan, counted) == (None, None, [])
    assert fitting.after_refusal(0) is None
    assert "Be kind." in counted
