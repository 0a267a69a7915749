"""Implements the engine's port to telemetry by OpenTelemetry's API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast

import structlog
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation
from opentelemetry.trace import Link, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent_service import __version__
from agent_service.domain.draft import Snapshot
from agent_service.domain.errors import AgentServiceError
from agent_service.domain.event import Event, RunStopped, ToolReturnsAccepted
from agent_service.domain.run import Claim, Pinned, RunStatus
from agent_service.domain.tool import CallState
from agent_service.engine.model import ModelClient
from agent_service.engine.store import RunStore
from agent_service.engine.telemetry import Answered, Metadata
from agent_service.engine.tools import ServerTools
from agent_service.telemetry import instruments as names
from agent_service.telemetry.instruments import INSTRUMENTS, Instrument, Kind
from agent_service.telemetry.observed import ObservedModel, ObservedStore, ObservedTools

LAG_SECONDS = 0.25
"""Between two looks at the event loop."""
WAITING_SECONDS = 15.0
"""Between two looks at what waits in the store."""

_TRACE = TraceContextTextMapPropagator()
_NOWHERE = contexts.Context()
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that are the server's fault, as the conventions have it."""


@dataclass(slots=True)
class Stretch:
    """Work on a run that goes on: its span, when it began, and what is kept on the run about it."""

    span: trace.Span
    model: str
    trace_context: str
    begun: float = field(default_factory=time.monotonic)
    waits_for_token: bool = True

    @property
    def trace_id(self) -> str:
        """As logs have it."""
        return trace.format_trace_id(self.span.get_span_context().trace_id)


_present: ContextVar[Stretch | None] = ContextVar("agent_service_stretch", default=None)


