"""A client's line to the service. It does what a good client does: it repeats with the same ids what was cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
from agentrpc.v1 import events_pb2

from tests.chaos.journal import PASSING, Journal
from tests.service import Client, Refusal, connected, refusal_of

_UNKNOWN_OUTCOME = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
_CALL_SECONDS, _STREAM_SECONDS = 15.0, 6.0
"""How long a client waits for an answer or a whole stream before it asks again."""
_PAUSE_SECONDS = 0.05
"""Between a cut and the repeat."""
_CONNECTIONS = 3
"""To each address: its workers share it, and each connection leads to one of them."""
_OPTIONS = [
    # A server that is back is found at once.
    *((f"grpc.{which}_reconnect_backoff_ms", 200) for which in ("initial", "min", "max")),
    # Else channels to one address are one connection.
    ("grpc.use_local_subchannel_pool", 1),
]
RUN_ID = "agentrpc-run-id"

Rpc = Callable[[Client], Any]
Stored = Callable[[], None]
"""Told as soon as the metadata says that a start or a submit is stored."""


class RefusedError(Exception):
    """The service refused a call: it changed nothing."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code} {refusal.reason}: {refusal.message}")
        self.refusal = refusal


@dataclass
class Heard:
    """What a stream told. `ended`: with status OK; else it was cut, or the client left."""

    events: list[events_pb2.RunEvent]
    ended: bool

    @property
    def stop(self) -> events_pb2.RunStopped | None:
        """The stop it ended with, if it did."""
        last = self.events[-1] if self.events else None
        return last.run_stopped if last is not None and last.HasField("run_stopped") else None


class Line:
    """Calls any of the servers; all that is told goes into the journal."""

    def __init__(self, clients: Sequence[Client], journal: Journal, rng: Random) -> None:
        self._clients = clients
        self.journal = journal
        self._rng = rng

    async def ask(self, rpc: Rpc, stored: Stored | None = None) -> Any:
        """The answer, however often it takes. Raises RefusedError."""
        while True:
            try:
                call = rpc(self._client())
                async with asyncio.timeout(_CALL_SECONDS):
                    await _announce(call, stored)
                    return await call
            except TimeoutError:
                self._cut("timeout")
            except grpc.aio.AioRpcError as error:
                self._cut_or_refused(error)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def listen(
        self, rpc: Rpc, *, leave_after: int = 0, stored: Stored | None = None, whole: bool = False
    ) -> Heard:
        """What one stream tells until it ends, is cut, or `leave_after` events (0 for all). `whole`: it is to go on
        over pauses to the run's end. Raises RefusedError.
        """
        heard = Heard([], ended=False)
        call = rpc(self._client())
        try:
            async with asyncio.timeout(_STREAM_SECONDS):
                await _announce(call, stored)
                async for response in call:
                    heard.events.append(response.event)
                    self.journal.see(response.event)
                    if len(heard.events) == leave_after:
                        self.journal.counts["left streams"] += 1
                        return heard
            heard.ended = True
            self._check_end(heard, whole)
        except TimeoutError:
            self._cut("timeout")
        except grpc.aio.AioRpcError as error:
            self._cut_or_refused(error)
        finally:
            call.cancel()
            self._check_order(heard)
        return heard

    def _client(self) -> Client:
        return self._rng.choice(self._clients)

    def _cut_or_refused(self, error: grpc.aio.AioRpcError) -> None:
        refusal = refusal_of(error)
        if error.code() in _UNKNOWN_OUTCOME:
            self._cut(refusal.reason or refusal.code)
        elif error.code() is grpc.StatusCode.INTERNAL:
            # Perhaps done, so a client may repeat; but the service has no reason to say so.
            self.journal.find("no_internal_errors", f"a call was answered with {refusal.code} {refusal.message}")
            raise RefusedError(refusal)
        else:
            raise RefusedError(refusal)

    def _cut(self, why: str) -> None:
        self.journal.counts[f"cut {why}"] += 1

    def _check_end(self, heard: Heard, whole: bool) -> None:
        stops = [event for event in heard.events if event.HasField("run_stopped")]
        good = heard.stop is not None and (heard.stop.final if whole else len(stops) == 1)
        if heard.events and not good:
            kinds = [event.WhichOneof("payload") for event in heard.events]
            self.journal.find("streams_end_with_their_stop", f"{heard.events[0].run_id}: one told {kinds}")

    def _check_order(self, heard: Heard) -> None:
        numbers = [event.sequence for event in heard.events if event.WhichOneof("payload") not in PASSING]
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            self.journal.find("streams_have_no_gap", f"{heard.events[0].run_id}: one had the numbers {numbers}")


async def _announce(call: Any, stored: Stored | None) -> None:
    if stored is not None:
        metadata = await call.initial_metadata()
        if metadata is not None and RUN_ID in dict(metadata):
            stored()


@asynccontextmanager
async def lines(targets: Sequence[str], journal: Journal) -> AsyncIterator[Callable[[Random], Line]]:
    """Makes lines that share a few connections to each server; called with a source of chance."""
    async with AsyncExitStack() as stack:
        wanted = [target for target in targets for _ in range(_CONNECTIONS)]
        clients = [await stack.enter_async_context(connected(target, _OPTIONS)) for target in wanted]
        yield lambda rng: Line(clients, journal, rng)
