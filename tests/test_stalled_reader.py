"""A client that keeps a stream open and reads nothing: after a while its stream is cut, and the run goes on."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from agentrpc.v1 import run_service_pb2, run_service_pb2_grpc, runs_pb2
from structlog.testing import capture_logs

from tests.scripted_openai import Gate, says
from tests.service import durable, refusal_of, scripted

pytestmark = pytest.mark.anyio

NARROW = [("grpc.enable_http_proxy", 0), ("grpc.http2.bdp_probe", 0)]
"""A connection that takes 64 KiB before its client reads, and never more."""


async def test_a_stream_that_nobody_reads_is_cut_and_can_be_continued(store: str) -> None:
    """UNAVAILABLE with the reason; the run took no notice, and WatchRun goes on after the last sequence seen."""
    gate = Gate()
    script = [says(["a token of some text "] * 20_000, gate=gate)]
    async with (
        scripted(script, store, stall_seconds=0.2) as (client, _),
        grpc.aio.insecure_channel(client.target, options=NARROW) as narrow,
    ):
        await client.ask("Hi", run_id="run-1", background=True)
        request = run_service_pb2.WatchRunRequest(run_id="run-1", stream_tokens=True)
        stalled: Any = run_service_pb2_grpc.RunServiceStub(narrow).WatchRun(request, timeout=60)
        while not (response := await stalled.read()).event.HasField("live"):
            pass
        last = response.event.sequence
        with capture_logs() as logs:
            gate.open()
            events = await client.watch("run-1")
            assert events[-1].run_stopped.status == runs_pb2.RUN_STATUS_COMPLETED
            while not any(line.get("reason") == "READER_STALLED" for line in logs):
                await client.run("run-1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await stalled.read() is not grpc.aio.EOF:
                pass
        cut = refusal_of(caught.value)
        assert (cut.code, cut.reason) == ("UNAVAILABLE", "READER_STALLED")
        assert cut.retry_seconds is not None
        assert durable(await client.watch("run-1", last)) == durable(events)[last:]
