"""A job that arrives where a slot is free starts at once; everywhere else it waits its turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from agent_executor import database as connections
from agent_executor import job, ledger
from agent_executor.ledger import Claim, Ledger
from agent_executor.quotas import Allowance
from tests.definitions import DATA
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.postgres import Database


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[connections.Pool]:
    async with connections.pool(database.dsn, 4) as opened:
        yield opened


class Slots:
    """Stands for the worker."""

    name = "here"

    def __init__(self, free: int) -> None:
        self.free = free
        self.started: list[Claim] = []

    def reserve(self, job_ids: Collection[str]) -> int:
        reserved = min(len(job_ids), self.free)
        self.free -= reserved
        return reserved

    def start(self, claims: Sequence[Claim], asked_at: float, job_ids: Collection[str], reserved: int) -> None:
        self.started += claims
        self.free += reserved - len(claims)


def with_slots(pool: connections.Pool, free: int, allowance: Allowance = Allowance()) -> tuple[Ledger, Slots]:  # noqa: B008 - frozen
    made, slots = Ledger(pool, allowance=allowance), Slots(free)
    made.starter = slots
    return made, slots


async def submit(to: Ledger, *job_ids: str, **more: Any) -> None:
    for job_id in job_ids:
        await to.accept(job.from_json(DATA | {"job_id": job_id} | more))


def states(database: Database) -> dict[str, tuple[Any, ...]]:
    found = rows(database, "select job_id, status, attempt, fence, lease_owner, lease_until > now() from jobs")
    return {job_id: tuple(state) for job_id, *state in found}


RUNNING = ("running", 1, 1, "here", True)
QUEUED = ("queued", 0, 0, None, None)


async def test_it_is_claimed_in_one_with_being_accepted(pool: connections.Pool, database: Database) -> None:
    here, slots = with_slots(pool, 1)
    await submit(here, "a", "b")
    assert states(database) == {"a": RUNNING, "b": QUEUED}
    [started] = slots.started
    rows(
        database,
        "update jobs set status = 'queued', attempt = 0, lease_owner = null, lease_until = null where job_id = 'a'",
    )
    rows(database, "update jobs set due_at = due_at - interval '1 hour' where job_id = 'a'")
    [claimed] = await here.claim("elsewhere", 1)
    assert replace(claimed, fence=1, age_s=0) == started


async def test_nobody_overtakes_a_job_that_waits(pool: connections.Pool, database: Database) -> None:
    await submit(Ledger(pool), "first")
    here, slots = with_slots(pool, 5)
    await submit(here, "a")
    assert states(database) == {"first": QUEUED, "a": QUEUED}
    assert (slots.started, slots.free) == ([], 5)
    rows(database, "update jobs set due_at = now() + interval '1 hour'")
    await submit(here, "b")
    assert states(database)["b"] == RUNNING


async def test_limits_of_running_jobs_are_for_claims_to_keep(pool: connections.Pool, database: Database) -> None:
    limited, _ = with_slots(pool, 5, Allowance(max_running_jobs=3))
    await submit(limited, "a")
    rows(database, "update jobs set due_at = now() + interval '1 hour'")
    here, _ = with_slots(pool, 5)
    rows(database, "insert into tenant_limits (tenant, max_running_jobs) values ('other', 3)")
    await submit(here, "b")
    assert set(states(database).values()) == {QUEUED}


async def test_nothing_is_started_before_it_is_committed(pool: connections.Pool, database: Database) -> None:
    here, slots = with_slots(pool, 5, Allowance(max_queued_jobs=5))
    await submit(here, "a")  # its tenant's jobs have to be counted, in a transaction of several statements
    assert (states(database), slots.started) == ({"a": QUEUED}, [])
    await here.claim("here", 1)
    await submit(here, "b")
    assert states(database)["b"] == RUNNING


async def test_a_claim_tells_whether_one_that_ends_may_let_another_start(
    pool: connections.Pool, database: Database
) -> None:
    here, _ = with_slots(pool, 0)
    await here.claim("here", 1)
    assert not here.counts_running
    rows(database, "insert into tenant_limits (tenant, max_running_jobs) values ('other', 3)")
    await here.claim("here", 1)
    assert here.counts_running


async def test_a_start_that_was_never_heard_of_is_found_by_the_next_claim(
    pool: connections.Pool, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, slots = with_slots(pool, 1)
    monkeypatch.setattr(slots, "start", lambda claims, asked_at, job_ids, reserved: None)
    await submit(here, "a")
    assert states(database) == {"a": RUNNING}
    [found] = await here.claim("here", 1)
    assert (found.job_id, found.attempt, found.fence) == ("a", 1, 2)


async def test_what_is_refused_gives_its_slots_back(
    pool: connections.Pool, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, slots = with_slots(pool, 2)
    await submit(here, "a")
    await submit(here, "a")
    assert (len(slots.started), slots.free) == (1, 1)
    monkeypatch.setitem(ledger.SQL, "accept", "select 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await submit(here, "b")
    assert (len(slots.started), slots.free) == (1, 1)
