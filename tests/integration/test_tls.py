"""TLS to PostgreSQL, Redis and NATS: with an authority of one's own, and never without it where it was asked for."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from nats.errors import Error as NatsError
from redis.exceptions import RedisError

from agent_executor import broker, stream, tls
from agent_executor.settings import Settings
from tests.certificates import HOST, Authority
from tests.definitions import agent
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Service, Starter
from tests.integration.fixtures.tls import Front, TlsNats
from tier3.stack import Redis

DEFINITION = agent([{"text": "done"}])


@dataclass
class Servers:
    """The three, each with a certificate of `authority` for localhost, and settings that lead a service to them."""

    authority: Authority
    other: Authority
    postgres: Front
    redis: Front
    nats: TlsNats
    settings: dict[str, str]

    def use(self, certificate: Path | None) -> None:
        """Have all of them restart with that certificate, or without TLS."""
        self.postgres.certificate = self.redis.certificate = self.nats.certificate = certificate
        for front in (self.postgres, self.redis):
            front.drop()
        self.nats.restart()


@pytest.fixture
def servers(database: Database, own_redis: Redis, tmp_path: Path) -> Iterator[Servers]:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    certificate = authority.issue()
    nats = TlsNats(tmp_path / "tls")
    nats.certificate = certificate
    postgres, redis = Front(database.server.port, certificate, postgres=True), Front(own_redis.port, certificate)
    with nats:
        found = {
            **database.environment,
            "POSTGRES_HOST": HOST,
            "POSTGRES_PORT": str(postgres.port),
            "REDIS_URL": f"rediss://{HOST}:{redis.port}/0",
            "NATS_URL": nats.url,
        }
        found |= {f"{name}_CACERT": str(authority.cacert) for name in ("POSTGRES", "REDIS", "NATS")}
        yield Servers(authority, other, postgres, redis, nats, found)
    postgres.close()
    redis.close()


def told(service: Service, server: str) -> bool:
    """Whether the log says why the server is not spoken to."""
    found = f'"server": "{server}", "setting": "{server.upper()}_CACERT", "reason": ".*certificate verify failed'
    return re.search(found, service.log.read_text()) is not None


def test_a_job_runs_over_tls_alone_and_a_restart_changes_nothing_of_that(
    servers: Servers, start_service: Starter
) -> None:
    command = [sys.executable, "-m", "agent_executor", "migrate", "status"]
    environment = {**os.environ, **servers.settings, "MIGRATION_DIR": "migrations"}
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0
    service = start_service(**servers.settings).ready()
    assert service.run(DEFINITION, "job-tls")["status"] == "completed"

    servers.use(servers.other.issue())  # somebody else, with the right name
    answers = service.http.get("/ready").json()["services"]  # asks Redis, too, which nobody may have needed
    assert answers == {**dict.fromkeys(answers, False), "vault": True}
    for name in ("postgres", "redis", "nats"):
        service.until(partial(told, service, name), f"nothing is told of {name}")

    servers.use(servers.authority.issue())
    assert service.ready().run(DEFINITION, "job-after")["status"] == "completed"


Attempt = Callable[[str, int, str | None, pytest.MonkeyPatch], Any]


def _settings(monkeypatch: pytest.MonkeyPatch, **named: str | None) -> Settings:
    for name, value in named.items():
        monkeypatch.setenv(name, value or "")
    return Settings()


async def postgres(host: str, port: int, cacert: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = None if cacert else "verify-full"
    settings = _settings(monkeypatch, POSTGRES_CACERT=cacert, POSTGRES_SSLMODE=mode)
    dsn = settings.dsn({"host": host, "port": str(port), "database": "postgres", "password": "postgres"})
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
        assert connection.pgconn.ssl_in_use


async def redis(host: str, port: int, cacert: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = "redis" if cacert else "rediss"  # the file alone asks for TLS
    client = stream.connect(f"{scheme}://{host}:{port}/0", cacert=cacert)
    try:
        assert await client.ping()
    finally:
        await client.aclose()


async def nats(host: str, port: int, cacert: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{'nats' if cacert else 'tls'}://{host}:{port}"
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def fail(error: Exception) -> None:  # it would go on trying
        if not failed.done():
            failed.set_exception(error)

    client = broker.client(url, cacert)
    connecting = asyncio.create_task(client.connect(**broker.server(lambda: url, lambda: None), error_cb=fail))
    await asyncio.wait({connecting, failed}, return_when=asyncio.FIRST_COMPLETED)
    connecting.cancel()
    await asyncio.wait({connecting})
    try:
        if failed.done():
            await failed
        assert client._transport._io_writer.get_extra_info("ssl_object")  # type: ignore[union-attr]
    finally:
        await client.close()


@pytest.mark.parametrize("kind", [postgres, redis, nats], ids=lambda kind: kind.__name__)
async def test_only_the_right_server_is_spoken_to(
    servers: Servers, kind: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = getattr(servers, kind.__name__).port
    right, wrong = str(servers.authority.cacert), str(servers.other.cacert)
    await kind(HOST, port, right, monkeypatch)
    for host, cacert in ((HOST, wrong), ("127.0.0.1", right), (HOST, None)):  # None: what the system trusts
        with pytest.raises((psycopg.OperationalError, RedisError, OSError, NatsError)):
            await kind(host, port, cacert, monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", right)  # the system's
    tls._context.cache_clear()
    await kind(HOST, port, None, monkeypatch)
    tls._context.cache_clear()


async def test_tls_is_spoken_where_it_is_left_to_us(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.nats.is_optional = True
    servers.nats.restart()
    await nats(HOST, servers.nats.port, str(servers.authority.cacert), monkeypatch)


@pytest.mark.parametrize("kind", [postgres, redis, nats], ids=lambda kind: kind.__name__)
async def test_nothing_is_said_without_tls(servers: Servers, kind: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.use(None)
    for cacert in (str(servers.authority.cacert), None):
        with pytest.raises((psycopg.OperationalError, RedisError, OSError, NatsError)):
            await kind(HOST, getattr(servers, kind.__name__).port, cacert, monkeypatch)
