"""What callers ask for, checked and in domain values, and how they want to be answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum

from agent_service.domain.message import InputContent, MessageType
from agent_service.domain.rules import ToolRule
from agent_service.domain.run import ResponseFormat
from agent_service.domain.start import OnBusy
from agent_service.domain.submit import CallAnswer
from agent_service.domain.tool import PendingCall, ToolCall, ToolChoice, ToolSchema
from agent_service.domain.values import replace


class Scope(StrEnum):
    """What a caller may do."""

    RUN = "run"
    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


DEFAULT_TENANT = "default"
"""The tenant of callers that need no credential."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do. `name` tells credentials of a tenant apart in logs; it is empty without one."""

    tenant: str = DEFAULT_TENANT
    name: str = ""
    scopes: frozenset[Scope] = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class StartCommand:
    """Start a run. Empty ids are issued; empty `model` and `system_prompt` mean the agent's.

    `request_start_time` is the caller's clock in Unix nanoseconds, 0 if not told. `run_timeout` is in nanoseconds, 0
    for none, `pause_ttl` as well, 0 for the usual one. `path` is where the start stands in the request, such as
    "step.", for the paths of errors.
    """

    inputs: tuple[InputContent, ...]
    run_id: str = ""
    conversation_id: str = ""
    client_tools: tuple[ToolSchema, ...] = ()
    max_steps: int = 50
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool | None = None
    model: str = ""
    system_prompt: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    request_start_time: int = 0
    run_timeout: int = 0
    pause_ttl: int = 0
    on_busy: OnBusy = OnBusy.REJECT
    response_format: ResponseFormat | None = None
    tool_rules: tuple[ToolRule, ...] = ()
    server_tools_wait: bool = False
    path: str = ""

    def digest(self, agent_id: str) -> str:
        """Tells an equal start from another one; how it is delivered does not count."""
        value = replace(self, request_start_time=0, path="")
        return digest([agent_id, canonical(value), [type(content).__name__ for content in self.inputs]])


@dataclass(frozen=True, slots=True)
class SubmitCommand:
    """Answer pending calls. An empty `request_id` is derived from the answers."""

    run_id: str
    answers: tuple[CallAnswer, ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What one answer shows of messages: these types (None for all); `send_message` calls as assistant messages."""

    types: frozenset[MessageType] | None = None
    use_assistant_message: bool = True


async def _ignore(run_id: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer is given. `max_wait` is in seconds, None until the next stop.

    `on_stored` is awaited with the run's id as soon as the start or the submit is stored.
    """

    stream_tokens: bool = False
    max_wait: float | None = None
    view: View = View()
    on_stored: Callable[[str], Awaitable[None]] = _ignore


@dataclass(frozen=True, slots=True)
class Built:
    """A request body as it would be sent, or, with an empty body, why there would be none."""

    body: bytes
    why_not: str = ""
    remaining: tuple[PendingCall, ...] = ()
    server_calls: tuple[ToolCall, ...] = ()
    overridden_tools: Sequence[str] = ()


def canonical(value: object) -> object:
    """Plain values of a domain value. Fields with their default are left out, so that a new field changes nothing; of
    bytes only their digest is told."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, tuple):
        return [canonical(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: (f, getattr(value, f.name)) for f in fields(value)}
        return {name: canonical(each) for name, (f, each) in found.items() if each != f.default}
    return value


def digest(value: object) -> str:
    """A digest of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
