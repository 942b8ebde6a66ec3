"""Whether secrets work: each server is connected to as the service would, and what it says is told without them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from nats.errors import Error as NatsError
from psycopg.conninfo import make_conninfo
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_executor import broker
from agent_executor.migrate.settings import encryption
from tier3.vault.client import reason

TIMEOUT_S = 3
_ALL_S = 5.0

Secret = Mapping[str, Any]
"""A secret's fields; `cacert` and `sslmode` are those of the environment."""


class TrialFailed(Exception):
    """A server cannot be used with a secret; the message is the server's or its driver's, without the secret."""


def postgres(secret: Secret) -> str:
    """Log in and run a query; says where to."""
    try:
        dsn = make_conninfo(
            host=secret["host"],
            port=secret["port"],
            dbname=secret["database"],
            user=secret["username"],
            password=secret["password"],
            application_name="populate_secrets",
            **encryption(secret.get("sslmode"), secret.get("cacert")),
        )
        with psycopg.connect(dsn, connect_timeout=TIMEOUT_S) as connection:
            connection.execute("select 1")
    except psycopg.Error as error:
        raise TrialFailed(reason(error)) from None
    return f"logged in as {secret['username']} to {secret['database']}"


def redis(secret: Secret) -> str:
    """PING."""
    retry = Retry(NoBackoff(), 0)
    limits: dict[str, Any] = {"socket_connect_timeout": TIMEOUT_S, "socket_timeout": TIMEOUT_S}
    url = secret["url"]
    if cacert := secret.get("cacert"):
        url, limits = re.sub("^redis:", "rediss:", url), {**limits, "ssl_ca_certs": cacert}
    try:
        with Redis.from_url(url, retry=retry, **limits) as client:
            client.ping()
    except (RedisError, OSError, ValueError) as error:
        raise TrialFailed(reason(error)) from None
    return "answered PING"


def nats_(secret: Secret) -> str:
    """Connect, and ask for JetStream."""
    told: list[Exception] = []
    try:
        asyncio.run(_jetstream(secret, told))
    except ImportError as error:
        raise TrialFailed(f"credentials cannot be tried without the package {error.name}") from None
    except TimeoutError:
        raise TrialFailed("no answer in time") from None
    except (NatsError, OSError, ValueError) as error:
        raise TrialFailed("; ".join(dict.fromkeys(map(reason, [*told, error])))) from None
    return "connected, JetStream answered"


TRIALS: Mapping[str, Callable[[Secret], str]] = {"postgres": postgres, "redis": redis, "nats": nats_}


async def _jetstream(secret: Secret, told: list[Exception]) -> None:
    """Connect once to each of the servers; what they say on the way goes to `told`."""

    async def tell(error: Exception) -> None:
        told.append(error)

    limits: dict[str, Any] = {"connect_timeout": TIMEOUT_S, "allow_reconnect": False, "max_reconnect_attempts": 1}
    server = broker.server(lambda: secret["url"], lambda: secret.get("credentials"))  # as the service does it
    async with asyncio.timeout(_ALL_S):
        client = broker.client(secret["url"], secret.get("cacert"))
        await client.connect(**server, error_cb=tell, reconnect_time_wait=0, **limits)
        try:
            await client.jetstream(timeout=TIMEOUT_S).account_info()
        finally:
            await client.close()