class OpenTelemetry:
    """Implements Telemetry. Make it inside the running event loop."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider) -> None:
        self.tracer = tracers.get_tracer("agent_service", __version__)
        self._meter = meters.get_meter("agent_service", __version__)
        self._histograms = {
            each.name: _histogram(self._meter, each) for each in INSTRUMENTS if each.kind is Kind.HISTOGRAM
        }
        self._stops = self._meter.create_counter(names.STOPS.name, names.STOPS.unit, names.STOPS.meaning)
        self._taken_over = self._meter.create_counter(
            names.TAKEN_OVER.name, names.TAKEN_OVER.unit, names.TAKEN_OVER.meaning
        )
        self._open: dict[tuple[str, str], Stretch] = {}

    def record(self, what: Instrument, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Adds a value to a histogram, in any thread."""
        self._histograms[what.name].record(value, labels)

    @property
    def present(self) -> Stretch | None:
        """The work that the present task does."""
        return _present.get()

    def committed(self, writes: int, seconds: float) -> None:
        """See Committed."""
        self.record(names.BATCH, writes)
        self.record(names.COMMIT, seconds)

    def call(self, method: str, metadata: Metadata) -> Answered:
        """See Telemetry."""
        name = method.removeprefix("/")
        carrier = {key: value for key, value in metadata() or () if key in ("traceparent", "tracestate")}
        caller = _TRACE.extract(cast(dict[str, str], carrier), _NOWHERE)
        span = self.tracer.start_span(name, caller, SpanKind.SERVER, {"rpc.system.name": "grpc", "rpc.method": name})
        token = contexts.attach(trace.set_span_in_context(span, caller))
        structlog.contextvars.bind_contextvars(trace_id=trace.format_trace_id(span.get_span_context().trace_id))
        begun = time.monotonic()

        def answered(code: str, reason: str = "") -> None:
            contexts.detach(token)
            told = {"rpc.response.status_code": code} | ({"error.type": reason} if reason else {})
            self.record(names.RPC, time.monotonic() - begun, {"rpc.method": name, **told})
            span.set_attributes(told)
            if code in _FAULTS:
                span.set_status(StatusCode.ERROR, reason)
            span.end()

        return answered

    @contextmanager
    def stretch(self, claim: Claim, snapshot: Snapshot, pinned: Pinned) -> Iterator[None]:
        """See Telemetry."""
        run, key = snapshot.run, (claim.tenant, claim.run_id)
        if run.losses:
            self._taken_over.add(1)
        if waited := _waited(snapshot):
            self.record(names.PAUSE, waited)
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "openai",
            "gen_ai.agent.id": pinned.agent_id,
            "gen_ai.conversation.id": run.conversation_id,
            "gen_ai.request.model": pinned.model,
            "agent_service.run.id": run.run_id,
            "agent_service.run.epoch": run.epoch,
        }
        with self.tracer.start_as_current_span(
            f"invoke_agent {pinned.agent_id}",
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            links=_before(run.trace),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            stretch = self._open[key] = Stretch(span, pinned.model, self.trace_context())
            token = _present.set(stretch)
            try:
                with structlog.contextvars.bound_contextvars(trace_id=stretch.trace_id):
                    yield
            except BaseException as error:
                # Cancelled: the run was taken away, by its caller or by another process, or is handed over.
                span.set_attribute("error.type", type(error).__name__)
                raise
            finally:
                _present.reset(token)
                if self._open.get(key) is stretch:
                    del self._open[key]

    def observe(self, tenant: str, events: tuple[Event, ...]) -> None:
        """See Telemetry."""
        for event in events:
            if isinstance(event.body, RunStopped) and not _partial(events):
                self._stopped(tenant, event.run_id, event.body)

    def _stopped(self, tenant: str, run_id: str, stop: RunStopped) -> None:
        labels = {
            "agent_service.run.status": stop.status.value,
            "agent_service.run.stop_reason": stop.stop_reason.value,
        }
        self._stops.add(1, labels)
        stretch = self._open.get((tenant, run_id))
        if stretch is not None:
            stretch.span.set_attributes(labels)
            if stop.error is not None:
                stretch.span.set_attribute("error.type", stop.error.reason.value)
                stretch.span.set_status(StatusCode.ERROR)

    def trace_id(self, tenant: str, run_id: str) -> str:
        """See Telemetry."""
        stretch = self._open.get((tenant, run_id))
        return stretch.trace_id if stretch is not None else ""

    def trace_context(self) -> str:
        """See Telemetry."""
        return self.headers().get("traceparent", "")

    def headers(self) -> Mapping[str, str]:
        """See Telemetry."""
        carrier: dict[str, str] = {}
        _TRACE.inject(carrier)
        return carrier

    def model(self, client: ModelClient) -> ModelClient:
        """See Telemetry."""
        return cast(ModelClient, ObservedModel(client, self))

    def tools(self, tools: ServerTools) -> ServerTools:
        """See Telemetry."""
        return ObservedTools(tools, self)

    def store(self, store: RunStore) -> RunStore:
        """See Telemetry."""
        return cast(RunStore, ObservedStore(store, self))

    def gauge(self, name: str, value: Callable[[], float]) -> None:
        """See Telemetry. A counter is one whose value somebody else counts."""

        def look(_: CallbackOptions) -> list[Observation]:
            return [Observation(value())]

        what = next(each for each in INSTRUMENTS if each.name == name)
        if what.kind is Kind.COUNTER:
            self._meter.create_observable_counter(name, [look], what.unit, what.meaning)
        else:
            self._meter.create_observable_gauge(name, [look], what.unit, what.meaning)

    @asynccontextmanager
    async def going_on(self, store: RunStore) -> AsyncIterator[None]:
        """See Telemetry."""
        tasks = [asyncio.create_task(self._watch_loop()), asyncio.create_task(self._watch_calls(store))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_loop(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            wanted = clock() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self.record(names.LOOP_LAG, max(clock() - wanted, 0.0))

    async def _watch_calls(self, store: RunStore) -> None:
        waiting, since = 0, 0
        self.gauge(names.WAITING.name, lambda: waiting)
        self.gauge(names.OLDEST.name, lambda: max(store.now() - since, 0) / 1e9 if since else 0.0)
        while True:
            with suppress(AgentServiceError):  # The store is away, which others tell.
                waiting, since = await store.pending_calls()
            await asyncio.sleep(WAITING_SECONDS)


def _histogram(meter: Meter, what: Instrument) -> Histogram:
    return meter.create_histogram(
        what.name, what.unit, what.meaning, explicit_bucket_boundaries_advisory=list(what.bounds)
    )


def _before(kept: str) -> list[Link]:
    """A link to what was done before, unless that is what this work is a part of."""
    before = trace.get_current_span(_TRACE.extract({"traceparent": kept}, _NOWHERE)).get_span_context()
    present = trace.get_current_span().get_span_context()
    return [Link(before)] if before.is_valid and before.span_id != present.span_id else []


def _waited(snapshot: Snapshot) -> float:
    """For how many seconds the calls had waited whose answer resumed the run; 0 if it was not resumed by one."""
    end = snapshot.run.update_time
    since = [
        call.pending_time
        for call in snapshot.calls
        if call.pending_time and (call.settle_time == end or call.state is CallState.APPROVED)
    ]
    return (end - min(since)) / 1e9 if since else 0.0


def _partial(events: tuple[Event, ...]) -> bool:
    """Whether these tell of answers to some of the pending calls: the run had stopped before."""
    return any(isinstance(event.body, ToolReturnsAccepted) for event in events) and any(
        isinstance(event.body, RunStopped) and event.body.status is RunStatus.PAUSED for event in events
    )
