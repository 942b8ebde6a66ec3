"""Connections to PostgreSQL, and what it means when it does not answer.

Owns connections, not queries. Everybody who uses the pool says so through `answering`, so that an outage has one name.
A server that is cut off without a word (a blackhole) is noticed by us and not by TCP, whose own patience is minutes: a
connection on which an answer is overdue is severed, and whoever waits gets an error at once. Cancelling the wait would
not do, because psycopg then asks the same server to cancel, and waits for that.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, LiteralString, TypeVar
from weakref import WeakKeyDictionary

import psycopg
import stamina
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from . import metrics
from .errors import Unavailable

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]
Dsn = str | Callable[[], str]
"""A libpq connection string, or who knows the current one: passwords may be rotated."""

T = TypeVar("T")

LIMIT_S = 8.0
_WAIT_S = 5.0
_CHECK_S = 2.0
_FRESH_S = 5.0
_BUSY_S = 0.1  # no server is stopped and started in less
_CONNECT_S = 3
_SETTLE_S = 2.0
_PLANS: tuple[LiteralString, ...] = (
    "plan_cache_mode = force_generic_plan",
    "enable_seqscan = off",
    "jit = off",  # the first would be dear enough for it where no index serves
)
_READ_ONLY = (b"default_transaction_read_only", b"in_hot_standby")

_busy: set[psycopg.BaseConnection[Any]] = set()
_answered_at: WeakKeyDictionary[psycopg.BaseConnection[Any], float] = WeakKeyDictionary()


def current(dsn: Dsn) -> str:
    """How PostgreSQL is reached now."""
    return dsn() if callable(dsn) else dsn


def pool(dsn: Dsn, max_size: int) -> Pool:
    """The process's connection pool, not yet open. Connections are checked when they are taken, so that a restart of
    PostgreSQL costs no job; autocommit and dict rows are what LangGraph's saver needs.
    """
    return AsyncConnectionPool(
        dsn,
        min_size=2,
        max_size=max_size,
        open=False,
        kwargs={
            "autocommit": True,
            "row_factory": dict_row,
            "prepare_threshold": 0,
            "connect_timeout": _CONNECT_S,
            "client_encoding": "utf8",  # as `arrays` sends texts
        },
        connection_class=AsyncConnection[DictRow],
        configure=_configure,
        check=_check,
        timeout=_WAIT_S,
        reconnect_timeout=_WAIT_S,  # then the next who asks tries again, without the pauses of a long outage
        name="agent-executor",
    )


@contextmanager
def answering() -> Iterator[None]:
    """Raise Unavailable for an outage of PostgreSQL, one that is read-only included, or a database not yet set up."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName):
        raise Unavailable("the database lacks tables or columns: apply the migrations") from None
    except psycopg.errors.InsufficientPrivilege:  # the operator's to mend, and of no concern to what is written
        raise Unavailable("the database's role lacks a right that the service needs") from None
    except psycopg.errors.ProgramLimitExceeded:  # an OperationalError by name: what the job wrote is too large
        raise
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, PoolTimeout, PoolClosed) as error:
        metrics.db_connection_errors.inc()
        raise Unavailable(f"the database does not answer: {type(error).__name__}") from None


@asynccontextmanager
async def connection(pool: Pool, limit_s: float = LIMIT_S) -> AsyncIterator[AsyncConnection[DictRow]]:
    """A connection of the pool, for `limit_s` at most. Raises Unavailable, as `answering` says."""
    with answering():
        taken = await pool.getconn()  # `pool.connection` would commit as well, which in autocommit there is no need for
        try:
            with severed_after(taken, limit_s):
                yield taken
            _answered_at[taken] = time.monotonic()
        finally:
            await pool.putconn(taken)


@contextmanager
def severed_after(connection: AsyncConnection[Any], limit_s: float) -> Iterator[None]:
    """Sever the connection if the block takes longer."""
    timer = asyncio.get_running_loop().call_later(limit_s, _sever, connection)
    _busy.add(connection)
    try:
        yield
    finally:
        _busy.discard(connection)
        timer.cancel()


async def settled(cancelled: Collection[asyncio.Task[Any]]) -> None:
    """Wait for tasks that were cancelled, at most twice `_SETTLE_S`.

    What waits for a server that is away would take longer, since psycopg asks it to cancel first; so its connections
    are severed half way.
    """
    if not cancelled:
        return
    _, pending = await asyncio.wait(cancelled, timeout=_SETTLE_S)
    if pending:
        for connection in list(_busy):
            _sever(connection)
        await asyncio.wait(pending, timeout=_SETTLE_S)


@contextmanager
def thread_severed_after(connection: psycopg.Connection[Any], limit_s: float) -> Iterator[None]:
    """`severed_after` for a thread, whose own waiting cannot be interrupted otherwise."""
    timer = threading.Timer(limit_s, _sever, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


async def persistently(call: Callable[[], Awaitable[T]]) -> T:
    """What `call` gives, tried again for as long as PostgreSQL is away; whoever waits decides how long that may be."""
    with suppress(Unavailable):  # as a rule it takes no more
        return await call()
    async for attempt in stamina.retry_context(
        on=Unavailable, attempts=None, timeout=None, wait_initial=0.1, wait_max=1.0, wait_jitter=0.2
    ):
        with attempt:
            return await call()
    raise AssertionError("retried without end")


async def _configure(connection: AsyncConnection[DictRow]) -> None:
    """Have statements planned once, and for large tables.

    PostgreSQL would plan many of ours anew for each list that they are given, and keep for a while what is right for
    the first few jobs alone, which reads all of them.
    """
    with severed_after(connection, _CHECK_S):
        for setting in _PLANS:
            await connection.execute(f"set {setting}")


async def _check(connection: AsyncConnection[DictRow]) -> None:
    """Whether it still answers, and may write: a server that was demoted is none of ours.

    One that answered a moment ago is not asked, unless the server has said something since, or closed it.
    """
    rested_s = time.monotonic() - _answered_at.get(connection, -math.inf)
    if rested_s > _FRESH_S or (rested_s > _BUSY_S and _has_news(connection)):
        with severed_after(connection, _CHECK_S):
            await AsyncConnectionPool.check_connection(connection)
    if b"on" in (connection.pgconn.parameter_status(name) for name in _READ_ONLY):
        raise psycopg.OperationalError("the session is read-only")


def _has_news(connection: AsyncConnection[Any]) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _sever(connection: psycopg.BaseConnection[Any]) -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as theirs:
        theirs.shutdown(socket.SHUT_RDWR)
