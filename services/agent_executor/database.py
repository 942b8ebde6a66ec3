"""The connection pool to PostgreSQL, and what it means when it does not answer.

Owns connections, not queries. Everybody who uses the pool says so through `answering`, so that an outage has one name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from . import metrics
from .errors import Unavailable

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]

_WAIT_S = 5.0


def pool(dsn: str, max_size: int) -> Pool:
    """The process's connection pool, not yet open. Connections are checked when they are taken, so that a restart of
    PostgreSQL costs no job; autocommit and dict rows are what LangGraph's saver needs.
    """
    return AsyncConnectionPool(
        dsn,
        min_size=2,
        max_size=max_size,
        open=False,
        kwargs={"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0, "connect_timeout": 5},
        connection_class=AsyncConnection[DictRow],
        check=AsyncConnectionPool.check_connection,
        timeout=_WAIT_S,
        name="agent-executor",
    )


@contextmanager
def answering() -> Iterator[None]:
    """Raise Unavailable for an outage of PostgreSQL, or for a database that was never migrated."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise Unavailable("the database has no tables yet: apply the migrations") from None
    except psycopg.errors.ProgramLimitExceeded:  # an OperationalError by name: what the job wrote is too large
        raise
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, PoolClosed) as error:
        metrics.db_connection_errors.inc()
        raise Unavailable(f"the database does not answer: {type(error).__name__}") from None


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[AsyncConnection[DictRow]]:
    """A connection of the pool. Raises Unavailable, as `answering` says."""
    with answering():
        async with pool.connection() as taken:
            yield taken
