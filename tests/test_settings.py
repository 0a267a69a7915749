"""Settings: from the environment or a flag, and what is said when one cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent_service.engine.limits import Limits
from agent_service.engine.model import ToolMode
from agent_service.settings import Algorithm, LogFormat, Settings, SettingsError, load_settings


def problem(**flags: Any) -> str:
    """What is said about these flags (and the environment)."""
    with pytest.raises(SettingsError) as refused:
        load_settings(**flags)
    return str(refused.value)


def test_the_defaults_serve_this_host_only_with_a_durable_store() -> None:
    """Nothing set: loopback, SQLite, the local model."""
    settings = load_settings()
    assert (settings.host, settings.port, settings.loopback) == ("127.0.0.1", 50051, True)
    assert settings.store_path == Path("agent-service.sqlite3")
    assert not settings.external_model
    assert settings.limits == Limits()


def test_every_setting_but_the_endpoint_has_the_same_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENT_SERVICE_ and the name in upper case; OPENAI_API_KEY and OPENAI_BASE_URL keep the names everyone knows."""
    values: dict[str, tuple[str, object]] = {
        "host": ("localhost", "localhost"),
        "port": ("0", 0),
        "address": ("unix:/run/a.sock", "unix:/run/a.sock"),
        "socket_mode": ("660", "660"),
        "insecure_any_address": ("true", True),
        "tls_cert": ("cert.pem", Path("cert.pem")),
        "tls_key": ("key.pem", Path("key.pem")),
        "tls_client_ca": ("ca.pem", Path("ca.pem")),
        "api_keys": ("keys.toml", Path("keys.toml")),
        "jwt_issuer": ("https://issuer.example", "https://issuer.example"),
        "jwt_audience": ("agents", "agents"),
        "jwt_keys": ("https://issuer.example/keys", "https://issuer.example/keys"),
        "jwt_algorithms": ("ES256, EdDSA", (Algorithm.ES256, Algorithm.EDDSA)),
        "jwt_leeway_seconds": ("5", 5.0),
        "jwt_tenant_claim": ("org", "org"),
        "jwt_scope_claim": ("scp", "scp"),
        "store": ("runs.sqlite3", "runs.sqlite3"),
        "model": ("model-1", "model-1"),
        "tool_mode": ("json_schema", ToolMode.JSON_SCHEMA),
        "answers_after_return": ("true", True),
        "model_keep_alive": ("false", False),
        "model_max_retries": ("0", 0),
        "model_connect_seconds": ("1.5", 1.5),
        "model_silence_seconds": ("7", 7.0),
        "context_window_tokens": ("8192", 8192),
        "instructions": ("Be brief.", "Be brief."),
        "agents_file": ("agents.toml", Path("agents.toml")),
        "store_busy_seconds": ("0.5", 0.5),
        "store_connections": ("20", 20),
        "tools": (" a.b, c:d ,", ("a.b", "c:d")),
        "tool_timeout_seconds": ("3", 3.0),
        "heartbeat_seconds": ("2", 2.0),
        "lease_seconds": ("2.5", 2.5),
        "stall_seconds": ("5", 5.0),
        "max_connection_age_seconds": ("1800", 1800.0),
        "event_retention_seconds": ("60", 60.0),
        "workers": ("1", 1),
        "worker": ("true", True),
        "grace_seconds": ("0", 0.0),
        "reflection": ("false", False),
        "log_level": ("DEBUG", "DEBUG"),
        "log_format": ("json", LogFormat.JSON),
        "otlp_endpoint": ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
        "metrics_address": (":9464", ":9464"),
        "limits": ('{"max_client_tools": 3}', Limits(max_client_tools=3)),
    }
    assert set(values) == set(Settings.model_fields) - {"openai_api_key", "openai_base_url"}
    for name, (text, _) in values.items():
        monkeypatch.setenv(f"AGENT_SERVICE_{name.upper()}", text)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    settings = load_settings()
    assert {name: getattr(settings, name) for name in values} == {name: value for name, (_, value) in values.items()}
    assert settings.openai_api_key.get_secret_value() == "sk-1"
    assert settings.openai_base_url == "http://127.0.0.1:1/v1"


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that is not given leaves the environment's value, one that is given replaces it."""
    monkeypatch.setenv("AGENT_SERVICE_PORT", "1")
    monkeypatch.setenv("AGENT_SERVICE_MODEL", "from-environment")
    settings = load_settings(port=2, model=None)
    assert (settings.port, settings.model) == (2, "from-environment")


@pytest.mark.parametrize(
    "variables",
    [{"OPENAI_API_KEY": "sk-1"}, {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}],
    ids=["key", "url"],
)
def test_a_key_or_a_url_alone_names_the_endpoint(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Either is enough to use it in place of the local model; an empty one counts as unset."""
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    assert not load_settings().external_model
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings().external_model


@pytest.mark.parametrize("name", ["HOST", "PORT", "STORE", "AGENT_SERVICE_NO_SUCH_SETTING"])
def test_other_names_mean_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Only the documented variables are read."""
    before = load_settings()
    monkeypatch.setenv(name, "4711")
    assert load_settings() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "many"),
        ("store", ""),
        ("tool_mode", "magic"),
        ("model_max_retries", "-1"),
        ("model_silence_seconds", "0"),
        ("heartbeat_seconds", "0"),
        ("grace_seconds", "-1"),
        ("max_connection_age_seconds", "604801"),
        ("tool_timeout_seconds", "soon"),
        ("context_window_tokens", "-1"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("reflection", "perhaps"),
        ("address", "127.0.0.1:50051"),
        ("socket_mode", "888"),
        ("jwt_algorithms", "none"),
        ("jwt_algorithms", "HS256"),
        ("limits", '{"max_client_tools": "few"}'),
    ],
)
def test_a_bad_value_is_named_with_its_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The line begins with the setting and shows what was found, from the environment as from a flag."""
    monkeypatch.setenv(f"AGENT_SERVICE_{name.upper()}", value)
    text = problem()
    assert text.startswith(name)
    assert (value if name != "limits" else "few") in text
    assert "\n" not in text
    if name != "limits":
        monkeypatch.delenv(f"AGENT_SERVICE_{name.upper()}")
        assert problem(**{name: value}) == text


def test_limits_that_are_no_json_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that cannot be read at all is an error of that setting, too, and not a crash."""
    monkeypatch.setenv("AGENT_SERVICE_LIMITS", "{many")
    assert problem().startswith("limits: ")
    monkeypatch.setenv("AGENT_SERVICE_LIMITS", "7")
    assert problem().startswith("limits: ")


