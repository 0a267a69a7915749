"""Puts things together by plain calls: settings -> model, store, tools -> agents -> server. Nowhere else does."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agent_service.agents_file import read_agents, read_memory_blocks
from agent_service.auth import Credentials
from agent_service.auth.keys import ApiKeys
from agent_service.domain.errors import AgentServiceError, Reason
from agent_service.domain.event import Event
from agent_service.domain.memory import MemoryBlock
from agent_service.domain.run import AgentDefinition, AgentKind, Owner
from agent_service.engine.access import Authenticator
from agent_service.engine.agents import Agents
from agent_service.engine.commands import DEFAULT_TENANT
from agent_service.engine.context import Contexts
from agent_service.engine.hub import Hub
from agent_service.engine.inbox import Inbox
from agent_service.engine.loop import Parts
from agent_service.engine.memory_runs import MemoryRuns
from agent_service.engine.memory_tools import MEMORY_TOOLS
from agent_service.engine.model import ModelClient, ModelError, ToolMode
from agent_service.engine.registry import Registry
from agent_service.engine.runs import Runs
from agent_service.engine.store import Committed, Publish, RunStore
from agent_service.engine.supervisor import Supervisor
from agent_service.engine.telemetry import NO_TELEMETRY, Telemetry
from agent_service.engine.tools import ServerTools
from agent_service.engine.upkeep import Upkeep
from agent_service.local_model import run_local_model
from agent_service.mcp_file import read_mcp_servers
from agent_service.models.endpoint import Timeouts
from agent_service.models.openai_chat import OpenAIChatModel
from agent_service.settings import Settings
from agent_service.signals import StopSignals
from agent_service.stores.memory import MemoryStore
from agent_service.stores.memory_registry import MemoryRegistry
from agent_service.stores.sqlite import SqliteStore
from agent_service.stores.sqlite_registry import SqliteRegistry
from agent_service.tools import JoinedTools, ToolLoadError, load_tools
from agent_service.transport.access import Access
from agent_service.transport.server import Server
from agent_service.transport.tls import TlsFiles

log = structlog.get_logger()

_STOP_SECONDS = 2.0


class StartError(Exception):
    """The service cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the model is. `name` is the model's."""

    client: ModelClient
    name: str
    where: str


def new_id(prefix: str) -> str:
    """A fresh id, such as run_3f2a..., of at most 40 characters."""
    return f"{prefix}_{secrets.token_hex(12)}"


@asynccontextmanager
async def model_endpoint(settings: Settings, telemetry: Telemetry = NO_TELEMETRY) -> AsyncIterator[Endpoint]:
    """The endpoint named in the settings, or else the bundled local model, started for as long as this lasts.

    Raises StartError, LocalModelMissingError or LocalModelFailedError.
    """
    async with AsyncExitStack() as stack:
        if settings.external_model:
            endpoint = await _external(settings, telemetry)
        else:
            local = await stack.enter_async_context(run_local_model())
            client = OpenAIChatModel(
                base_url=local.base_url,
                api_key=local.api_key,
                tool_mode=ToolMode.JSON_SCHEMA,
                answers_after_return=True,
                keep_alive=False,
            )
            endpoint = Endpoint(client, local.model, "the bundled local model")
        stack.push_async_callback(endpoint.client.close)
        yield endpoint


def model_client(settings: Settings, telemetry: Telemetry = NO_TELEMETRY) -> ModelClient:
    """A client of the endpoint named in the settings."""
    return OpenAIChatModel(
        base_url=settings.openai_base_url or None,
        api_key=settings.openai_api_key.get_secret_value(),
        tool_mode=settings.tool_mode,
        answers_after_return=settings.answers_after_return,
        keep_alive=settings.model_keep_alive,
        max_retries=settings.model_max_retries,
        timeouts=Timeouts(settings.model_connect_seconds, settings.model_silence_seconds),
        trace_headers=telemetry.headers,
    )


