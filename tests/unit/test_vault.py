"""vault: an explicit variable beats Vault, and Vault's failures are named without its secrets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import hvac
import pytest
from hvac.exceptions import Forbidden, InvalidPath, VaultDown
from requests.exceptions import ConnectionError as RequestsConnectionError
from structlog.testing import capture_logs

from agent_executor import metrics, vault
from agent_executor.credentials import Credentials
from agent_executor.errors import Incomplete, Unavailable, VaultDenied
from agent_executor.vault import Grant, Vault

TOKEN = "token-4711"


class FakeLogin:
    """Gives tokens, all different."""

    who = "role tester"

    def __init__(self, again: bool = False) -> None:
        self.again = again
        self.count = 0

    def __call__(self, client: Any) -> Grant:
        self.count += 1
        return Grant(f"{TOKEN}-{self.count}", 0, renewable=False)


class FakeClient:
    """Stands for hvac.Client: `client.secrets.kv.v2` and `client.sys`."""

    def __init__(self, **arguments: Any) -> None:
        self.token = ""
        assert arguments["timeout"] <= 5
        self.secrets = self.kv = self.v2 = self.sys = self
        self.kept: dict[str, dict[str, str]] = {}
        self.failure: Exception | None = None
        self.health: Any = {"initialized": True, "sealed": False}
        self.asked: list[str] = []
        self.lease_s = 0.0

    def read_secret_version(self, *, path: str, mount_point: str, raise_on_deleted_version: bool) -> Any:
        self.asked.append(f"{mount_point}/{path}")
        if self.failure is not None:
            raise self.failure
        if path not in self.kept:
            raise InvalidPath(json={"errors": []})
        return {"data": {"data": self.kept[path]}, "lease_duration": self.lease_s}

    def read_health_status(self, *, method: str, standby_ok: bool, performance_standby_code: int) -> Any:
        if self.failure is not None:
            raise self.failure
        return self.health


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient(timeout=1)
    monkeypatch.setattr(hvac, "Client", lambda **arguments: made)
    return made


@pytest.fixture
def secrets(client: FakeClient) -> Vault:
    return Vault("http://vault.example:8200", FakeLogin(), mount="secret", path="agent-executor")


async def test_a_secret_is_read_below_mount_and_path(client: FakeClient, secrets: Vault) -> None:
    client.kept["agent-executor/llm-providers/openai"] = {"api_key": "k"}
    assert await secrets.secret("llm-providers/openai") == {"api_key": "k"}
    assert client.asked == ["secret/agent-executor/llm-providers/openai"]


async def test_where_there_is_none_the_secret_is_empty(secrets: Vault) -> None:
    assert await secrets.secret("llm-providers/openai") == {}


async def test_a_secret_is_read_again_only_when_it_is_old(client: FakeClient, secrets: Vault) -> None:
    client.kept["agent-executor/a"] = {"api_key": "old"}
    assert await secrets.secret("a") == {"api_key": "old"}
    client.kept["agent-executor/a"] = {"api_key": "new"}
    assert await secrets.secret("a") == {"api_key": "old"}
    fresh = Vault("http://vault.example:8200", FakeLogin(), mount="secret", path="agent-executor", refresh_s=0)
    assert await fresh.secret("a") == {"api_key": "new"}


async def test_a_refusal_is_counted_and_says_which_path(client: FakeClient, secrets: Vault) -> None:
    before = metrics.vault_auth_failures._value.get()
    client.failure = Forbidden(f"permission denied for {TOKEN}")
    with pytest.raises(VaultDenied, match="refuses role tester: reading secret/agent-executor/a") as raised:
        await secrets.secret("a")
    assert TOKEN not in str(raised.value)
    assert metrics.vault_auth_failures._value.get() == before + 1


@pytest.mark.parametrize("failure", [VaultDown(TOKEN), RequestsConnectionError(TOKEN)])
async def test_an_outage_names_its_kind_and_nothing_else(
    client: FakeClient, secrets: Vault, failure: Exception
) -> None:
    client.failure = failure
    with pytest.raises(Unavailable, match=type(failure).__name__) as raised:
        await secrets.secret("a")
    assert TOKEN not in str(raised.value)


async def test_after_a_refusal_a_new_login_is_tried_once(client: FakeClient) -> None:
    login = FakeLogin(again=True)
    secrets = Vault("http://vault.example:8200", login, mount="secret", path="agent-executor")
    client.failure = Forbidden()
    with pytest.raises(VaultDenied):
        await secrets.secret("a")
    assert (login.count, len(client.asked)) == (2, 2)


@pytest.mark.parametrize("failure", [VaultDown(), Forbidden()])
async def test_what_was_read_serves_on_while_vault_gives_it_no_more(client: FakeClient, failure: Exception) -> None:
    secrets = Vault("http://vault.example:8200", FakeLogin(), mount="secret", path="agent-executor", refresh_s=0)
    client.kept["agent-executor/a"] = {"api_key": "k"}
    await secrets.secret("a")
    client.failure = failure
    assert await secrets.secret("a") == {"api_key": "k"}


async def test_a_secret_with_a_lease_serves_no_longer_than_that(client: FakeClient) -> None:
    secrets = Vault("http://vault.example:8200", FakeLogin(), mount="secret", path="agent-executor", refresh_s=0)
    client.kept["agent-executor/a"] = {"api_key": "k"}
    client.lease_s = 0.01
    await secrets.secret("a")
    await asyncio.sleep(0.02)
    client.failure = VaultDown()
    with pytest.raises(Unavailable):
        await secrets.secret("a")


async def test_who_waits_for_a_read_that_fails_shares_its_failure(client: FakeClient, secrets: Vault) -> None:
    client.failure = VaultDown()
    found = await asyncio.gather(*(secrets.secret("a") for _ in range(5)), return_exceptions=True)
    assert [type(each) for each in found] == [Unavailable] * 5
    assert len(client.asked) == 1


async def test_an_outage_is_not_remembered(client: FakeClient, secrets: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "_SHARED_S", 0)
    client.failure = VaultDown()
    with pytest.raises(Unavailable):
        await secrets.secret("a")
    client.failure = None
    client.kept["agent-executor/a"] = {"api_key": "k"}
    assert await secrets.secret("a") == {"api_key": "k"}


@pytest.mark.parametrize(
    ("health", "is_healthy"),
    [
        ({"initialized": True, "sealed": False}, True),
        ({"initialized": True, "sealed": True}, False),
        ({"initialized": False, "sealed": False}, False),
        ({}, False),
        ("some proxy's page", False),
    ],
)
async def test_health(client: FakeClient, secrets: Vault, health: Any, is_healthy: bool) -> None:
    client.health = health
    assert await secrets.healthy() is is_healthy


@pytest.mark.parametrize("failure", [VaultDown(), RequestsConnectionError()])
async def test_a_vault_that_is_away_is_not_healthy(client: FakeClient, secrets: Vault, failure: Exception) -> None:
    client.failure = failure
    assert await secrets.healthy() is False


async def test_the_loop_is_free_while_vault_is_asked(client: FakeClient, secrets: Vault) -> None:
    asker = asyncio.get_running_loop()
    seen: list[bool] = []

    def read(**arguments: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            seen.append(True)
        return {"data": {"data": {}}}

    client.read_secret_version = read  # type: ignore[method-assign]
    await secrets.secret("a")
    assert asker.is_running()
    assert seen == [True]


async def keys(client: FakeClient, environment: Mapping[str, Mapping[str, str]], provider: str, secrets: Any) -> Any:
    client.kept["agent-executor/llm-providers/openai"] = {"api_key": "vault", "base_url": "http://vault"}
    client.kept["agent-executor/llm-providers/scripted"] = {"api_key": "vault"}
    return await Credentials({}, secrets, environment, str).of(provider)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, {"api_key": "vault", "base_url": "http://vault"}),
        ({"openai": {"api_key": "env"}}, {"api_key": "env"}),
        ({"openai": {"base_url": "http://env"}}, {"api_key": "vault", "base_url": "http://env"}),
        ({"anthropic": {"api_key": "env"}}, {"api_key": "vault", "base_url": "http://vault"}),
    ],
)
async def test_the_environment_beats_vault(
    client: FakeClient, secrets: Vault, environment: dict[str, dict[str, str]], found: dict[str, str]
) -> None:
    assert await keys(client, environment, "openai", secrets) == found


async def test_vault_is_not_asked_for_what_the_environment_has(client: FakeClient, secrets: Vault) -> None:
    await keys(client, {"openai": {"api_key": "env"}}, "openai", secrets)
    assert client.asked == []


async def test_the_scripted_model_needs_no_vault(client: FakeClient, secrets: Vault) -> None:
    assert await keys(client, {}, "scripted", secrets) == {}
    assert client.asked == []


async def test_without_a_vault_the_environment_is_all_there_is(client: FakeClient) -> None:
    assert await keys(client, {"openai": {"api_key": "env"}}, "openai", None) == {"api_key": "env"}
    assert await keys(client, {}, "openai", None) == {}


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, "page", [], {"data": None}, {"data": {"data": [1]}}, {"data": {}}])
async def test_what_is_no_answer_of_vaults_is_an_outage(client: FakeClient, secrets: Vault, answer: Any) -> None:
    client.read_secret_version = lambda **arguments: answer  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="reading secret/agent-executor/a"):
        await secrets.secret("a")


async def test_a_page_that_is_not_found_is_no_missing_secret(client: FakeClient, secrets: Vault) -> None:
    client.failure = InvalidPath("404 page not found", text="404 page not found")
    with pytest.raises(Unavailable):
        await secrets.secret("a")


@pytest.mark.parametrize(
    "failure", [OSError("no CA file"), ValueError("odd"), UnicodeDecodeError("utf-8", b"", 0, 1, "x")]
)
async def test_whatever_else_goes_wrong_is_waited_for(client: FakeClient, secrets: Vault, failure: Exception) -> None:
    client.failure = failure
    with pytest.raises(Unavailable, match=type(failure).__name__):
        await secrets.secret("a")


async def test_a_vault_that_never_ends_its_answer_is_given_up(
    client: FakeClient, secrets: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, "_TIMEOUT_S", 0.05)
    client.read_secret_version = lambda **arguments: time.sleep(1)  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="TimeoutError"):
        await secrets.secret("a")


def made(client: FakeClient, secrets: Vault, **explicit: dict[str, str]) -> Credentials:
    """Credentials of a service whose secrets are all in Vault."""
    kept: dict[str, Any] = {
        "agent-executor/postgres": {"host": "h", "port": 5432, "password": "p1"},
        "agent-executor/redis": {"url": "redis://:r1@h"},
        "agent-executor/nats": {"url": "nats://u:n1@h"},
    }
    client.kept |= kept
    return Credentials(explicit, secrets, {}, dsn_of)


def dsn_of(fields: Mapping[str, str]) -> str:
    return " ".join(f"{name}={fields[name]}" for name in sorted(fields))


@pytest.mark.parametrize(
    ("name", "secret", "complaint"),
    [
        ("redis", {"url": "redis://:canary/rest@h:6379/0"}, "url must be a URL"),
        ("redis", {"url": "http://h:1"}, "url must be a URL"),
        ("redis", {"url": 5}, "url must be text"),
        ("nats", {"url": "nats://u:canary[1@h:1"}, "url must be a URL"),
        ("postgres", {"host": "h", "password": {"a": "canary"}}, "password must be text in one line"),
        ("postgres", {"host": "h", "password": "canary\n"}, "password must be text in one line"),
        ("postgres", {"host": "h", "password": "can\0ary"}, "password must be text in one line"),
        ("postgres", {"host": "h", "password": ""}, "lacks password"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_named_without_its_value(
    client: FakeClient, secrets: Vault, name: str, secret: dict[str, Any], complaint: str
) -> None:
    credentials = made(client, secrets)
    client.kept[f"agent-executor/{name}"] = secret
    with pytest.raises(Incomplete, match=f"secret/agent-executor/{name}.* {complaint}") as raised:
        await credentials._load(name)
    assert "canary" not in str(raised.value)


async def test_a_rotated_secret_that_cannot_be_used_leaves_the_one_before(client: FakeClient) -> None:
    credentials = made(client, Vault("http://v", FakeLogin(), mount="secret", path="agent-executor", refresh_s=0))
    await credentials.until_loaded()
    client.kept["agent-executor/redis"] = {"url": "redis://:bad[1@h"}
    with pytest.raises(Incomplete):
        await credentials._load("redis")
    assert credentials.redis_url() == "redis://:r1@h"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("postgres", {"host": "elsewhere", "port": 5432, "password": "p2"}),
        ("postgres", {"host": "h", "port": 5432, "password": "p2", "database": "other"}),
        ("redis", {"url": "redis://:r2@elsewhere"}),
        ("redis", {"url": "redis://h"}),
    ],
)
async def test_another_server_needs_a_restart_and_is_told_of_once(
    client: FakeClient, name: str, secret: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Or one part of the process would use it, and the rest the one before."""
    credentials = made(client, Vault("http://v", FakeLogin(), mount="secret", path="agent-executor", refresh_s=0))
    await credentials.until_loaded()
    redis = credentials.redis_url()
    client.kept[f"agent-executor/{name}"] = secret
    with capture_logs() as logged:
        await credentials._load(name)
        await credentials._load(name)
    assert [line["event"] for line in logged].count("secret_needs_restart") == 1
    assert "host=h " in credentials.dsn()
    assert "database=other" not in credentials.dsn()
    assert credentials.redis_url() == redis


