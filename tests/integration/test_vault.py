"""Secrets from Vault: logins, rotation and outages, against a real OpenBao."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import hvac
import psycopg
import pytest

from agent_executor.errors import Unavailable, VaultDenied
from agent_executor.vault import AppRoleLogin, KubernetesLogin, Login, TokenLogin
from agent_executor.vault import Vault as Client
from tests.definitions import adder, agent
from tests.faults.fixtures.proxy import proxy
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Starter
from tests.integration.test_outages import Steps
from tier3.chain.token_reviews import AUDIENCE, Reviews, service_account_token
from tier3.stack import Nats, Redis, Stack, Vault

POLICY = 'path "secret/data/agent-executor/*" { capabilities = ["read"] }'
PASSWORD = "canary-of-the-database"


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A Vault of one's own, with the service's policy."""
    with Vault(tmp_path / "vault") as server:
        prepare(server)
        yield server


def root(vault: Vault) -> Any:
    return hvac.Client(url=vault.addr, token=vault.token)


def prepare(vault: Vault) -> None:
    root(vault).sys.create_or_update_policy("agent-executor-policy", POLICY)


def put(vault: Vault, name: str, **fields: Any) -> None:
    root(vault).secrets.kv.v2.create_or_update_secret(f"agent-executor/{name}", secret=fields)


def app_role(vault: Vault, name: str = "service", **options: Any) -> AppRoleLogin:
    client = root(vault)
    if "approle/" not in client.sys.list_auth_methods()["data"]:
        client.sys.enable_auth_method("approle")
    client.auth.approle.create_or_update_approle(name, token_policies=["agent-executor-policy"], **options)
    role_id = client.auth.approle.read_role_id(name)["data"]["role_id"]
    return AppRoleLogin(role_id, client.auth.approle.generate_secret_id(name)["data"]["secret_id"])


def reader(vault: Vault, login: Login, refresh_s: float = 0) -> Client:
    return Client(vault.addr, login, mount="secret", path="agent-executor", refresh_s=refresh_s)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


TOKENS: dict[str, dict[str, Any]] = {
    "good": {},
    "expired": {"signature": "bad", "life_s": -60},
    "wrong-audience": {"signature": "bad", "audience": "other"},
    "forged": {"signature": "bad"},
}


@pytest.fixture
def kubernetes(vault: Vault) -> Iterator[None]:
    """Vault's Kubernetes method, and somebody who reviews tokens."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Reviews)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = root(vault)
    client.sys.enable_auth_method("kubernetes")
    host = f"http://127.0.0.1:{server.server_port}"
    any_ca = re.search("-----BEGIN.*?END CERTIFICATE-----\n", Path(certifi.where()).read_text(), re.DOTALL)
    assert any_ca
    client.auth.kubernetes.configure(
        kubernetes_host=host,
        kubernetes_ca_cert=any_ca[0],
        token_reviewer_jwt="reviewer",
        disable_local_ca_jwt=True,
    )
    client.write_data(
        "auth/kubernetes/role/agent-executor",
        data={
            "bound_service_account_names": "agent-executor",
            "bound_service_account_namespaces": "bizmatters-dev",
            "audience": AUDIENCE,
            "token_policies": "agent-executor-policy",
            "token_ttl": "3s",
            "token_max_ttl": "5s",
        },
    )
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def kubernetes_login(tmp_path: Path) -> Callable[[str], KubernetesLogin]:
    def login(kind: str) -> KubernetesLogin:
        path = tmp_path / "token"
        path.write_text(service_account_token(**TOKENS[kind]))
        return KubernetesLogin("agent-executor", mount="kubernetes", jwt_path=path)

    return login


@pytest.mark.usefixtures("kubernetes")
async def test_a_pod_logs_in_with_its_service_account(
    vault: Vault, kubernetes_login: Callable[[str], KubernetesLogin]
) -> None:
    put(vault, "a", api_key="k")
    assert await reader(vault, kubernetes_login("good")).secret("a") == {"api_key": "k"}


@pytest.mark.usefixtures("kubernetes")
@pytest.mark.parametrize("kind", ["expired", "wrong-audience", "forged"])
async def test_a_bad_service_account_is_refused_and_the_role_named(
    vault: Vault, kubernetes_login: Callable[[str], KubernetesLogin], kind: str
) -> None:
    put(vault, "a", api_key="k")
    with pytest.raises(VaultDenied, match=r"refuses role agent-executor: logging in \(.+\)"):
        await reader(vault, kubernetes_login(kind)).secret("a")


@pytest.mark.usefixtures("kubernetes")
async def test_the_service_accounts_token_is_read_again_at_each_login(
    vault: Vault, kubernetes_login: Callable[[str], KubernetesLogin]
) -> None:
    put(vault, "a", api_key="k")
    login = kubernetes_login("expired")
    with pytest.raises(VaultDenied):
        await reader(vault, login).secret("a")
    kubernetes_login("good")  # the kubelet replaces it
    assert await reader(vault, login).secret("a") == {"api_key": "k"}


async def test_without_a_service_account_the_path_is_named(vault: Vault, tmp_path: Path) -> None:
    login = KubernetesLogin("r", mount="kubernetes", jwt_path=tmp_path / "none")
    with pytest.raises(VaultDenied, match=f"no service-account token at {tmp_path}/none"):
        await reader(vault, login).secret("a")


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_reads_never_fail_while_tokens_run_out(vault: Vault) -> None:
    """Renewals get shorter towards the token's max TTL, which passes three times; a batch token has none."""
    put(vault, "a", api_key="k")
    short = {"token_ttl": "2s", "token_max_ttl": "3s"}
    renewable, batch = app_role(vault, **short), app_role(vault, "batch", token_type="batch", **short)
    failures: list[Exception] = []

    async def read(client: Client) -> int:
        count = 0
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                await client._read("a")
                count += 1
            except (Unavailable, VaultDenied) as error:
                failures.append(error)
            await asyncio.sleep(0.02)
        return count

    clients = [reader(vault, login) for login in (renewable, batch)]
    keeping = [asyncio.create_task(client.run()) for client in clients]
    counts = await asyncio.gather(*(read(client) for client in clients for _ in range(3)))
    for task in keeping:
        task.cancel()
    assert failures == []
    assert min(counts) > 30


