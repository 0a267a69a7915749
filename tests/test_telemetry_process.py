"""Traces and metrics of server processes: what a collector is sent, and what Prometheus reads."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agentrpc.v1 import runs_pb2
from prometheus_client.parser import text_string_to_metric_families

from agent_service.telemetry.instruments import INSTRUMENTS, Instrument
from tests.otlp import collecting
from tests.pages import ROOT, section
from tests.process import API_KEY, ServerProcess, environment, lease, refused, running
from tests.scripted_openai import ScriptedOpenAI, calls, fails, says, silent
from tests.service import SECRET, refusal, returned

pytestmark = pytest.mark.anyio

COMPLETED = runs_pb2.RUN_STATUS_COMPLETED
CALL = calls(("get_secret_code", {"name": "Alice"}))
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
ANY_PORT = {"AGENT_SERVICE_METRICS_ADDRESS": ":0"}
RUN = "invoke_agent default"
UNITS = {"s": "_seconds"}


async def scrape(port: int) -> dict[str, Any]:
    """The families of metrics on a page, by name."""
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as page,
    ):
        assert page.status == 200
        return {family.name: family for family in text_string_to_metric_families(await page.text())}


async def page_of(server: ServerProcess) -> int:
    """The port of the page of metrics."""
    (line,) = await server.logged("metrics.serving")
    return int(line["port"])


async def test_a_resume_in_another_process_is_linked_to_the_work_before(tmp_path: Path, shared_store: str) -> None:
    """The collector gets both, each with the process that it is from; at its end a process sends what it has."""
    async with collecting() as collector, ScriptedOpenAI([CALL, says("A-1.")], api_key=API_KEY) as upstream:
        env = environment(upstream, AGENT_SERVICE_OTLP_ENDPOINT=collector.url, OTEL_METRIC_EXPORT_INTERVAL="200")
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            paused = (await client.ask("Code?", SECRET)).run
            server.terminate()
            assert await server.ended() == 0
        async with running(tmp_path, env, "--store", shared_store) as (server, client):
            done = await client.answer(paused.run_id, returned(paused.pending_tool_calls[0], "A-1"))
            assert done.run.status == COMPLETED
            await collector.until(lambda: "agent_service.run.stops" in collector.metrics, "metrics")
            server.terminate()
            assert await server.ended() == 0
            stops = [line for line in server.log if line["event"] == "run.stopped"]
    before, after = [span for span in collector.spans if span.name == RUN]
    (link,) = after.links
    assert (link.trace_id, link.span_id) == (before.trace_id, before.span_id)
    assert before.trace_id != after.trace_id
    assert [line["trace_id"] for line in stops] == [after.trace_id.hex()]
    assert {resource["service.name"] for resource in collector.resources} == {"agent-service"}
    assert len({resource["service.instance.id"] for resource in collector.resources}) == 2


async def test_every_metric_is_documented_as_prometheus_reads_it(tmp_path: Path) -> None:
    """After runs that pause, resume, fail and lose their process, the page holds each metric of the documentation with
    its unit and labels, and no other one of this service.
    """
    script = [silent("Half", after=1), calls(("add", {"a": 1, "b": 2})), CALL, says("Done."), fails(400, "no")]
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        env = environment(upstream, **ANY_PORT, AGENT_SERVICE_TOOLS="tests.server_tools:add", PYTHONPATH=str(ROOT))
        async with running(tmp_path, env | lease("file")) as (server, client):
            await client.ask("Hi", SECRET, run_id="run-1", background=True)
            await upstream.wait_for_requests(1)
            await server.kill()
        async with running(tmp_path, env) as (server, client):
            await client.watch("run-1", stop_at="STOP_AT_NEXT_STOP")
            paused = await client.run("run-1")
            await client.answer("run-1", returned(paused.pending_tool_calls[0], "A-1"))
            await client.ask("And?")
            await refusal(client.run("run-9"))
            expected = {prometheus_name(each) for each in INSTRUMENTS}
            ours = await _page_with(expected, await page_of(server))
    assert set(ours) == expected
    for each in INSTRUMENTS:
        family = ours[prometheus_name(each)]
        assert (family.type, family.documentation) == (each.kind.value, each.meaning)
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert {label for label in found if not label.startswith("otel_scope_")} <= {
            label.replace(".", "_") for label in each.labels
        }
        values = {value for sample in family.samples for value in sample.labels.values()}
        assert not any(re.search(r"run-1|conv_|call_[0-9a-f]", value) for value in values)


async def _page_with(expected: set[str], port: int) -> dict[str, Any]:
    """The metrics of this service, once these are there: some are looked at a moment later."""
    for _ in range(100):
        families = await scrape(port)
        ours = {name: family for name, family in families.items() if name.startswith(("agent_", "gen_ai_", "rpc_"))}
        if expected <= set(ours):
            break
        await asyncio.sleep(0.05)
    return ours


def test_the_table_of_the_documentation_is_up_to_date() -> None:
    """One row for each metric, in the order of the code."""
    _, _, table = section("operations.md", "Traces and metrics").partition("| metric |")
    assert table.split("\n\n")[0].splitlines()[2:] == [row_of(each) for each in INSTRUMENTS]


def row_of(what: Instrument) -> str:
    """A metric as the documentation has it."""
    labels = ", ".join(f"`{label}`" for label in what.labels)
    return f"| `{what.name}` | {what.kind} | {what.unit.strip('{}')} | {labels} | {what.meaning} |"


def prometheus_name(what: Instrument) -> str:
    """As the exporter writes it; a counter's samples have `_total` behind it."""
    return what.name.replace(".", "_") + UNITS.get(what.unit, "")


