"""What the model is shown of conversations, encoded: a bounded cache in front of the store, which alone is the truth.

Stored messages never change, so a cached prefix stays right until a newer summary; only what came after it is read and
encoded. What the newest summary stands for is not read at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent_service.domain.compaction import Group, append, grouped
from agent_service.domain.content import size_of_parts
from agent_service.domain.event import Event, MessageStored
from agent_service.domain.message import (
    ApprovalContent,
    Message,
    SummaryContent,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.engine.model import ModelClient
from agent_service.engine.store import RunStore
from agent_service.engine.tokens import BY_SIZE, TokenCounter, message_tokens, tokens_by_position

PAGE = 1000
"""Messages per read."""

_OVERHEAD = 1024
"""About what an entry, or a message that is not encoded yet, takes besides its text, in bytes."""
_GROUP_BYTES = 200

_Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class History:
    """What the model is shown of a conversation: the newest summary if there is one, and the messages after it.

    `pieces` encode both; `groups` are those of the messages, with their estimated tokens.
    """

    pieces: Sequence[bytes]
    groups: Sequence[Group]
    summary: SummaryContent | None
    summary_tokens: int
    message_tokens: int

    @property
    def tokens(self) -> int:
        """An estimate of all of it."""
        return self.summary_tokens + self.message_tokens


@dataclass(slots=True)
class _Entry:
    """Pieces encode what is shown up to `position`; `waiting` are the messages after it, not encoded yet, nor is the
    summary if it is `unsaid`.

    `counted` are the bytes of it in the total. `born` is when the conversation was made.
    """

    born: int

    position: int = 0
    pieces: list[bytes] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    tokens: int = 0
    summary: Message | None = None
    summary_tokens: int = 0
    unsaid: bool = False
    waiting: list[Message] = field(default_factory=list)
    counted: int = 0

    @property
    def known(self) -> int:
        return self.position + len(self.waiting)

    @property
    def size(self) -> int:
        encoded = sum(map(len, self.pieces)) + _GROUP_BYTES * len(self.groups)
        return _OVERHEAD + encoded + sum(map(_size, self.waiting))

    @property
    def newer_summary(self) -> Message | None:
        return next((m for m in reversed(self.waiting) if isinstance(m.content, SummaryContent)), None)

    def copy(self) -> _Entry:
        return _Entry(
            self.born,
            self.position,
            list(self.pieces),
            list(self.groups),
            self.tokens,
            self.summary,
            self.summary_tokens,
            self.unsaid,
            list(self.waiting),
        )

    def take(self, messages: list[Message]) -> None:
        """Messages up to the newest: either they follow the known ones, or nothing before them is shown any more."""
        if messages[0].position == self.known + 1:
            self.waiting.extend(messages)
        else:
            self.position, self.waiting = messages[0].position - 1, messages

    def begin_with(self, summary: Message, messages: list[Message]) -> None:
        """The summary and the messages after what it stands for are all that is shown."""
        self.pieces, self.groups, self.tokens = [], [], 0
        self.summary, self.unsaid = summary, True
        self.position, self.waiting = messages[0].position - 1, messages

    async def encode(self, model: ModelClient, counter: TokenCounter) -> None:
        """Encodes what waits. Nobody else may know of this entry yet."""
        shown = [message for message in self.waiting if not isinstance(message.content, SummaryContent)]
        tokens = await tokens_by_position(counter, shown)
        first = []
        if self.unsaid and self.summary is not None:
            first = [self.summary]
            self.summary_tokens = message_tokens(counter, self.summary)
        if piece := model.encode([*first, *shown]):
            self.pieces.append(piece)
        for group in grouped(shown, lambda message: tokens[message.position]):
            append(self.groups, group)
            self.tokens += group.tokens
        self.position, self.waiting, self.unsaid = self.known, [], False

    @property
    def history(self) -> History:
        content = self.summary.content if self.summary is not None else None
        summary = content if isinstance(content, SummaryContent) else None
        return History(self.pieces, self.groups, summary, self.summary_tokens, self.tokens)


class Contexts:
    """Histories by conversation, model client and token counter."""

    def __init__(self, store: RunStore, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._size = 0
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._keys: dict[tuple[str, str], set[_Key]] = {}

    async def history(
        self,
        tenant: str,
        conversation_id: str,
        model: ModelClient,
        last_position: int,
        born: int,
        counter: TokenCounter = BY_SIZE,
        appended: Sequence[Message] = (),
    ) -> History:
        """What is shown of the messages up to `last_position` of the conversation that was made then. Each call among
        them has its outcome. Another process may have deleted an earlier conversation of the same id. `appended` are
        the last of the messages, as far as they are at hand."""
        key = (tenant, conversation_id, model.name, counter.name)
        entry = await self._current(key, last_position, born, appended)
        if entry.waiting:
            await entry.encode(model, counter)
        self._keep(key, entry)
        return entry.history

    async def peek(
        self,
        tenant: str,
        conversation_id: str,
        model: ModelClient,
        last_position: int,
        born: int,
        more: Sequence[Message],
        counter: TokenCounter = BY_SIZE,
    ) -> History:
        """The same, followed by messages that are not stored; nothing is kept."""
        entry = await self._current((tenant, conversation_id, model.name, counter.name), last_position, born)
        entry.waiting.extend(more)
        await entry.encode(model, counter)
        return entry.history

    async def messages(self, tenant: str, conversation_id: str, after: int, last: int) -> list[Message]:
        """The stored messages of these positions, without summaries."""
        found = await self._read(tenant, conversation_id, after, last, to_summary=False)
        return [message for message in found if not isinstance(message.content, SummaryContent)]

    def observe(self, tenant: str, events: tuple[Event, ...]) -> None:
        """Takes along what was just committed, so that it need not be read."""
        for event in events:
            if isinstance(event.body, MessageStored):
                message = event.body.message
                for key in self._keys.get((tenant, message.conversation_id), ()):
                    entry = self._entries[key]
                    if message.position == entry.known + 1:
                        entry.waiting.append(message)
                        self._count(entry, entry.counted + _size(message))
        self._trim()

    def forget(self, tenant: str, conversation_id: str) -> None:
        """Drops what is cached of a conversation that was deleted."""
        for key in list(self._keys.get((tenant, conversation_id), ())):
            self._drop(key)

    async def _current(self, key: _Key, last_position: int, born: int, appended: Sequence[Message] = ()) -> _Entry:
        """A copy of what is cached that knows all messages up to `last_position`, and begins with the newest summary:
        what is committed meanwhile does not disturb it."""
        tenant, conversation_id, *_ = key
        cached = self._entries.get(key)
        entry = cached.copy() if cached is not None and cached.born == born else _Entry(born)
        if entry.known < last_position and appended and appended[0].position == entry.known + 1:
            entry.take(list(appended))
        if entry.known < last_position:
            entry.take(await self._read(tenant, conversation_id, entry.known, last_position, to_summary=True))
        summary = entry.newer_summary
        if summary is not None and isinstance(summary.content, SummaryContent):
            through, first = summary.content.through_position, entry.waiting[0].position
            missing = (
                await self._read(tenant, conversation_id, through, first - 1, to_summary=False)
                if first > through + 1
                else []
            )
            entry.begin_with(summary, [*missing, *(m for m in entry.waiting if m.position > through)])
        return entry

    async def _read(
        self, tenant: str, conversation_id: str, after: int, last: int, *, to_summary: bool
    ) -> list[Message]:
        """The messages after `after` up to `last`, in order. With `to_summary` those after what the newest summary
        among them stands for, and no more."""
        found: list[Message] = []
        below = last + 1
        while below > after + 1:
            limit = min(PAGE, below - after - 1)
            page = await self._store.messages(tenant, conversation_id, below, limit, descending=True)
            if not page:
                break
            for message in page:
                if message.position <= after:
                    break
                found.append(message)
                if to_summary and isinstance(message.content, SummaryContent):
                    after, to_summary = message.content.through_position, False
            below = page[-1].position
        if not found or found[0].position != last:
            raise ValueError(f"{conversation_id} has {found[0].position if found else 0} messages, not {last}")
        return found[::-1]

    def _keep(self, key: _Key, entry: _Entry) -> None:
        """Puts the entry in the front and forgets the longest unused ones above the bound."""
        self._drop(key)
        self._entries[key] = entry
        self._keys.setdefault(key[:2], set()).add(key)
        self._count(entry, entry.size)
        self._trim()

    def _count(self, entry: _Entry, size: int) -> None:
        self._size += size - entry.counted
        entry.counted = size

    def _trim(self) -> None:
        while self._size > self._max_bytes and self._entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: _Key) -> None:
        old = self._entries.pop(key, None)
        if old is None:
            return
        self._count(old, 0)
        keys = self._keys[key[:2]]
        keys.discard(key)
        if not keys:
            del self._keys[key[:2]]


def _size(message: Message) -> int:
    """About what a message takes, in bytes."""
    content = message.content
    if isinstance(content, ToolCallsContent):
        texts = [call.arguments_json for call in content.calls]
    elif isinstance(content, ToolReturnContent):
        texts = [content.text, content.stdout, content.stderr]
    elif isinstance(content, ApprovalContent):
        texts = [content.edited_arguments_json, content.note]
    else:
        texts = [content.text]
    parts = content.parts if isinstance(content, UserContent | ToolReturnContent) else ()
    return _OVERHEAD + sum(map(len, texts)) + size_of_parts(parts)
