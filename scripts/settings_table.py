"""Writes the table of settings into docs/operations.md; with --check, only tells whether it is up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from agent_service.cli import serve_flags
from agent_service.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"


def table() -> str:
    """One row per setting, in the order of the class."""
    rows = ["| variable | flag | default | meaning |", "|---|---|---|---|"]
    flags = serve_flags()
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"AGENT_SERVICE_{name.upper()}"
        flag = f"`{flags[name]}`" if name in flags else ""
        default = _default(field.get_default(call_default_factory=True))
        rows.append(f"| `{variable}` | {flag} | {default} | {field.description} |")
    return "\n".join(rows)


def _default(value: object) -> str:
    if hasattr(value, "get_secret_value") or value in (None, "", ()):
        return ""
    if hasattr(value, "max_request_bytes"):
        return "see GetServerInfo"
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> int:
    """Returns 1 if the page was checked and is not up to date."""
    text = PAGE.read_text()
    wanted = re.sub(
        r"(<!-- settings -->\n).*?(<!-- /settings -->)", lambda m: f"{m[1]}{table()}\n{m[2]}", text, flags=re.DOTALL
    )
    if "--check" in sys.argv and wanted != text:
        sys.stderr.write("error: the settings in docs/operations.md are not up to date: run make docs\n")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
