"""What is installed: the wheel holds everything the service and its clients import, and a client needs little else."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_code_stubs_types_and_the_schema(wheel: Path) -> None:
    """The generated package stands beside the service's, both are typed, and the SQL is there."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "agent_service/cli.py",
        "agent_service/py.typed",
        "agent_service/stores/postgres_schema/0001.sql",
        "agent_service/stores/sqlite_schema/0001.sql",
        "agent_service/stores/sqlite_schema/0002.sql",
        "agentrpc/py.typed",
        "agentrpc/v1/agentrpc.binpb",
        "agentrpc/v1/agent_service_pb2.py",
        "agentrpc/v1/agent_service_pb2.pyi",
        "agentrpc/v1/agent_service_pb2_grpc.py",
    } <= names
    assert not [name for name in names if name.startswith(("tests", "generated"))]


def test_the_wheel_works_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    """Imported from the unpacked wheel, the service and the stubs come from there."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import agent_service.wiring, agentrpc.v1.agent_service_pb2 as pb, agent_service.stores.sqlite_thread as s\n"
        "print(agent_service.wiring.__file__, pb.__file__, len(s._statements(2)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    service, stubs, statements = done.stdout.split()
    assert service.startswith(str(tmp_path))
    assert stubs.startswith(str(tmp_path))
    assert int(statements) > 10


CLIENT_NEEDS = {
    "agent-service",
    *("grpcio", "protobuf", "pydantic"),
    *("annotated-types", "pydantic-core", "typing-extensions", "typing-inspection"),  # what these need
}


def test_the_client_imports_nothing_of_the_server() -> None:
    """Neither its layers nor the packages that only the server depends on, some of which take long."""
    program = "import sys, json, agent_service.client; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    modules = json.loads(done.stdout)
    own = {module.split(".")[1] for module in modules if module.startswith("agent_service.")}
    assert own == {"client", "functions"}
    servers = (
        "aiohttp",
        "asyncpg",
        "google.rpc",
        "grpc_status",
        "jsonschema_rs",
        "mcp",
        "msgspec",
        "openai",
        "structlog",
    )
    assert not set(servers) & set(modules)


def test_a_client_is_installed_with_few_packages(wheel: Path, tmp_path: Path) -> None:
    """Into an empty environment, from the wheel; commands of a client work, and those of the server say what to do."""
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / "bin"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([bin_folder / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True)

    installed = run("pip", "install", "--quiet", "--retries", "0", "--timeout", "15", str(wheel))
    if installed.returncode and ("onnection" in installed.stderr or "No matching distribution" in installed.stderr):
        pytest.skip("no package index can be reached")
    assert installed.returncode == 0, installed.stderr
    listed = json.loads(run("pip", "list", "--format", "json").stdout)
    assert {package["name"].replace("_", "-") for package in listed} - {"pip", "setuptools"} == CLIENT_NEEDS
    assert run("python", "-W", "error", "-c", "import agent_service.client, agent_service.chat").stderr == ""
    assert run("agent-service", "runs", "list", "--target", "127.0.0.1:1").stderr.startswith("error: UNAVAILABLE")
    refused = run("agent-service", "serve")
    assert (refused.returncode, refused.stderr) == (
        1,
        "error: this needs the server; install it: pip install 'agent-service[server]'\n",
    )
