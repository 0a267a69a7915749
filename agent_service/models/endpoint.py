"""The HTTP side of an OpenAI-compatible endpoint: the SDK's client with bytes in and bytes out.

The SDK's typed calls walk every message of a request and build an object tree for every token of an answer; its
connection, authentication, retries and status errors are what is used of it here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import httpx2
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AsyncOpenAI,
    AsyncStream,
    DefaultAioHttpClient,
    Omit,
    Timeout,
    omit,
)

from agent_service.engine.model import ModelError
from agent_service.models.failures import error_status, one_line, retry_after, unavailable

DEFAULT_BASE_URL = "https://api.openai.com/v1"

# The SDK maps most of what its transport raises, but not all, and nothing while we read the bytes of a stream.
# RuntimeError is what aiohttp raises where a connection was closed between two reads.
_TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError, RuntimeError)

_CONNECTIONS = 1000

# Above this size aiohttp warns that it writes a bytes body in one go.
_LARGEST_WHOLE_BODY = 1024 * 1024
_BODY_PIECE = 256 * 1024

# As they are sent. What is packed becomes about a thousand times as much at most, piece by piece.
_LARGEST_ERROR = 1024 * 1024
_LARGEST_LIST = 8 * 1024 * 1024
_LARGEST_PACKED_ANSWER = 8 * 1024
_PACKED_PIECE = 8 * 1024

# How long to wait for the end of a body whose content is over, so that the connection can be used again.
_DRAIN_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds: for the connection to be made, and the longest silence while an answer is awaited or read."""

    connect: float = 10.0
    silence: float = 300.0


class Stream:
    """An open answer. `attempts` counts the requests it took."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._chunks = _bytes_of(response)
        self.attempts = _attempts(response.request)

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        declared: str = self._response.headers.get("content-type", "")
        return declared.partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """The next bytes; empty at the end. Raises ModelError when the connection breaks or stays silent too long."""
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            return b""
        except _TRANSPORT_ERRORS as error:
            raise unavailable(f"the endpoint broke the answer off: {_cause(error)}") from error

    async def drain(self) -> None:
        """Reads what is left if it comes at once: a connection is used again only after the end of the body."""
        with contextlib.suppress(TimeoutError, ModelError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while await self.read():
                    pass

    async def close(self) -> None:
        """Closes the answer, and the connection unless the answer was read to its end."""
        with contextlib.suppress(*_TRANSPORT_ERRORS):
            if isinstance(self._chunks, AsyncGenerator):
                await self._chunks.aclose()
            await self._response.aclose()


class Endpoint:
    """A connection pool to one endpoint. Takes nothing from the environment but proxies, and those not for loopback.

    Raises ValueError for a base URL that is none or holds credentials.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        max_retries: int,
        keep_alive: bool,
        timeouts: Timeouts,
        now: Callable[[], float] = time.time,
        trace_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._api_key = api_key
        self._trace_headers = trace_headers
        self._now = now
        self._origin = _origin(base_url)
        self._client = AsyncOpenAI(
            # With no key no Authorization header is sent; the SDK insists on one here.
            api_key=api_key or "none",
            base_url=base_url,
            organization="",
            project="",
            admin_api_key="",
            webhook_secret="",
            max_retries=max_retries,
            http_client=DefaultAioHttpClient(
                timeout=Timeout(timeouts.silence, connect=timeouts.connect),
                limits=httpx2.Limits(max_connections=_CONNECTIONS, keepalive_expiry=15.0 if keep_alive else 0.0),
                trust_env=not _is_loopback(base_url),
                event_hooks={"response": [_bound]},
            ),
        )
        # Not given, they would come from OPENAI_ORG_ID and OPENAI_PROJECT_ID; empty, they would be sent.
        self._client.organization = self._client.project = None
        # OPENAI_CUSTOM_HEADERS: there is no other way to keep it out.
        self._client._custom_headers = {}

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    async def get(self, path: str) -> str:
        """The text of an answer. Raises ModelError."""
        with self._errors():
            return await self._client.get(path, cast_to=str, options={"headers": self._headers()})

    @contextlib.asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncIterator[Stream]:
        """Sends the body and opens the answer, closed on leaving. Raises ModelError, within the context too."""
        with self._errors():
            opened = await self._open(path, body)
        stream = Stream(opened.response)
        try:
            yield stream
        except ModelError as error:
            error.attempts = stream.attempts
            self._shorten(error)
            raise
        finally:
            await stream.close()

    async def _open(self, path: str, body: bytes) -> AsyncStream[object]:
        headers: dict[str, str | Omit] = {"Accept": "text/event-stream", **self._trace_headers(), **self._headers()}
        content: bytes | _PiecewiseBody = body
        if len(body) > _LARGEST_WHOLE_BODY:
            content = _PiecewiseBody(body)
            headers["Content-Length"] = str(len(body))
        return await self._client.post(
            path,
            cast_to=object,
            content=content,
            options={"headers": headers},
            stream=True,
            stream_cls=AsyncStream[object],
        )

    def _headers(self) -> dict[str, str | Omit]:
        return {} if self._api_key else {"Authorization": omit}

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except APIStatusError as error:
            raise self._status_error(error) from None
        except APIConnectionError as error:
            raise self._no_answer(error, _attempts(error.request)) from error
        except (APIError, *_TRANSPORT_ERRORS) as error:
            raise self._no_answer(error, 1) from error

    def _status_error(self, error: APIStatusError) -> ModelError:
        found = error_status(
            error.status_code,
            error.body,
            attempts=_attempts(error.request),
            retry_after=retry_after(error.response.headers, self._now),
        )
        return self._shorten(found)

    def _no_answer(self, error: Exception, attempts: int) -> ModelError:
        return self._shorten(unavailable(f"no answer from {self._origin}: {_cause(error)}", attempts=attempts))

    def _shorten(self, error: ModelError) -> ModelError:
        """Makes the message one short line without the key: endpoints like to repeat what they were sent."""
        error.message = one_line(error.message, self._api_key)
        error.args = (error.message,)
        return error


