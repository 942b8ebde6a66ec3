"""What was applied: the table schema_migrations, and the lock that lets one runner at a time write it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from psycopg import errors
from psycopg.sql import quote

from .errors import Locked, Refused
from .files import Migration
from .server import WHO, Connection

SCHEMA = "agent_executor"
TABLE = f"{SCHEMA}.schema_migrations"
LOCK_KEY = 0x6167656E74  # "agent"; advisory locks are a database's own
LOCK = f"pg_try_advisory_lock({LOCK_KEY}) and pg_try_advisory_lock({LOCK_KEY})"  # twice: see apply.py
HALF = ""  # for the sha256 of a migration that is being taken back statement by statement
BY = f"session_user || {quote(f', {WHO}')}"
HOLDER = f"""pid = (select pid from pg_locks
    where locktype = 'advisory' and granted and objsubid = 1
        and database = (select oid from pg_database where datname = current_database())
        and (classid::bigint << 32) + objid::bigint = {LOCK_KEY})"""  # noqa: S608
_POLL_S = 0.1
_CREATE = f"""create table if not exists {TABLE} (
    version bigint primary key,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default clock_timestamp(),
    duration_ms integer not null,
    "by" text not null
)"""
STORY = """format('applied %s in %s ms by %s',
    to_char(applied_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'), duration_ms, "by")"""
_SESSION = """select pid, usename, coalesce(host(client_addr), 'the server itself'), application_name, state,
    now() - coalesce(xact_start, backend_start), query from pg_stat_activity"""


class Row(NamedTuple):
    """One applied migration: how it was called, and for people when, in what time and by whom."""

    name: str
    sha256: str
    story: str = ""


Known = Mapping[int, Row]


def lock(connection: Connection, wait_s: float, hide: Callable[[str], str]) -> None:
    """Become the one runner of this database, until the connection ends.

    Polled: who waits inside pg_advisory_lock holds a snapshot, for which CREATE INDEX CONCURRENTLY waits in turn.

    Raises:
        Locked: after `wait_s`, naming the session that holds the lock.
    """
    deadline = time.monotonic() + wait_s
    while not _value(connection, f"select {LOCK}"):
        if time.monotonic() >= deadline:
            holder = session(connection, HOLDER, hide) or "it has just ended; run again"
            raise Locked(f"lock: another run holds it after {wait_s:g} s: {holder}")
        time.sleep(_POLL_S * random.uniform(0.5, 1.5))  # noqa: S311 - so that runners do not poll in step


def session(connection: Connection, where: str, hide: Callable[[str], str]) -> str | None:
    """The session of `where`, the one with the oldest transaction first: for people. None if there is none."""
    found = connection.execute(f"{_SESSION} where {where} order by xact_start limit 1".encode()).fetchone()
    if not found:
        return None
    pid, user, address, application, state, age, query = ("?" if each is None else each for each in found)
    did = " ".join(hide(query).split())[:100]
    return f"pid {pid}, {user} at {address}, application {application}, {state} for {age}: {did}"


def rows(connection: Connection, story: str = "''") -> Known | None:
    """What was applied, by version; None where there is no ledger. `story` is an SQL expression.

    Raises:
        Refused: the table of that name is another tool's.
    """
    try:
        found = connection.execute(f"select version, name, sha256, {story} from {TABLE}".encode()).fetchall()  # noqa: S608
    except errors.UndefinedColumn as error:
        raise Refused(f"{TABLE} is another tool's table, no ledger of ours: {error.diag.message_primary}") from None
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return None
    return {version: Row(name, sha256, story) for version, name, sha256, story in found}


def create(connection: Connection, applied: Iterable[Migration]) -> None:
    """Make the schema and the table, and note what was applied without us. Under the lock: IF NOT EXISTS races."""
    with connection.transaction(), connection.cursor() as cursor:
        if not _value(connection, "select to_regnamespace(%s) is not null", SCHEMA):
            cursor.execute(f"create schema {SCHEMA}")
        cursor.execute(_CREATE)
        cursor.executemany(
            f'insert into {TABLE} (version, name, sha256, duration_ms, "by") values (%s, %s, %s, 0, {BY})',  # noqa: S608
            [(each.version, each.name, each.sha256) for each in applied],
        )


def accept(connection: Connection, edited: Iterable[Migration]) -> None:
    """Note that these files are as they should be, edited or not."""
    for each in edited:
        query = f"update {TABLE} set name = %s, sha256 = %s where version = %s"  # noqa: S608
        connection.execute(query, [each.name, each.sha256, each.version])


def _value(connection: Connection, query: str, *parameters: object) -> object:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None