async def test_a_revoked_token_is_replaced(vault: Vault) -> None:
    put(vault, "a", api_key="k")
    client = reader(vault, app_role(vault))
    assert await client.secret("a") == {"api_key": "k"}
    root(vault).auth.token.revoke(client._client.token)
    put(vault, "a", api_key="new")
    assert await client.secret("a") == {"api_key": "new"}


async def test_a_given_token_is_renewed(vault: Vault) -> None:
    put(vault, "a", api_key="k")
    made = root(vault).auth.token.create(policies=["agent-executor-policy"], ttl="2s", period="2s")
    client = reader(vault, TokenLogin(made["auth"]["client_token"]))
    keeping = asyncio.create_task(client.run())
    await client.secret("a")
    await asyncio.sleep(5)
    put(vault, "a", api_key="later")
    assert await client.secret("a") == {"api_key": "later"}
    keeping.cancel()


async def test_a_policy_that_denies_a_path_is_told_with_path_and_role(vault: Vault) -> None:
    root(vault).sys.create_or_update_policy(
        "agent-executor-policy", POLICY + '\npath "secret/data/agent-executor/redis" { capabilities = ["deny"] }'
    )
    put(vault, "redis", url="redis://h")
    put(vault, "nats", url="nats://h")
    login = app_role(vault)
    client = reader(vault, login)
    assert await client.secret("nats") == {"url": "nats://h"}
    with pytest.raises(VaultDenied, match=rf"refuses {login.who}: reading secret/agent-executor/redis"):
        await client.secret("redis")


# --- the service -----------------------------------------------------------------------------------------------------


@pytest.fixture
def from_vault(
    vault: Vault, database: Database, own_nats: Nats, own_redis: Redis, start_service: Starter, place: dict[str, str]
) -> Starter:
    """Start a service that knows nothing but how to log in to Vault."""
    host, port = database.server.host, database.server.port
    with psycopg.connect(database.server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"create role vaulted superuser login password '{PASSWORD}'")
    put(vault, "postgres", host=host, port=port, database=database.name, username="vaulted", password=PASSWORD)
    put(vault, "nats", url=own_nats.url)
    put(vault, "redis", url=own_redis.url)
    for name in [name for name in place if name.startswith(("POSTGRES_", "NATS_", "REDIS_", "VAULT_"))]:
        del place[name]
    login = app_role(vault, token_ttl="20s", token_max_ttl="30s")
    place |= {"VAULT_ADDR": vault.addr, "VAULT_ROLE_ID": login._role_id, "VAULT_SECRET_ID": login._secret_id}
    place["VAULT_REFRESH_S"] = "1"
    return start_service


@pytest.fixture(autouse=True)
def no_role_left(stack: Stack) -> Iterator[None]:
    yield
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        connection.execute("drop role if exists vaulted")


