"""`nox -s e2e` before its tests: whether everything that the environment names can be used, asked all at once.

Owns the session's variables and what is said about them: missing, cannot be parsed, unreachable or refused, each by its
name, in one message, within 5 seconds. A message holds hosts and ports, and never a password or a token.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import httpx
import nats
import psycopg
import redis
from nats.errors import Error as NatsError
from psycopg.conninfo import conninfo_to_dict
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from tier3.vault.access import Access, access, is_url, is_word
from tier3.vault.errors import Misconfigured

CANNOT_RUN = 64
SECRET = "e2e"  # noqa: S105 - its name
_ALL_S = 3  # what is left of 5 seconds is for starting Python
_ANSWER_S = 2
_TIMEOUT_S = "60"
_BAD_REQUEST, _FORBIDDEN, _NOT_FOUND, _SEALED = 400, 403, 404, 503

Found = Mapping[str, str]


class Unusable(Exception):
    """What a variable names cannot be used; the message begins with the variable."""


@dataclass(frozen=True)
class Kind:
    """One variable: what it is like, whether a value is, and what asks the server that it names."""

    like: str
    good: Callable[[str], object]
    ask: Callable[[Found], None] | None = None
    required: bool = True


def main(tests: str, artifacts: str, environment: Mapping[str, str]) -> list[str]:
    """Everything that keeps the tests at `tests` from running, one sentence for each; empty if nothing does."""
    found = {name: value for name, value in environment.items() if value}
    bad = {name: said for name, kind in KINDS.items() if (said := _look(name, kind, found))}
    if "VAULT_ADDR" not in bad:
        try:
            access(found, with_token=False)
        except Misconfigured as error:  # of the variables that have a default
            bad["VAULT_ADDR"] = str(error)
    known = {name: value for name, value in found.items() if name not in bad}
    probes = {name: kind.ask for name, kind in KINDS.items() if kind.ask and name in known}
    return [*bad.values(), *_places(tests, artifacts), *_all_at_once(probes, known)]


def timeout_s(environment: Mapping[str, str]) -> float:
    """How long the tests wait for anything: E2E_TIMEOUT_S."""
    return float(environment.get("E2E_TIMEOUT_S") or _TIMEOUT_S)


def nats_server(url: str) -> dict[str, Any]:
    """Where to connect, and as whom, as nats-py takes it, which would not decode what a URL holds."""
    parts = _urls(url, "nats", "tls", "ws", "wss")
    user, password = (unquote(each or "") for each in (parts[0].username, parts[0].password))
    whom = {"user": user, "password": password} if password else {"token": user} if user else {}
    return {"servers": [each._replace(netloc=each.netloc.rpartition("@")[2]).geturl() for each in parts], **whom}


def vault_client(place: Access) -> httpx.Client:
    """A client of Vault's HTTP API that sends the token."""
    headers = {"X-Vault-Token": place.token} if place.token else {}
    if place.namespace:
        headers["X-Vault-Namespace"] = place.namespace
    trusted = ssl.create_default_context(cafile=place.cacert) if place.cacert else True
    return httpx.Client(base_url=place.addr, headers=headers, verify=trusted, timeout=_ANSWER_S)


def _look(name: str, kind: Kind, found: Found) -> str | None:
    if name not in found:
        return f"{name} is missing" if kind.required else None
    try:
        is_good = kind.good(found[name])
    except (ValueError, psycopg.Error):
        is_good = False
    return None if is_good else f"{name} cannot be parsed: it must be {kind.like}"


def _places(tests: str, artifacts: str) -> list[str]:
    wrong = [] if Path(tests.partition("::")[0]).exists() else [f"TESTS_PATH names {tests}, which is not there"]
    try:
        Path(artifacts).mkdir(parents=True, exist_ok=True)
        is_writable = os.access(artifacts, os.W_OK)
    except OSError:
        is_writable = False
    return wrong if is_writable else [*wrong, f"ARTIFACTS_DIR names {artifacts}, where nothing can be written"]


