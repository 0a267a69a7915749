"""`agent-service doctor`: each thing that would keep a server from working is found before it is started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from agent_service.doctor import Finding, Level, examine
from agent_service.settings import load_settings
from agent_service.stores.sqlite_thread import SCHEMA_VERSION, open_database
from tests.postgres import Postgres
from tests.process import API_KEY, environment
from tests.scripted_openai import ScriptedOpenAI

pytestmark = pytest.mark.anyio

NOWHERE = "http://127.0.0.1:9/v1"
OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM


@pytest.fixture
async def database(postgres_server: Postgres) -> AsyncIterator[str]:
    """A database of its own, in which no server was."""
    connection = await asyncpg.connect(postgres_server.url)
    await connection.execute("CREATE DATABASE doctor")
    try:
        yield urlunsplit(urlsplit(postgres_server.url)._replace(path="/doctor"))
    finally:
        await connection.execute("DROP DATABASE doctor WITH (FORCE)")
        await connection.close()


async def found(check: str, **settings: Any) -> Finding:
    """What a look at one thing finds. Everything that is amiss says what to do about it."""
    chosen = {"port": 0, "store": "memory", "openai_base_url": NOWHERE, **settings}
    findings = {finding.check: finding async for finding in examine(load_settings(**chosen))}
    assert check in findings, findings
    assert all(bool(finding.todo) is (finding.level is not OK) for finding in findings.values())
    return findings[check]


def files_of(folder: Path) -> list[Path]:
    """All that is there."""
    return list(folder.iterdir())


async def test_a_file_that_can_be_used_is_left_as_it_is(tmp_path: Path) -> None:
    """A new one is not even made."""
    path = tmp_path / "runs.sqlite3"
    seen = await found("store", store=str(path))
    assert (seen.level, "new" in seen.found) == (OK, True)
    assert files_of(tmp_path) == []
    open_database(path).close()
    seen = await found("store", store=str(path))
    assert (seen.level, str(SCHEMA_VERSION) in seen.found) == (OK, True)
    assert (await found("disk", store=str(path))).level is OK


async def test_a_database_that_can_be_used_is_left_as_it_is(database: str) -> None:
    """No schema is made in a new one."""
    for _ in range(2):
        seen = await found("store", store=database)
        assert (seen.level, "new" in seen.found) == (OK, True)
    assert (await found("clock", store=database)).level is OK


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        pytest.param("PRAGMA user_version = 99", PROBLEM, ["99", "newer"], id="newer"),
        pytest.param("PRAGMA user_version = 1", WARNING, ["schema 1"], id="older"),
        pytest.param("PRAGMA application_id = 7", PROBLEM, ["something else"], id="of another program"),
    ],
)
async def test_a_file_of_another_version_is_told(tmp_path: Path, change: str, level: Level, words: list[str]) -> None:
    """Newer ones cannot be used, older ones are changed by the next start, others are none of ours."""
    path = tmp_path / "runs.sqlite3"
    database = open_database(path)
    database.execute(change)
    database.close()
    seen = await found("store", store=str(path))
    assert seen.level is level
    assert all(word in seen.found for word in words), seen


async def test_a_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """No folder, no database, no right to write."""
    for path, content in (("no/such/folder/runs", ""), ("text", "This is not a database. " * 100)):
        if content:
            (tmp_path / path).write_text(content)
        seen = await found("store", store=str(tmp_path / path))
        assert (seen.level, str(tmp_path) in seen.found) == (PROBLEM, True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "access", lambda place, mode: False)
        seen = await found("store", store=str(tmp_path / "runs.sqlite3"))
        assert (seen.level, "cannot be written to" in seen.found) == (PROBLEM, True)


async def test_a_database_that_cannot_be_used_is_told(database: str) -> None:
    """Not there, of a newer program, or with a schema of somebody else; the password is not shown."""
    url = "postgresql://somebody:hunter2@127.0.0.1:9/nothing"
    seen = await found("store", store=url)
    assert (seen.level, "hunter2" in seen.found) == (PROBLEM, False)
    connection = await asyncpg.connect(database)
    try:
        for statement, word in (
            ("CREATE SCHEMA agent_service; CREATE TABLE agent_service.theirs (n int)", "something else"),
            ("CREATE TABLE agent_service.schema_version AS SELECT 99 AS version", "99"),
        ):
            await connection.execute(statement)
            seen = await found("store", store=database)
            assert (seen.level, word in seen.found) == (PROBLEM, True)
    finally:
        await connection.close()


async def test_a_clock_that_is_off_is_told(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines go by the database's clock."""
    monkeypatch.setattr("agent_service.stores.postgres_examination.time", SimpleNamespace(time=lambda: 0.0))
    seen = await found("clock", store=database)
    assert (seen.level, "NTP" in seen.todo) == (WARNING, True)


