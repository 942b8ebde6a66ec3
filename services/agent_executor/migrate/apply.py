"""Runs one file and its record: in one transaction, or statement by statement where the file asks for that.

A transactional file travels as one query with its BEGIN, its record and its COMMIT around it: one round trip, as a
bare client would need. After kill -9 at any point the server either committed all of it or rolled all of it back.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

from .errors import Failed, Locked
from .explain import explain
from .files import Migration
from .judge import File
from .ledger import BY, SCHEMA, TABLE
from .server import Connection, ServerError, pause, run
from .statements import split

ATTEMPTS = 10
_PAUSE_S = 1.0
_RETRIED = ("55P03", "40P01", "40001")  # lock_not_available, deadlock_detected, serialization_failure
_OURS = "agent_executor.migrating"
# SET LOCAL ends with its transaction: if the file ended it, the setting is '' when the record wants it as a number,
# and nothing is recorded. https://www.postgresql.org/docs/current/sql-set.html
_BEGIN = f"begin; set local {_OURS} = '{{version}}';\n"
_BEGIN_COUNT = 2
_OWN = f"current_setting('{_OURS}')::bigint"
# A file's session state is not the next one's. DISCARD ALL would do, but cannot be in a transaction, and gives up our
# lock. No quote, dollar or comment may stand between a file and its record that could end one left open in the file.
_AS_OURSELVES = "\n;reset session authorization; reset role; "
_AS_OURSELVES_COUNT = 2
_RESET = "close all; reset all; deallocate all; unlisten *; discard temp; discard sequences; discard plans; commit"
_FORGET = "rollback; reset session authorization; close all; deallocate all; discard temp; reset all"
_NOT_OURS = "the file ended the transaction that it runs in, or reset all settings; it is not recorded"
_INDEX = re.compile(r"^ CREATE (?:UNIQUE )?INDEX (?:CONCURRENTLY )?IF NOT EXISTS (\S+) ON (?:ONLY )?(?:(\S+) \. )?")
_INVALID = """select c.oid::regclass::text from pg_index i join pg_class c on c.oid = i.indexrelid
where not i.indisvalid and c.relkind = 'i' and c.relname = %s
    and c.relnamespace = (select oid from pg_namespace where nspname = %s)"""


def up(connection: Connection, migration: Migration, told: Callable[[str], None]) -> float:
    """Apply a migration; returns the milliseconds it took.

    Raises:
        Failed: with the place in the file, and nothing of a transactional file is left.
        Locked: a lock could not be had in ATTEMPTS attempts.
    """
    values = f"{_OWN}, '{migration.name}', '{migration.sha256}', {{ms}}, {BY}"
    record = f'insert into {TABLE} (version, name, sha256, duration_ms, "by") values ({values})'  # noqa: S608
    return _patiently(connection, migration.up, migration.version, record, told)


def down(connection: Connection, migration: Migration, told: Callable[[str], None]) -> float:
    """Take a migration back; returns the milliseconds it took. Raises as `up` does."""
    record = f"delete from {TABLE} where version = {_OWN}"  # noqa: S608
    return _patiently(connection, migration.down, migration.version, record, told)


def _patiently(connection: Connection, file: File, version: int, record: str, told: Callable[[str], None]) -> float:
    """The whole file again when a lock was not to be had: who waits for a lock blocks all that come after."""
    once = _together if file.transactional else _one_by_one
    for attempt in range(1, ATTEMPTS + 1):
        started = time.perf_counter()
        try:
            once(connection, file, version, record)
            return (time.perf_counter() - started) * 1000
        except ServerError as error:
            run(connection, _FORGET)
            if error.sqlstate not in _RETRIED:
                raise _failed(file, error) from None
            if attempt == ATTEMPTS:
                text = f"{explain(file, error)}\ngave up after {ATTEMPTS} attempts; {_blocker(connection)}"
                raise Locked(text) from None
            told(f"{file.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
            pause(_PAUSE_S * random.uniform(0.2, 1.0))  # noqa: S311
    raise AssertionError


def _together(connection: Connection, file: File, version: int, record: str) -> None:
    begin = _BEGIN.format(version=version)
    ms = "extract(epoch from clock_timestamp() - now()) * 1000"
    query = f"{begin}{file.text}{_AS_OURSELVES}{record.format(ms=ms)}; {_RESET}"
    try:
        run(connection, query)
    except ServerError as error:
        raise _placed(file, error, len(begin)) from None


def _one_by_one(connection: Connection, file: File, version: int, record: str) -> None:
    started = time.perf_counter()
    for statement in split(file.text).statements:
        if index := _INDEX.search(statement.sentence):
            _drop_invalid(connection, _identifier(index[1]), index[2])
        try:
            # CONCURRENTLY waits for old transactions, in nobody's way; given up, it leaves an invalid index behind.
            unhurried = "CONCURRENTLY" in statement.tokens
            run(connection, "set lock_timeout = 0" if unhurried else "reset lock_timeout")
            run(connection, statement.text)
        except ServerError as error:
            position = statement.offset + (error.position or 1)
            raise ServerError(error.message, error.sqlstate, position, 0, error.notes) from None
    ms = round((time.perf_counter() - started) * 1000)
    run(connection, f"{_BEGIN.format(version=version)}{_AS_OURSELVES}{record.format(ms=ms)}; {_RESET}")


def _drop_invalid(connection: Connection, name: str, schema: str | None) -> None:
    """An index that CREATE INDEX CONCURRENTLY left unfinished would satisfy IF NOT EXISTS."""
    wanted = [name, _identifier(schema or SCHEMA)]
    for (found,) in connection.execute(_INVALID, wanted).fetchall():
        run(connection, "set lock_timeout = 0")
        run(connection, f"drop index concurrently if exists {found}")


def _identifier(token: str) -> str:
    """The name that a token stands for."""
    return token[1:-1].replace('""', '"') if token[0] == '"' else token.lower()


def _placed(file: File, error: ServerError, before: int) -> ServerError:
    """The error with its position in the file: the server's, or the beginning of the statement that failed."""
    script = split(file.text)
    message, position = error.message, error.position
    ran = error.done - _BEGIN_COUNT
    if position is not None and position - before > len(file.text):
        if error.sqlstate == "42601":
            message = "syntax error at the end of the file"
        elif ran > len(script.statements):
            message = f"{_NOT_OURS} ({error.message})"
        position = len(file.text.rstrip())
    elif position is not None:
        position -= before
    elif 0 <= ran < len(script.statements):
        position = script.statements[ran].offset + 1
    else:
        own = error.sqlstate in ("22P02", "42704") and ran == len(script.statements) + _AS_OURSELVES_COUNT
        message = f"{_NOT_OURS} ({message})" if own else f"{message} (at the end, when the file was committed)"
    return ServerError(message, error.sqlstate, position, 0, error.notes)


def _failed(file: File, error: ServerError) -> Failed:
    advice = ""
    if error.sqlstate == "25001":
        advice = "\nHINT: put -- migrate: no-transaction at the file's top"
    return Failed(explain(file, error) + advice)


def _blocker(connection: Connection) -> str:
    row = connection.execute(
        "select pid, usename, application_name, now() - xact_start, coalesce(left(query, 100), '')"
        " from pg_stat_activity where xact_start is not null and datname = current_database()"
        " and pid <> pg_backend_pid() order by xact_start limit 1"
    ).fetchone()
    if row is None:
        return "nobody is in the way any more"
    pid, user, application, age, query = row
    return (
        f"the oldest transaction is pid {pid}, {user}, application {application}, {age} old: {' '.join(query.split())}"
    )
