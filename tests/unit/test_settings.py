"""settings: the environment, read whole or refused whole."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError

from agent_executor.settings import Settings, SettingsError, load, provider_environment

CANARY = "canary-4711"


def test_the_smallest_environment_is_enough(environment: dict[str, str]) -> None:
    settings = load()
    assert settings.postgres_host == "db.example"
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == environment["REDIS_URL"]


def test_the_defaults_are_those_of_the_contract(settings: Settings) -> None:
    assert (settings.postgres_port, settings.postgres_db, settings.postgres_user) == (5432, "langgraph_dev", "postgres")
    assert (settings.nats_stream_name, settings.nats_consumer_group) == ("AGENT_EXECUTION", "agent-executor-workers")
    assert settings.nats_tenant == "default"
    assert (settings.vault_mount, settings.vault_path) == ("secret", "agent-executor")
    assert (settings.log_level, settings.error_detail) == ("info", "full")
    assert (settings.k_sink, settings.vault_addr, settings.vault_token) == (None, None, None)


@pytest.mark.parametrize(
    "origins", ["*", "https://a.example, *", "app.example", "https://a.example/", "https://A.example", "null"]
)
def test_an_origin_is_what_a_browser_sends(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, origins: str
) -> None:
    monkeypatch.setenv("CORS_ALLOW_ORIGINS", origins)
    with pytest.raises(SettingsError, match="bad environment variables: CORS_ALLOW_ORIGINS"):
        load()


@pytest.mark.parametrize("tenant", ["a b", "x" * 65, "a.b", "a\n", "\u00e4"])
def test_a_tenant_is_a_plain_word(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tenant: str) -> None:
    monkeypatch.setenv("NATS_TENANT", tenant)
    with pytest.raises(SettingsError, match="bad environment variables: NATS_TENANT"):
        load()


def test_all_that_is_missing_and_all_that_is_wrong_is_named_at_once(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSTGRES_HOST")
    monkeypatch.setenv("REDIS_URL", "")  # empty is missing: Kubernetes and shells make such variables
    monkeypatch.setenv("POSTGRES_PORT", CANARY)
    monkeypatch.setenv("ERROR_DETAIL", CANARY)
    with pytest.raises(SettingsError) as raised:
        load()
    message = str(raised.value)
    assert (
        "missing environment variables: POSTGRES_HOST, REDIS_URL; bad environment variables: POSTGRES_PORT" in message
    )
    assert "ERROR_DETAIL" in message
    assert CANARY not in message
    assert {finding.field for finding in raised.value.findings} == {
        *("POSTGRES_HOST", "REDIS_URL", "POSTGRES_PORT", "ERROR_DETAIL")
    }


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "VAULT_ROLE"),
        ({"VAULT_ROLE_ID": "x"}, "VAULT_SECRET_ID"),
        ({"VAULT_SECRET_ID": "x"}, "VAULT_ROLE_ID"),
    ],
)
def test_with_a_vault_a_way_to_log_in_is_all_that_is_needed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, given: dict[str, str], missing: str
) -> None:
    for name in environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VAULT_ADDR", "http://vault.example:8200")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^missing environment variables: {missing}$"):
        load()
    monkeypatch.setenv(missing, "x")
    assert load().postgres_host is None
    monkeypatch.setenv("VAULT_TOKEN", "x")
    assert load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POSTGRES_POOL_SIZE", "1"),
        ("MAX_CONCURRENT_JOBS", "0"),
        ("MAX_STEPS", "0"),
        ("MAX_BODY_BYTES", "100"),
        ("SHUTDOWN_GRACE_S", "-1"),
        ("LEASE_S", "1"),
        ("LEASE_S", "soon"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_numbers_out_of_range_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"bad environment variables: {name}"):
        load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("K_SINK", f"htp://user:{CANARY}@host"),
        ("K_SINK", CANARY),
        ("REDIS_URL", f"redis://:{CANARY}/x@host:6379/0"),
        ("REDIS_URL", f"redis://:123?{CANARY}@host:6379/0"),
        ("REDIS_URL", f"redis://host:{CANARY}"),
        ("REDIS_URL", f"http://{CANARY}"),
        ("REDIS_URL", f"redis://[{CANARY}@host"),
        ("NATS_URL", f"nats://host:4222,nats://user:{CANARY}/x@host:4222"),
        ("NATS_URL", f"{CANARY}://host"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_an_address_that_cannot_be_read_is_refused_unseen(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"bad environment variables: {name}: .*must be a") as raised:
        load()
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("K_SINK", "http://user:a%40b@host/path?token=x"),
        ("REDIS_URL", "rediss://:a,b%2Fc@host/0?x=y"),
        ("REDIS_URL", "unix://user:word@/run/redis.sock?db=0"),
        ("NATS_URL", "nats://user:word@a:4222,tls://token@b,localhost:4222,c"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_addresses_of_all_kinds(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    load()


def test_no_secret_shows(settings: Settings) -> None:
    shown = f"{settings} {settings!r} {settings.model_dump_json()}"
    assert "secret@" not in shown
    assert "pg-secret" not in shown


def test_settings_are_frozen(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings.log_level = "debug"  # type: ignore[misc]


def test_the_dsn_leads_to_the_schema_whatever_the_password(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "it's a 'trap' \\ host=evil")
    found = conninfo_to_dict((settings := load()).dsn(settings.explicit()["postgres"]))
    assert found["host"] == "db.example"
    assert found["password"] == "it's a 'trap' \\ host=evil"
    options = str(found["options"])
    assert "-c search_path=agent_executor" in options
    assert "-c idle_in_transaction_session_timeout=" in options


def test_every_variable_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_keys_and_addresses_of_providers() -> None:
    environment = {
        "OPENAI_API_KEY": "k1",
        "OPENAI_BASE_URL": "http://one",
        "MY_OWN_API_KEY": "k2",
        "ANTHROPIC_API_KEY": "",
        "API_KEY": "k3",
    }
    found = provider_environment(environment)
    assert found["openai"] == {"api_key": "k1", "base_url": "http://one"}
    assert found["my_own"] == {"api_key": "k2"}
    assert "anthropic" not in found
