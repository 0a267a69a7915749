"""Model endpoints that answer what none should: each answer becomes an answer of the model or an error, in time."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from agent_service.engine.limits import MIB
from agent_service.engine.model import BuiltRequest, Expect, ModelAnswer, ModelError
from agent_service.models.endpoint import Timeouts
from agent_service.models.openai_chat import OpenAIChatModel
from tests.fuzz.endpoint import HostileEndpoint, hostile_endpoint
from tests.fuzz.replies import REPLIES

pytestmark = pytest.mark.anyio

_SEEDS = 3


class _Silent:
    """A sink that keeps nothing."""

    def text(self, fragment: str) -> None:
        """See AnswerSink."""

    def reasoning(self, fragment: str) -> None:
        """See AnswerSink."""

    def arguments(self, index: int, name: str, fragment: str) -> None:
        """See AnswerSink."""


@pytest.fixture
async def endpoint() -> AsyncIterator[HostileEndpoint]:
    """A hostile endpoint."""
    async with hostile_endpoint() as running:
        yield running


async def answered(endpoint: HostileEndpoint, kind: str, number: int = 0) -> ModelAnswer | ModelError:
    """What the client makes of this reply."""
    model = OpenAIChatModel(base_url=endpoint.base_url, api_key="k", max_retries=0, timeouts=Timeouts(2.0, 2.0))
    tool = {"type": "function", "function": {"name": "client_a", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": f"do: {kind} {number}"}]
    body = {"model": "m", "messages": messages, "tools": [tool], "stream": True}
    try:
        async with asyncio.timeout(20.0):
            return await model.complete(BuiltRequest(json.dumps(body).encode(), Expect.NATIVE), _Silent())
    except ModelError as error:
        return error
    finally:
        await model.close()


@pytest.mark.parametrize("kind", sorted(REPLIES))
async def test_whatever_an_endpoint_answers_is_an_answer_or_an_error(endpoint: HostileEndpoint, kind: str) -> None:
    """Nothing else is raised, and nothing goes on for ever; the counts of tokens fit into what is stored."""
    for number in range(_SEEDS):
        found = await answered(endpoint, kind, number)
        if isinstance(found, ModelAnswer):
            usage = found.usage
            counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.reasoning_tokens)
            assert all(0 <= count < 2**31 for count in counts)
        else:
            assert len(found.message) <= 500
            assert found.retry_after is None or found.retry_after < 10**8


async def test_an_error_without_end_is_read_in_part(endpoint: HostileEndpoint) -> None:
    """The text of an error takes a bounded amount of memory, also if little becomes much once it is unpacked."""
    for kind, most in (("endless_failure", 16 * MIB), ("packed_failure", 80 * MIB)):
        tracemalloc.start()
        try:
            error = await answered(endpoint, kind)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert isinstance(error, ModelError)
        assert error.http_status is not None
        assert peak < most
