"""As main.py, by the library `agent_service.client` (pip install agent-service), which answers the calls by itself."""

# ruff: noqa: T201 - a program for people prints

from __future__ import annotations

import asyncio
import os

from agent_service.client import AgentClient, NotFoundError, TextDelta, client_tool

CODES = {"Alice": "AZURE-7731", "Bob": "CORAL-1102", "Carol": "OLIVE-5920"}


@client_tool
def get_secret_code(name: str) -> str:
    """Returns the secret code of a person."""
    return CODES[name]


async def main() -> None:
    async with AgentClient(os.environ.get("AGENT_SERVICE_TARGET", "localhost:50051")) as client:
        conversation = client.conversation(tools=[get_secret_code])
        answered = await conversation.run("What is the secret code of Alice?")
        print(answered.text)
        assert CODES["Alice"] in answered.text

        async for event in conversation.stream("What was the secret code?", tool_choice="none"):
            if isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
        print()

        three = await client.run("What are the secret codes of Alice, Bob and Carol?", tools=[get_secret_code])
        assert all(code in three.text for code in CODES.values())

        try:
            await client.run("Hello", conversation_id="conv_x")
        except NotFoundError as error:
            assert error.reason == "CONVERSATION_NOT_FOUND"
    print("interop ok: library")


asyncio.run(main())
