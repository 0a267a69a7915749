"""The environment of the references that are built with agent libraries: made once, apart from that of the service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".tools" / "bench-venv"
PYTHON = FOLDER / "bin" / "python"

PACKAGES = (
    *("grpcio~=1.85", "protobuf~=7.36", "aiosqlite~=0.22"),
    *("langgraph==1.2.24", "langgraph-checkpoint-sqlite==3.1.2", "langchain-openai==1.7.4"),
    "pydantic-ai-slim[openai]==2.68.0",
)
_STAMP = FOLDER / ".installed"


def install() -> str:
    """Makes it unless it is there already; why that was not possible, or nothing."""
    wanted = "\n".join(PACKAGES)
    if _STAMP.is_file() and _STAMP.read_text() == wanted:
        return ""
    print("Installing the agent libraries that are references (about 30 s) ...", flush=True)
    commands = (
        (sys.executable, "-m", "venv", "--clear", str(FOLDER)),
        (str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:", *PACKAGES),
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return f"not installed: {lines[-1] if lines else 'pip failed'}"
    _STAMP.write_text(wanted)
    return ""