def _all_at_once(probes: Mapping[str, Callable[[Found], None]], found: Found) -> list[str]:
    """What the servers' probes say. One that has not ended in time is left behind: its thread ends with the process."""
    said = {name: f"{name} is unreachable: {_address(found[name])}: no answer in {_ALL_S} s" for name in probes}

    def ask(name: str) -> None:
        try:
            probes[name](found)
            said[name] = ""
        except Unusable as error:
            said[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a driver's; its message may hold what it was given
            said[name] = f"{name} cannot be used: {_address(found[name])}: {type(error).__name__}"

    threads = [threading.Thread(target=ask, args=[name], daemon=True) for name in probes]
    deadline = time.monotonic() + _ALL_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [sentence for sentence in dict(said).values() if sentence]


def _postgres(found: Found) -> None:
    name, uri = "TEST_POSTGRES_URI", found["TEST_POSTGRES_URI"]
    _reach(name, uri)
    try:
        with psycopg.connect(uri, connect_timeout=_ANSWER_S, application_name="e2e") as connection:
            connection.execute("select 1")
    except psycopg.Error as error:
        said = str(error).partition("FATAL:")[2].split("\n")[0].strip()
        raise Unusable(_refused(name, uri, said) if said else _silent(name, uri)) from None


def _redis(found: Found) -> None:
    name, url = "TEST_REDIS_URL", found["TEST_REDIS_URL"]
    _reach(name, url)
    limits = {"socket_connect_timeout": _ANSWER_S, "socket_timeout": _ANSWER_S}
    try:
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **limits) as client:
            client.ping()
    except (AuthenticationError, ResponseError):
        raise Unusable(_refused(name, url, "wrong user or password")) from None
    except (RedisError, OSError):
        raise Unusable(_silent(name, url)) from None


def _nats(found: Found) -> None:
    name, url = "NATS_URL", found["NATS_URL"]
    _reach(name, url)
    told: list[str] = []
    try:
        asyncio.run(_jetstream(url, told))
    except (NatsError, OSError, TimeoutError) as error:
        words = " ".join([*told, str(error)]).lower()
        if "authorization" in words or "authentication" in words:
            raise Unusable(_refused(name, url, "wrong user, password or token")) from None
        if "jetstream" in words:
            raise Unusable(_refused(name, url, "JetStream is not enabled, or not for this user")) from None
        raise Unusable(_silent(name, url)) from None


async def _jetstream(url: str, told: list[str]) -> None:
    async def tell(error: Exception) -> None:
        told.append(str(error))

    limits: dict[str, Any] = {"connect_timeout": _ANSWER_S, "allow_reconnect": False, "max_reconnect_attempts": 1}
    client = await nats.connect(**nats_server(url), error_cb=tell, reconnect_time_wait=0, **limits)
    try:
        await client.jetstream(timeout=_ANSWER_S).account_info()
    except (NatsError, TimeoutError):
        told.append("jetstream")
        raise
    finally:
        await client.close()


def _vault(found: Found) -> None:
    """Without a token, whether Vault answers."""
    place = access(found, with_token=False)
    where, secret = _address(place.addr), place.data(SECRET)
    try:
        with vault_client(place) as client:
            token = client.get("/v1/auth/token/lookup-self").status_code
            answer = client.get(f"/v1/{secret}")
    except (httpx.HTTPError, OSError) as error:
        raise Unusable(f"VAULT_ADDR is unreachable: {where}: {_reason(error)}") from None
    if token == _SEALED:
        raise Unusable(f"VAULT_ADDR cannot be used: {where}: sealed, or not ready")
    if not place.token and token in (_BAD_REQUEST, _FORBIDDEN):
        return
    if token == _FORBIDDEN:
        raise Unusable(f"VAULT_TOKEN is refused: {where}: wrong, revoked or expired")
    if not httpx.codes.is_success(token):
        raise Unusable(f"VAULT_ADDR cannot be used: {where}: what answers is not Vault ({token})")
    if answer.status_code == _FORBIDDEN:
        raise Unusable(f"VAULT_TOKEN is refused: {where}: it may not read {secret}")
    if answer.status_code == _NOT_FOUND:
        raise Unusable(f"VAULT_ADDR cannot be used: {where}: there is no secret {secret}")
    if not answer.is_success:
        raise Unusable(f"VAULT_ADDR cannot be used: {where}: {answer.status_code} for {secret}")


