"""What all tests share: asyncio, no settings from outside, no network beyond this host, and each kind of store."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent_service import wiring
from agent_service.engine.supervisor import Supervisor
from agent_service.stores.postgres import PostgresStore
from tests import host_clocks
from tests.postgres import MISSING, Postgres, postgres
from tests.store_contract import Clock
from tests.stored import emptied
from tests.tool_desk import Desk


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def _one_event_loop(anyio_backend: str) -> AsyncIterator[None]:
    """All async tests run in one event loop: anyio keeps it open for as long as an async fixture lives.

    grpc.aio has one poller per process. With a loop per test it may still have something to tell one that is closed.
    """
    yield


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on who runs it."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "AGENT_SERVICE_", "PG")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # To ask for encryption, which the servers of the tests do not have, takes longer than the rest of a connection.
    monkeypatch.setenv("PGSSLMODE", "disable")


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A connection to another host fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test must not connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for all tests that need no other. Whoever wants it empty takes `store` or `shared_store`."""
    with postgres(durable=False) as server:
        yield server


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    """Where the server tools of a service in this process ask what to do."""
    async with Desk() as desk:
        for name, value in desk.environment.items():
            monkeypatch.setenv(name, value)
        yield desk


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The store setting of a service, once per kind of store. It is empty."""
    return "memory" if request.param == "memory" else await _shared(request, tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
async def shared_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same for each kind of store that outlives a process, and that several share."""
    return await _shared(request, tmp_path)


async def _shared(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return str(folder / "runs.sqlite3")
    server: Postgres = request.getfixturevalue("postgres_server")
    return await emptied(server.url)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says at the end what was left out for want of PostgreSQL; a skipped test is easily missed."""
    skipped = [report for report in terminalreporter.getreports("skipped") if MISSING in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: {MISSING}", yellow=True)


@pytest.fixture
def clocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """By how many seconds the clocks of server processes are off; see REPLICAS."""
    with host_clocks.off(request.param):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long races between processes are tried."""
    parser.addoption("--races", type=int, default=20, help="how often each race between processes is run (20)")


@pytest.fixture
def races(request: pytest.FixtureRequest) -> int:
    """How often each race is run."""
    count: int = request.config.getoption("--races")
    return count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the stores of services that start from now on. It stands until the test moves it."""
    clock = Clock()
    clock.now = time.time_ns()
    monkeypatch.setattr(wiring, "time", SimpleNamespace(time_ns=clock))
    monkeypatch.setattr(PostgresStore, "open", partial(PostgresStore.open, clock=clock))
    return clock


@pytest.fixture
def supervisor() -> Supervisor:
    """Fails the test when a task crashes."""

    def crashed(error: BaseException) -> None:
        raise error

    return Supervisor(crashed)