def log(service: Any, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def test_everything_comes_from_vault_and_the_log_says_so(from_vault: Starter, place: dict[str, str]) -> None:
    service = from_vault(POSTGRES_DB=place.get("POSTGRES_DB", "")).ready()
    assert service.run(adder(), "vaulted")["status"] == "completed"
    found = {line["secret"]: (line["environment"], line["vault"]) for line in log(service, "secret_found")}
    assert found == {
        "postgres": ([], ["database", "host", "password", "port", "username"]),
        "redis": ([], ["url"]),
        "nats": ([], ["url"]),
    }
    told = service.log.read_text() + service.http.get("/v1/jobs/vaulted/events").text
    assert PASSWORD not in told
    arguments = Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
    assert PASSWORD.encode() not in arguments
    assert place["VAULT_SECRET_ID"] not in told


def test_an_explicit_variable_wins(from_vault: Starter, vault: Vault, own_redis: Redis) -> None:
    put(vault, "redis", url="redis://nowhere.invalid:1/0")
    service = from_vault(REDIS_URL=own_redis.url).ready()
    service.run(adder(), "explicit")
    [redis] = [line for line in log(service, "secret_found") if line["secret"] == "redis"]
    assert redis["environment"] == ["url"]


def test_a_rotated_password_is_used_by_new_connections_and_running_jobs_finish(
    from_vault: Starter, vault: Vault, database: Database, tmp_path: Path
) -> None:
    steps = Steps(tmp_path)
    service = from_vault().ready()
    service.submit(steps.definition, "running")
    service.until((tmp_path / "lines").exists, "it does not start")
    rotated = f"{PASSWORD}-rotated"
    host, port = database.server.host, database.server.port
    put(vault, "postgres", host=host, port=port, database=database.name, username="vaulted", password=rotated)
    service.until(lambda: log(service, "secret_rotated"), "it is not noticed")
    with psycopg.connect(database.server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"alter role vaulted password '{rotated}'")
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'vaulted'")
    steps.open()
    done = service.ended("running")
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert service.run(adder(), "afterwards")["status"] == "completed"
    assert rotated not in service.log.read_text()


@pytest.mark.parametrize("how", ["sealed", "cut", "swallowed"])
def test_a_vault_that_gives_nothing_is_waited_for_at_the_start(from_vault: Starter, vault: Vault, how: str) -> None:
    [key] = re.findall(r"Unseal Key: (\S+)", vault.log.read_text())
    with proxy(vault.port) as between:
        if how == "sealed":
            root(vault).sys.seal()
        elif how == "cut":
            between.cut()
        else:
            between.blackhole()
        service = from_vault(VAULT_ADDR=f"http://127.0.0.1:{between.port}")
        service.until(lambda: log(service, "waiting_for_secrets"), "it does not wait")
        asked_at = time.monotonic()
        assert service.status("/health") == 200
        assert time.monotonic() - asked_at < 1
        ready = service.http.get("/ready", timeout=10)
        assert (ready.status_code, ready.json()["services"]["vault"]) == (503, False)
        assert time.monotonic() - asked_at < 5
        if how == "sealed":
            hvac.Client(url=vault.addr).sys.submit_unseal_key(key)
        between.heal()
        service.ready()
        assert service.run(adder(), "unsealed")["status"] == "completed"


def test_a_vault_that_lacks_a_field_is_waited_for_and_the_field_named(from_vault: Starter, vault: Vault) -> None:
    root(vault).secrets.kv.v2.create_or_update_secret("agent-executor/postgres", secret={"host": "x"})
    service = from_vault()
    service.until(lambda: log(service, "waiting_for_secrets"), "it does not wait")
    assert log(service, "waiting_for_secrets")[0]["reason"] == "secret/agent-executor/postgres lacks password"


@pytest.mark.parametrize("how", ["sealed", "stopped", "swallowed"])
def test_while_vault_is_away_the_last_secrets_serve(from_vault: Starter, vault: Vault, how: str) -> None:
    with proxy(vault.port) as between:
        service = from_vault(VAULT_ADDR=f"http://127.0.0.1:{between.port}").ready()
        service.run(agent([{"text": "x"}]), "before")
        if how == "sealed":
            root(vault).sys.seal()
        elif how == "stopped":
            vault.stop()
        else:
            between.blackhole()
        service.until(lambda: log(service, "secret_kept"), "it is not noticed")
        assert service.run(adder(), "meanwhile")["status"] == "completed"
        asked_at = time.monotonic()
        assert service.status("/health") == 200
        ready = service.http.get("/ready", timeout=10)
        assert (ready.status_code, ready.json()["services"]["vault"]) == (200, False)
        assert time.monotonic() - asked_at < 5


def test_a_vault_that_was_restarted_is_logged_in_to_again(
    from_vault: Starter, vault: Vault, database: Database
) -> None:
    """In development mode it comes back empty: with the role made anew, as another."""
    service = from_vault().ready()
    vault.restart()
    service.until(lambda: log(service, "secret_kept"), "it is not noticed")
    assert service.run(adder(), "meanwhile")["status"] == "completed"
