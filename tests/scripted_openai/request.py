"""What the endpoint received, as a test reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INSTRUCTION_ROLES = ("system", "developer")


@dataclass(frozen=True)
class Request:
    """One accepted request. `number` counts from 1 in the order of arrival."""

    number: int
    body: dict[str, Any]
    raw: bytes
    headers: Mapping[str, str]

    @property
    def model(self) -> str:
        """The model asked for."""
        return str(self.body["model"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages, the system message included."""
        return list(self.body["messages"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """The messages without the system and developer ones."""
        return [m for m in self.messages if m["role"] not in INSTRUCTION_ROLES]

    @property
    def system(self) -> str:
        """The text of the system and developer messages, joined by blank lines."""
        return "\n\n".join(text(m) for m in self.messages if m["role"] in INSTRUCTION_ROLES)

    @property
    def last(self) -> dict[str, Any]:
        """The last message."""
        return self.messages[-1]

    @property
    def tool_names(self) -> list[str]:
        """The names of the tools on offer, in order."""
        return [tool["function"]["name"] for tool in self.body.get("tools", [])]

    @property
    def returns(self) -> dict[str, str]:
        """The text of each tool return, by tool call id, in the order of the messages."""
        return {m["tool_call_id"]: text(m) for m in self.messages if m["role"] == "tool"}

    @property
    def new_returns(self) -> list[str]:
        """The texts of the tool returns that the messages end with, in order."""
        found: list[str] = []
        for message in reversed(self.messages):
            if message["role"] != "tool":
                break
            found.insert(0, text(message))
        return found


@dataclass(frozen=True)
class Rejection:
    """One refused request: the answer's status and message, and what was sent."""

    status: int
    message: str
    param: str | None
    code: str | None
    raw: bytes
    headers: Mapping[str, str]


def text(message: Mapping[str, Any]) -> str:
    """The text of a message, its text parts joined."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") for part in content)


def canonical(value: object) -> str:
    """JSON that is equal exactly when the values are equal."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
