"""What a service in the test's event loop tells OpenTelemetry, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from agent_service.telemetry.adapter import OpenTelemetry


class Seen:
    """Traces and metrics, whole. Make it inside the running event loop."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.telemetry = OpenTelemetry(tracers, MeterProvider([self._metrics], shutdown_on_exit=False))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """Those that have ended, in the order of their ends."""
        return self._spans.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of this name."""
        return [span for span in self.spans if span.name == name]

    def the(self, name: str) -> ReadableSpan:
        """The one of this name."""
        (span,) = self.named(name)
        return span

    @property
    def metrics(self) -> dict[str, list[NumberDataPoint | HistogramDataPoint]]:
        """All values so far, by the name of their metric."""
        data = self._metrics.get_metrics_data()
        assert data is not None
        found = [metric for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics]
        return {metric.name: list(metric.data.data_points) for metric in found}  # type: ignore[arg-type]  # no exponential ones here

    def value(self, metric: str, labels: Mapping[str, str] | None = None) -> float:
        """Of a counter or a gauge with these labels: the value; of a histogram: the count. 0 if there is none."""
        for point in self.metrics.get(metric, []):
            if dict(point.attributes or {}) == dict(labels or {}):
                return point.count if isinstance(point, HistogramDataPoint) else point.value
        return 0


def context(span: ReadableSpan) -> SpanContext:
    """Trace and span id."""
    found = span.get_span_context()
    assert found is not None
    return found


def ids(span: ReadableSpan) -> tuple[int, int]:
    """The same as numbers, however they came here."""
    return context(span).trace_id, context(span).span_id


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    """Which other ones it refers to."""
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether it is a part of the other one."""
    return span.parent is not None and span.parent.span_id == context(parent).span_id


def traceparent(span: SpanContext) -> str:
    """As it is sent on."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
