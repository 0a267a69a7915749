"""Where traces and metrics go: to an OpenTelemetry collector, and to a page for Prometheus."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import requests
import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, start_http_server

from agent_service import __version__
from agent_service.telemetry.adapter import OpenTelemetry

log = structlog.get_logger()

EXPORT_SECONDS = 5.0
"""The longest that one request to the collector may take, its repetitions included."""
LAST_SECONDS = 3.0
"""How long a process that ends may take for its last export, also if the collector is away."""


class ExportError(Exception):
    """The address for metrics cannot be used; the text says why."""


@asynccontextmanager
async def exported(otlp_endpoint: str, metrics_address: str, instance: str) -> AsyncIterator[OpenTelemetry]:
    """Telemetry that goes to these places, if they are not empty; `instance` names this process.

    The SDK's own variables hold as well, such as OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_SCHEDULE_DELAY and OTEL_METRIC_EXPORT_INTERVAL. Raises ExportError.
    """
    about = {"service.name": "agent-service", "service.version": __version__, "service.instance.id": instance}
    resource = Resource.create(about).merge(OTELResourceDetector().detect())
    readers: list[MetricReader] = []
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    if otlp_endpoint:
        base, session = otlp_endpoint.rstrip("/"), _session(otlp_endpoint)
        spans = OTLPSpanExporter(f"{base}/v1/traces", timeout=EXPORT_SECONDS, session=session)
        tracers.add_span_processor(BatchSpanProcessor(spans))
        metrics = OTLPMetricExporter(f"{base}/v1/metrics", timeout=EXPORT_SECONDS, session=_session(otlp_endpoint))
        readers.append(PeriodicExportingMetricReader(metrics))
    page = _Page(metrics_address) if metrics_address else None
    if page is not None:
        readers.append(page.reader)
    meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    try:
        yield OpenTelemetry(tracers, meters)
    finally:
        await _in_time(meters.shutdown, tracers.shutdown)
        if page is not None:
            page.close()


class _Page:
    """Serves metrics over HTTP, for Prometheus to read."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        registry = CollectorRegistry()
        try:
            self._server, _ = start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)
        except (OSError, OverflowError) as error:
            raise ExportError(f"metrics_address: cannot listen on {address}: {error}") from error
        self.reader = PrometheusMetricReader(registry=registry)
        log.info("metrics.serving", port=self._server.server_port)

    def close(self) -> None:
        """Serves no more."""
        self._server.shutdown()
        self._server.server_close()


def _session(url: str) -> requests.Session:
    """A proxy named in the environment has no business with a loopback address."""
    session = requests.Session()
    host = urlsplit(url).hostname or ""
    try:
        session.trust_env = not ipaddress.ip_address(host).is_loopback
    except ValueError:
        session.trust_env = host != "localhost"
    return session


async def _in_time(*ends: Callable[[], object]) -> None:
    """Does these at once, for as long as there is time. In threads that nobody waits for at the end of the process."""
    loop, ended = asyncio.get_running_loop(), [asyncio.Event() for _ in ends]

    def work(end: Callable[[], object], done: asyncio.Event) -> None:
        end()
        with suppress(RuntimeError):  # The process has ended meanwhile.
            loop.call_soon_threadsafe(done.set)

    for end, done in zip(ends, ended, strict=True):
        threading.Thread(target=work, args=(end, done), daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):
            for done in ended:
                await done.wait()
