"""One connection: simple queries with every result, PostgreSQL's errors as values, and what of them the user reads.

psycopg's own execute() hides how many statements of a file ran before one failed, so this speaks to libpq through
psycopg.pq, which is documented: https://www.psycopg.org/psycopg3/docs/api/pq.html
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg import pq
from psycopg.pq import DiagnosticField as Field
from psycopg.pq import ExecStatus

from .errors import Failed, MigrationError, Refused, Unreachable

Connection: TypeAlias = psycopg.Connection[Any]
# Reset to these by RESET ALL, as they come with the connection. With the last one the server notices within a second
# that we were killed, and gives up a long statement and our lock.
_OPTIONS = "-c search_path={schema} -c lock_timeout={lock_timeout_ms} -c standard_conforming_strings=on"
_OPTIONS += " -c client_connection_check_interval=1000"
_CANCEL_S = 2.0
_LOST = re.compile("57P0[123]|08...")  # https://www.postgresql.org/docs/current/errcodes-appendix.html
_LOGIN = re.compile(r"password authentication failed|no pg_hba.conf entry|no password supplied|role .* does not exist")
_FINE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY)


@dataclass(eq=False)
class ServerError(Exception):
    """What the server said. `done` statements of the query had succeeded; `position` counts characters from 1."""

    message: str
    sqlstate: str
    position: int | None
    done: int
    notes: tuple[str, ...]  # DETAIL, HINT, CONTEXT: as psql would print them


@contextmanager
def connect(dsn: str, schema: str, lock_timeout_s: float, patience_s: float) -> Iterator[Connection]:
    """A connection in autocommit mode, closed in the end.

    Raises:
        Unreachable: nobody answers, or the connection is lost in the body.
        Refused: the server refuses the role or its password, or an own statement in the body fails.
    """
    options = _OPTIONS.format(schema=schema, lock_timeout_ms=round(lock_timeout_s * 1000))
    try:
        connection = psycopg.connect(
            dsn,
            autocommit=True,
            prepare_threshold=None,  # a file's, or our own, DEALLOCATE ALL would end psycopg's
            options=options,
            client_encoding="utf8",
            connect_timeout=max(2, round(patience_s)),
        )
    except psycopg.Error as error:
        lines = " ".join(str(error).split())
        raise (Refused if _LOGIN.search(lines) else Unreachable)(f"database: {lines}") from None
    try:
        yield connection
    except KeyboardInterrupt:
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=_CANCEL_S)
        raise
    except ServerError as error:
        raise Refused(f"database: {error.message} (SQLSTATE {error.sqlstate})") from None
    except psycopg.Error as error:
        raise _named(connection, error) from None
    finally:
        connection.close()


def run(connection: Connection, query: str) -> int:
    """Run a query of any number of statements; returns how many there were.

    Raises:
        ServerError: one failed. The transaction, if there was one, is still to be rolled back.
        Unreachable: the connection was lost.
    """
    pgconn = connection.pgconn
    done = 0
    try:
        pgconn.send_query(query.encode())
        for result in _results(pgconn):
            if result.status == ExecStatus.FATAL_ERROR:
                failed = _failure(result, done)
            elif result.status not in _FINE:
                raise Failed("COPY needs a client that sends or takes data")
            else:
                done += 1
                continue
            for _ in _results(pgconn):
                pass
            raise failed
    except psycopg.OperationalError as error:
        raise Unreachable(f"database: the connection was lost: {str(error).strip()}") from None
    except ServerError as error:
        if pgconn.status != pq.ConnStatus.OK or _LOST.fullmatch(error.sqlstate):
            raise Unreachable(f"database: the connection was lost: {error.message}") from None
        raise
    return done


def pause(seconds: float) -> None:
    """Sleep; the one place that does."""
    time.sleep(seconds)


def _results(pgconn: pq.abc.PGconn) -> Iterator[pq.abc.PGresult]:
    """Results as they come. Waits in select, where a signal can interrupt, and not in libpq."""
    socket = pgconn.socket
    while pgconn.flush():
        readable, _, _ = select.select([socket], [socket], [])
        if readable:
            pgconn.consume_input()
    while True:
        while pgconn.is_busy():
            select.select([socket], [], [])
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return
        yield result


def _failure(result: pq.abc.PGresult, done: int) -> ServerError:
    def field(name: Field) -> str:
        return (result.error_field(name) or b"").decode("utf-8", "replace")

    notes = [(label, field(label)) for label in (Field.MESSAGE_DETAIL, Field.MESSAGE_HINT, Field.CONTEXT)]
    return ServerError(
        field(Field.MESSAGE_PRIMARY) or (result.error_message or b"").decode("utf-8", "replace").strip(),
        field(Field.SQLSTATE),
        int(field(Field.STATEMENT_POSITION) or 0) or None,
        done,
        tuple(f"{label.name.removeprefix('MESSAGE_')}: {text}" for label, text in notes if text),
    )


def _named(connection: Connection, error: psycopg.Error) -> MigrationError:
    """A failure of one of the runner's own statements."""
    if connection.broken or _LOST.fullmatch(error.sqlstate or "08000"):
        return Unreachable(f"database: the connection was lost: {' '.join(str(error).split())}")
    return Refused(f"database: {' '.join(str(error).split())} (SQLSTATE {error.sqlstate})")