def _service(found: Found) -> None:
    """Whether somebody answers. One that takes its time may be starting, and the tests wait for it."""
    name, url = "AGENT_EXECUTOR_URL", found["AGENT_EXECUTOR_URL"]
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=_ANSWER_S)
    except httpx.ReadTimeout:
        return
    except httpx.HTTPError as error:
        raise Unusable(f"{name} is unreachable: {_address(url)}: {_reason(error)}") from None


def _reach(name: str, url: str) -> None:
    """Raises Unusable where none of the hosts takes a connection."""
    told = []
    for host, port in _hosts(url):
        try:
            socket.create_connection((host, port), _ANSWER_S).close()
        except OSError as error:
            told.append(f"{host}:{port}: {_reason(error)}")
        else:
            return
    if told:
        raise Unusable(f"{name} is unreachable: {'; '.join(told)}")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no answer in {_ANSWER_S} s"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__


def _refused(name: str, url: str, said: str) -> str:
    return f"{name} is refused: {_address(url)}: {said}"


def _silent(name: str, url: str) -> str:
    return f"{name} is unreachable: {_address(url)}: it takes connections and does not answer as it should"


def _address(url: str) -> str:
    return ", ".join(f"{host}:{port}" for host, port in _hosts(url)) or "a socket"


def _hosts(url: str) -> list[tuple[str, int]]:
    """Hosts and ports of a URL; none where it names a Unix socket."""
    ports = {"nats": 4222, "tls": 4222, "ws": 80, "http": 80, "wss": 443, "https": 443}
    if url.startswith("postgres"):
        said = conninfo_to_dict(url)
        hosts = str(said.get("hostaddr") or said.get("host") or "localhost").split(",")
        numbers = str(said.get("port") or "5432").split(",")
        numbers = numbers if len(numbers) == len(hosts) else numbers[:1] * len(hosts)
        return [(host, int(port or "5432")) for host, port in zip(hosts, numbers, strict=True) if host[:1] != "/"]
    parts = [urlsplit(each.strip()) for each in url.split(",")]
    return [(each.hostname, each.port or ports.get(each.scheme, 6379)) for each in parts if each.hostname]


def _urls(text: str, *schemes: str) -> list[SplitResult]:
    """URLs with commas between them; ValueError where one is none, or has another scheme."""
    parts = [urlsplit(each.strip()) for each in text.split(",")]
    if not is_word(text.replace(" ", "")) or any(
        each.scheme not in schemes or not each.hostname or each.port == 0 for each in parts
    ):
        raise ValueError
    return parts


def _is_postgres(uri: str) -> bool:
    return uri.startswith(("postgresql://", "postgres://")) and bool(conninfo_to_dict(uri)) and _hosts(uri) is not None


KINDS: Mapping[str, Kind] = {
    "NATS_URL": Kind("like nats://user:password@host:4222", lambda url: _urls(url, "nats", "tls", "ws", "wss"), _nats),
    "TEST_POSTGRES_URI": Kind("like postgresql://user:password@host:5432/database", _is_postgres, _postgres),
    "TEST_REDIS_URL": Kind(
        "like redis://:password@host:6379/0",
        lambda url: _urls(url, "redis", "rediss") and redis.ConnectionPool.from_url(url),
        _redis,
    ),
    "VAULT_ADDR": Kind("like https://vault.example:8200", is_url, _vault),
    "VAULT_TOKEN": Kind("one word of ASCII", is_word),
    "AGENT_EXECUTOR_URL": Kind("like https://agent-executor.example", is_url, _service, required=False),
    "E2E_TIMEOUT_S": Kind("a number of seconds", lambda text: 0 < float(text) < float("inf"), required=False),
}
"""The session's variables, in the order in which they are told."""


def _told(sentences: Sequence[str]) -> int:
    if sentences:
        print("\n  ".join(["the tests cannot run:", *sentences]), flush=True)
    return CANNOT_RUN if sentences else 0


if __name__ == "__main__":
    sys.exit(_told(main(sys.argv[1], sys.argv[2], os.environ)))
