"""Runs one file and its record: in one transaction, or statement by statement where the file asks for that.

A transactional file travels as one query with its BEGIN, its record and its COMMIT around it: one round trip, as a
bare client would need. After kill -9 at any point the server either committed all of it or rolled all of it back.
"""

from __future__ import annotations

import random
import re
import time

from .errors import Failed, Locked
from .explain import explain
from .files import Migration
from .judge import File
from .ledger import BY, HALF, LOCK, LOCK_KEY, TABLE, session
from .report import Report
from .server import RETRIED, Connection, ServerError, run
from .statements import Statement, split

ATTEMPTS = 10
_PAUSE_S = 1.0
_OURS = "agent_executor.migrating"
_ENDED = "the file ended the transaction that it runs in, or reset all settings; it is not recorded"
_UNLOCKED = "the file gave up the lock of this run; it is not recorded"
# SET LOCAL ends with its transaction: if the file ended it, the record wants a complaint as a number, and is refused.
# https://www.postgresql.org/docs/current/sql-set.html
_BEGIN = f"begin; set local {_OURS} = '{{version}}';\n"
_BEGIN_COUNT = 2
_VERSION = f"""(case when {{lock}} then coalesce(nullif(current_setting('{_OURS}', true), ''), '{_ENDED}')
    else '{_UNLOCKED}' end)::bigint"""
# The run's lock is held twice, and so given up and taken without a gap. Where a file may have taken locks of its own,
# all are given up, while the transaction holds ours.
_HELD = f"pg_advisory_unlock({LOCK_KEY}) and pg_try_advisory_lock({LOCK_KEY})"
_HELD_ALONE = f"""pg_try_advisory_xact_lock({LOCK_KEY}) and pg_advisory_unlock({LOCK_KEY})
    and pg_advisory_unlock_all() is not null and {LOCK}"""
# A file's session state is not the next one's. DISCARD ALL would do, but cannot be in a transaction, and gives up our
# lock. No quote, dollar or comment may stand between a file and its record that could end one left open in the file.
_AS_OURSELVES = "\n;reset session authorization; reset role; "
_RECORDED = 3  # how many statements there are between a file and the end of its record, at most
_RESET = "close all; reset all; deallocate all; unlisten *; discard temp; discard sequences; commit"
_FORGET = "rollback; reset session authorization; close all; deallocate all; discard temp; reset all"
_ENDS = ("COMMIT", "ROLLBACK", "PREPARE TRANSACTION")
_INDEX = re.compile(r"^ CREATE (UNIQUE )?INDEX (CONCURRENTLY )?(IF NOT EXISTS )?(?!ON )")
_INDEXES = """select c.oid::regclass::text, indisvalid or relkind = 'I'
from pg_index i join pg_class c on c.oid = indexrelid
where indrelid = to_regclass(%s) and relname = (parse_ident(%s)::name[])[1]"""
_OTHERS = "xact_start is not null and datname = current_database() and pid <> pg_backend_pid()"


def up(connection: Connection, migration: Migration, report: Report) -> float:
    """Apply a migration; returns the milliseconds it took.

    Raises:
        Failed: with the place in the file, and nothing of a transactional file is left.
        Locked: a lock could not be had in ATTEMPTS attempts.
    """
    values = f"{_VERSION}, '{migration.name}', '{migration.sha256}', {{ms}}, {BY}"
    record = f'insert into {TABLE} (version, name, sha256, duration_ms, "by") values ({values})'  # noqa: S608
    if not migration.up.transactional:  # and so may have been half taken back
        record = f"delete from {TABLE} where version = {migration.version} and sha256 = '{HALF}'; {record}"  # noqa: S608
    return _patiently(connection, migration.up, migration.version, record, report)


def down(connection: Connection, migration: Migration, report: Report) -> float:
    """Take a migration back; returns the milliseconds it took. Raises as `up` does."""
    if not migration.down.transactional:  # or `up` would take what is left of it for the whole
        run(connection, f"update {TABLE} set sha256 = '{HALF}' where version = {migration.version}")  # noqa: S608
    record = f"delete from {TABLE} where version = (select {_VERSION})"  # noqa: S608
    return _patiently(connection, migration.down, migration.version, record, report)


