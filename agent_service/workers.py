"""Several server processes on one port and one store, kept going by this one, which serves nothing itself.

Each worker is a fresh process: gRPC must not be imported before a fork. The system spreads connections over the
workers; leases in the store decide which of them works on a run.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from agent_service.engine.model import ToolMode
from agent_service.local_model import run_local_model
from agent_service.settings import Settings
from agent_service.signals import StopSignals

log = structlog.get_logger()

START_SECONDS = 60.0
"""The longest a worker may take until it listens."""
QUICK_DEATH_SECONDS = 10.0
"""A worker that lives shorter is started again after a pause, which doubles each time."""
STOP_SECONDS = 15.0
"""How long a worker may take to end after its grace time, before it is killed: another one takes its runs over."""
_PAUSES = (0.1, 5.0)
_STDIN = 0


class WorkerError(Exception):
    """The workers cannot be started; the text says why, and is empty if a worker has said so itself."""


async def serve_workers(settings: Settings, flags: list[str], ready: Callable[[str], None]) -> None:
    """Keeps `settings.workers` processes until SIGTERM or SIGINT; `ready` is told the address when all listen.

    `flags` are those that this process was started with. Raises WorkerError, LocalModelMissingError or
    LocalModelFailedError.
    """
    signals = StopSignals()
    with signals.while_starting():
        async with _model_environment(settings) as model:
            with _reserved(settings.host, settings.port) as port:
                command = [*_program(), "serve", *flags, f"--port={port}", "--workers=1"]
                environment = os.environ | model | {"AGENT_SERVICE_WORKER": "true"}
                patience = settings.grace_seconds + STOP_SECONDS
                workers = [
                    Worker(command, environment | _metrics_environment(settings, index), patience)
                    for index in range(settings.workers)
                ]
                async with _stopped_at_the_end(workers, signals):
                    # One before the others: what cannot work is said once, and the file is made by one.
                    await workers[0].start()
                    await asyncio.gather(*(worker.start() for worker in workers[1:]))
                    signals.started()
                    address = settings.model_copy(update={"port": port}).listens_on
                    ready(address)
                    log.info("workers.ready", address=address, pids=[worker.pid for worker in workers])
                    await _keep(workers, signals.asked)


async def _keep(workers: list[Worker], stop: asyncio.Event) -> None:
    """Starts workers that die again, until `stop` is set."""
    keeping = [asyncio.create_task(worker.keep()) for worker in workers]
    await stop.wait()
    for task in keeping:
        task.cancel()
    await asyncio.gather(*keeping, return_exceptions=True)


@asynccontextmanager
async def _stopped_at_the_end(workers: list[Worker], signals: StopSignals) -> AsyncIterator[None]:
    """Stops all of them together, in a hurry if that is asked for meanwhile."""

    async def hurry() -> None:
        await signals.hurried.wait()
        for worker in workers:
            worker.hurry()

    try:
        yield
    finally:
        hurrying = asyncio.create_task(hurry())
        await asyncio.gather(*(worker.stop() for worker in workers))
        hurrying.cancel()


def end_with_parent() -> None:
    """For a worker: its standard input closes when the parent is gone, and then it ends at once, as if killed."""
    os.environ.pop("AGENT_SERVICE_WORKER", None)  # a server that one of its tools starts is no worker

    def wait() -> None:
        try:
            os.read(_STDIN, 1)
        finally:
            os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def tell_parent(address: str) -> None:
    """For a worker: it listens. Its standard input is a socket, whose other end the parent has."""
    os.write(_STDIN, f"{address}\n".encode())


def _program() -> list[str]:
    """This program, which looks for modules in the working directory only if this process does."""
    here = {"", str(Path.cwd())} & set(sys.path)
    return [sys.executable, *([] if here else ["-P"]), "-m", "agent_service"]


class Worker:
    """One server process, started again when it dies. Told to stop, it has `stop_seconds`."""

    def __init__(self, command: list[str], environment: dict[str, str], stop_seconds: float) -> None:
        self._command = command
        self._environment = environment
        self._stop_seconds = stop_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._line: asyncio.StreamWriter
        self._pause = _PAUSES[0]

    @property
    def pid(self) -> int:
        """The process id of the present one."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when it listens. Raises WorkerError."""
        ours, theirs = socket.socketpair()
        reader, self._line = await asyncio.open_unix_connection(sock=ours)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=theirs.fileno(),
                # Ctrl-C reaches every process of a terminal's group; this one tells its workers itself.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                if not await reader.readline():
                    code = await self._process.wait()
                    raise WorkerError("" if code == 1 else f"a worker ended with exit code {code}")
        except TimeoutError:
            raise WorkerError(f"a worker did not listen within {START_SECONDS:g} s") from None

    async def keep(self) -> None:
        """Starts another one whenever it ends."""
        while True:
            began = time.monotonic()
            assert self._process is not None
            code = await self._process.wait()
            if time.monotonic() - began > QUICK_DEATH_SECONDS:
                self._pause = _PAUSES[0]
            log.warning("worker.died", pid=self.pid, code=code, next_in_seconds=self._pause)
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _PAUSES[1])
            self._line.close()
            try:
                await self.start()
                log.info("worker.started", pid=self.pid)
            except (WorkerError, OSError):
                await self.stop()

    def hurry(self) -> None:
        """Tells one that is stopping to end its grace time."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)

    async def stop(self) -> None:
        """Tells it to stop and waits for its end; kills it if that does not come in time."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(self._stop_seconds):
                    await self._process.wait()
            except TimeoutError:
                log.warning("worker.killed", pid=self.pid)
                self._process.kill()
                await self._process.wait()
            self._line.close()


@asynccontextmanager
async def _model_environment(settings: Settings) -> AsyncIterator[dict[str, str]]:
    """What workers have to know of the model endpoint: nothing new, or the one bundled model that all of them use."""
    if settings.external_model:
        yield {}
        return
    async with run_local_model() as local:
        yield {
            "OPENAI_BASE_URL": local.base_url,
            "OPENAI_API_KEY": local.api_key,
            "AGENT_SERVICE_MODEL": local.model,
            "AGENT_SERVICE_TOOL_MODE": ToolMode.JSON_SCHEMA.value,
            "AGENT_SERVICE_ANSWERS_AFTER_RETURN": "true",
            "AGENT_SERVICE_MODEL_KEEP_ALIVE": "false",
        }


def _metrics_environment(settings: Settings, index: int) -> dict[str, str]:
    """Each worker has a page of metrics of its own, at the next port."""
    host, _, port = settings.metrics_address.rpartition(":")
    return {"AGENT_SERVICE_METRICS_ADDRESS": f"{host}:{int(port) + index}"} if int(port or "0") else {}


@contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Holds a port for the workers to share, and makes sure that nobody else listens there; yields it."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(where)
            port = alone.getsockname()[1]
        shared = socket.socket(family, socket.SOCK_STREAM)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((where[0], port, *where[2:]))
    except OSError as error:
        raise WorkerError(f"cannot listen on {host}:{port}: is another server running there? ({error})") from error
    with shared:
        yield port
