"""Looks at everything a server needs before it is started, changes nothing, and says what to do about what is amiss."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent_service.agents_file import read_agents, read_memory_blocks
from agent_service.engine.model import ModelError
from agent_service.local_model import LocalModelMissingError, find_local_model
from agent_service.mcp_file import read_mcp_servers
from agent_service.settings import Settings, SettingsError, load_settings
from agent_service.stores.errors import SchemaError
from agent_service.stores.examination import Examination, examine_sqlite
from agent_service.tools import ToolLoadError, load_tools
from agent_service.wiring import model_client

LITTLE_BYTES = 1024**3
"""Less free space than this on the disk of the store is worth a warning, a tenth of it is a problem."""
AHEAD_SECONDS = 5.0
"""A clock that is off by more is worth a warning: times that callers see are of the store's clock."""
LOOK_SECONDS = 10.0
"""The longest that one look may take."""


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it; `todo` is empty if nothing is amiss."""

    check: str
    level: Level
    found: str
    todo: str = ""


def run_doctor(*, as_json: bool, **flags: object) -> int:
    """Writes the findings, one a line. The exit code is 1 if there is a problem, else 0."""
    try:
        settings = load_settings(**flags)
    except SettingsError as error:
        found = [Finding("configuration", Level.PROBLEM, str(error), "correct the setting that is named")]
    else:
        found = asyncio.run(_all(settings))
    for finding in found:
        sys.stdout.write((json.dumps(asdict(finding)) if as_json else _line(finding)) + "\n")
    return int(any(finding.level is Level.PROBLEM for finding in found))


def _line(finding: Finding) -> str:
    todo = f"\n{'':9}-> {finding.todo}" if finding.todo else ""
    return f"{finding.level:8} {finding.check}: {finding.found}{todo}"


async def _all(settings: Settings) -> list[Finding]:
    return [finding async for finding in examine(settings)]


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """All there is to find, in the order in which a server would come upon it."""
    yield Finding("configuration", Level.OK, f"{settings.workers} worker(s) on {settings.address}")
    yield _tools(settings)
    if settings.agents_file is not None:
        yield _agents_file(settings)
    async for finding in _store(settings):
        yield finding
    yield await _model(settings)
    yield _port("port", settings.host, settings.port, "--port")
    if settings.otlp_endpoint or settings.metrics_address:
        yield _telemetry(settings)


def _tools(settings: Settings) -> Finding:
    try:
        names = _load(settings).names
    except ToolLoadError as error:
        return Finding("tools", Level.PROBLEM, str(error), "correct AGENT_SERVICE_TOOLS, or the module that it names")
    return Finding("tools", Level.OK, ", ".join(names) or "no Python functions")


def _load(settings: Settings) -> Any:
    return load_tools(settings.tools, max_result_bytes=settings.limits.max_server_tool_result_bytes)


def _agents_file(settings: Settings) -> Finding:
    path = settings.agents_file
    assert path is not None
    try:
        names = _load(settings).names
    except ToolLoadError:
        names = ()
    try:
        agents, _ = read_agents(path, names, settings.limits)
        blocks = read_memory_blocks(path, settings.limits)
        servers = read_mcp_servers(path, names, settings.tool_timeout_seconds)
    except SettingsError as error:
        return Finding("agents file", Level.PROBLEM, str(error), "correct the file where it says")
    if servers and importlib.util.find_spec("mcp") is None:
        return Finding("agents file", Level.PROBLEM, "MCP servers need a package", "install agent-service[mcp]")
    return Finding(
        "agents file", Level.OK, f"{len(agents)} agents, {len(blocks)} memory blocks, {len(servers)} MCP servers"
    )


async def _store(settings: Settings) -> AsyncIterator[Finding]:
    shown = settings.store_shown
    if settings.store_url is None and settings.store_path is None:
        yield Finding("store", Level.WARNING, "memory keeps nothing", "use it for trials only")
        return
    try:
        if settings.store_url is not None:
            from agent_service.stores.postgres_examination import examine_postgres

            seen = await examine_postgres(settings.store_url, settings.store_busy_seconds)
        else:
            seen = examine_sqlite(settings.store_path or Path())
    except SchemaError as error:
        yield Finding("store", Level.PROBLEM, str(error), "make the store usable as it says, or name another one")
        return
    yield _schema(shown, seen)
    if settings.store_url is not None:
        yield _clock(seen.ahead)
    else:
        yield _disk(shutil.disk_usage((settings.store_path or Path()).absolute().parent).free)


def _schema(shown: str, seen: Examination) -> Finding:
    if not seen.version:
        return Finding("store", Level.OK, f"{shown}: new, will be made")
    if seen.version < seen.newest:
        found = f"{shown}: schema {seen.version}, which the next start brings to {seen.newest}"
        return Finding("store", Level.WARNING, found, "back the store up; older programs cannot use it afterwards")
    return Finding("store", Level.OK, f"{shown}: schema {seen.version}")


def _clock(ahead: float) -> Finding:
    found = f"the store's is {ahead:+.1f} s from this host's"
    if abs(ahead) > AHEAD_SECONDS:
        return Finding(
            "clock", Level.WARNING, found, "let both hosts keep time (NTP); deadlines go by the store's clock"
        )
    return Finding("clock", Level.OK, found)


def _disk(free: int) -> Finding:
    found = f"{free / 1024**3:.1f} GiB free"
    if free >= LITTLE_BYTES:
        return Finding("disk", Level.OK, found)
    level = Level.PROBLEM if free < LITTLE_BYTES / 10 else Level.WARNING
    return Finding("disk", level, found, "make room: a full disk stops every run until there is some")


async def _model(settings: Settings) -> Finding:
    if not settings.external_model:
        try:
            return Finding("model", Level.OK, f"the bundled local model: {find_local_model().name}")
        except LocalModelMissingError as error:
            todo = "set OPENAI_API_KEY or OPENAI_BASE_URL, or install the model with `make demo`"
            return Finding("model", Level.PROBLEM, str(error), todo)
    where = settings.openai_base_url or "OpenAI's endpoint"
    client = model_client(settings.model_copy(update={"model_max_retries": 0}))
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            models = await client.list_models()
    except (ModelError, TimeoutError) as error:
        found = f"{where} does not list its models: {error or f'no answer in {LOOK_SECONDS:g} s'}"
        return Finding(
            "model", Level.PROBLEM, found, "correct OPENAI_BASE_URL and OPENAI_API_KEY, or start the endpoint"
        )
    finally:
        await client.close()
    return _listed(settings.model, where, models)


def _listed(name: str, where: str, models: tuple[str, ...]) -> Finding:
    listed = ", ".join(models[:10]) + (", ..." if len(models) > 10 else "")
    if name and name not in models:
        found = f"{where} does not list '{name}', but {listed or 'none'}"
        return Finding("model", Level.PROBLEM, found, "set AGENT_SERVICE_MODEL to one that it has")
    if not name and len(models) != 1:
        return Finding("model", Level.PROBLEM, f"{where} lists {listed or 'none'}", "set AGENT_SERVICE_MODEL to one")
    return Finding("model", Level.OK, f"{name or models[0]} at {where}")


def _port(check: str, host: str, port: int, flag: str) -> Finding:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(where)
    except OSError as error:
        todo = f"end what listens there, if that is not this service itself, or choose another one with {flag}"
        return Finding(check, Level.PROBLEM, f"{host}:{port}: {error.strerror or error}", todo)
    return Finding(check, Level.OK, f"{host}:{port} is free")


def _telemetry(settings: Settings) -> Finding:
    missing = [name for name in ("opentelemetry.sdk", "prometheus_client", "requests") if not _installed(name)]
    if missing:
        found = f"not installed: {', '.join(missing)}"
        return Finding("telemetry", Level.PROBLEM, found, "install agent-service[telemetry], or unset its addresses")
    host, _, port = settings.metrics_address.rpartition(":")
    if port:
        return _port("telemetry", host.strip("[]") or "127.0.0.1", int(port), "AGENT_SERVICE_METRICS_ADDRESS")
    return Finding("telemetry", Level.OK, f"goes to {settings.otlp_endpoint}")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
