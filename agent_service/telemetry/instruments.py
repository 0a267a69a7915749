"""Every metric: its name, kind, unit and labels. docs/operations.md has the same table for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a metric is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric. `labels` have few values each, never an id; `bounds` are the upper ends of a histogram's buckets."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()


_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_CALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_MODEL = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0)
_HUMAN = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0)
_COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

RPC = Instrument(
    "rpc.server.call.duration",
    Kind.HISTOGRAM,
    "s",
    ("rpc.method", "rpc.response.status_code", "error.type"),
    "Calls of this service; `error.type` is the reason of an error, such as READER_STALLED of a watcher that was cut",
    _CALLS,
)
STOPS = Instrument(
    "agent_service.run.stops",
    Kind.COUNTER,
    "{stop}",
    ("agent_service.run.status", "agent_service.run.stop_reason"),
    "Stops of runs, pauses among them, that this process stored",
)
ACTIVE = Instrument("agent_service.run.active", Kind.GAUGE, "{run}", (), "Runs that this process works on")
TAKEN_OVER = Instrument(
    "agent_service.run.taken_over",
    Kind.COUNTER,
    "{run}",
    (),
    "Runs that this process took over because another one had lost their lease",
)
FIRST_TOKEN = Instrument(
    "agent_service.run.time_to_first_token",
    Kind.HISTOGRAM,
    "s",
    (),
    "From the start or the resume of a run to the first token of the model",
    _MODEL,
)
PAUSE = Instrument(
    "agent_service.pause.duration",
    Kind.HISTOGRAM,
    "s",
    (),
    "How long the calls of a pause had waited when its run was resumed",
    _HUMAN,
)
WAITING = Instrument(
    "agent_service.call.waiting",
    Kind.GAUGE,
    "{call}",
    (),
    "Calls in the store that wait for somebody; every process on it tells the same",
)
OLDEST = Instrument(
    "agent_service.call.oldest",
    Kind.GAUGE,
    "s",
    (),
    "For how long the one that has waited longest waits; 0 if none does",
)
MODEL = Instrument(
    "gen_ai.client.operation.duration",
    Kind.HISTOGRAM,
    "s",
    ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "error.type"),
    "Requests to the model with their retries, to the end of the answer",
    _MODEL,
)
FIRST_CHUNK = Instrument(
    "gen_ai.client.operation.time_to_first_chunk",
    Kind.HISTOGRAM,
    "s",
    ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"),
    "From the request to the first token of its answer",
    _MODEL,
)
TOKENS = Instrument(
    "gen_ai.client.token.usage",
    Kind.HISTOGRAM,
    "{token}",
    ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.token.type"),
    "Tokens of a request (`input`) and of its answer (`output`), as the endpoint counts them",
    _TOKENS,
)
TOOL = Instrument(
    "agent_service.tool.duration",
    Kind.HISTOGRAM,
    "s",
    ("gen_ai.tool.name", "error.type"),
    "Executions of server tools; `error.type` is `tool_error` for those that failed",
    _CALLS,
)
WRITE = Instrument(
    "agent_service.store.write.duration",
    Kind.HISTOGRAM,
    "s",
    ("agent_service.store.operation", "error.type"),
    "Writes as those who wait for them see them, the queue included; a refused one has the reason as `error.type`",
    _FAST,
)
COMMIT = Instrument(
    "agent_service.store.commit.duration",
    Kind.HISTOGRAM,
    "s",
    (),
    "Transactions, each of which commits what waited (SQLite, PostgreSQL)",
    _FAST,
)
BATCH = Instrument(
    "agent_service.store.commit.writes",
    Kind.HISTOGRAM,
    "{write}",
    (),
    "Writes that were committed together (SQLite, PostgreSQL)",
    _COUNTS,
)
QUEUE = Instrument("agent_service.store.queue", Kind.GAUGE, "{write}", (), "Writes that wait for their turn")
WATCHERS = Instrument(
    "agent_service.watcher.open", Kind.GAUGE, "{watcher}", (), "Callers that follow a run: waiting, streaming, watching"
)
WATCHER_LAG = Instrument(
    "agent_service.watcher.lag", Kind.GAUGE, "{event}", (), "Events that wait for the slowest of them"
)
OVERRUN = Instrument(
    "agent_service.watcher.overruns",
    Kind.COUNTER,
    "{overrun}",
    (),
    "Times that one of them had so many events waiting that they were dropped, to be read from the store",
)
LOOP_LAG = Instrument(
    "agent_service.event_loop.lag",
    Kind.HISTOGRAM,
    "s",
    (),
    "How much later than asked for the event loop wakes up a task that sleeps",
    _FAST,
)

INSTRUMENTS = (
    *(RPC, STOPS, ACTIVE, TAKEN_OVER, FIRST_TOKEN, PAUSE, WAITING, OLDEST, MODEL, FIRST_CHUNK, TOKENS, TOOL),
    *(WRITE, COMMIT, BATCH, QUEUE, WATCHERS, WATCHER_LAG, OVERRUN, LOOP_LAG),
)
"""All of them."""
