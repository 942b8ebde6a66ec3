"""PostgreSQL, NATS with JetStream, Redis (Valkey) and Vault (OpenBao) on 127.0.0.1, from wheels.

    with start(Path("data")) as stack:
        print(stack.postgres.dsn(), stack.nats.url, stack.redis.url, stack.vault.addr)

They end with our process, however that ends. docs/embedded-servers.md says how this works.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tier3.stack.nats import Nats
from tier3.stack.postgres import Postgres
from tier3.stack.process import ServerError
from tier3.stack.redis import Redis
from tier3.stack.server import Server
from tier3.stack.vault import Vault

__all__ = ["KINDS", "Nats", "Postgres", "Redis", "Server", "ServerError", "Stack", "Vault", "start"]

# In this order they are spawned: PostgreSQL comes last, because its initdb has to end first and the others can use
# that time. All are asked to stop before any is waited for.
KINDS: Mapping[str, type[Server]] = {kind.name: kind for kind in (Vault, Nats, Redis, Postgres)}
S = TypeVar("S", bound=Server)


@dataclass(frozen=True)
class Stack:
    """The servers that `start` started, by name. Each can be stopped, killed, started and restarted on its own."""

    servers: Mapping[str, Server]

    @property
    def postgres(self) -> Postgres:
        """The PostgreSQL server; ServerError if it was not asked for, as with the others."""
        return self._get(Postgres)

    @property
    def nats(self) -> Nats:
        """The NATS server."""
        return self._get(Nats)

    @property
    def redis(self) -> Redis:
        """The Redis server."""
        return self._get(Redis)

    @property
    def vault(self) -> Vault:
        """The Vault server."""
        return self._get(Vault)

    def _get(self, kind: type[S]) -> S:
        server = self.servers.get(kind.name)
        if not isinstance(server, kind):
            raise ServerError(f"{kind.name} is not among the servers of this stack: {', '.join(self.servers)}")
        return server


@contextlib.contextmanager
def start(
    data: Path,
    kinds: Collection[str] = tuple(KINDS),
    *,
    standard_ports: bool = False,
    durable: bool = False,
    log_dir: Path | None = None,
) -> Iterator[Stack]:
    """Start the servers side by side, yield them when all are ready, stop them at the end.

    `data` holds one directory and one log (unless there is a `log_dir`) for each server, and what is there already is
    used. `standard_ports` takes 5432, 4222, 6379 and 8200 where they are free. `durable` trades speed for surviving a
    loss of power. ServerError if one cannot start, KeyError for a kind that is not among KINDS; none then stays behind.
    """
    options = {"standard_port": standard_ports, "durable": durable}
    servers = [KINDS[name](data, log_dir=log_dir, **options) for name in sorted(kinds, key=list(KINDS).index)]
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_ready()
        yield Stack({server.name: server for server in servers})
    finally:
        for server in servers:
            server.ask_to_stop()
        with contextlib.ExitStack() as stops:  # one that cannot be stopped does not keep the others
            for server in servers:
                stops.callback(server.stop)
