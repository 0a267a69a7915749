"""Every setting, from the environment or a flag. The only place that reads the environment."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agent_service.domain.policy import MAX_WINDOW_TOKENS
from agent_service.engine.limits import Limits
from agent_service.engine.model import ToolMode
from agent_service.stores.urls import is_postgres, problem_of, without_password

DEFAULT_INSTRUCTIONS = "You are a helpful assistant."
MEMORY = "memory"
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


_SAFE_URL = re.compile(r"https://|http://(127\.0\.0\.1|\[::1\]|localhost)[:/]")
MAX_SOCKET_PATH = len("unix:") + 107
"""Bytes; what the system takes."""


class Algorithm(StrEnum):
    """Signatures that are checked with a public key. Others must not be allowed: their keys are secrets."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    EDDSA = "EdDSA"


class LogFormat(StrEnum):
    """How log lines look; AUTO is console on a terminal, else JSON."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class SettingsError(Exception):
    """A setting cannot be used; one line per problem says which, what was found and what is allowed."""


class Settings(BaseSettings):
    """Read from AGENT_SERVICE_* (upper case), OPENAI_API_KEY and OPENAI_BASE_URL; a flag wins over the environment."""

    model_config = SettingsConfigDict(env_prefix="AGENT_SERVICE_", extra="ignore", validate_by_name=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 means a free one.")
    address: str = Field(
        "",
        pattern="^(unix:.+)?$",
        description="'unix:/path' to listen on a Unix socket in place of a host and a port.",
    )
    socket_mode: str = Field(
        "600", pattern="^0?[0-7]{3}$", description="Permissions of the Unix socket, in octal digits."
    )
    insecure_any_address: bool = Field(
        False, description="Allow an address other than loopback without TLS or without credentials."
    )
    tls_cert: Path | None = Field(
        None, description="Certificate of the server and those between it and its CA, in PEM; turns TLS on."
    )
    tls_key: Path | None = Field(None, description="The certificate's private key, in PEM, without a password.")
    tls_client_ca: Path | None = Field(
        None, description="CA certificates, in PEM; only clients with a certificate of one of them can connect."
    )
    api_keys: Path | None = Field(None, description="TOML file of API keys; turns authentication on.")
    jwt_issuer: str = Field("", description="Issuer ('iss') of tokens (JWT) that are taken; turns authentication on.")
    jwt_audience: str = Field("", description="Audience ('aud') that tokens must be for.")
    jwt_keys: str = Field("", description="Public keys of the issuer (JWKS): an https URL, or the path of a file.")
    jwt_algorithms: Annotated[tuple[Algorithm, ...], NoDecode] = Field(
        (Algorithm.RS256, Algorithm.ES256, Algorithm.EDDSA),
        description="Algorithms of signatures that are taken, comma-separated.",
    )
    jwt_leeway_seconds: float = Field(
        30.0, ge=0, le=600, description="How far the issuer's clock may be off when the times of a token are checked."
    )
    jwt_tenant_claim: str = Field("tenant", min_length=1, description="Claim that names the tenant.")
    jwt_scope_claim: str = Field(
        "scope", min_length=1, description="Claim with the scopes, as text with blanks between them or as a list."
    )
    workers: int = Field(1, ge=1, le=64, description="Server processes that share the port and the store.")
    worker: bool = Field(False, description="Set by the service for its workers: the port is shared.")
    store: str = Field(
        "agent-service.sqlite3",
        min_length=1,
        description="Path of the SQLite file, 'postgresql://user@host/database', or 'memory' to keep nothing.",
    )
    store_busy_seconds: float = Field(
        5.0, gt=0, description="How long a call waits for a SQLite file that others hold, or for PostgreSQL."
    )
    store_connections: int = Field(
        10, ge=3, le=1000, description="Connections of each server process to PostgreSQL, at most."
    )
    model: str = Field("", description="Model name; empty means the only one the endpoint lists.")
    openai_api_key: SecretStr = Field(
        SecretStr(""), validation_alias="OPENAI_API_KEY", description="Key of the model endpoint."
    )
    openai_base_url: str = Field(
        "", validation_alias="OPENAI_BASE_URL", description="URL of the model endpoint; empty means OpenAI's."
    )
    tool_mode: ToolMode = Field(
        ToolMode.NATIVE,
        description="'native', or 'json_schema' for endpoints that constrain output but do not call tools.",
    )
    answers_after_return: bool = Field(
        False, description="In json_schema mode: ask for text once a tool has returned, for small models."
    )
    model_keep_alive: bool = Field(True, description="Use connections to the model endpoint again.")
    model_max_retries: int = Field(2, ge=0, le=10, description="Retries of a model request before its answer begins.")
    model_connect_seconds: float = Field(10.0, gt=0, description="Time for a connection to the model endpoint.")
    model_silence_seconds: float = Field(300.0, gt=0, description="Longest silence of the model endpoint.")
    context_window_tokens: int = Field(
        0,
        ge=0,
        le=MAX_WINDOW_TOKENS,
        description="Tokens that the model takes in one request, for agents that do not say; 0 means unknown: "
        "conversations are compacted only when the endpoint refuses one as too long.",
    )
    instructions: str = Field(DEFAULT_INSTRUCTIONS, description="System prompt of the default agents.")
    agents_file: Path | None = Field(
        None,
        description="TOML file of MCP servers, of memory blocks, and of agents besides or in place of 'default' and "
        "'responder'.",
    )
    tools: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Server tools: module paths 'package.module' or 'package.module:function', comma-separated."
    )
    tool_timeout_seconds: float = Field(60.0, gt=0, description="Time for a server tool that sets none itself.")
    lease_seconds: float = Field(
        6.0, ge=1, description="How long a run waits for its server process before another one takes it over."
    )
    event_retention_seconds: float = Field(
        30 * 24 * 3600.0, ge=0, description="How long the events of a run are kept after its end; 0 means for ever."
    )
    heartbeat_seconds: float = Field(15.0, gt=0, description="Silence on a stream before a heartbeat.")
    stall_seconds: float = Field(
        60.0, gt=0, description="How long the client of a stream may read nothing before the stream is cut."
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        le=604_800,
        description="Age (give or take a tenth) at which clients are asked to connect anew, so that they spread over "
        "servers that were added; open streams go on to their end. 0 means never.",
    )
    grace_seconds: float = Field(10.0, ge=0, description="Time for running runs when the server is told to stop.")
    reflection: bool = Field(True, description="Serve gRPC reflection.")
    log_level: str = Field("info", pattern="(?i)^(debug|info|warning|error)$", description="Least level to log.")
    log_format: LogFormat = Field(LogFormat.AUTO, description="'console', 'json', or 'auto' by the terminal.")
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318, for traces and "
        "metrics; empty means none.",
    )
    metrics_address: str = Field(
        "",
        pattern=r"^(\S*:\d{1,5})?$",
        description="Address to serve metrics for Prometheus on, such as 127.0.0.1:9464 or, for loopback, :9464; each "
        "worker takes the next port. Empty means none.",
    )
    limits: Annotated[Limits, NoDecode] = Field(default_factory=Limits, description="Sizes and counts; as JSON.")

    @field_validator("tools", "jwt_algorithms", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("limits", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @property
    def listens_on(self) -> str:
        """Where to listen, as gRPC writes it."""
        return self.address or f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def external_model(self) -> bool:
        """Whether an endpoint is named; else the bundled local model is used."""
        return bool(self.openai_api_key.get_secret_value() or self.openai_base_url)

    @property
    def loopback(self) -> bool:
        """Whether only this host can connect."""
        if self.address:
            return True
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def authenticates(self) -> bool:
        """Whether callers need a credential."""
        return bool(self.api_keys or self.jwt_issuer)

    @property
    def jwt_keys_url(self) -> bool:
        """Whether the issuer's keys are fetched."""
        return "://" in self.jwt_keys

    @property
    def store_url(self) -> str | None:
        """The URL of the PostgreSQL database; None for another kind of store."""
        return self.store if is_postgres(self.store) else None

    @property
    def store_path(self) -> Path | None:
        """The SQLite file; None for another kind of store."""
        return None if self.store == MEMORY or self.store_url else Path(self.store)

    @property
    def store_shown(self) -> str:
        """The store without a password, for people to read."""
        return without_password(self.store) if self.store_url else self.store


