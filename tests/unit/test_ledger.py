"""ledger, as far as it needs no server: what its callers see while PostgreSQL is away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolClosed, PoolTimeout

from agent_executor import database, job, metrics
from agent_executor.errors import Unavailable
from agent_executor.job import Outcome, Status
from agent_executor.ledger import Claim, Ledger
from tests.definitions import DATA

SECRET = "pg-secret"
CLAIM = Claim("job-1", "trace-1", {}, {}, None, 1, 1)
FAILED = Outcome(Status.FAILED, error={"message": "m", "type": "T", "stack_trace": ""}, may_pass=True)
CALLS: list[Callable[[Ledger], Awaitable[Any]]] = [
    lambda it: it.accept(job.from_json(DATA)),
    lambda it: it.claim("worker", 1),
    lambda it: it.release(CLAIM),
    lambda it: it.retry(CLAIM, FAILED),
    lambda it: it.fail_silent(),
    lambda it: it.cancel("job-1", "default"),
    lambda it: it.redrive("job-1", "default"),
    lambda it: it.waiting(),
    lambda it: it.expire(30, 100),
    lambda it: it.finish(CLAIM, Outcome(Status.COMPLETED, result="x"), None),
    lambda it: it.announce_rejection("job-1", {"id": "i"}),
    lambda it: it.job("job-1", "default"),
    lambda it: it.jobs("default", None, 10, None),
    lambda it: it.outcome("job-1", "default"),
    lambda it: it.ping(),
]


class BrokenPool:
    """Stands for psycopg's pool."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def getconn(self) -> None:
        raise self._error


@pytest.mark.parametrize("call", CALLS)
async def test_every_query_is_unavailable_on_a_pool_that_is_not_open(call: Callable[[Ledger], Awaitable[Any]]) -> None:
    closed = database.pool(f"host=nowhere.invalid password={SECRET}", 2)
    with pytest.raises(Unavailable, match="the database does not answer") as raised:
        await call(Ledger(closed))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError(f"connection failed: password={SECRET}"),
        psycopg.InterfaceError("the connection is closed"),
        psycopg.errors.AdminShutdown(),
        PoolTimeout(),
        PoolClosed(),
    ],
)
async def test_a_database_that_is_away_is_counted_and_named_without_its_secrets(error: Exception) -> None:
    before = metrics.db_connection_errors._value.get()
    with pytest.raises(Unavailable) as raised:
        await Ledger(BrokenPool(error)).ping()  # type: ignore[arg-type]
    assert type(error).__name__ in str(raised.value)
    assert SECRET not in str(raised.value)
    assert metrics.db_connection_errors._value.get() == before + 1


async def test_a_role_without_rights_is_no_fault_of_a_job() -> None:
    with pytest.raises(Unavailable, match="lacks a right"), database.answering():
        raise psycopg.errors.InsufficientPrivilege


@pytest.mark.parametrize(
    "error", [psycopg.errors.UndefinedTable(), psycopg.errors.UndefinedColumn(), psycopg.errors.InvalidSchemaName()]
)
async def test_a_database_without_tables_says_what_to_do(error: Exception) -> None:
    with pytest.raises(Unavailable, match="apply the migrations"):
        await Ledger(BrokenPool(error)).ping()  # type: ignore[arg-type]


async def test_a_mistake_of_ours_is_no_outage() -> None:
    with pytest.raises(psycopg.errors.SyntaxError):
        await Ledger(BrokenPool(psycopg.errors.SyntaxError())).ping()  # type: ignore[arg-type]


def test_the_pool_checks_its_connections_and_is_not_opened_by_itself() -> None:
    pool = database.pool("host=nowhere.invalid", 7)
    assert pool.closed
    assert pool.max_size == 7
