"""One model request under the tool rules of its run: what the model is shown, and what it must or may call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent_service.domain.draft import Snapshot
from agent_service.domain.errors import Reason
from agent_service.domain.memory import BlockRecord, memory_text
from agent_service.domain.permit import Permit, permitted, rules_text
from agent_service.domain.run import Pinned, Run, RunError
from agent_service.domain.tool import CallState, ToolChoice, ToolChoiceMode
from agent_service.domain.values import replace
from agent_service.engine.model import ModelRequest


@dataclass(frozen=True, slots=True)
class Turn:
    """`shown` is the pinned agent as the model sees it: the tools that may be called, and the rules in its prompt."""

    permit: Permit
    choice: ToolChoice
    shown: Pinned

    @property
    def error(self) -> RunError | None:
        """Why the run cannot go on; None if it can."""
        if not self.permit.dead_end:
            return None
        return RunError(Reason.NO_ALLOWED_TOOLS, f"no tool may be called: {self.permit.dead_end}")


def next_turn(run: Run, pinned: Pinned, blocks: Sequence[BlockRecord]) -> Turn:
    """The next request of a run whose memory is this. Its own tool choice holds for its first request, and to correct
    its answer."""
    choice = pinned.tool_choice if run.steps_taken == run.invalid_answers else ToolChoice()
    permit = permitted(pinned.tool_rules, run.rule_state, [tool.name for tool in pinned.tools])
    if not pinned.tool_rules and not blocks:
        return Turn(permit, choice, pinned)
    rules = rules_text(pinned.tool_rules, [tool.name for tool in pinned.tools])
    # The memory last: what stands before it stays the same, and endpoints remember the beginning of a request.
    texts = (pinned.system_prompt, rules, memory_text(blocks))
    shown = replace(pinned, system_prompt="\n\n".join(filter(None, texts)))
    if permit.names:
        shown = replace(shown, tools=tuple(tool for tool in pinned.tools if tool.name in permit.names))
    return Turn(permit, _choice(permit, choice), shown)


def _choice(permit: Permit, asked: ToolChoice) -> ToolChoice:
    """What the rules make of a tool choice that they do not contradict."""
    if not permit.names:
        return ToolChoice(ToolChoiceMode.NONE)
    if not permit.demand or asked.tool_name:
        return asked
    return ToolChoice(tool_name=permit.names[0]) if len(permit.names) == 1 else ToolChoice(ToolChoiceMode.REQUIRED)


def contradiction(permit: Permit, asked: ToolChoice) -> str:
    """How a tool choice for the first request is against the rules; empty if it is not."""
    if asked.tool_name:
        return dict(permit.refusals).get(asked.tool_name, "")
    if asked.mode is ToolChoiceMode.NONE:
        return permit.demand
    return "the tool rules allow no tool at first" if asked.mode is ToolChoiceMode.REQUIRED and not permit.names else ""


def model_request(snapshot: Snapshot, turn: Turn, history: Sequence[bytes]) -> ModelRequest:
    """What the model is asked next."""
    returned = any(call.state is CallState.RETURNED for call in snapshot.calls)
    corrected = snapshot.run.invalid_answers > 0 and not snapshot.calls
    return ModelRequest(turn.shown, history, turn.choice, returned or corrected)
