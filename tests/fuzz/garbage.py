"""Bytes on the port that are no gRPC, and connections on which nothing comes."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SECONDS = 0.3


async def throw(host: str, port: int, rng: Random) -> None:
    """One connection with garbage, or with the beginning of something good."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(3.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_bytes(rng))
                await writer.drain()
                async with asyncio.timeout(_SECONDS):
                    while await reader.read(65_536):
                        pass
            finally:
                writer.close()


async def idle(host: str, port: int, count: int, until: asyncio.Event) -> None:
    """So many connections, half of which have said hello, until the event."""
    writers = []
    try:
        for index in range(count):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                writers.append(writer)
                if index % 2:
                    writer.write(_PREFACE + _SETTINGS)
        await until.wait()
    finally:
        for writer in writers:
            writer.close()


def _bytes(rng: Random) -> bytes:
    headers = rng.randbytes(rng.choice((0, 10, 200)))
    match rng.randrange(9):
        case 0:
            return rng.randbytes(rng.choice((1, 9, 1_000, 100_000)))
        case 1:
            return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        case 2:
            return _PREFACE[: rng.randrange(len(_PREFACE))]
        case 3:
            return _PREFACE
        case 4:
            return _PREFACE + _SETTINGS + _frame(1, 4, 1, headers)
        case 5:
            return (
                _PREFACE
                + _SETTINGS
                + b"".join(_frame(rng.randrange(12), rng.randrange(64), 1, headers) for _ in range(50))
            )
        case 6:
            return _PREFACE + _SETTINGS + _frame(1, 0, 1, headers) + _frame(9, 0, 1, headers) * 500
        case 7:
            return _PREFACE + _SETTINGS + b"".join(_frame(3, 0, 2 * i + 1, bytes(4)) for i in range(1_000))
        case _:
            return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
