"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

from agent_service import __version__

_EPILOG = """\
Every setting is also an environment variable, AGENT_SERVICE_ and its name in upper case; a flag wins.
OPENAI_API_KEY and OPENAI_BASE_URL name the model endpoint; without both, the bundled local model is used.
"""

RUN_STATUSES = ("queued", "running", "paused", "interrupted", "completed", "failed", "cancelled", "expired")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; the exit code is 0 for success, 1 for what went wrong, 2 for bad usage."""
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    if command in ("serve", "doctor", "demo") and importlib.util.find_spec("pydantic_settings") is None:
        return _fail("this needs the server; install it: pip install 'agent-service[server]'")
    if command == "demo":
        from agent_service.demo import run_demo

        return run_demo(**arguments)
    if command == "doctor":
        from agent_service.doctor import run_doctor

        return run_doctor(**arguments)
    if command in ("chat", "runs", "inbox"):
        return _connect(command, arguments)
    if command == "keys":
        return _new_key(**arguments)
    return _serve(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agent-service",
        description="A gRPC service that runs LLM agents, with tools that live in the caller's process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"agent-service {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    about = "Runs the service until it is told to stop."
    _add_serve_flags(commands.add_parser("serve", help="run the service", description=about))
    about = "Looks at what `serve` with the same flags would need; changes nothing. Exit code 1 if there is a problem."
    doctor = commands.add_parser("doctor", help="say what is amiss before the service is started", description=about)
    _add_serve_flags(doctor)
    doctor.add_argument("--json", dest="as_json", action="store_true", help="one JSON object a line")
    chat = commands.add_parser("chat", parents=[_connection_flags()], help="talk to an agent in the terminal")
    chat.add_argument("--agent", default="", help="id of the agent (the server's default)")
    chat.add_argument("--conversation", default="", help="id of the conversation to continue (a new one)")
    _add_console(commands)
    _add_keys(commands)
    demo = commands.add_parser("demo", help="watch an agent call a tool, pause, resume and remember")
    demo.add_argument("--keep", metavar="PATH", help="keep the SQLite file here instead of a temporary one")
    return parser


def _connection_flags() -> argparse.ArgumentParser:
    """The flags of a Connection."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--target", default="127.0.0.1:50051", help="address of the service (127.0.0.1:50051)")
    flags.add_argument("--token", default="", help="API key or token; better in AGENT_SERVICE_TOKEN, where ps is blind")
    flags.add_argument("--tls", action="store_true", help="use TLS; implied by the files below")
    flags.add_argument("--tls-ca", type=Path, metavar="FILE", help="CA certificates to check the server with, in PEM")
    flags.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate of this client, in PEM")
    flags.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, in PEM")
    return flags


def _add_keys(commands: Any) -> None:
    """`keys new`."""
    actions = commands.add_parser("keys", help="make API keys").add_subparsers(required=True, metavar="action")
    new = actions.add_parser(
        "new", help="print what to add to the file of API keys; the key itself goes to standard error"
    )
    new.add_argument("--tenant", required=True, help="whose runs, conversations and agents it is for")
    new.add_argument("--scopes", default="run,submit,read", help="some of run,submit,read,admin (run,submit,read)")
    new.add_argument("--name", default="", help="its name in the file and in logs (the tenant and a number)")
    new.add_argument("--days", type=int, default=0, help="how long it is valid (without end)")


def _add_console(commands: Any) -> None:
    """`runs` and `inbox`."""
    common = argparse.ArgumentParser(add_help=False, parents=[_connection_flags()])
    common.add_argument("--json", dest="as_json", action="store_true", help="one JSON object a line")
    runs = commands.add_parser("runs", help="look at runs, answer, cancel and retry them")
    actions = runs.add_subparsers(dest="action", required=True, metavar="action")

    def add(name: str, about: str, *positional: str, method: str = "") -> argparse.ArgumentParser:
        parser = actions.add_parser(name, parents=[common], help=about)
        parser.set_defaults(action=method or name)
        for argument in positional:
            parser.add_argument(argument)
        return cast(argparse.ArgumentParser, parser)

    listing = add("list", "the newest runs", method="list_runs")
    listing.add_argument(
        "--status", default="", type=str.lower, choices=["", *RUN_STATUSES], metavar="STATUS", help="only with this one"
    )
    listing.add_argument("--agent", default="", help="only of this agent")
    listing.add_argument("--conversation", default="", help="only of this conversation")
    listing.add_argument("--limit", type=int, default=20, help="at most so many (20)")
    add("show", "one run and what it waits for", "run_id")
    watch = add("watch", "the events of a run until its end; exit code 3 if it does not complete", "run_id")
    watch.add_argument("--after", type=int, default=0, metavar="SEQUENCE", help="only events after this one")
    submit = add("submit", "answer a call of a client tool", "run_id", "call_id", "text")
    submit.add_argument("--error", dest="failed", action="store_true", help="the tool failed; the text says how")
    for name, about in (("approve", "let a server tool run"), ("deny", "refuse a call")):
        decide = add(name, about, "run_id", "call_id", method="decide")
        decide.set_defaults(approve=name == "approve")
        decide.add_argument("--reason", default="", help="a note, or what the model reads of a denial")
    add("cancel", "end a run for good", "run_id")
    add("retry", "go on with an interrupted run", "run_id")
    inbox = commands.add_parser("inbox", parents=[common], help="the calls that wait for somebody")
    inbox.add_argument("--tool", default="", help="only of this tool")
    inbox.add_argument("--follow", action="store_true", help="also what comes and goes from now on")
    inbox.add_argument("--answer", action="store_true", help="claim each call of a client tool and ask for its result")


