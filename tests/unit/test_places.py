"""places: taken, given back however a stream ends, renewed, and kept while the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest

from agent_executor import places
from agent_executor.errors import TooManyRequests
from agent_executor.event_stream import Stream
from agent_executor.places import SQL, Places
from agent_executor.quotas import Allowance


class Table:
    """Stands for the pool, a connection and a cursor of the database that has the places."""

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self.rows: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.away = False
        self.changed = asyncio.Event()

    async def getconn(self) -> Table:
        if self.away:
            raise psycopg.OperationalError
        return self

    async def putconn(self, connection: Table) -> None:
        assert connection is self

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[None]:
        yield

    def fileno(self) -> int:
        raise OSError

    async def execute(self, query: str, values: dict[str, Any] | None = None) -> Table:
        values = values or {}
        if query == SQL["take"]:
            self.taken = len(self.rows) < self.most
            if self.taken:
                self.rows[values["id"]] = values["tenant"]
        elif query == SQL["give_back"]:
            for each in values["ids"]:
                self.rows.pop(each, None)
        elif query == SQL["renew"]:
            self.rows |= dict(zip(values["ids"], values["tenants"], strict=True))
        self.changed.set()
        return self

    async def fetchone(self) -> dict[str, Any]:
        return {"is_taken": self.taken, "max_open_streams": self.most}

    async def fetchall(self) -> list[dict[str, Any]]:
        return self.bodies

    async def until(self, rows: list[str]) -> None:
        async with asyncio.timeout(5):
            while sorted(self.rows.values()) != rows:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def running(table: Table) -> AsyncIterator[Places]:
    made = Places(table, Allowance(max_open_streams=2), 1000)  # type: ignore[arg-type]
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_place_is_given_back_at_the_end_of_its_block() -> None:
    table = Table()
    async with running(table) as made:
        first, second = await made.take("a"), await made.take("b")
        with pytest.raises(TooManyRequests, match="TENANT_MAX_OPEN_STREAMS: 2"):
            await made.take("b")
        with first, second:
            assert sorted(table.rows.values()) == ["a", "b"]
        await table.until([])
        await made.take("c")


@pytest.mark.parametrize("failing", ["nothing", "send", "events"])
async def test_a_stream_gives_its_place_back_however_it_ends(failing: str) -> None:
    async def events() -> AsyncIterator[Any]:
        if failing == "events":
            raise ValueError(failing)
        yield {"data": "x"}

    async def send(message: Any) -> None:
        if failing == "send":
            raise OSError(failing)

    async def receive() -> Any:
        await asyncio.Event().wait()

    table = Table()
    async with running(table) as made:
        stream = Stream(events(), await made.take("a"))
        with suppress(OSError, ValueError, ExceptionGroup):
            await stream({"type": "http", "method": "GET", "headers": []}, receive, send)
        await table.until([])


async def test_places_are_renewed_also_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RENEW_S", 0.01)
    monkeypatch.setattr(places, "_RETRY_S", 0.01)
    table = Table()
    async with running(table) as made:
        with await made.take("a"), await made.take("b"):
            table.away = True
            table.rows.clear()
            await asyncio.sleep(0.05)
            table.away = False
            await table.until(["a", "b"])
        table.away = True
        await asyncio.sleep(0.05)
        table.away = False
        await table.until([])


async def test_a_tenants_smaller_body_is_known_and_a_larger_one_is_nothing() -> None:
    table = Table()
    table.bodies = [{"tenant": "a", "max_body_bytes": 10}, {"tenant": "b", "max_body_bytes": 5000}]
    async with running(table) as made:
        async with asyncio.timeout(5):
            while made.body_limit("a") == 1000:  # noqa: ASYNC110 - it has no event for it
                await asyncio.sleep(0)
        assert [made.body_limit(tenant) for tenant in "abc"] == [10, 1000, 1000]