class _PiecewiseBody:
    """A body given to the transport in pieces, so that sending a long history does not hold up the event loop.

    The file methods are what the SDK asks of a body that it may send once more; it reads it by iteration only.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._content), _BODY_PIECE):
            yield self._content[at : at + _BODY_PIECE]

    def read(self, size: int = -1) -> bytes:
        """All of it, whatever `size`."""
        return self._content

    def seekable(self) -> bool:
        """Yes: each iteration begins anew."""
        return True

    def tell(self) -> int:
        """The beginning."""
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Nothing to do."""
        return 0


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of a stream in pieces of a bounded size, up to a number of bytes, where it ends."""

    def __init__(self, stream: httpx2.AsyncByteStream, piece: int, most: float) -> None:
        self._stream = stream
        self._piece = piece
        self._left = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            for at in range(0, len(chunk), self._piece):
                if self._left <= 0:
                    return
                piece = chunk[at : at + self._piece]
                self._left -= len(piece)
                yield piece

    async def aclose(self) -> None:
        """Closes the stream."""
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    """What is not a stream of events is read whole by the SDK, however much it is; errors are."""
    packed = "content-encoding" in response.headers
    streamed = response.is_success and response.headers.get("content-type", "").startswith("text/event-stream")
    if streamed and not packed:
        return
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    most = _LARGEST_PACKED_ANSWER if packed else _LARGEST_LIST if response.is_success else _LARGEST_ERROR
    piece = _PACKED_PIECE if packed else _BODY_PIECE
    response.stream = _Bounded(response.stream, piece, math.inf if streamed else most)


def _bytes_of(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The body as it comes. Bytes that need no decoding come from the transport: each layer costs time per token."""
    if "content-encoding" in response.headers:
        return response.aiter_bytes()
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    return aiter(response.stream)


def _attempts(request: httpx2.Request) -> int:
    """The SDK counts its retries in a header of each request."""
    return 1 + int(request.headers.get("x-stainless-retry-count", "0"))


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def _origin(base_url: str) -> str:
    """Scheme, host and port: what is shown of the URL. Raises ValueError for a URL that cannot be used."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("the base URL must begin with http:// or https:// and a host")
    if "@" in url.netloc:
        raise ValueError("the base URL must not hold credentials: give the key by itself")
    return f"{url.scheme}://{url.netloc}"


def _is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