def serve_flags() -> dict[str, str]:
    """The flags of `serve` by the name of their setting."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_serve_flags(parser)
    return {action.dest: action.option_strings[0] for action in parser._actions}


def _add_serve_flags(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on, 0 for a free one (50051)")
    serve.add_argument("--address", help="unix:/path to listen on a Unix socket instead")
    serve.add_argument("--workers", type=int, help="server processes that share the port and the store (1)")
    serve.add_argument(
        "--insecure-any-address", action="store_true", default=None, help="allow others to connect in plain text"
    )
    serve.add_argument("--tls-cert", help="certificate of the server, in PEM; turns TLS on")
    serve.add_argument("--tls-key", help="its private key, in PEM")
    serve.add_argument("--tls-client-ca", help="CA certificates, in PEM, one of which clients need a certificate of")
    serve.add_argument("--api-keys", help="TOML file of API keys; turns authentication on")
    serve.add_argument(
        "--store", help="path of the SQLite file, URL of PostgreSQL, or 'memory' (agent-service.sqlite3)"
    )
    serve.add_argument("--model", help="model name (the only one the endpoint lists)")
    serve.add_argument("--agents-file", help="TOML file of agents and MCP servers")
    serve.add_argument("--tools", help="server tools: module paths, comma-separated")
    serve.add_argument("--log-level", help="debug, info, warning or error (info)")
    serve.add_argument("--log-format", help="console, json or auto (auto)")


def _connect(command: str, arguments: dict[str, Any]) -> int:
    """Runs a command for a running service."""
    from dataclasses import fields

    from agent_service.connection import Connection

    connection = Connection(**{field.name: arguments.pop(field.name) for field in fields(Connection)})
    try:
        connection.check()
    except OSError as error:
        return _fail(f"cannot read {error.filename}: {error.strerror}")
    if command == "chat":
        from agent_service.chat import run_chat

        return run_chat(connection, **arguments)
    from agent_service.console import run_console

    return run_console(arguments.pop("action", command), connection, **arguments)


def _new_key(tenant: str, scopes: str, name: str, days: int) -> int:
    """Prints the text for the file, and the key on standard error, so that the text alone can be appended."""
    import secrets
    from datetime import UTC, datetime, timedelta

    from agent_service.auth.keys import NAME, new_key
    from agent_service.engine.commands import Scope

    name = name or f"{tenant[:55]}-{secrets.token_hex(4)}"
    for flag, text in (("--tenant", tenant), ("--name", name)):
        if not NAME.fullmatch(text):
            return _fail(f"{flag}: '{text}' is not 1 to 64 of A-Z a-z 0-9 . _ : -")
    if days < 0:
        return _fail(f"--days: {days} is negative; leave it out for a key without an end")
    try:
        chosen = tuple(Scope(scope) for scope in dict.fromkeys(scopes.split(",")))
    except ValueError as error:
        return _fail(f"--scopes: {error}; choose some of {','.join(Scope)}")
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days else None
    key, text = new_key(name, tenant, chosen, expires)
    sys.stdout.write(text)
    sys.stderr.write(f"{key}\n")
    return 0


def _serve(flags: dict[str, object]) -> int:
    from agent_service.settings import SettingsError, load_settings

    try:
        settings = load_settings(**flags)
    except SettingsError as error:
        return _fail(str(error))

    # First of all: gRPC reads its own log level when it is imported.
    from agent_service.logs import configure_logs

    configure_logs(settings.log_level, settings.log_format)

    from agent_service import workers
    from agent_service.local_model import LocalModelFailedError, LocalModelMissingError

    local_model = (LocalModelMissingError, LocalModelFailedError)
    if settings.workers > 1:
        return _run(workers.serve_workers(settings, _given(flags), _ready), (workers.WorkerError, *local_model))
    ready = _ready
    if settings.worker:
        workers.end_with_parent()
        ready = workers.tell_parent

    from agent_service import wiring
    from agent_service.files import FileError
    from agent_service.stores.errors import SchemaError
    from agent_service.tools import ToolLoadError
    from agent_service.transport.binding import BindError

    known = (SettingsError, wiring.StartError, FileError, *local_model, SchemaError, ToolLoadError, BindError)
    return _run(wiring.serve(settings, ready), known)


def _run(serving: Coroutine[Any, Any, None], known: tuple[type[Exception], ...]) -> int:
    import asyncio

    try:
        asyncio.run(serving)
    except known as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _given(flags: dict[str, object]) -> list[str]:
    """The flags of `serve` as they were given."""
    options = serve_flags()
    given = {options[name]: value for name, value in flags.items() if value is not None}
    return [option if value is True else f"{option}={value}" for option, value in given.items()]


def _ready(address: str) -> None:
    sys.stdout.write(f"listening on {address}\n")
    sys.stdout.flush()


def _fail(message: str) -> int:
    """Says what went wrong, unless another process has said it."""
    if message:
        sys.stderr.write(f"error: {message}\n")
    return 1
