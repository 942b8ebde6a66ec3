"""The outbox: what its own process has just committed goes out without a look, and is as safe as the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest

from agent_executor import database as connections
from agent_executor import job, outbox
from agent_executor.announcements import outcome_id
from agent_executor.job import Outcome, Status
from agent_executor.ledger import Claim, Ledger
from agent_executor.outbox import Outbox
from tests.definitions import DATA
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.postgres import Database

DONE = Outcome(Status.COMPLETED, result="5")
BUSY = Outcome(Status.FAILED, error={"message": "busy", "type": "ValueError", "stack_trace": ""}, may_pass=True)


class House:
    """A ledger and its outbox, which notes what it delivers, how it came by it, and whether it is to fail."""

    def __init__(self, pool: connections.Pool) -> None:
        self.told: list[str] = []
        self.found: list[str] = []
        self.fails = False
        self.takes_s = 0.0
        self.on_told: Callable[[], object] = lambda: None
        self.is_connected = True
        self.outbox = Outbox(pool, "nats", self._deliver, lambda: self.is_connected)
        self.outbox.on_delivered = self._on_delivered
        self.ledger = Ledger(pool, max_attempts=1)
        self.ledger.couriers = {"nats": self.outbox}

    async def _deliver(self, msg_id: str, subject: str, event: dict[str, Any]) -> None:
        await asyncio.sleep(self.takes_s)
        if self.fails:
            raise OSError
        self.told.append(msg_id)
        self.on_told()

    def has_told(self, count: int) -> bool:
        return len(self.told) == count

    async def _on_delivered(self, job_ids: set[str]) -> None:
        self.found += job_ids

    async def claimed(self, job_id: str = "a") -> Claim:
        await self.ledger.accept(job.from_json(DATA | {"job_id": job_id}))
        [claim] = await self.ledger.claim(f"the worker of {job_id}", 1)
        return claim


@pytest.fixture
async def house(database: Database) -> AsyncIterator[House]:
    async with connections.pool(database.dsn, 4) as pool:
        yield House(pool)


@asynccontextmanager
async def running(box: Outbox) -> AsyncIterator[None]:
    task = asyncio.create_task(box.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def waiting(database: Database) -> list[tuple[Any, ...]]:
    return rows(database, "select msg_id, tries, due_at <= now() from outbox where published_at is null order by id")


async def test_what_this_process_announced_goes_out_without_a_look(house: House, database: Database) -> None:
    claim = await house.claimed()
    await house.ledger.finish(claim, DONE, None)
    assert waiting(database) == [(outcome_id("a", 1), 1, False)]
    async with running(house.outbox):
        await asyncio.to_thread(until, lambda: not waiting(database), "it is not recorded")
    assert (house.told, house.found) == ([outcome_id("a", 1)], [])


async def test_what_took_long_to_deliver_is_not_found_due_before_it_is_recorded(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = outbox.SQL["published"].rstrip().rstrip(";") + " and (select pg_sleep(0.2)) is not null"
    monkeypatch.setitem(outbox.SQL, "published", slow)
    await house.ledger.finish(await house.claimed(), DONE, None)
    house.on_told = lambda: rows(database, "update outbox set due_at = now()")
    async with running(house.outbox):
        await asyncio.to_thread(until, lambda: not waiting(database), "it is not recorded")
    assert (house.told, house.found) == ([outcome_id("a", 1)], [])


async def test_what_a_process_died_with_is_found_by_the_next(house: House, database: Database) -> None:
    await house.ledger.finish(await house.claimed(), DONE, None)
    rows(database, "update outbox set due_at = due_at - interval '5 seconds'")
    assert await house.outbox.flush() == 1
    assert (house.told, house.found) == ([outcome_id("a", 1)], ["a"])


async def test_what_fails_is_tried_again_soon(house: House, database: Database) -> None:
    house.fails = True
    await house.ledger.finish(await house.claimed(), DONE, None)
    await house.outbox.drain()
    [(due_in_s,)] = rows(database, "select extract(epoch from due_at - now())::float from outbox")
    assert due_in_s <= 1
    house.fails = False
    async with running(house.outbox):
        await asyncio.to_thread(until, lambda: not waiting(database), "it is not delivered")
    assert house.told == [outcome_id("a", 1)]


async def test_while_the_receiver_is_away_nothing_is_taken_in_hand(house: House, database: Database) -> None:
    house.is_connected = False
    await house.ledger.finish(await house.claimed(), DONE, None)
    assert waiting(database) == [(outcome_id("a", 1), 0, True)]


async def test_a_job_that_was_announced_before_or_has_two_letters_keeps_their_order(
    house: House, database: Database
) -> None:
    await house.ledger.finish(await house.claimed("dead"), BUSY, None)
    first = await house.claimed()
    await house.ledger.release(first)
    [again] = await house.ledger.claim("worker", 1)
    await house.ledger.finish(again, DONE, None)
    assert [is_due for _, _, is_due in waiting(database)] == [True] * 3
    async with running(house.outbox):
        await asyncio.to_thread(until, lambda: not waiting(database), "they are not delivered")
    assert house.told.index(outcome_id("dead", 1)) < house.told.index(f"{outcome_id('dead', 1)}:dead")


async def test_draining_delivers_what_is_in_hand_and_what_is_due(house: House, database: Database) -> None:
    claim = await house.claimed()
    house.is_connected = False
    await house.ledger.finish(await house.claimed("b"), DONE, None)
    house.is_connected = True
    await house.ledger.finish(claim, DONE, None)
    await house.outbox.drain()
    assert (waiting(database), sorted(house.told)) == ([], sorted([outcome_id("a", 1), outcome_id("b", 1)]))


async def test_a_record_that_fails_stops_no_later_delivery(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await house.claimed(), await house.claimed("b")
    await house.ledger.finish(first, DONE, None)
    with monkeypatch.context() as broken:
        broken.setitem(outbox.SQL, "published", "select 1 / 0 where %(msg_ids)s::text[] is not null")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await house.outbox.drain()
    await house.ledger.finish(second, DONE, None)
    await house.outbox.drain()
    assert house.told == [outcome_id("a", 1), outcome_id("b", 1)]
    assert [msg_id for msg_id, _, _ in waiting(database)] == [outcome_id("a", 1)]


async def test_deliveries_are_recorded_together_soon_after(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_RECORD_S", 0.5)
    claims = [await house.claimed(name) for name in "abc"]
    async with running(house.outbox):
        for number, claim in enumerate(claims, 1):
            await house.ledger.finish(claim, DONE, None)
            await asyncio.to_thread(until, partial(house.has_told, number), "it is not told")
        assert len(waiting(database)) == 3
        await asyncio.to_thread(until, lambda: not waiting(database), "they are not recorded")
    assert rows(database, "select count(distinct xmin::text) from outbox") == [(1,)]


async def test_what_is_delivered_while_others_are_recorded_is_recorded_too(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = outbox.SQL["published"].rstrip().rstrip(";") + " and (select pg_sleep(0.3)) is not null"
    monkeypatch.setitem(outbox.SQL, "published", slow)
    first, second = await house.claimed("a"), await house.claimed("b")
    async with running(house.outbox):
        await house.ledger.finish(first, DONE, None)
        await asyncio.sleep(outbox._RECORD_S + 0.1)  # the record of the first is under way
        await house.ledger.finish(second, DONE, None)
        await asyncio.to_thread(until, lambda: not waiting(database), "they are not recorded")
    assert (sorted(house.told), house.found) == (sorted([outcome_id("a", 1), outcome_id("b", 1)]), [])


async def test_each_delivery_is_recorded_once(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_RECORD_S", 0.01)
    recorded: list[str] = []
    query = house.outbox._rows

    async def noted(name: str, **parameters: Any) -> Any:
        recorded.extend(parameters["msg_ids"] if name == "published" else ())
        return await query(name, **parameters)

    monkeypatch.setattr(house.outbox, "_rows", noted)
    claims = [await house.claimed(f"j{number}") for number in range(15)]
    house.takes_s = 0.02
    async with running(house.outbox):
        for claim in claims:
            await house.ledger.finish(claim, DONE, None)
        await asyncio.to_thread(until, lambda: not waiting(database), "they are not recorded")
    assert (len(recorded), len(set(recorded)), house.found) == (15, 15, [])


async def test_a_record_with_an_error_nobody_foresaw_is_told_once(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = [await house.claimed(name) for name in "abc"]
    with monkeypatch.context() as broken:
        broken.setitem(outbox.SQL, "published", "select 1 / 0 where %(msg_ids)s::text[] is not null")
        await house.ledger.finish(first, DONE, None)
        await house.outbox._hand_out()
        assert house.outbox._recorder is not None
        await asyncio.wait([house.outbox._recorder])
    await house.ledger.finish(second, DONE, None)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await house.outbox._hand_out()
    await house.ledger.finish(third, DONE, None)
    await house.outbox._hand_out()
    await house.outbox.drain()
    assert house.told == [outcome_id(name, 1) for name in "abc"]
    assert [msg_id for msg_id, _, _ in waiting(database)] == [outcome_id("a", 1)]