async def test_each_worker_has_its_own_page(tmp_path: Path) -> None:
    """At the address and the ports after it."""
    first = _two_free_ports()
    async with ScriptedOpenAI([], api_key=API_KEY) as upstream:
        env = environment(upstream, AGENT_SERVICE_METRICS_ADDRESS=f"127.0.0.1:{first}")
        async with running(tmp_path, env, "--workers", "2") as (server, _):
            pages = [await scrape(first), await scrape(first + 1)]
            instances = {page["target_info"].samples[0].labels["service_instance_id"] for page in pages}
            assert len(instances) == 2
            server.terminate()
            assert await server.ended() == 0


def _two_free_ports() -> int:
    """The first of two neighbours."""
    for _ in range(100):
        with socket.socket() as one, socket.socket() as two, suppress(OSError):
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            two.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two free ports beside each other")


async def test_a_collector_that_is_away_is_nobody_s_trouble(tmp_path: Path) -> None:
    """Runs go on, the log tells of it without end of the process, and the end takes no more than seconds."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        async with ScriptedOpenAI([says("Hello.")], api_key=API_KEY) as upstream:
            env = environment(upstream, AGENT_SERVICE_OTLP_ENDPOINT=url, **SOON, http_proxy="http://127.0.0.1:9")
            async with running(tmp_path, env) as (server, client):
                assert (await client.ask("Hi")).run.status == COMPLETED
                began = time.monotonic()
                server.terminate()
                assert await server.ended() == 0
                assert time.monotonic() - began < 10
                assert {line["level"] for line in server.log} <= {"info", "warning", "error"}


async def test_an_address_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """In one line that names the setting and what was found."""
    async with ScriptedOpenAI([], api_key=API_KEY) as upstream:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            line = await refused(tmp_path, environment(upstream, AGENT_SERVICE_METRICS_ADDRESS=address))
            assert all(word in line for word in ("metrics_address", address))
        for variable, value in (("METRICS_ADDRESS", "nowhere"), ("OTLP_ENDPOINT", "collector:4318")):
            line = await refused(tmp_path, environment(upstream, **{f"AGENT_SERVICE_{variable}": value}))
            assert all(word in line for word in (variable.lower(), value))


async def test_without_the_packages_the_way_out_is_named(tmp_path: Path) -> None:
    """Only where telemetry is asked for."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def without(name, *args):\n"
        "    return None if name in ('opentelemetry', 'prometheus_client', 'requests') else find(name, *args)\n"
        "PathFinder.find_spec = without\n"
    )
    async with ScriptedOpenAI([says("Hello.")], api_key=API_KEY) as upstream:
        env = environment(upstream, PYTHONPATH=str(tmp_path))
        line = await refused(tmp_path, env | ANY_PORT)
        assert "agent-service[telemetry]" in line
        async with running(tmp_path, env) as (_, client):
            assert (await client.ask("Hi")).run.status == COMPLETED


def test_where_it_is_off_nothing_of_it_is_imported() -> None:
    """Everything a server without MCP servers imports."""
    unwanted = {"opentelemetry", "prometheus_client", "requests", "agent_service.telemetry"}
    code = f"import sys; from agent_service import wiring; sys.exit(bool({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
