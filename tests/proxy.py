"""A TCP proxy between a client and a service that does what networks do: it cuts, loses, holds back and delays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

_CHUNK = 1 << 16


@dataclass
class Proxy:
    """Forwards connections to `target`. What is set holds from then on, also for connections that are open.

    `budgets` are the bytes towards the client after which a connection is cut, one for each new connection; without one
    left, connections are not cut. `lost_answers`: what the service sends is thrown away. `black_hole`: what either side
    sends is. `held_requests`: what the client sends is kept until `release`, also when the client is gone by then.
    `refused`: new connections are closed at once. `delay` is in seconds, before each piece of data.
    """

    target: str
    port: int = 0
    budgets: list[int] = field(default_factory=list)
    lost_answers: bool = False
    black_hole: bool = False
    held_requests: bool = False
    refused: bool = False
    delay: float = 0
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a request is held back."""
    connections: int = 0
    answered_bytes: int = 0
    _held: list[tuple[asyncio.StreamWriter, bytes]] = field(default_factory=list)
    _clients: set[asyncio.StreamWriter] = field(default_factory=set)
    _services: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"127.0.0.1:{self.port}"

    def cut(self, *, service: bool = True) -> None:
        """Resets all connections; those to the service only if `service`."""
        for writer in (*self._clients, *(self._services if service else ())):
            writer.transport.abort()
        self._clients.clear()

    def release(self) -> None:
        """The service gets what was held back."""
        self.held_requests = False
        for writer, data in self._held:
            writer.write(data)
        self._held.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refused:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            back, forth = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        budget = self.budgets.pop(0) if self.budgets else None
        self._clients.add(writer)
        self._services.add(forth)
        up = asyncio.create_task(self._up(reader, forth))
        self._tasks.add(up)
        up.add_done_callback(self._tasks.discard)
        with suppress(OSError):
            await self._down(back, writer, budget)
        self._clients.discard(writer)
        writer.transport.abort()
        forth.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await asyncio.sleep(self.delay)
                if self.held_requests:
                    self._held.append((writer, data))
                    self.holding.set()
                elif not self.black_hole:
                    writer.write(data)
        if not any(held is writer for held, _ in self._held):
            writer.transport.abort()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> None:
        while data := await reader.read(_CHUNK):
            await asyncio.sleep(self.delay)
            if self.lost_answers or self.black_hole:
                continue
            part = data if budget is None else data[:budget]
            writer.write(part)
            self.answered_bytes += len(part)
            if budget is not None:
                budget -= len(part)
                if budget <= 0:
                    await writer.drain()
                    return


@asynccontextmanager
async def proxied(target: str, budgets: Iterable[int] = ()) -> AsyncIterator[Proxy]:
    """A proxy to this target on a free port."""
    proxy = Proxy(target, budgets=list(budgets))
    server = await asyncio.start_server(proxy._connected, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        for task in list(proxy._tasks):
            task.cancel()
