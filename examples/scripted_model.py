"""The model that the examples are run against: an OpenAI-compatible endpoint that answers by looking at the request.

Prints its base URL and serves until it is told to stop; then it fails if a request was not one that a model accepts.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys

from tests.scripted_openai import Reply, Request, ScriptedOpenAI, calls, says


def reply(request: Request) -> Reply:
    """Calls get_secret_code for each person in the question; answers and remembers what the tool returned."""
    if request.last["role"] == "tool":
        return says(" ".join(f"The secret code of {name} is {code}." for name, code in codes(request).items()))
    if request.body.get("tool_choice") == "none" or not request.tool_names:
        return says(f"It was {', '.join(codes(request).values())}.")
    people = re.findall("Alice|Bob|Carol", str(request.last["content"]))
    return calls(*(("get_secret_code", {"name": name}) for name in people))


def codes(request: Request) -> dict[str, str]:
    """What the tool returned so far, by the person it was asked about."""
    asked = [call for message in request.messages for call in message.get("tool_calls", [])]
    return {json.loads(call["function"]["arguments"])["name"]: request.returns[call["id"]] for call in asked}


async def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    async with ScriptedOpenAI(reply) as model:
        sys.stdout.write(f"{model.base_url}\n")
        sys.stdout.flush()
        await told_to_stop.wait()
        model.check_histories()


asyncio.run(main())
