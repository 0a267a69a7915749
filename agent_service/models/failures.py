"""What the endpoint's errors mean to a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

from agent_service.domain.errors import Reason
from agent_service.engine.model import ModelError
from agent_service.models.json_text import to_utf8

MAX_MESSAGE_CHARS = 500

_NO_CREDIT = frozenset({"insufficient_quota", "billing_not_active"})
_TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error", "context_exceeded"})
"""As `code` or `type`: OpenAI's, and that of llama.cpp's server."""
_SAID_TOO_LONG = re.compile(
    r"maximum context length|exceeds? (?:the )?(?:available |model's )?context|prompt is too long", re.IGNORECASE
)
"""vLLM, OpenRouter and others say it in words only."""
_TOO_LONG_STATUS = frozenset({400, 413, 422})
_WINDOW = re.compile(
    r"context (?:length|size|window|limit)(?: is| of)?[ (:]*"
    r"(\d{1,3}(?:[,._']\d{3}){1,2}|\d{1,9})(?![\d,._']*(?:\d|\s?[km]\b))",
    re.IGNORECASE,
)
"""The number may be in groups of three digits; one that is short for more ("128k") is not exact enough."""
_RETRYABLE_STATUS = frozenset({408, 409, 429})
_LONGEST_WAIT_SECONDS = 365 * 24 * 3600
"""Who asks for more asks for nothing that anybody could do."""
_HINTS = {
    401: "the endpoint refused the API key: check OPENAI_API_KEY",
    403: "the endpoint does not allow this: check OPENAI_API_KEY and what its project may use",
}


def one_line(text: str, secret: str = "") -> str:
    """The text in one line, without the secret and halves of surrogate pairs, cut to MAX_MESSAGE_CHARS."""
    line = " ".join((text.replace(secret, "***") if secret else text).split())
    line = to_utf8(line).decode()
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."


def unavailable(message: str, *, attempts: int = 1) -> ModelError:
    """The endpoint gave no answer, or broke it off."""
    return ModelError(Reason.LLM_UNAVAILABLE, message, attempts=attempts)


def error_status(status: int, error: object, *, attempts: int, retry_after: float | None) -> ModelError:
    """The error for an HTTP status; `error` is the `error` value of the body, or what the body held."""
    said, code, kind = _read(error)
    message = f"the endpoint answered {status}" + (f": {said}" if said else "")
    if status in _HINTS:
        # Endpoints repeat (parts of) the key when they refuse it.
        message = _HINTS[status] if status == 401 or not said else f"{_HINTS[status]}: {said}"
    reason = _reason(status, code, kind, said)
    return ModelError(
        reason,
        message,
        attempts=attempts,
        retry_after=retry_after,
        http_status=status,
        window_tokens=_window(said) if reason is Reason.CONTEXT_TOO_LARGE else 0,
    )


def error_in_stream(raw: bytes) -> ModelError:
    """The error for an `error` value (JSON) that came instead of a chunk."""
    try:
        error = json.loads(raw)
    except (ValueError, RecursionError):
        error = None
    said, code, kind = _read(error)
    # Some routers put the HTTP status of the provider behind them into `code`.
    status = int(code) if code.isascii() and code.isdigit() and len(code) == 3 else None
    reason = _reason(status, code, kind, said)
    window = _window(said) if reason is Reason.CONTEXT_TOO_LARGE else 0
    return ModelError(reason, f"the endpoint stopped the answer: {said or 'no reason given'}", window_tokens=window)


def _read(error: object) -> tuple[str, str, str]:
    """Message, code and type, each empty if it is not there."""
    if isinstance(error, str):
        return ("" if error.lstrip().startswith("<") else error), "", ""
    if not isinstance(error, Mapping):
        return "", "", ""
    inner = error.get("error")
    while isinstance(inner, Mapping):
        error, inner = inner, inner.get("error")
    if isinstance(inner, str):
        return _read(inner)
    said, code, kind = (error.get(name) for name in ("message", "code", "type"))
    return (
        said if isinstance(said, str) else "",
        str(code) if isinstance(code, str | int) else "",
        kind if isinstance(kind, str) else "",
    )


def _window(said: str) -> int:
    """How many tokens the model takes, as an endpoint says it in words; 0 if it does not."""
    found = _WINDOW.search(said)
    return int(re.sub(r"\D", "", found[1])) if found else 0


def _reason(status: int | None, code: str, kind: str, said: str) -> Reason:
    if code in _TOO_LONG or kind in _TOO_LONG or (status in _TOO_LONG_STATUS and _SAID_TOO_LONG.search(said)):
        return Reason.CONTEXT_TOO_LARGE
    if status == 402 or code in _NO_CREDIT or kind in _NO_CREDIT:
        return Reason.LLM_INSUFFICIENT_CREDITS
    if status is None:
        return Reason.LLM_REFUSED if kind == "invalid_request_error" else Reason.LLM_UNAVAILABLE
    if status in _RETRYABLE_STATUS or status >= 500:
        return Reason.LLM_UNAVAILABLE
    return Reason.LLM_REFUSED


def retry_after(headers: Mapping[str, str], now: Callable[[], float]) -> float | None:
    """How many seconds the endpoint asks to wait, from its headers; `now` gives Unix time in seconds."""
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = _seconds(headers.get(name, ""))
        if value is not None:
            return value / per_second
    try:
        wait = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now()
    except (ValueError, OverflowError):
        return None
    return max(0.0, wait) if wait < _LONGEST_WAIT_SECONDS else None


def _seconds(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < _LONGEST_WAIT_SECONDS else None
