"""The encoded history of conversations: a bounded cache in front of the store, which alone is the truth.

Stored messages never change, so a cached prefix stays right; only what came after it is read and encoded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent_service.domain.content import size_of_parts
from agent_service.domain.event import Event, MessageStored
from agent_service.domain.message import (
    ApprovalContent,
    Message,
    ToolCallsContent,
    ToolReturnContent,
    UserContent,
)
from agent_service.engine.model import ModelClient
from agent_service.engine.store import RunStore

PAGE = 1000
"""Messages per read."""

_OVERHEAD = 1024
"""About what an entry, or a message that is not encoded yet, takes besides its text, in bytes."""

_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Entry:
    """Pieces encode the messages up to `position`; `waiting` are those after it, not encoded yet.

    `counted` are the bytes of it in the total. `born` is when the conversation was made.
    """

    born: int

    position: int = 0
    pieces: list[bytes] = field(default_factory=list)
    waiting: list[Message] = field(default_factory=list)
    counted: int = 0

    @property
    def known(self) -> int:
        return self.position + len(self.waiting)

    @property
    def size(self) -> int:
        return _OVERHEAD + sum(map(len, self.pieces)) + sum(map(_size, self.waiting))


class Contexts:
    """Histories by conversation and model client."""

    def __init__(self, store: RunStore, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._size = 0
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._keys: dict[tuple[str, str], set[_Key]] = {}

    async def history(
        self, tenant: str, conversation_id: str, model: ModelClient, last_position: int, born: int
    ) -> Sequence[bytes]:
        """The messages up to `last_position` of the conversation that was made then, encoded. Each call among them has
        its outcome. Another process may have deleted an earlier conversation of the same id."""
        key = (tenant, conversation_id, model.name)
        entry = self._known(key, born)
        await self._read(entry, tenant, conversation_id, last_position)
        if entry.waiting:
            piece = model.encode(entry.waiting)
            if piece:
                entry.pieces.append(piece)
            entry.position = entry.known
            entry.waiting = []
        self._keep(key, entry)
        return list(entry.pieces)

    async def peek(
        self,
        tenant: str,
        conversation_id: str,
        model: ModelClient,
        last_position: int,
        born: int,
        more: Sequence[Message],
    ) -> Sequence[bytes]:
        """The same, followed by messages that are not stored; nothing is kept."""
        cached = self._known((tenant, conversation_id, model.name), born)
        entry = _Entry(born, cached.position, list(cached.pieces), waiting=list(cached.waiting))
        await self._read(entry, tenant, conversation_id, last_position)
        return [*entry.pieces, model.encode([*entry.waiting, *more])]

    def _known(self, key: _Key, born: int) -> _Entry:
        entry = self._entries.get(key)
        return entry if entry is not None and entry.born == born else _Entry(born)

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

    async def _read(self, entry: _Entry, tenant: str, conversation_id: str, last_position: int) -> None:
        while entry.known < last_position:
            known = entry.known
            page = await self._store.messages(tenant, conversation_id, known, PAGE)
            if not page:
                raise ValueError(f"{conversation_id} has {known} messages, not {last_position}")
            if entry.known == known:
                entry.waiting.extend(message for message in page if message.position <= last_position)

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
