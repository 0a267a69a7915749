"""MCP servers in the agents file."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_service.agents_file import read_agents
from agent_service.engine.limits import Limits
from agent_service.mcp_file import read_mcp_servers
from agent_service.settings import SettingsError
from agent_service.tools.mcp.server import McpServer

WHOLE = """
[agents.helper]
server_tools = ["add", "files_read", "wiki_search"]

[mcp_servers.files]
command = "mcp-files"
args = ["--root", "${HOME}"]
cwd = "/srv"
env = { TOKEN = "${FILES_TOKEN}", MODE = "plain" }
timeout = 5
connect_timeout = 7.5
allow = ["read"]
trust_annotations = true
parallel_safe = true

[mcp_servers.wiki]
url = "https://wiki.example.org/mcp?key=${WIKI_KEY}"
headers = { Authorization = "Bearer ${WIKI_TOKEN}" }
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file is; the environment has what it refers to."""
    for name in ("FILES_TOKEN", "WIKI_KEY", "WIKI_TOKEN"):
        monkeypatch.setenv(name, f"{name.lower()}-value")
    return tmp_path / "agents.toml"


def test_servers_are_read(path: Path) -> None:
    """What is left out has its default; only `env`, `headers` and `url` are filled in, and what is is secret."""
    path.write_text(WHOLE)
    files, wiki = read_mcp_servers(path, ("add",), 60)
    assert files == McpServer(
        "files",
        5,
        7.5,
        command="mcp-files",
        args=("--root", "${HOME}"),
        cwd="/srv",
        env={"TOKEN": "files_token-value", "MODE": "plain"},
        allow=("read",),
        trust_annotations=True,
        parallel_safe=True,
        secrets=("files_token-value",),
    )
    assert wiki == McpServer(
        "wiki",
        60,
        30,
        url="https://wiki.example.org/mcp?key=wiki_key-value",
        headers={"Authorization": "Bearer wiki_token-value"},
        secrets=("wiki_key-value", "wiki_token-value"),
    )


def test_agents_may_name_what_the_servers_may_list(path: Path) -> None:
    """A name that begins with a server's is not looked for; any other one must be there."""
    path.write_text(WHOLE)
    agents, _ = read_agents(path, ("add",), Limits())
    assert agents[0].server_tools == ("add", "files_read", "wiki_search")
    path.write_text(WHOLE.replace("wiki_search", "wikis_search"))
    with pytest.raises(
        SettingsError, match=r"no server tool 'wikis_search'; known: add, files_\.\.\., wiki_\.\.\., memory_\w+, "
    ):
        read_agents(path, ("add",), Limits())


def test_a_file_may_have_servers_only(path: Path) -> None:
    """Agents can be made by calls."""
    path.write_text("[mcp_servers.a]\ncommand = 'a'")
    assert read_agents(path, (), Limits()) == ((), "")
    assert [server.name for server in read_mcp_servers(path, (), 60)] == ["a"]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[mcp_servers.a]", "mcp_servers.a: Value error, name either a command or a url"),
        ("[mcp_servers.a]\ncommand = 'a'\nurl = 'http://b'", "name either a command or a url"),
        ("[mcp_servers.a]\ncommand = 'a'\nheaders = { b = 'c' }", "headers does not go with command"),
        ("[mcp_servers.a]\nurl = 'http://b'\nargs = ['c']", "args does not go with url"),
        ("[mcp_servers.a]\nurl = 'http://b'\nenv = { C = 'd' }", "env does not go with url"),
        ("[mcp_servers.a]\nurl = 'http://b'\ncwd = '/'", "cwd does not go with url"),
        ("[mcp_servers.a]\nurl = 'ftp://b'", "mcp_servers.a.url: String should match pattern"),
        ("[mcp_servers.a]\ncommand = 'a'\ntimeout = 0", "mcp_servers.a.timeout: Input should be greater than 0"),
        ("[mcp_servers.a]\ncomand = 'a'", "mcp_servers.a.comand: Extra inputs are not permitted"),
        ("[mcp_servers.a_b]\ncommand = 'a'", "mcp_servers.a_b: the name is not 1 to 32 of A-Z a-z 0-9 -"),
        ("[mcp_servers.'']\ncommand = 'a'", "the name is not 1 to 32"),
        (
            "[mcp_servers.a]\ncommand = 'a'\nenv = { B = '${NOT_THERE}' }",
            "mcp_servers.a.env.B: the environment has no variable 'NOT_THERE'",
        ),
        (
            "[mcp_servers.shop]\ncommand = 'a'",
            "mcp_servers.shop: the tool 'shop_order' could be taken for one of this server",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(path: Path, table: str, problem: str) -> None:
    """One line: the setting, the file, where in it, and what is wrong."""
    path.write_text(table)
    with pytest.raises(SettingsError) as error:
        read_mcp_servers(path, ("shop_order", "plain"), 60)
    message = str(error.value)
    assert message.startswith(f"agents_file: {path}: mcp_servers.")
    assert problem in message
    assert "\n" not in message
