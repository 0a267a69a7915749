"""A real PostgreSQL server for tests: on a free loopback port, in a folder of its own, and gone with the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

import pytest

MISSING = (
    "PostgreSQL is not installed; install its server (Debian, Ubuntu: apt install postgresql), "
    "so that its program `postgres` is on the path or in /usr/lib/postgresql"
)
"""Why nothing can be tested on PostgreSQL here."""

_INSTALLED = Path("/usr/lib/postgresql")
_USER = "postgres"
_SECONDS = 30.0

# The server refuses to run as root. The signal has to be asked for by the process itself, after it became another user,
# which forgets it; and the tests may be over by then.
_BECOME = """
import ctypes, os, signal, sys
user, group, parent = map(int, sys.argv[1:4])
if user != os.getuid():
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)
if os.getppid() == parent:
    os.execv(sys.argv[4], sys.argv[4:])
"""

_UNFLUSHED = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class Stop(Enum):
    """How a server is told to stop: after its clients have left, at once, or at once and without cleaning up."""

    SMART = signal.SIGTERM
    FAST = signal.SIGINT
    IMMEDIATE = signal.SIGQUIT


@contextmanager
def postgres(*, durable: bool = True) -> Iterator[Postgres]:
    """A running server for this block. If it is not `durable`, it is faster, and loses what it has when it is killed.

    Without PostgreSQL the test is skipped; in continuous integration it fails.
    """
    programs = _programs()
    if programs is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="tests-postgres-"))
    try:
        with _running(Postgres(programs, folder, durable=durable)) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(server: Postgres) -> Iterator[Postgres]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Postgres:
    """A server with one database, where everybody on this host may do everything. It keeps its port and its data."""

    def __init__(self, programs: Path, folder: Path, *, durable: bool, primary: Postgres | None = None) -> None:
        self._programs = programs
        self._folder = folder
        self._user = _unprivileged()
        self._data = folder / "data"
        self._log = folder / "log"
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        data = ("-D", str(self._data), "-U", _USER, "-N")
        if primary is None:
            self._execute("initdb", *data, "-A", "trust", "-E", "UTF8", "--locale=C")
        else:
            place = ("-h", "127.0.0.1", "-p", str(primary.port))
            self._execute("pg_basebackup", *data, *place, "-R", "--checkpoint=fast")

    @contextmanager
    def standby(self) -> Iterator[Postgres]:
        """Another server, which follows this one from now to the end of the block, or until it is promoted."""
        folder = self._folder / "standby"
        folder.mkdir()
        with _running(Postgres(self._programs, folder, durable=self._durable, primary=self)) as server:
            yield server

    @property
    def url(self) -> str:
        """Of its database, as the setting `store` has it."""
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"

    @property
    def processes(self) -> list[int]:
        """The ids of its processes, the one that keeps the others first; none when it does not run."""
        if self._process is None or self._process.poll() is not None:
            return []
        return [self._process.pid, *_children(self._process.pid)]

    def start(self) -> None:
        """Returns when it takes connections. It ends with the thread that calls this, if not before."""
        settings = [
            *(f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories="),
            *("max_connections=200", "shared_buffers=32MB", "dynamic_shared_memory_type=mmap"),
            *(() if self._durable else _UNFLUSHED),
        ]
        options = [word for setting in settings for word in ("-c", setting)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self._data), *options),
                cwd=self._data,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _wait(self._ready, "it does not take connections")

    def stop(self, how: Stop = Stop.FAST) -> None:
        """It ends as told, and this returns when it has ended."""
        if self._process is not None:
            self._process.send_signal(how.value)
            self._process.wait(_SECONDS)

    def kill(self) -> None:
        """All its processes die at once (kill -9)."""
        self._signal(signal.SIGSTOP)  # From here on there are no new ones.
        processes = self.processes
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(_SECONDS)
        # One that is left keeps the memory that they share, and with it the next server from starting.
        _wait(lambda: not any(map(alive, processes)), "it does not die")

    def restart(self, how: Stop = Stop.FAST) -> None:
        """Starts it again on the same port and data, after it has stopped, or been killed."""
        self.stop(how)
        self.start()

    def pause(self) -> None:
        """All its processes stand still (SIGSTOP); connections stay, and new ones are taken by the kernel alone."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        keeper = self.processes[:1]
        if number is signal.SIGSTOP and keeper:  # So that it makes no process that is missed.
            os.kill(keeper[0], number)
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"PostgreSQL has ended: {self._log.read_text()[-2000:]}")
        with suppress(FileNotFoundError):
            # Its first line is whose file it is, which may be that of one that was killed; its last how far it is.
            lines = (self._data / "postmaster.pid").read_text().split("\n")
            return lines[0] == str(self._process.pid) and lines[-2].strip() in ("ready", "standby")
        return False

    def _execute(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments), cwd="/", env=_environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def _command(self, program: str, *arguments: str) -> list[str]:
        become = [sys.executable, "-I", "-S", "-c", _BECOME]
        ids = map(str, (self._user.pw_uid, self._user.pw_gid, os.getpid()))
        return [*become, *ids, str(self._programs / program), *arguments]


def _programs() -> Path | None:
    """The folder of the server's programs: that on the path, or else the newest that Debian's packages installed."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    return max(_INSTALLED.glob("[0-9]*/bin"), key=lambda folder: int(folder.parent.name), default=None)


def _unprivileged() -> pwd.struct_passwd:
    """Who runs these tests, or for root somebody else."""
    if os.getuid():
        return pwd.getpwuid(os.getuid())
    try:
        return pwd.getpwnam(_USER)
    except KeyError:
        return pwd.getpwnam("nobody")


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stat(process: int) -> list[str]:
    """State, parent and so on of a process; as of one that has ended if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def alive(process: int) -> bool:
    """Whether there is a process of this id that has not ended."""
    return _stat(process)[0] not in "XZ"


def _children(process: int) -> list[int]:
    others = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [other for other in others if _stat(other)[1] == str(process) and alive(other)]


def _wait(until: Callable[[], bool], otherwise: str) -> None:
    for _ in range(int(_SECONDS / 0.01)):
        if until():
            return
        time.sleep(0.01)
    raise AssertionError(otherwise)
