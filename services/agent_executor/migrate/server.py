"""One connection: simple queries with every result, and what is known when PostgreSQL refuses one.

psycopg's own execute() hides how many statements of a file ran before one failed, so this goes one layer down:
https://www.psycopg.org/psycopg3/docs/api/pq.html
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
from psycopg import generators, pq
from psycopg.errors import Diagnostic

from .errors import Failed, Locked, MigrationError, Refused, Unreachable

Connection: TypeAlias = psycopg.Connection[Any]
RETRIED = ("55P03", "40P01", "40001")  # lock_not_available, deadlock_detected, serialization_failure
WHO = f"agent-executor-migrate@{socket.gethostname()}"  # the host's name is the pod's
# Reset to these by RESET ALL, as they come with the connection. With the last one the server notices within a second
# that we were killed, and gives up a long statement and our lock.
_OPTIONS = "-c search_path={schema} -c lock_timeout={lock_timeout_ms} -c standard_conforming_strings=on"
_OPTIONS += " -c client_connection_check_interval=1000"
_LOST = re.compile("57P0[123]|08...")  # https://www.postgresql.org/docs/current/errcodes-appendix.html
# libpq tells no SQLSTATE for a connection that it could not make. Where the server speaks another language, a wrong
# password is Unreachable.
_LOGIN = re.compile(r"password authentication failed|no pg_hba.conf entry|no password supplied|role .* does not exist")
_FINE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY)
_NO_TRANSACTION = "25P01"  # a warning, when our own ROLLBACK has nothing to do


class ServerError(psycopg.Error):
    """What the server said to `run`. Its message and its position, which counts characters from 1, may be put right."""

    def __init__(self, result: pq.abc.PGresult, done: list[str]) -> None:
        super().__init__(result.get_error_message("utf-8"), info=result)
        self.message = self.diag.message_primary or str(self).strip()
        self.position = int(self.diag.statement_position or 0) or None
        self.done = done
        """Tags of the query's statements that had succeeded before: CREATE TABLE, INSERT 0 1."""


@contextmanager
def connect(
    dsn: str, schema: str, lock_timeout_s: float, patience_s: float, warn: Callable[[str], None]
) -> Iterator[Connection]:
    """A connection in autocommit mode, closed in the end. `warn` is given the server's warnings.

    Raises:
        Unreachable: nobody answers, or the connection is lost in the body.
        Locked, Refused: an own statement in the body fails; or the server refuses the role or its password.
    """
    lock_timeout_ms = max(1, round(lock_timeout_s * 1000)) if lock_timeout_s else 0  # which is without end
    try:
        connection = psycopg.connect(
            dsn,
            autocommit=True,
            prepare_threshold=None,  # a file's, or our own, DEALLOCATE ALL would end psycopg's
            options=_OPTIONS.format(schema=schema, lock_timeout_ms=lock_timeout_ms),
            application_name=WHO,
            client_encoding="utf8",
            connect_timeout=max(2, round(patience_s)),
        )
    except psycopg.Error as error:
        line = " ".join(str(error).split())
        raise (Refused if _LOGIN.search(line) else Unreachable)(f"database: {line}") from None
    connection.add_notice_handler(lambda notice: warn(f"WARNING: {notice.message_primary}") if _warns(notice) else None)
    try:
        yield connection
    except psycopg.Error as error:
        raise _named(connection, error) from None
    finally:
        connection.close()


def run(connection: Connection, query: str) -> None:
    """Run a query of any number of statements.

    Raises:
        ServerError: one failed. The transaction, if there was one, is still to be rolled back.
        Unreachable: the connection was lost.
    """
    connection.pgconn.send_query(query.encode())
    done: list[str] = []
    for result in connection.wait(generators.execute(connection.pgconn)):
        if result.status == pq.ExecStatus.FATAL_ERROR:
            error = ServerError(result, done)
            raise _lost(connection, error) or error
        if result.status not in _FINE:
            raise Failed("COPY needs a client that sends or takes data")
        done.append((result.command_status or b"").decode())


def _warns(notice: Diagnostic) -> bool:
    return notice.severity_nonlocalized == "WARNING" and notice.sqlstate != _NO_TRANSACTION


def _lost(connection: Connection, error: psycopg.Error) -> Unreachable | None:
    if connection.broken or _LOST.fullmatch(error.sqlstate or "08000"):
        return Unreachable(f"database: the connection was lost: {' '.join(str(error).split())}")
    return None


def _named(connection: Connection, error: psycopg.Error) -> MigrationError:
    """A failure of one of the runner's own statements."""
    kind = Locked if error.sqlstate in RETRIED else Refused
    text = f"database: {' '.join(str(error).split())} (SQLSTATE {error.sqlstate})"
    return _lost(connection, error) or kind(text)