def load_settings(**flags: object) -> Settings:
    """The settings; `flags` that are None were not given. Raises SettingsError."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = Settings(**given)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise SettingsError("\n".join(_line(problem) for problem in error.errors(include_url=False))) from None
    if problem := _exposed(settings) or _halves(settings):
        raise SettingsError(problem)
    if problem := problem_of(settings.store):
        raise SettingsError(f"store: {problem}")
    if settings.workers > 1 and settings.store == MEMORY:
        raise SettingsError(
            f"workers: {settings.workers} processes cannot share a store in memory; name a SQLite file or PostgreSQL"
        )
    return settings


def _exposed(settings: Settings) -> str:
    """What is wrong with an address that others can reach."""
    if settings.loopback or settings.insecure_any_address:
        return ""
    wanting = [
        name
        for name, there in (
            ("TLS (--tls-cert and --tls-key)", settings.tls_cert),
            ("credentials (--api-keys, AGENT_SERVICE_JWT_ISSUER or --tls-client-ca)", _admits_some(settings)),
        )
        if not there
    ]
    if not wanting:
        return ""
    return (
        f"host: {settings.host} is not loopback, and there is no {' and no '.join(wanting)}; set up what is missing, "
        "use 127.0.0.1 or a Unix socket behind a proxy that has both, or add --insecure-any-address"
    )


def _admits_some(settings: Settings) -> bool:
    return settings.authenticates or settings.tls_client_ca is not None


def _halves(settings: Settings) -> str:
    """What is missing to settings that only go together."""
    for names in (("tls_cert", "tls_key"), ("jwt_issuer", "jwt_audience", "jwt_keys")):
        missing = [name for name in names if not getattr(settings, name)]
        if 0 < len(missing) < len(names):
            return f"{missing[0]}: is not set, and {next(n for n in names if n not in missing)} is; set both or neither"
    if settings.tls_client_ca and not settings.tls_cert:
        return "tls_client_ca: goes with tls_cert and tls_key only"
    if settings.jwt_keys_url and not _SAFE_URL.match(settings.jwt_keys):
        return f"jwt_keys: {settings.jwt_keys} is not https, so that others could put their keys in its place"
    if len(os.fsencode(settings.address)) > MAX_SOCKET_PATH:
        return f"address: the path of a Unix socket has at most {MAX_SOCKET_PATH - len('unix:')} bytes"
    if settings.address and settings.workers > 1:
        return f"workers: {settings.workers} processes cannot share a Unix socket; use a port, or one process"
    return ""


def fill_in(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with the environment's value for each `${NAME}`, and those values. Raises KeyError with a name."""
    values = tuple(os.environ[name] for name in _REFERENCE.findall(text))
    return _REFERENCE.sub(lambda reference: os.environ[reference[1]], text), values


def _line(problem: object) -> str:
    details = dict(problem)  # type: ignore[call-overload]  # pydantic's ErrorDetails
    name = ".".join(str(part) for part in details["loc"])
    return f"{name}: {details['msg']} (found {details['input']!r})"
