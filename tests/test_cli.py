"""The command line: quick to answer, clear about bad usage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent_service import __version__
from agent_service.cli import main
from tests.process import environment

HEAVY = ("grpc", "google", "pydantic", "openai", "aiohttp", "structlog", "asyncio", "sqlite3", "agentrpc")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter in a clean environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"], ["demo", "--help"], ["serv"]])
def test_help_imports_nothing_heavy(tmp_path: Path, arguments: Sequence[str]) -> None:
    """What needs no server loads no server: help and bad usage answer at once, also on a slow machine."""
    code = (
        "import sys\n"
        "from agent_service.cli import main\n"
        "try:\n"
        f"    main({list(arguments)!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    assert python("-c", code, cwd=tmp_path).stdout.endswith("HEAVY []\n")


def test_the_module_is_the_program(tmp_path: Path) -> None:
    """`python -m agent_service` is the command; its exit code is the program's."""
    shown = python("-m", "agent_service", "--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"agent-service {__version__}\n")
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_command_and_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger finds serve and demo, the flags, and that each setting is a variable."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("serve", "demo", "AGENT_SERVICE_", "OPENAI_API_KEY", "OPENAI_BASE_URL"))
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    flags = (
        "--host",
        "--port",
        "--insecure-any-address",
        "--store",
        "--model",
        "--tools",
        "--log-level",
        "--log-format",
    )
    assert all(flag in text for flag in flags)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "command"),
        (["dance"], "dance"),
        (["serve", "--prot", "1"], "--prot"),
        (["serve", "--port", "many"], "many"),
        (["serve", "--port"], "--port"),
        (["serve", "extra"], "extra"),
        (["demo", "--port", "1"], "--port"),
    ],
    ids=" ".join,
)
def test_bad_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], named: str) -> None:
    """The usage and what is wrong go to stderr; stdout stays empty."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "usage: agent-service" in output.err
    assert named in output.err


def test_a_bad_setting_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the setting; nothing is started."""
    assert main(["serve", "--port", "70000"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: port: ")
    assert output.err.count("\n") == 1
