"""Connections that reach their age: clients connect anew, and open streams go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from agentrpc.v1 import runs_pb2, server_service_pb2

from tests.scripted_openai import Gate, says
from tests.service import Client, connected, scripted

pytestmark = pytest.mark.anyio

AGE = 0.2
"""Seconds, to which gRPC adds up to a tenth."""


class Proxy:
    """Passes bytes on to one address. Its connections are numbered from 1."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self.taken = 0
        self.open: set[int] = set()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until either side ends it."""
        self.taken += 1
        number = self.taken
        self.open.add(number)
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            self.open.remove(number)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def through_proxy(client: Client) -> AsyncIterator[tuple[Proxy, Client]]:
    """A client of the same service whose connections are counted."""
    proxy = Proxy(client.target)
    server = await asyncio.start_server(proxy.pass_on, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with connected(f"127.0.0.1:{port}") as counted:
            yield proxy, counted
    finally:
        server.close()


async def test_a_stream_outlives_the_age_of_its_connection_while_new_calls_use_another_one() -> None:
    """Calls go over a second connection and, when that is closed, over a third one. None of them fails. The first one
    stays for the stream alone, which is told everything to its end."""
    gate = Gate()
    async with (
        scripted([says("Slowly, to the end.", gate=gate)], "memory", max_connection_age_seconds=AGE) as (service, _),
        through_proxy(service) as (proxy, client),
    ):
        await client.ask("Hi", run_id="run-1", background=True)
        stream = aiter(client.watching("run-1", stream_tokens=True))
        assert (await anext(stream)).event.HasField("run_accepted")
        assert proxy.open == {1}
        async with asyncio.timeout(20):
            while proxy.open != {1, 3}:
                await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        gate.open()
        events = [response.event async for response in stream]
        assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED


async def test_connections_have_no_age_unless_it_is_set() -> None:
    """Any number of calls goes over one connection."""
    async with scripted([], "memory") as (service, _), through_proxy(service) as (proxy, client):
        for _ in range(100):
            await client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        assert proxy.taken == 1
