"""How endpoints say that a request is too long for the model: each of their forms is understood, and no other one."""

from __future__ import annotations

from typing import Any

import pytest

from agent_service.domain.errors import Reason
from agent_service.models.failures import error_in_stream, error_status

OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 8227 tokens."
VLLM = (
    "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (112946 in the "
    "messages, 10000 in the completion). Please reduce the length of the messages or completion."
)
LLAMA_CPP = "request (124315 tokens) exceeds the available context size (123904 tokens), try increasing it"


def said(message: str, **more: Any) -> dict[str, Any]:
    """The error of a body."""
    return {"message": message, **more}


@pytest.mark.parametrize(
    ("status", "error", "window"),
    [
        (400, said(OPENAI, type="invalid_request_error", code="context_length_exceeded"), 8192),
        (400, said("Your input exceeds the context window of this model.", code="context_length_exceeded"), 0),
        (400, said(VLLM, type="BadRequestError", code=400), 16384),
        (400, said(LLAMA_CPP, type="exceed_context_size_error", code=400, n_ctx=123904), 123904),
        (500, said("the request exceeds the available context size.", type="exceed_context_size_error"), 0),
        (400, said("This endpoint's maximum context length is 32768 tokens."), 32768),
        (400, said("This model's maximum context length is 131,072 tokens."), 131072),
        (400, said("The maximum context length is 1.048.576. You sent more."), 1048576),
        (400, said("It exceeds the context window of 128k tokens."), 0),
        (400, said(f"The maximum context length is {'9' * 5000}."), 0),
        (413, "prompt is too long: 210000 tokens > 200000 maximum", 0),
    ],
)
def test_a_refusal_for_length_is_told_apart(status: int, error: object, window: int) -> None:
    """With the size of the window, where the endpoint tells it."""
    found = error_status(status, error, attempts=1, retry_after=None)
    assert (found.reason, found.window_tokens) == (Reason.CONTEXT_TOO_LARGE, window)
    assert not found.retryable


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, said("Unsupported parameter: 'context'.", code="unsupported_parameter")),
        (401, said("This key has a maximum context length of 10.")),
        (429, said("Rate limit reached: requests exceed the context of your plan.")),
        (503, said(OPENAI)),
    ],
)
def test_other_errors_are_none(status: int, error: object) -> None:
    """Also if they speak of a context."""
    found = error_status(status, error, attempts=1, retry_after=None)
    assert (found.reason is Reason.CONTEXT_TOO_LARGE, found.window_tokens) == (False, 0)


def test_it_may_come_in_the_stream() -> None:
    """As llama.cpp's server did."""
    found = error_in_stream(b'{"code":400,"message":"%s","type":"exceed_context_size_error"}' % LLAMA_CPP.encode())
    assert (found.reason, found.window_tokens) == (Reason.CONTEXT_TOO_LARGE, 123904)
