"""The migration runner: applies what is pending of migrations/*.up.sql, in order, each in its own transaction.

Owns the schema `agent_executor` and its record `schema_migrations`. Imports psycopg and nothing of the service, and
reads its own few variables, so that a Kubernetes Job starts at once. Two runners at a time wait for each other.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

SCHEMA = "agent_executor"
LOCK_WAIT_S = 60.0
_LOCK = 0x6167656E74  # "agent": the advisory lock's key
_POLL_S = 0.1
_NAME = re.compile(r"(\d+)_(\w+)\.up\.sql")


class MigrationError(Exception):
    """What stopped the run. The message names the file, or every missing or bad variable."""


@dataclass(frozen=True)
class Settings:
    """Where the database is and where the files are."""

    dsn: str
    directory: Path


@dataclass(frozen=True)
class Migration:
    """One file."""

    version: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the file's text; a change after it was applied is refused."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def settings(environment: Mapping[str, str]) -> Settings:
    """Read POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD (required) and MIGRATION_DIR.

    Raises:
        MigrationError: naming every missing or bad variable.
    """
    port = environment.get("POSTGRES_PORT") or "5432"
    wrong = [] if environment.get("POSTGRES_PASSWORD") else ["POSTGRES_PASSWORD is required"]
    if not port.isdecimal():
        wrong.append("POSTGRES_PORT must be a number")
    if wrong:
        raise MigrationError("; ".join(wrong))
    dsn = make_conninfo(
        host=environment.get("POSTGRES_HOST") or "postgresql.bizmatters-dev.svc.cluster.local",
        port=port,
        dbname=environment.get("POSTGRES_DB") or "langgraph_dev",
        user=environment.get("POSTGRES_USER") or "postgres",
        password=environment["POSTGRES_PASSWORD"],
        connect_timeout=10,
        application_name="agent-executor-migrate",
    )
    return Settings(dsn, Path(environment.get("MIGRATION_DIR") or "migrations"))


def read(directory: Path) -> list[Migration]:
    """The up files of `directory` in the order of their numbers.

    Raises:
        MigrationError: no files, a name that fits no pattern, a number used twice, not UTF-8, a NUL character.
    """
    found: dict[int, Migration] = {}
    for path in sorted(directory.glob("*.up.sql")):
        named = _NAME.fullmatch(path.name)
        if named is None:
            raise MigrationError(f"{path}: the name must be NUMBER_words.up.sql")
        version = int(named[1])
        if version in found:
            raise MigrationError(f"{path}: number {version} is used by {found[version].name} already")
        found[version] = Migration(version, named[2], _text(path))
    if not found:
        raise MigrationError(f"{directory}: no *.up.sql files")
    return [found[version] for version in sorted(found)]


def up(wanted: Settings) -> list[Migration]:
    """Apply what is pending; returns it.

    Raises:
        MigrationError: a file fails, was edited after it was applied, or the database cannot be reached.
    """
    migrations = read(wanted.directory)
    try:
        with psycopg.connect(wanted.dsn, autocommit=True) as connection, _locked(connection):
            applied = _applied(connection)
            edited = [each for each in migrations if applied.get(each.version, each.sha256) != each.sha256]
            if edited:
                names = ", ".join(f"{each.version:03d}_{each.name}" for each in edited)
                raise MigrationError(f"edited after they were applied: {names}")
            pending = [each for each in migrations if each.version not in applied]
            for migration in pending:
                _apply(connection, migration)
            return pending
    except psycopg.OperationalError as error:
        raise MigrationError(f"database: {str(error).strip()}") from None


def main(environment: Mapping[str, str]) -> int:
    """Apply what is pending and say so, one line a file. Returns the exit status: 0, or 1 with the reason printed."""
    try:
        applied = up(settings(environment))
    except MigrationError as error:
        print(f"migrations: {error}")  # noqa: T201 - a command's report
        return 1
    for migration in applied:
        print(f"applied {migration.version:03d}_{migration.name}")  # noqa: T201
    print(f"migrations: {len(applied)} applied, nothing pending")  # noqa: T201
    return 0


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MigrationError(f"{path}: not UTF-8 at byte {error.start}") from None
    if "\0" in text:  # libpq would stop reading there
        raise MigrationError(f"{path}: holds a NUL character")
    return text


@contextmanager
def _locked(connection: psycopg.Connection) -> Iterator[None]:
    """One runner at a time. Polled: who waits inside pg_advisory_lock deadlocks with CREATE INDEX CONCURRENTLY."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while not _one(connection, "select pg_try_advisory_lock(%s)", _LOCK):
        if time.monotonic() > deadline:
            raise MigrationError(f"another migration run holds the lock for more than {LOCK_WAIT_S:.0f} s")
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(%s)", [_LOCK])


def _applied(connection: psycopg.Connection) -> dict[int, str]:
    connection.execute(f"create schema if not exists {SCHEMA}")
    connection.execute(
        f"create table if not exists {SCHEMA}.schema_migrations (version bigint primary key, name text not null,"
        " sha256 text not null, applied_at timestamptz not null default now())"
    )
    rows = connection.execute(f"select version, sha256 from {SCHEMA}.schema_migrations").fetchall()  # noqa: S608
    return dict(rows)


def _apply(connection: psycopg.Connection, migration: Migration) -> None:
    """The change and its record in one transaction."""
    try:
        with connection.transaction():
            connection.execute(f"set local search_path to {SCHEMA}")
            connection.execute(migration.text.encode())
            connection.execute(
                f"insert into {SCHEMA}.schema_migrations (version, name, sha256) values (%s, %s, %s)",  # noqa: S608
                [migration.version, migration.name, migration.sha256],
            )
    except psycopg.Error as error:
        raise MigrationError(f"{migration.version:03d}_{migration.name}: {str(error).strip()}") from None


def _one(connection: psycopg.Connection, query: str, *parameters: object) -> object:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None
