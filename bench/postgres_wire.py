"""What a cycle sends to PostgreSQL and gets back: python -m bench.postgres_wire

Counted by a relay between the store and the database: round trips (Sync), executions of statements, bytes of both ways;
and the bytes of write-ahead log. 64 callers, whose writes are committed together, and one caller.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from agent_service.stores.postgres import PostgresStore
from bench.load import together
from bench.machine import database
from bench.one_trip import one_trip
from bench.stores import TEXT, cycle, new_id

_LENGTH = 4
_ENCRYPT = (80877103).to_bytes(4)


class Relay:
    """Passes on what clients and the database say to each other, and counts it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.counts: Counter[str] = Counter()

    async def serve(self) -> int:
        """Serves on a free port from now on; the port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._requests(reader, back), self._answers(there, writer), return_exceptions=True)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Message by message: a letter, unless it is the first, and a length that counts itself."""
        kind = b""
        try:
            while True:
                length = await reader.readexactly(_LENGTH)
                body = await reader.readexactly(int.from_bytes(length) - _LENGTH)
                writer.write(kind + length + body)
                self.counts["bytes sent"] += len(kind) + _LENGTH + len(body)
                if kind in (b"E", b"Q"):
                    self.counts["statements"] += 1
                if kind in (b"S", b"Q"):
                    self.counts["round trips"] += 1
                if kind == b"P":
                    self.counts["parsed"] += 1
                # What asks for encryption is refused here, and the first message comes again.
                kind = b"" if kind + body == _ENCRYPT else await reader.readexactly(1)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.counts["bytes received"] += len(data)
            writer.write(data)
        writer.close()


async def _measure() -> None:
    print(f"{'of a cycle':34}" + "".join(f"{name:>16}" for name in _COLUMNS))
    with database() as server:
        place = urlsplit(server.url)
        assert place.hostname is not None
        assert place.port is not None
        relay = Relay(place.hostname, place.port)
        through = urlunsplit(place._replace(netloc=f"{place.username}@127.0.0.1:{await relay.serve()}"))
        log = await asyncpg.connect(server.url)
        store = await PostgresStore.open(through, publish=lambda *_: None, new_id=new_id, connections=20)
        async with one_trip(through, TEXT) as raw:
            for name, work in (("store", partial(cycle, store)), ("one trip each", raw.cycle)):
                for callers in (1, 64):
                    each = 640 // callers
                    await together(callers, max(1, each // 4), work)
                    relay.counts.clear()
                    began = await log.fetchval("SELECT pg_current_wal_insert_lsn()")
                    await together(callers, each, work)
                    written = await log.fetchval("SELECT pg_current_wal_insert_lsn() - $1", began)
                    counts = relay.counts | Counter({"bytes of log": int(written)})
                    figures = "".join(f"{counts[column] / (callers * each):16.2f}" for column in _COLUMNS)
                    print(f"{name + f', {callers} callers':34}{figures}")
        await log.close()
        await store.close()


_COLUMNS = ("round trips", "statements", "parsed", "bytes sent", "bytes received", "bytes of log")


if __name__ == "__main__":
    asyncio.run(_measure())
