"""The deployed service and its servers, as the environment names them. `nox -s e2e` has checked all of it before."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import psycopg
import pytest
from redis.asyncio import Redis

from tests.e2e.broker import Broker, connected
from tests.e2e.events import Listener, listening
from tests.e2e.http import Http
from tier3.e2e import SECRET, timeout_s, vault_client
from tier3.vault.access import access

LONG = 16  # characters from which the service replaces a secret in events, too
WITHOUT_HTTP = "cases by HTTP were deselected, because AGENT_EXECUTOR_URL is not set"
_DESELECTED = pytest.StashKey[int]()

Listen = Callable[[str], AbstractAsyncContextManager[Listener]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without AGENT_EXECUTOR_URL leave out, and count as deselected, the cases by HTTP."""
    if os.environ.get("AGENT_EXECUTOR_URL"):
        return
    by_http = [item for item in items if {"http", "client"} & set(getattr(item, "fixturenames", ()))]
    config.stash[_DESELECTED] = len(by_http)
    config.hook.pytest_deselected(items=by_http)
    items[:] = [item for item in items if item not in by_http]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out."""
    if config.stash.get(_DESELECTED, 0):
        terminalreporter.write_line(f"{config.stash[_DESELECTED]} {WITHOUT_HTTP}", yellow=True)


class Hidden(str):
    """A string that a failure's report does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "[hidden]"


@pytest.fixture(scope="session", autouse=True)
def environment(
    pytestconfig: pytest.Config, record_testsuite_property: Callable[[str, object], None]
) -> Mapping[str, str]:
    """The environment; JUnit's report says which cases by HTTP there are."""
    deselected = pytestconfig.stash.get(_DESELECTED, 0)
    record_testsuite_property("http", f"{deselected} {WITHOUT_HTTP}" if deselected else "selected")
    return {name: Hidden(value) for name, value in os.environ.items()}


@pytest.fixture(scope="session")
def patience_s(environment: Mapping[str, str]) -> float:
    """How long anything is waited for."""
    return timeout_s(environment)


@pytest.fixture
async def broker(environment: Mapping[str, str], patience_s: float) -> AsyncIterator[Broker]:
    async with connected(environment["NATS_URL"], patience_s) as one:
        yield one


@pytest.fixture
async def redis(environment: Mapping[str, str]) -> AsyncIterator[Redis]:
    async with Redis.from_url(environment["TEST_REDIS_URL"]) as client:
        yield client


@pytest.fixture
def listen(redis: Redis, patience_s: float) -> Listen:
    """Subscribe to a job's channel."""
    return lambda job_id: listening(redis, job_id, patience_s)


@pytest.fixture
def checkpoints(environment: Mapping[str, str]) -> Iterator[Callable[[str], list[str]]]:
    """The ids of a thread's checkpoints in PostgreSQL, with the namespace of each."""
    with psycopg.connect(environment["TEST_POSTGRES_URI"], autocommit=True, application_name="e2e") as connection:
        query = "select checkpoint_ns, checkpoint_id from agent_executor.checkpoints where thread_id = %s order by 1, 2"
        yield lambda job_id: [f"{ns}/{number}" for ns, number in connection.execute(query, [job_id])]


@pytest.fixture(scope="session")
def api_key(environment: Mapping[str, str]) -> str:
    """The key of these tests, which Vault has."""
    place = access(environment)
    with vault_client(place) as client:
        answer = client.get(f"/v1/{place.data(SECRET)}")
    assert answer.status_code == httpx.codes.OK, answer.status_code
    found: Any = answer.json()["data"]["data"]
    assert found.get("api_key"), f"the secret {place.data(SECRET)} has no field api_key"
    return Hidden(found["api_key"])


@pytest.fixture
async def client(environment: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with httpx.AsyncClient(base_url=environment["AGENT_EXECUTOR_URL"], timeout=60) as one:
        yield one


@pytest.fixture
def stranger(client: httpx.AsyncClient, patience_s: float) -> Http:
    """Who has no key."""
    return Http(client, patience_s)


@pytest.fixture
async def http(environment: Mapping[str, str], api_key: str, patience_s: float) -> AsyncIterator[Http]:
    """A caller with the key of Vault."""
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=environment["AGENT_EXECUTOR_URL"], headers=headers, timeout=60) as one:
        yield Http(one, patience_s)


@pytest.fixture
def secrets(environment: Mapping[str, str], api_key: str) -> list[str]:
    """Every secret that these tests know and that is too long to be a word."""
    urls = [environment[name] for name in ("NATS_URL", "TEST_POSTGRES_URI", "TEST_REDIS_URL")]
    passwords = [urlsplit(url.split(",")[0]).password or "" for url in urls]
    known = [api_key, environment["VAULT_TOKEN"], *passwords, *map(unquote, passwords)]
    return [Hidden(each) for each in known if len(each) >= LONG]
