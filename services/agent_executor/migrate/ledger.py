"""What was applied: the table schema_migrations, and the lock that lets one runner at a time write it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from psycopg import errors

from .errors import Locked, Refused
from .files import Migration
from .server import Connection, pause

SCHEMA = "agent_executor"
TABLE = f"{SCHEMA}.schema_migrations"
LOCK_KEY = 0x6167656E74  # "agent"; advisory locks are a database's own
_POLL_S = 0.1
BY = "session_user || ', ' || current_setting('application_name')"  # whose name holds the host's, which is the pod's
_CREATE = f"""create table if not exists {TABLE} (
    version bigint primary key,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default clock_timestamp()
);
alter table {TABLE} add column if not exists duration_ms integer not null default 0;
alter table {TABLE} add column if not exists "by" text not null default {BY};
"""
_HOLDER = """select pid, coalesce(usename, '?') || ' at ' || coalesce(host(client_addr), 'the server itself'),
    coalesce(application_name, '?'), now() - backend_start, coalesce(state, '?'), coalesce(left(query, 100), '')
from pg_locks join pg_stat_activity using (pid)
where locktype = 'advisory' and granted and objsubid = 1
    and database = (select oid from pg_database where datname = current_database())
    and classid::bigint = %s and objid::bigint = %s"""


class Row(NamedTuple):
    """One applied migration."""

    name: str
    sha256: str


def lock(connection: Connection, wait_s: float) -> None:
    """Become the one runner of this database, until the connection ends.

    Polled: who waits inside pg_advisory_lock holds a snapshot, for which CREATE INDEX CONCURRENTLY waits in turn.

    Raises:
        Locked: after `wait_s`, naming the session that holds the lock.
    """
    deadline = time.monotonic() + wait_s
    while not _value(connection, "select pg_try_advisory_lock(%s)", LOCK_KEY):
        if time.monotonic() >= deadline:
            raise Locked(f"lock: another run holds it after {wait_s:g} s: {_holder(connection)}")
        pause(_POLL_S * random.uniform(0.5, 1.5))  # noqa: S311 - so that runners do not poll in step


def rows(connection: Connection, *, complete: bool = False) -> dict[int, Row] | None:
    """What was applied, by version; None where there is no ledger. `complete` adds columns that an old one lacks.

    Raises:
        Refused: the table of that name is another tool's.
    """
    source = f'(select version, name, sha256, duration_ms, "by" from {TABLE})' if complete else TABLE  # noqa: S608
    try:
        found = connection.execute(f"select version, name, sha256 from {source} ledger").fetchall()  # noqa: S608
    except errors.UndefinedColumn as error:
        if not complete:
            raise Refused(f"{TABLE} is another tool's table, no ledger of ours: {error.diag.message_primary}") from None
        known = rows(connection)
        connection.execute(_CREATE)
        return known
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return None
    return {version: Row(name, sha256) for version, name, sha256 in found}


def create(connection: Connection) -> None:
    """Make the schema and the table where they are missing; under the lock, since IF NOT EXISTS races."""
    if not _value(connection, "select to_regnamespace(%s) is not null", SCHEMA):
        with suppress(errors.DuplicateSchema):
            connection.execute(f"create schema {SCHEMA}")
    connection.execute(_CREATE)


def record(connection: Connection, migrations: Iterable[Migration]) -> None:
    """Note that these were applied, without running them."""
    with connection.cursor() as cursor:
        cursor.executemany(
            f"insert into {TABLE} (version, name, sha256) values (%s, %s, %s)",  # noqa: S608
            [(each.version, each.name, each.sha256) for each in migrations],
        )


def accept(connection: Connection, edited: Iterable[Migration]) -> None:
    """Note that these files are as they should be, edited or not."""
    for each in edited:
        connection.execute(f"update {TABLE} set sha256 = %s where version = %s", [each.sha256, each.version])  # noqa: S608


def history(connection: Connection) -> dict[int, tuple[str, str]]:
    """For people: version to name and "applied ... in ... ms by ..."; "?" for what an old ledger lacks."""
    columns = "version, name, to_char(applied_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS\"Z\"')"
    columns += ", to_jsonb(ledger) ->> 'duration_ms', to_jsonb(ledger) ->> 'by'"
    found = connection.execute(f"select {columns} from {TABLE} ledger")  # noqa: S608
    return {
        version: (name, f"applied {applied_at} in {ms or '?'} ms by {by or '?'}")
        for version, name, applied_at, ms, by in found
    }


def _holder(connection: Connection) -> str:
    row = connection.execute(_HOLDER, [LOCK_KEY >> 32, LOCK_KEY & 0xFFFFFFFF]).fetchone()
    if row is None:
        return "it has just ended; run again"
    pid, who, application, age, state, query = row
    return f"pid {pid}, {who}, application {application}, connected for {age}, {state}: {' '.join(query.split())}"


def _value(connection: Connection, query: str, *parameters: object) -> object:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None