def test_all_bad_values_are_named_at_once() -> None:
    """One line per problem."""
    lines = problem(port="x", log_format="xml").splitlines()
    assert [line.split(":")[0] for line in lines] == ["port", "log_format"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_flag(host: str) -> None:
    """Only this host can connect."""
    assert load_settings(host=host).loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "127.0.0.1.example.com", ""])
def test_another_address_needs_the_flag(host: str) -> None:
    """Without TLS and credentials, whoever opens the port to others must say so; the line tells all ways out."""
    said = problem(host=host)
    assert all(way in said for way in ("127.0.0.1", "--insecure-any-address", "--tls-cert", "--api-keys"))
    assert not load_settings(host=host, insecure_any_address=True).loopback


@pytest.mark.parametrize(
    "credentials",
    [
        {"api_keys": "keys.toml"},
        {"tls_client_ca": "ca.pem"},
        {"jwt_issuer": "https://issuer.example", "jwt_audience": "agents", "jwt_keys": "keys.json"},
    ],
    ids=["keys", "client certificates", "tokens"],
)
def test_tls_and_credentials_together_need_no_flag(credentials: dict[str, str]) -> None:
    """One of the two is not enough, and the line says which one is missing."""
    tls = {"tls_cert": "cert.pem", "tls_key": "key.pem"}
    assert load_settings(host="0.0.0.0", **tls, **credentials)
    assert "no credentials" in problem(host="0.0.0.0", **tls)
    if "tls_client_ca" not in credentials:
        said = problem(host="0.0.0.0", **credentials)
        assert "no TLS" in said
        assert "no credentials" not in said


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"tls_cert": "cert.pem"}, ["tls_key"]),
        ({"tls_key": "key.pem"}, ["tls_cert"]),
        ({"tls_client_ca": "ca.pem"}, ["tls_client_ca", "tls_cert"]),
        ({"jwt_issuer": "a", "jwt_audience": "b"}, ["jwt_keys"]),
        ({"jwt_issuer": "a", "jwt_keys": "b"}, ["jwt_audience"]),
        ({"jwt_audience": "a", "jwt_keys": "b"}, ["jwt_issuer"]),
        ({"jwt_issuer": "a", "jwt_audience": "b", "jwt_keys": "http://issuer.example/keys"}, ["jwt_keys", "https"]),
        ({"address": "unix:" + "x" * 108}, ["address", "107"]),
        ({"address": "unix:/run/a.sock", "workers": 2}, ["workers", "Unix socket"]),
    ],
)
def test_settings_that_only_go_together_are_refused_alone(flags: dict[str, Any], names: list[str]) -> None:
    """The line names what is missing or does not fit."""
    said = problem(**flags)
    assert all(name in said for name in names), said


def test_a_unix_socket_is_for_this_host_only() -> None:
    """It takes the place of host and port, and needs no flag."""
    settings = load_settings(host="0.0.0.0", address="unix:/run/a.sock")
    assert (settings.loopback, settings.listens_on) == (True, "unix:/run/a.sock")
    assert load_settings(host="::1", port=1).listens_on == "[::1]:1"


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the settings' text nor in what is said about another setting."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(load_settings())
    assert "sk-secret" not in problem(port="x")


def test_memory_is_no_file() -> None:
    """'memory' keeps nothing; any other text is a path."""
    assert load_settings(store="memory").store_path is None
    assert load_settings(store="./memory").store_path == Path("memory")


def test_a_database_is_shown_without_its_password() -> None:
    """The setting keeps it, and what people read does not."""
    settings = load_settings(store="postgresql://me:s3cret@one:5432,two/runs?sslmode=require")
    assert (settings.store_url, settings.store_path) == (settings.store, None)
    assert settings.store_shown == "postgresql://me@one:5432,two/runs"
    assert load_settings(store="runs.sqlite3").store_shown == "runs.sqlite3"


@pytest.mark.parametrize("character", "#/?[]")
def test_a_password_that_ends_the_place_in_a_url_is_refused_and_not_shown(character: str) -> None:
    """What comes after such a character would be taken for a part of something else, and be told."""
    said = problem(store=f"postgresql://me:left{character}right@host/runs")
    assert "as %2F" in said
    assert "left" not in said
    assert "right@" not in said


@pytest.mark.parametrize("store", ["postgres:/runs", "mysql://me:hidden@host/runs"])
def test_a_url_of_something_else_is_no_path(store: str) -> None:
    """It is refused, without a password that it may hold."""
    said = problem(store=store)
    assert "postgresql://user@host/database" in said
    assert "hidden" not in said


def test_the_scheme_of_a_store_may_be_in_upper_case() -> None:
    """As in any URL."""
    assert load_settings(store="PostgreSQL://host/runs").store_path is None