def _patiently(connection: Connection, file: File, version: int, record: str, report: Report) -> float:
    """The whole file again when a lock was not to be had: who waits for a lock blocks all that come after."""
    once = _together if file.transactional else _one_by_one
    for attempt in range(1, ATTEMPTS + 1):
        started = time.perf_counter()
        try:
            once(connection, file, _BEGIN.format(version=version), f"{record}; {_RESET}")
            return (time.perf_counter() - started) * 1000
        except ServerError as error:
            run(connection, _FORGET)
            text = explain(file, error, report.hide)
            if error.sqlstate not in RETRIED:
                advice = error.sqlstate == "25001" and file.transactional
                hint = "\nHINT: put -- migrate: no-transaction at the file's top" if advice else ""
                raise Failed(text + hint) from None
            if attempt == ATTEMPTS:
                other = session(connection, _OTHERS, report.hide)
                blocker = f"the oldest transaction is {other}" if other else "nobody is in the way any more"
                raise Locked(f"{text}\ngave up after {ATTEMPTS} attempts; {blocker}") from None
            report.say(f"{file.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
            time.sleep(_PAUSE_S * random.uniform(0.2, 1.0))  # noqa: S311
    raise AssertionError


def _together(connection: Connection, file: File, begin: str, record: str) -> None:
    ms = "extract(epoch from clock_timestamp() - now()) * 1000"
    try:
        lock = _HELD_ALONE if "advisory" in file.text.lower() else _HELD
        run(connection, f"{begin}{file.text}{_AS_OURSELVES}{record.format(ms=ms, lock=lock)}")
    except ServerError as error:
        _place(error, file.text, len(begin))
        raise


def _one_by_one(connection: Connection, file: File, begin: str, record: str) -> None:
    started = time.perf_counter()
    statements = split(file.text).statements
    managed = not any(each.words[0] == "SET" and "LOCK_TIMEOUT" in each.words for each in statements)
    for statement in statements:
        if managed:  # CONCURRENTLY waits for old transactions, in nobody's way; given up, it leaves an invalid index
            run(connection, "set lock_timeout = 0" if "CONCURRENTLY" in statement.words else "reset lock_timeout")
        try:
            _one(connection, file, statement)
        except ServerError as error:
            error.position = statement.offset + (error.position or 1)
            raise
    try:
        ms = round((time.perf_counter() - started) * 1000)
        run(connection, f"{begin}{_AS_OURSELVES}{record.format(ms=ms, lock=_HELD_ALONE)}")
    except ServerError as error:
        _place(error, "", len(begin))
        raise


def _one(connection: Connection, file: File, statement: Statement) -> None:
    """A statement. An index that CREATE INDEX left unfinished, now or before, would satisfy IF NOT EXISTS."""
    index = _index(statement) if _INDEX.search(statement.sentence) else None
    for name, valid in connection.execute(_INDEXES, index) if index else ():
        if not valid:
            run(connection, f"drop index concurrently if exists {name}")
    run(connection, statement.text)
    if index and [valid for _, valid in connection.execute(_INDEXES, index)] != [True]:
        table, name = index
        trouble = f"{table} has no finished index {name} after this; something else may have the name"
        raise Failed(f"{file.at(statement.offset)}: {trouble}")


def _index(statement: Statement) -> tuple[str, str]:
    """The table and the name of the index that a statement makes, as they are written."""
    texts = [token.text for token in statement.tokens]
    on = statement.words.index("ON")
    at = on + 2 if statement.words[on + 1] == "ONLY" else on + 1
    end = at + 1
    while texts[end : end + 1] == ["."]:
        end += 2
    return "".join(texts[at:end]), texts[on - 1]


def _place(error: ServerError, text: str, before: int) -> None:
    """Make the error's position one in the file: the server's, or the beginning of the statement that failed."""
    starts = [statement.offset + 1 for statement in split(text).statements]
    done = error.done[_BEGIN_COUNT:]
    position, error.position = error.position, None
    if complaint := next((each for each in (_ENDED, _UNLOCKED) if each in error.message), None):
        error.message = complaint
        error.position = next((start for start, tag in zip(starts, done, strict=False) if tag in _ENDS), None)
    elif position and position - before <= len(text):
        error.position = position - before
    elif position and error.sqlstate == "42601":
        error.message, error.position = "syntax error at the end of the file", len(text.rstrip())
    elif len(done) < len(starts):
        error.position = starts[len(done)]
    elif len(done) <= len(starts) + _RECORDED:
        error.message += f" (writing the record to {TABLE})"
    else:
        error.message += " (at the end, when the file was committed)"
