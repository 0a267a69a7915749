"""Where a model's answer arrives piece by piece: kept for late watchers, shown to attached ones, timed."""

from __future__ import annotations

from collections.abc import Callable

from agent_service.domain.draft import NewId
from agent_service.domain.event import ArgumentsDelta, ReasoningDelta, TextDelta
from agent_service.engine.hub import Channel, OpenPart


class AnswerWriter:
    """An AnswerSink that writes to a channel. Message ids are given at a message's first piece, and stay.

    Arguments for the tools in `held` are shown once they are whole, because they may be stored otherwise than written.
    """

    def __init__(
        self, channel: Channel, now: Callable[[], int], new_id: NewId, held: frozenset[str] = frozenset()
    ) -> None:
        self._channel = channel
        self._now = now
        self._new_id = new_id
        self._held = held
        self._text: OpenPart | None = None
        self._reasoning: OpenPart | None = None
        self._arguments: dict[int, OpenPart] = {}
        self._unnamed: dict[int, str] = {}
        self._calls_message_id = ""
        self.first_token_time = 0

    def text(self, fragment: str) -> None:
        """See AnswerSink."""
        if self._text is None:
            self._text = self._open(OpenPart(TextDelta, self._new_id("msg")))
        self._write(self._text, fragment)

    def reasoning(self, fragment: str) -> None:
        """See AnswerSink."""
        if self._reasoning is None:
            self._reasoning = self._open(OpenPart(ReasoningDelta, self._new_id("msg")))
        self._write(self._reasoning, fragment)

    def arguments(self, index: int, name: str, fragment: str) -> None:
        """See AnswerSink."""
        part = self._arguments.get(index)
        if part is None:
            part = self._open(OpenPart(ArgumentsDelta, self.calls_message_id, index, name))
            self._arguments[index] = part
        part.name = name
        if self._held and not name:
            # Endpoints may send a piece of the arguments before the name.
            self._unnamed[index] = self._unnamed.get(index, "") + fragment
            fragment = ""
        elif name in self._held:
            fragment = ""
        else:
            fragment = self._unnamed.pop(index, "") + fragment
        self._write(part, fragment)

    def tell_held(self, index: int, name: str, arguments_json: str) -> None:
        """The arguments of a call as they will be stored, if they were held back."""
        if name in self._held:
            self._write(self._arguments[index], arguments_json)

    @property
    def text_message_id(self) -> str:
        """The id for the assistant message."""
        return self._text.message_id if self._text else self._new_id("msg")

    @property
    def reasoning_message_id(self) -> str:
        """The id for the reasoning message."""
        return self._reasoning.message_id if self._reasoning else self._new_id("msg")

    @property
    def calls_message_id(self) -> str:
        """The id for the tool call message."""
        self._calls_message_id = self._calls_message_id or self._new_id("msg")
        return self._calls_message_id

    def _open(self, part: OpenPart) -> OpenPart:
        self._channel.parts.append(part)
        return part

    def _write(self, part: OpenPart, fragment: str) -> None:
        now = self._now()
        self.first_token_time = self.first_token_time or now
        self._channel.write(part, fragment, now)