async def _external(settings: Settings, telemetry: Telemetry) -> Endpoint:
    client = model_client(settings, telemetry)
    where = settings.openai_base_url or "OpenAI's endpoint"
    return Endpoint(client, settings.model or await _only_model(client, where), where)


async def _only_model(client: ModelClient, where: str) -> str:
    try:
        models = await client.list_models()
    except ModelError as error:
        await client.close()
        raise StartError(
            f"no model is named, and {where} does not list its models ({error.message}); set AGENT_SERVICE_MODEL"
        ) from None
    if len(models) != 1:
        await client.close()
        listed = ", ".join(models[:50]) or "none"
        raise StartError(f"set AGENT_SERVICE_MODEL to one of the models that {where} lists: {listed}")
    return models[0]


async def _open_store(settings: Settings, publish: Publish, committed: Committed | None) -> tuple[RunStore, Registry]:
    if settings.store_url is not None:
        # Imported only where it is used, because that takes a while.
        from agent_service.stores.postgres import PostgresStore
        from agent_service.stores.postgres_registry import PostgresRegistry

        postgres = await PostgresStore.open(
            settings.store_url,
            publish=publish,
            new_id=new_id,
            busy_seconds=settings.store_busy_seconds,
            connections=settings.store_connections,
            committed=committed,
        )
        return postgres, PostgresRegistry(postgres)
    path = settings.store_path
    if path is None:
        memory = MemoryStore(publish=publish, clock=time.time_ns, new_id=new_id)
        return memory, MemoryRegistry(memory, time.time_ns)
    sqlite = SqliteStore(
        path,
        publish=publish,
        clock=time.time_ns,
        new_id=new_id,
        busy_seconds=settings.store_busy_seconds,
        committed=committed,
    )
    return sqlite, SqliteRegistry(sqlite, time.time_ns)


@dataclass(frozen=True, slots=True)
class _Tools:
    """All server tools, and the names of those that agents have without naming them."""

    all: ServerTools
    by_default: tuple[str, ...]


@asynccontextmanager
async def _server_tools(settings: Settings, telemetry: Telemetry) -> AsyncIterator[_Tools]:
    """Python functions and, if there are any, the tools of MCP servers, connected for as long as this lasts."""
    limits, timeout = settings.limits, settings.tool_timeout_seconds
    python = load_tools(settings.tools, max_result_bytes=limits.max_server_tool_result_bytes, default_timeout=timeout)
    servers = read_mcp_servers(settings.agents_file, python.names, timeout) if settings.agents_file else ()
    if not servers:
        yield _Tools(telemetry.tools(python), python.names)
        return
    try:
        # Here, as it takes half a second, which only those pay who have MCP servers.
        from agent_service.tools.mcp.tools import McpTools
    except ModuleNotFoundError as error:
        raise ToolLoadError(
            f"mcp_servers.{servers[0].name}",
            f"the package '{error.name}' is not installed; install agent-service[mcp]",
        ) from error
    mcp = McpTools([replace(server, trace_headers=telemetry.headers) for server in servers], limits)
    async with mcp.connected():
        yield _Tools(telemetry.tools(JoinedTools(python, mcp)), python.names)


def _configured_agents(settings: Settings, tools: _Tools) -> tuple[AgentDefinition, ...]:
    """The default one, then those of the file and the built-in ones whose ids are free."""
    built_in = (
        AgentDefinition("default", AgentKind.LLM, settings.instructions, server_tools=tools.by_default),
        AgentDefinition("responder", AgentKind.RESPONDER, settings.instructions),
    )
    file, limits = settings.agents_file, settings.limits
    named, marked = read_agents(file, tools.by_default, limits) if file else ((), "")
    for agent in named:
        unknown = [n for n in agent.server_tools if tools.all.schema(n) is None and n not in MEMORY_TOOLS]
        if unknown:
            log.warning("agent.unknown_tools", agent_id=agent.agent_id, tools=unknown)
    taken = {definition.agent_id for definition in named}
    agents = (*named, *(definition for definition in built_in if definition.agent_id not in taken))
    return tuple(sorted(agents, key=lambda definition: definition.agent_id != (marked or "default")))


