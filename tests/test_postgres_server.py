"""The PostgreSQL servers of the tests: what they survive, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests import postgres as servers
from tests.postgres import MISSING, Postgres, Stop, alive, postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that keeps what it has."""
    with postgres() as running:
        yield running


async def count(server: Postgres) -> int:
    """How many rows there are, after one more was committed."""
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (); INSERT INTO kept DEFAULT VALUES")
        return int(await connection.fetchval("SELECT count(*) FROM kept"))
    finally:
        connection.terminate()


async def test_what_is_committed_outlives_every_end(server: Postgres) -> None:
    """Its port and its data stay, however it ends, and it is up again at once."""
    url, before = server.url, await count(server)
    server.kill()
    assert server.processes == []
    server.start()
    for how in Stop:
        server.restart(how)
    assert server.url == url
    assert await count(server) == before + 1


async def test_a_paused_server_answers_when_it_goes_on(server: Postgres) -> None:
    """Until then it keeps its connections and says nothing, also not to new ones."""
    connection = await asyncpg.connect(server.url)
    server.pause()
    try:
        asked = asyncio.ensure_future(connection.fetchval("SELECT 7"))
        asked_anew = asyncio.ensure_future(count(server))
        assert (await asyncio.wait({asked, asked_anew}, timeout=0.1))[0] == set()
    finally:
        server.go_on()
    assert await asked == 7
    assert await asked_anew
    connection.terminate()


async def test_a_paused_server_can_be_killed() -> None:
    """Nothing of it is left, so that it starts again, and its folder can be removed."""
    with postgres(durable=False) as server:
        server.pause()
        processes = server.processes
        server.kill()
        assert not any(map(alive, processes))
        server.start()
        assert await count(server)


UNTIL_KILLED = """
import sys
from tests.postgres import postgres
with postgres(durable=False) as server:
    print(*server.processes, flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_with_its_tests() -> None:
    """Also if these are killed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tests = subprocess.Popen(
            [sys.executable, "-c", UNTIL_KILLED],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with tests:
            assert tests.stdout is not None
            processes = [int(pid) for pid in tests.stdout.readline().split()]
            assert len(processes) > 1
            tests.kill()
        for _ in range(500):
            if not any(map(alive, processes)):
                break
            time.sleep(0.02)
        assert not any(map(alive, processes))


@pytest.mark.parametrize("ci", [False, True])
def test_without_postgresql_tests_say_what_to_install(monkeypatch: pytest.MonkeyPatch, ci: bool) -> None:
    """They are skipped; in continuous integration they fail."""
    monkeypatch.setattr(servers, "_INSTALLED", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match=re.escape(MISSING)), postgres():
        pass
