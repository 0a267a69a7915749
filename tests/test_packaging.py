"""What is installed: the wheel holds everything the service and its clients import."""

from __future__ import annotations

import subprocess
import sys
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