async def _make_blocks(registry: Registry, blocks: tuple[MemoryBlock, ...]) -> None:
    """The memory blocks of the agents file, where there is none of the id: agents may have changed it since.

    Raises StartError.
    """
    for block in blocks:
        try:
            await registry.create_block(DEFAULT_TENANT, block)
        except AgentServiceError as error:
            if error.reason is not Reason.MEMORY_BLOCK_ID_REUSED:
                raise StartError(f"cannot make memory block '{block.memory_block_id}': {error.message}") from error


@asynccontextmanager
async def service(
    settings: Settings,
    endpoint: Endpoint,
    hurried: asyncio.Event | None = None,
    telemetry: Telemetry = NO_TELEMETRY,
) -> AsyncIterator[Server]:
    """A running server on this store and model; stops cleanly at the end of the block, without further patience once
    `hurried` is set.

    Raises StartError, SettingsError, FileError, SchemaError, ToolLoadError or BindError.
    """
    hurried = hurried or asyncio.Event()
    async with (
        _server_tools(settings, telemetry) as tools,
        access(settings) as admitting,
        _service(settings, endpoint, tools, admitting, hurried, telemetry) as server,
    ):
        yield server


@asynccontextmanager
async def access(settings: Settings) -> AsyncIterator[Access | None]:
    """Who is let in; None where callers need no credential. Raises StartError or FileError."""
    if not settings.authenticates:
        yield None
        return
    keys = ApiKeys(settings.api_keys) if settings.api_keys else None
    async with _tokens(settings) as tokens:
        yield Access(Credentials(keys, tokens))


@asynccontextmanager
async def _tokens(settings: Settings) -> AsyncIterator[Authenticator | None]:
    if not settings.jwt_issuer:
        yield None
        return
    try:
        # Here, as only those need it who have an issuer.
        from agent_service.auth.key_sets import FileKeys, UrlKeys
        from agent_service.auth.tokens import Rules, Tokens
    except ModuleNotFoundError as error:
        raise StartError(
            f"jwt_issuer: the package '{error.name}' is not installed; install agent-service[jwt]"
        ) from error
    rules = Rules(
        settings.jwt_issuer,
        settings.jwt_audience,
        tuple(settings.jwt_algorithms),
        settings.jwt_leeway_seconds,
        settings.jwt_tenant_claim,
        settings.jwt_scope_claim,
    )
    if not settings.jwt_keys_url:
        yield Tokens(rules, FileKeys(Path(settings.jwt_keys)))
        return
    keys = UrlKeys(settings.jwt_keys)
    # Not waited for: the service also starts while the issuer is away.
    keys.fetch()
    try:
        yield Tokens(rules, keys)
    finally:
        await keys.close()


def _tls(settings: Settings) -> TlsFiles | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


