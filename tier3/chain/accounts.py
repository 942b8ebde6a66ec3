"""What `nox -s e2e` may do at each server: accounts with no more rights than docs/testing.md names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

import httpx
import psycopg
from psycopg import sql

USER = "e2e"
SCOPES = "jobs:submit,jobs:read,jobs:control"

_STREAMS = ("AGENT_STATUS", "AGENT_DEAD")
_NATS = {
    "publish": ["agent.execute.*", "$JS.API.INFO", "$JS.FC.>", *(f"$JS.API.CONSUMER.CREATE.{one}" for one in _STREAMS)],
    "subscribe": ["_INBOX.>"],
}
_REDIS = [
    *("resetkeys", "resetchannels", "~langgraph:events:*", "&langgraph:stream:*"),
    *("+ping", "+xrange", "+subscribe", "+unsubscribe", "+client|setinfo", "+hello"),
]
_POSTGRES: tuple[LiteralString, ...] = (
    "create role {role} login password {password}",
    "grant usage on schema agent_executor to {role}",
    "grant select on agent_executor.checkpoints to {role}",
)


def nats(password: str) -> Mapping[str, Any]:
    """The user, as the configuration of a NATS server has it."""
    return {"user": USER, "password": password, "permissions": _NATS}


def redis(client: Any, password: str) -> None:
    """Make the user. The client is one of Redis."""
    client.execute_command("ACL", "SETUSER", USER, "on", f">{password}", *_REDIS)


def postgres(dsn: str, password: str) -> None:
    """Make the role, in a database that is migrated."""
    names = {"role": sql.Identifier(USER), "password": sql.Literal(password)}
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in _POSTGRES:
            connection.execute(sql.SQL(statement).format(**names))


def vault(client: httpx.Client, path: str) -> str:
    """A token that may read the secret `e2e` below `path`. The client is one of Vault's API, with a root token."""
    policy = f'path "secret/data/{path}/e2e" {{ capabilities = ["read"] }}'
    client.post("/v1/sys/policies/acl/e2e", json={"policy": policy}).raise_for_status()
    made = client.post("/v1/auth/token/create", json={"policies": ["e2e"]}).raise_for_status()
    token: str = made.json()["auth"]["client_token"]
    return token
