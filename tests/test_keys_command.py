"""`agent-service keys new`: what it prints makes a key that works, and bad flags are told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent_service.auth.keys import ApiKeys
from agent_service.cli import main
from agent_service.engine.access import CredentialError
from agent_service.engine.commands import Caller, Scope

pytestmark = pytest.mark.anyio


async def test_what_it_prints_makes_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text is for the file and does not hold the key, which is on standard error alone; each one is another."""
    path = tmp_path / "keys.toml"
    made = []
    for flags in (["--name", "one"], ["--scopes", "read,admin,read", "--days", "2"]):
        assert main(["keys", "new", "--tenant", "acme", *flags]) == 0
        text, key = capsys.readouterr()
        assert key.strip() not in text
        made.append(key.strip())
        with path.open("a") as file:
            file.write(text)
    now = time.time()
    keys = ApiKeys(path, lambda: now)
    assert await keys.identify(made[0]) == Caller("acme", "one", frozenset((Scope.RUN, Scope.SUBMIT, Scope.READ)))
    second = await keys.identify(made[1])
    assert second.scopes == {Scope.READ, Scope.ADMIN}
    assert second.name.startswith("acme-")
    now += 2 * 24 * 3600
    with pytest.raises(CredentialError, match="expired"):
        await keys.identify(made[1])
    await keys.identify(made[0])


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--tenant", "a b"], ["--tenant", "'a b'"]),
        (["--tenant", "acme", "--name", "x" * 65], ["--name"]),
        (["--tenant", "acme", "--scopes", "run,rule"], ["--scopes", "'rule'", "run,submit,read,admin"]),
        (["--tenant", "acme", "--days", "-1"], ["--days", "-1"]),
    ],
)
def test_bad_flags_are_told_in_one_line(flags: list[str], names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With what is allowed; nothing is made."""
    assert main(["keys", "new", *flags]) == 1
    made, said = capsys.readouterr()
    assert made == ""
    assert all(name in said for name in names), said