@pytest.mark.parametrize(("free", "level"), [(2**31, OK), (2**29, WARNING), (2**25, PROBLEM)])
async def test_a_disk_that_is_full_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level
) -> None:
    """In time, where there is still some room."""
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free))
    assert (await found("disk", store=str(tmp_path / "runs.sqlite3"))).level is level


async def test_a_store_in_memory_is_told() -> None:
    """It works, and keeps nothing."""
    assert (await found("store")).level is WARNING


@pytest.mark.parametrize(
    ("models", "named", "level"),
    [
        (("small",), "", OK),
        (("small", "large"), "large", OK),
        (("small", "large"), "", PROBLEM),
        (("small",), "medium", PROBLEM),
    ],
)
async def test_the_model_must_be_one_that_the_endpoint_lists(models: tuple[str, ...], named: str, level: Level) -> None:
    """Named, or the only one."""
    async with ScriptedOpenAI([], models=models) as upstream:
        seen = await found("model", openai_base_url=upstream.base_url, model=named)
        assert seen.level is level
        assert models[0] in seen.found or named in seen.found


async def test_an_endpoint_that_does_not_answer_or_not_to_this_key_is_told() -> None:
    """With its address, and never with the key."""
    async with ScriptedOpenAI([], api_key="another", allow_rejected=True) as upstream:
        for url in (NOWHERE, upstream.base_url):
            seen = await found("model", openai_base_url=url, openai_api_key=API_KEY)
            assert (seen.level, url.removesuffix("/v1") in seen.found) == (PROBLEM, True)
            assert API_KEY not in seen.found


async def test_a_port_that_is_taken_is_told() -> None:
    """That of the service and that of its metrics."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        seen = await found("port", port=port)
        assert (seen.level, str(port) in seen.found) == (PROBLEM, True)
        assert (await found("telemetry", metrics_address=f":{port}")).level is PROBLEM
    assert (await found("telemetry", metrics_address=":0")).level is OK
    assert (await found("telemetry", otlp_endpoint="http://127.0.0.1:4318")).level is OK


async def test_tools_and_agents_that_are_not_there_are_told(tmp_path: Path) -> None:
    """A module, a tool of an agent, a file that says nonsense."""
    assert (await found("tools", tools="tests.server_tools:add")).found == "add"
    seen = await found("tools", tools="no_such_module")
    assert (seen.level, "no_such_module" in seen.found) == (PROBLEM, True)
    path = tmp_path / "agents.toml"
    for text, level, word in (
        ('[agents.helper]\ninstructions = "Help."\nserver_tools = ["add"]\n', OK, "1 agents"),
        ('[agents.helper]\ninstructions = "Help."\nserver_tools = ["lost"]\n', PROBLEM, "lost"),
        ("[agents.helper]\nnonsense = 1\n", PROBLEM, "nonsense"),
    ):
        path.write_text(text)
        seen = await found("agents file", agents_file=path, tools="tests.server_tools:add")
        assert (seen.level, word in seen.found) == (level, True)
    path.write_text("[memory_blocks.a]\n[memory_blocks.b]\n[agents.helper]\nmemory_blocks = ['a', 'b']\n")
    seen = await found("agents file", agents_file=path, limits='{"max_memory_blocks": 1}')
    assert (seen.level, "at most 1" in seen.found) == (PROBLEM, True)
    path.unlink()
    assert (await found("agents file", agents_file=path)).level is PROBLEM


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The command as it is typed."""
    return subprocess.run(
        [sys.executable, "-m", "agent_service", "doctor", *flags],
        cwd=folder,
        env=environment(OPENAI_BASE_URL=NOWHERE, OPENAI_API_KEY=API_KEY),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_tells_people_and_scripts(tmp_path: Path) -> None:
    """Lines with what to do, or one JSON object a line; exit code 1 for a problem; the key is in none."""
    shown = run(tmp_path, "--port", "0")
    assert shown.returncode == 1
    assert "problem  model: " in shown.stdout
    assert "-> correct OPENAI_BASE_URL" in shown.stdout
    assert API_KEY not in shown.stdout + shown.stderr
    findings = [json.loads(line) for line in run(tmp_path, "--port", "0", "--json").stdout.splitlines()]
    assert [each["check"] for each in findings] == ["configuration", "tools", "store", "disk", "model", "port"]
    assert files_of(tmp_path) == []


def test_a_setting_that_is_wrong_is_the_only_finding(tmp_path: Path) -> None:
    """The rest cannot be looked at."""
    shown = run(tmp_path, "--port", "70000")
    assert (shown.returncode, shown.stdout.count("problem")) == (1, 1)
    assert "70000" in shown.stdout
