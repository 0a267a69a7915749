"""The public keys of an issuer (JWKS): from a file, or from a URL, fetched anew when a token names an unknown one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import jwt
import structlog

from agent_service.engine.access import CheckError, CredentialError
from agent_service.files import FileError, Watched, read_bytes

log = structlog.get_logger()

FRESH_SECONDS = 300.0
"""Keys of a URL are fetched again when they are older than this; those known are used meanwhile."""
RETRY_SECONDS = 10.0
"""Between two fetches at least, whatever key ids callers make up."""
TIMEOUT_SECONDS = 5.0
MAX_BYTES = 1024 * 1024
MAX_SHOWN = 64
"""Characters of a key's id in the log; callers choose it."""

Keys = dict[str, jwt.PyJWK]


class FileKeys:
    """Keys of a file, which is read again when it changes. Raises FileError if it cannot be used at first."""

    def __init__(self, path: Path) -> None:
        self._keys = Watched((path,), lambda: _read(path))

    async def find(self, key_id: str) -> jwt.PyJWK:
        """See KeySet."""
        return _found(self._keys.value, key_id)


class UrlKeys:
    """Keys of a URL. `clock` is in seconds and never goes back."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._client = httpx2.AsyncClient(timeout=TIMEOUT_SECONDS)
        self._keys: Keys = {}
        self._tried = -RETRY_SECONDS
        self._failed = True
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> jwt.PyJWK:
        """See KeySet."""
        age = self._clock() - self._tried
        known = _pick(self._keys, key_id) is not None
        if age >= (FRESH_SECONDS if known else RETRY_SECONDS):
            self.fetch()
        if self._fetching is not None and not known:
            # Shielded, since others wait for the same fetch.
            await asyncio.shield(self._fetching)
        if self._failed and _pick(self._keys, key_id) is None:
            raise CheckError(f"no key '{key_id[:MAX_SHOWN]}', and {self._url} cannot be fetched")
        return _found(self._keys, key_id)

    def fetch(self) -> None:
        """Begins to fetch the keys, unless that is going on."""
        if self._fetching is None:
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._fetch())

    async def close(self) -> None:
        """Ends what is being fetched."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self._client.aclose()

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._client.stream("GET", self._url) as response:
                response.raise_for_status()
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise ValueError(f"more than {MAX_BYTES} bytes")
            self._keys = _parse(body)
            self._failed = False
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:  # TimeoutError is an OSError
            self._failed = True
            log.error("keys.not_fetched", url=self._url, error=f"{type(error).__name__}: {error}")
        finally:
            self._fetching = None


def _pick(keys: Keys, key_id: str) -> jwt.PyJWK | None:
    if not key_id and len(keys) == 1:
        return next(iter(keys.values()))
    return keys.get(key_id)


def _found(keys: Keys, key_id: str) -> jwt.PyJWK:
    key = _pick(keys, key_id)
    if key is None:
        raise CredentialError(f"unknown key '{key_id[:MAX_SHOWN]}'")
    return key


def _read(path: Path) -> Keys:
    try:
        return _parse(read_bytes(path))
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None


def _parse(body: bytes) -> Keys:
    """The keys that can be used; others, such as those for encryption, are left out. Raises ValueError."""
    found: Keys = {}
    value = json.loads(body)
    listed = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(listed, list):
        raise ValueError("is no JSON object with a list 'keys'")
    for each in listed:
        try:
            key = jwt.PyJWK.from_dict(each)
        except (jwt.PyJWTError, AttributeError):
            continue
        # A shared secret has no business in what anybody may read.
        if key.key_type != "oct" and key.public_key_use in (None, "sig"):
            found[key.key_id or ""] = key
    if not found:
        raise ValueError("holds no public key for signatures")
    return found
