"""What log lines look like."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAILING = """
import structlog
from agent_service.logs import configure_logs
from agent_service.settings import LogFormat

configure_logs("info", LogFormat(%r))
try:
    password = "hunter" + "2"
    raise RuntimeError("no luck")
except RuntimeError:
    structlog.get_logger().exception("it.failed")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_an_exception_is_logged_without_the_values_of_variables(form: str) -> None:
    """They may be keys or what people wrote; rich, where it is installed, would show them."""
    done = subprocess.run([sys.executable, "-c", FAILING % form], capture_output=True, text=True, check=True)
    assert "it.failed" in done.stderr
    assert "RuntimeError: no luck" in done.stderr
    assert "hunter2" not in done.stderr
