"""Workers that freeze and come back, nodes that outlast leases, and processes that are asked to go."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator

import pytest

from agent_executor import database as connections
from agent_executor import job
from agent_executor.leases import Leases
from agent_executor.ledger import Ledger
from tests.definitions import DATA
from tests.faults.fixtures.journal import Journal, check, delivered, ended
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Starter

LEASE_S = 3


def content(database: Database, table: str) -> list[str]:
    """All rows of a table, comparable."""
    return sorted(map(repr, rows(database, f"select * from {table}")))


def test_a_zombie_commits_nothing_and_publishes_nothing(
    start_service: Starter, journal: Journal, database: Database
) -> None:
    """Frozen for more than twice its lease, it wakes up in the middle of a step that another worker has done."""
    zombie = start_service(LEASE_S=str(LEASE_S)).ready()
    journal.hold(2)
    zombie.submit(journal.job("job"), "job")
    zombie.until(lambda: journal.started("job", 2), "the job does not start")
    zombie.process.send_signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    other = start_service(LEASE_S=str(LEASE_S)).ready()
    other.until(lambda: journal.started("job", 2) == 2, "the job is not taken over")
    journal.let_go(2)
    ended(database, ["job"])
    delivered(database)
    other.until(lambda: time.monotonic() > frozen_at + 2 * LEASE_S, "time stands still")
    tables = "checkpoints", "checkpoint_blobs", "checkpoint_writes", "outbox"
    before = {table: content(database, table) for table in tables}
    events = other.http.get("/v1/jobs/job/events").text
    zombie.process.send_signal(signal.SIGCONT)
    zombie.until(lambda: re.search("lease_lost|job_dropped", zombie.log.read_text()), "the zombie does not notice")
    zombie.until(lambda: zombie.http.get("/ready").status_code == 200, "the zombie does not come back")
    zombie.submit(journal.job("after"), "after")
    zombie.ended("after")
    delivered(database)
    for table, rows_before in before.items():
        assert [row for row in content(database, table) if "'after'" not in row] == rows_before
    assert other.http.get("/v1/jobs/job/events").text == events
    check(journal, database, other.environment["NATS_URL"], ["job"], redis_url=other.environment["REDIS_URL"])


def test_a_node_ten_times_longer_than_its_lease_is_run_once(
    start_service: Starter, journal: Journal, database: Database
) -> None:
    worker = start_service(LEASE_S=str(LEASE_S)).ready()
    start_service(LEASE_S=str(LEASE_S)).ready()
    worker.submit(journal.job("job", 1, seconds=10 * LEASE_S), "job")
    ended(database, ["job"])
    delivered(database)
    assert check(journal, database, worker.environment["NATS_URL"], ["job"], kills=0, steps=1).starts == 1
    assert rows(database, "select attempt, fence from jobs") == [(1, 1)]


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator[Ledger]:
    """With one job in it."""
    async with connections.pool(database.dsn, 4) as pool:
        made = Ledger(pool, lease_s=LEASE_S)
        await made.accept(job.from_json(DATA | {"job_id": "a"}))
        yield made


async def test_a_blocked_event_loop_loses_no_lease(database: Database, ledger: Ledger) -> None:
    lost: list[str] = []
    leases = Leases(database.dsn, LEASE_S)
    asked_at = time.monotonic()
    [claim] = await ledger.claim("worker", 1)
    leases.start()
    leases.hold(claim, asked_at, lost.append)
    time.sleep(3 * LEASE_S)  # noqa: ASYNC251 - this is the fault
    assert await ledger.claim("other", 1) == []
    leases.stop()
    assert lost == []
    assert rows(database, "select fence, lease_until > now() from jobs") == [(1, True)]


async def test_a_lease_that_cannot_be_renewed_is_given_up_before_it_runs_out(
    database: Database, ledger: Ledger
) -> None:
    """By the worker's own clock, while the database still says that the job is its."""
    lost: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    nowhere = Leases("host=127.0.0.1 port=9", LEASE_S)
    asked_at = time.monotonic()
    [claim] = await ledger.claim("worker", 1)
    nowhere.start()

    def on_lost(reason: str) -> None:
        loop.call_soon_threadsafe(lost.put_nowait, reason)

    nowhere.hold(claim, asked_at, on_lost)
    async with asyncio.timeout(30):
        assert await lost.get() == "it could not be renewed in time"
    assert rows(database, "select status, lease_owner from jobs") == [("running", "worker")]
    nowhere.stop()


def test_a_cancelled_job_stops_wherever_it_runs(start_service: Starter, journal: Journal, database: Database) -> None:
    """Asked of another process than the one that runs it, which hears of it long before it would renew its lease."""
    runs, other = start_service(LEASE_S="300").ready(), start_service(LEASE_S="300").ready()
    journal.hold(2)
    runs.submit(journal.job("job"), "job")
    other.until(lambda: journal.started("job", 2), "the job does not start")
    answer = other.http.post("/v1/jobs/job/cancel")
    assert (answer.status_code, answer.json()) == (200, {"job_id": "job", "status": "cancelled"})
    owner = next(each for each in (runs, other) if "job_started" in each.log.read_text())
    owner.until(lambda: "lease_lost" in owner.log.read_text(), "the worker does not stop")
    journal.let_go(2)
    delivered(database)
    check(
        journal,
        database,
        other.environment["NATS_URL"],
        ["job"],
        status="cancelled",
        redis_url=other.environment["REDIS_URL"],
    )
    assert other.job("job")["error"]["type"] == "Cancelled"
    assert other.http.post("/v1/jobs/job/cancel").status_code == 200
    assert other.http.post("/v1/jobs/job/redrive").status_code == 409
    assert journal.started("job", 3) == 0


@pytest.mark.parametrize("grace_s", ["0", "9"])
def test_a_process_that_is_asked_to_go_gives_its_job_back_and_no_attempt_is_counted(
    start_service: Starter, journal: Journal, database: Database, grace_s: str
) -> None:
    """Many short steps: with some grace none is cut off, without any one may be."""
    first = start_service(SHUTDOWN_GRACE_S=grace_s).ready()
    first.submit(journal.job("job", 40, seconds=0.2), "job")
    first.until(lambda: journal.started("job", 3), "the job does not start")
    second = start_service().ready()
    first.stop()
    ended(database, ["job"])
    delivered(database)
    kills = 0 if grace_s != "0" else 1
    check(journal, database, second.environment["NATS_URL"], ["job"], kills=kills, steps=40)
    assert rows(database, "select attempt, fence from jobs") == [(1, 2)]
