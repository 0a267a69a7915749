"""What exists on the server, so that requests can name it: agents, conversations, runs and calls."""

from __future__ import annotations

from collections import deque
from random import Random

from google.protobuf.message import Message

from tests.fuzz import json_schemas
from tests.fuzz.values import edge_json, token

_KEPT = 60
_TOOLS = ("client_a", "client_b", "count_up", "ask_first", "wait")


class World:
    """Ids that answers told, the newest kept."""

    def __init__(self) -> None:
        self.ids: dict[str, deque[str]] = {}

    def learn(self, message: Message) -> None:
        """Keeps the ids of an answer."""
        for field, value in message.ListFields():
            if field.message_type is not None:
                if field.message_type.GetOptions().map_entry:
                    continue
                for held in value if field.is_repeated else [value]:
                    self.learn(held)
            elif isinstance(value, str) and field.name.endswith(("_id", "_token", "etag")):
                known = self.ids.setdefault(field.name, deque(maxlen=_KEPT))
                if value not in known:
                    known.append(value)

    def words(self, rng: Random, name: str) -> str | None:
        """A plausible text for a field of this name."""
        draw = rng.random()
        if draw < 0.08 and name.endswith("_id"):
            everything = [each for known in self.ids.values() for each in known]
            return rng.choice(everything) if everything else "other"
        known = self.ids.get("next_page_token" if name == "page_token" else name)
        if known and draw < 0.75:
            return rng.choice(known)
        if name == "page_token":
            return "" if draw < 0.9 else token(rng)
        if name.endswith("_id"):
            return f"{name}-{rng.randrange(40)}" if draw < 0.95 else ""
        if "tool" in name or name == "name":
            return rng.choice(_TOOLS)
        if name.endswith("_json"):
            return json_schemas.text(rng) if draw < 0.9 else edge_json(rng)
        if name in ("text", "output"):
            return rng.choice(("hello", "do: calls", "do: says", '{"a":1}'))
        return "" if name in ("etag", "claim_token", "model") else None