@asynccontextmanager
async def _service(
    settings: Settings,
    endpoint: Endpoint,
    tools: _Tools,
    admitting: Access | None,
    hurried: asyncio.Event,
    telemetry: Telemetry,
) -> AsyncIterator[Server]:
    window = settings.context_window_tokens or settings.limits.context_window_tokens
    limits = replace(settings.limits, context_window_tokens=window)
    hub = Hub(limits.watcher_queue_events)
    observers: list[Callable[[str, tuple[Event, ...]], None]] = []

    def publish(tenant: str, run_id: str, events: tuple[Event, ...]) -> None:
        for observe in observers:
            observe(tenant, events)
        hub.publish(tenant, run_id, events)

    configured = _configured_agents(settings, tools)
    blocks = read_memory_blocks(settings.agents_file, limits) if settings.agents_file else ()
    opened, registry = await _open_store(settings, publish, telemetry.committed)
    store = telemetry.store(opened)
    try:
        await _make_blocks(registry, blocks)
        contexts = Contexts(store, limits.context_cache_bytes)
        observers.append(contexts.observe)
        models = {endpoint.client.name: telemetry.model(endpoint.client)}
        parts = Parts(store, hub, contexts, models, tools.all, limits, new_id, telemetry)
        owner = Owner(new_id("process"), int(settings.lease_seconds * 1e9))
        supervisor = Supervisor(_crashed)
        runs = Runs(parts, supervisor, owner=owner, heartbeat=settings.heartbeat_seconds)
        agents = Agents(configured, registry, runs, provider=endpoint.client.name, default_model=endpoint.name)
        memory_runs = MemoryRuns(runs, agents, supervisor)
        runs.tell(memory_runs.told)
        inbox = Inbox(store, hub)
        server = Server(
            settings.listens_on,
            agents=agents,
            registry=registry,
            runs=runs,
            inbox=inbox,
            limits=limits,
            access=admitting,
            tls=_tls(settings),
            socket_mode=int(settings.socket_mode, 8),
            reflect=settings.reflection,
            share_port=settings.worker,
            stall_seconds=settings.stall_seconds,
            max_connection_age_seconds=settings.max_connection_age_seconds,
        )
        observers.extend((runs.observe, inbox.observe, telemetry.observe))
        _add_gauges(telemetry, runs)
        upkeep = Upkeep(runs, memory_runs, int(settings.event_retention_seconds * 1e9))
        async with upkeep.going_on(), telemetry.going_on(store):
            await server.start()
            try:
                yield server
            finally:
                await server.stop(lambda: runs.shut_down(settings.grace_seconds, hurried), _STOP_SECONDS)
    finally:
        await store.close()


def _add_gauges(telemetry: Telemetry, runs: Runs) -> None:
    store, hub = runs.parts.store, runs.parts.hub
    telemetry.gauge("agent_service.run.active", lambda: len(runs.leases.held))
    telemetry.gauge("agent_service.store.queue", lambda: store.queued)
    telemetry.gauge("agent_service.watcher.open", lambda: len(hub.queues))
    telemetry.gauge("agent_service.watcher.lag", lambda: max(hub.queues, default=0))
    telemetry.gauge("agent_service.watcher.overruns", lambda: hub.overruns)


@asynccontextmanager
async def _telemetry(settings: Settings, owner: str) -> AsyncIterator[Telemetry]:
    """Traces and metrics, if an address for either is set. Raises StartError."""
    if not (settings.otlp_endpoint or settings.metrics_address):
        yield NO_TELEMETRY
        return
    try:
        # Here, as it takes a while, and is not there unless it was asked for.
        from agent_service.telemetry.export import ExportError, exported
    except ModuleNotFoundError as error:
        raise StartError(
            f"traces and metrics need the package '{error.name}'; install agent-service[telemetry], "
            "or unset AGENT_SERVICE_OTLP_ENDPOINT and AGENT_SERVICE_METRICS_ADDRESS"
        ) from error
    try:
        async with exported(settings.otlp_endpoint, settings.metrics_address, owner) as telemetry:
            yield telemetry
    except ExportError as error:
        raise StartError(str(error)) from error


async def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; `ready` is told the address."""
    signals = StopSignals(patient=settings.worker)
    with signals.while_starting():
        async with (
            _telemetry(settings, new_id("process")) as telemetry,
            model_endpoint(settings, telemetry) as endpoint,
            service(settings, endpoint, signals.hurried, telemetry) as server,
        ):
            signals.started()
            address = settings.model_copy(update={"port": server.port}).listens_on
            log.info(
                "serving",
                pid=os.getpid(),
                address=address,
                tls=settings.tls_cert is not None,
                authenticates=settings.authenticates,
                store=settings.store_shown,
                model=endpoint.name,
                endpoint=endpoint.where,
            )
            ready(address)
            await signals.asked.wait()
            log.info("stopping", grace_seconds=settings.grace_seconds)
    log.info("stopped")


def _crashed(error: BaseException) -> None:
    log.error("task.crashed", exc_info=error)
