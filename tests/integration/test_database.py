"""The pool against PostgreSQL: a connection that the server has closed is never handed out."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

from agent_executor import database as connections
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.postgres import Database

TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'tested'"

SESSIONS = "select count(*) from pg_stat_activity where application_name = 'tested'"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections that were asked whether they still answer."""
    found: list[Any] = []
    check = AsyncConnectionPool.check_connection

    async def noted(connection: Any) -> None:
        found.append(connection)
        await check(connection)

    monkeypatch.setattr(AsyncConnectionPool, "check_connection", noted)
    return found


async def test_one_that_has_just_answered_is_asked_only_if_there_is_news(
    database: Database, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_BUSY_S", 0)
    async with connections.pool(make_conninfo(database.dsn, application_name="tested"), 2) as pool:
        await pool.wait()
        for _ in range(6):
            async with connections.connection(pool) as connection:
                await connection.execute("select 1")
        assert len(asked) == len(set(asked)) == 2
        rows(database, TERMINATE)
        until(lambda: rows(database, SESSIONS) == [(0,)], "they are not terminated")
        async with connections.connection(pool) as connection:
            assert await (await connection.execute("select 1 as one")).fetchall() == [{"one": 1}]
        assert len(asked) > 2


async def test_one_that_has_been_at_rest_is_asked(
    database: Database, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_FRESH_S", 0)
    async with connections.pool(database.dsn, 2) as pool:
        for _ in range(3):
            async with connections.connection(pool) as connection:
                await connection.execute("select 1")
    assert len(asked) == 3


async def test_a_statement_is_planned_once_and_not_for_each_list(database: Database) -> None:
    async with connections.pool(database.dsn, 2) as pool:
        for ids in [["a"], ["a", "b"]] * 6:
            async with connections.connection(pool) as connection:
                await connection.execute("select job_id from jobs where job_id = any(%s)", [ids])
        async with connections.connection(pool) as connection:
            cursor = await connection.execute("select sum(custom_plans) as planned from pg_prepared_statements")
            assert await cursor.fetchall() == [{"planned": 0}]
