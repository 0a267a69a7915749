"""An OpenTelemetry collector of a few lines: takes OTLP over HTTP and keeps what it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collector:
    """What came so far. `url` is where to send it."""

    url: str = ""
    resources: list[dict[str, str]] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)

    def traces_came(self, request: ExportTraceServiceRequest) -> None:
        """Keeps spans."""
        for each in request.resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in each.resource.attributes})
            self.spans.extend(span for scope in each.scope_spans for span in scope.spans)

    def metrics_came(self, request: ExportMetricsServiceRequest) -> None:
        """Keeps metrics."""
        for each in request.resource_metrics:
            self.resources.append({pair.key: pair.value.string_value for pair in each.resource.attributes})
            self.metrics |= {metric.name: metric for scope in each.scope_metrics for metric in scope.metrics}

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Returns once something holds; fails if it does not in time."""
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"never: {what}")


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector that runs."""
    collector = Collector()

    def taking(message: Any, keep: Callable[[Any], None]) -> Any:
        async def take(request: web.Request) -> web.Response:
            assert request.content_type == "application/x-protobuf"
            collector.headers.append(dict(request.headers))
            keep(message.FromString(await request.read()))
            return web.Response(body=b"", content_type="application/x-protobuf")

        return take

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", taking(ExportTraceServiceRequest, collector.traces_came))
    app.router.add_post("/v1/metrics", taking(ExportMetricsServiceRequest, collector.metrics_came))
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        await runner.cleanup()