async def test_what_the_environment_leaves_out_comes_from_vault(client: FakeClient, secrets: Vault) -> None:
    credentials = made(client, secrets, postgres={"host": "mine", "password": "mine"}, nats={"url": "nats://mine"})
    client.kept["agent-executor/nats"] = {"url": "nats://h", "credentials": "creds"}
    await credentials.until_loaded()
    assert credentials.dsn() == "host=mine password=mine port=5432"
    assert (credentials.nats_url(), credentials.nats_credentials()) == ("nats://mine", "creds")


async def test_a_vault_that_is_away_is_not_waited_for_by_what_needs_it_not(client: FakeClient, secrets: Vault) -> None:
    explicit = {
        "postgres": {"host": "mine", "password": "mine"},
        "redis": {"url": "redis://h"},
        "nats": {"url": "nats://h"},
    }
    client.failure = VaultDown()
    await made(client, secrets, **explicit).until_loaded()


async def test_a_login_that_is_refused_postpones_jobs_and_fails_none(client: FakeClient) -> None:
    class Refused(FakeLogin):
        def __call__(self, client: Any) -> Grant:
            raise Forbidden

    refused = Vault("http://v", Refused(again=True), mount="secret", path="agent-executor")
    with pytest.raises(Unavailable, match="refuses role tester: logging in"):
        await Credentials({}, refused, {}, str).of("openai")


async def test_a_token_that_runs_out_for_good_is_told_of_once(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, "_LONGEST_PAUSE_S", 0.01)

    class Short(FakeLogin):
        def __call__(self, client: Any) -> Grant:
            return Grant(TOKEN, 0.1, renewable=False)

    secrets = Vault("http://v", Short(), mount="secret", path="agent-executor")
    keeping = asyncio.create_task(secrets.run())
    with capture_logs() as logged:
        await secrets.secret("a")
        await asyncio.sleep(0.5)
    keeping.cancel()
    assert [line["event"] for line in logged].count("vault_not_renewed") == 1
