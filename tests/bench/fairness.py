"""How long a tenant's jobs wait for a slot while another one has all slots: with a short queue, and with 10,000 jobs.

Two workers claim from one ledger, as those of two processes do, with a listener each; a job only sleeps. Tenant A has
all slots, and submits one more job whenever one of its own ends, so that what waits of it stays as it is; in the short
queue are as many as there are slots. Tenant B, which could do with one slot, submits now and then. Its wait is from the
insert of a job to its claim, by the database's clock.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from agent_executor import database, job, migrate
from agent_executor.database import Pool
from agent_executor.job import Outcome, Status
from agent_executor.ledger import Claim, Ledger
from agent_executor.notify import Listener, wait
from tests.bench.figures import Figure
from tests.definitions import DATA
from tier3.stack import Postgres

MIGRATIONS = Path(__file__).parents[2] / "migrations"
WORKERS, SLOTS = 2, 4
JOB_S, EVERY_S = (0.05, 0.15), 0.1
JOBS, ROUNDS = 80, 5
QUICK_JOBS, QUICK_ROUNDS = 20, 1
MANY = 10_000
MOST = 1.2
A, B = "a", "b"
FILL = """
insert into jobs (job_id, tenant, trace_id, body_hash, definition, input, due_at)
select gen_random_uuid(), %s, 't', '', %s::json, '{}', now() - interval '1 minute' from generate_series(1, %s)
"""
WAITS = "select extract(epoch from started_at - created_at)::float8 * 1000 as ms from jobs where tenant = %s"


def measure(server: Postgres, *, quick: bool = False) -> list[Figure]:
    """Each contender's waits at the 95th percentile, by round; the goal is for those of all rounds together."""
    jobs, turns = (QUICK_JOBS, QUICK_ROUNDS) if quick else (JOBS, ROUNDS)
    dsn = server.create_database("bench_fairness")
    migrate.up(migrate.Settings(dsn, MIGRATIONS))
    queues = {"alone": 0, "short": 2 * WORKERS * SLOTS, "many": WORKERS * SLOTS + MANY}
    found: dict[str, list[list[float]]] = {name: [] for name in queues}
    for _ in range(turns):  # in turns, so that all are disturbed alike
        for name, count in queues.items():
            found[name].append(asyncio.run(_round(f"{dsn}?options=-csearch_path%3Dagent_executor", count, jobs)))
    by_round = {name: [_p95(waits) for waits in rounds] for name, rounds in found.items()}
    short, many = (_p95([ms for waits in found[name] for ms in waits]) for name in ("short", "many"))
    ratio = many / short
    goal = f"of all rounds {many:.1f} ms, at most {MOST:g} x"
    reached = None if quick else ratio <= MOST  # a few waits have no 95th percentile worth a verdict
    what = f"p95 wait of a tenant, {WORKERS} workers of {SLOTS} slots"
    return [
        Figure(f"{what}, alone", by_round["alone"]),
        Figure(f"{what}, another's short queue", by_round["short"]),
        Figure(f"{what}, another's {MANY:,} jobs", by_round["many"], goal, reached, ratio=ratio, of="short"),
    ]


def _p95(waits: list[float]) -> float:
    return sorted(waits)[int(len(waits) * 0.95)]


async def _round(dsn: str, queued_of_a: int, jobs: int) -> list[float]:
    async with AsyncExitStack() as opened:
        pool = await opened.enter_async_context(database.pool(dsn, 16))
        async with pool.connection() as connection:
            await connection.execute("truncate jobs, answers, outbox")
            await connection.execute(FILL, [A, json.dumps(DATA["agent_definition"]), queued_of_a])
            await connection.execute("analyze jobs")
        for _ in range(WORKERS):
            await opened.enter_async_context(_Worker(pool, dsn))
        ledger = Ledger(pool)
        await asyncio.sleep(2 * JOB_S[1])  # until the slots are A's, and no two end together
        for _ in range(jobs):
            await ledger.accept(replace(job.from_json(DATA | {"job_id": uuid.uuid4().hex}), tenant=B))
            await asyncio.sleep(random.uniform(0.5, 1.5) * EVERY_S)
        async with pool.connection() as connection:
            while True:
                rows = await (await connection.execute(WAITS, [B])).fetchall()
                waits = [row["ms"] for row in rows if row["ms"] is not None]
                if len(waits) == jobs:
                    return waits
                await asyncio.sleep(0.1)


class _Worker:
    """Claims as `worker` does; its jobs sleep."""

    def __init__(self, pool: Pool, dsn: str) -> None:
        self._ledger = Ledger(pool, lease_s=3600)
        self._listener = Listener(dsn)
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def __aenter__(self) -> None:
        self._listening = asyncio.create_task(self._listener.run())
        self._claiming = asyncio.create_task(self._claim())

    async def __aexit__(self, *exception: object) -> None:
        self._stopped = True
        await self._claiming
        await asyncio.gather(*self._running)
        self._listening.cancel()

    async def _claim(self) -> None:
        while not self._stopped:
            if free := SLOTS - len(self._running):
                held = [each.get_name() for each in self._running]
                for claim in await self._ledger.claim(f"{id(self)}", free, held):
                    task = asyncio.create_task(self._job(claim), name=claim.job_id)
                    self._running.add(task)
                    task.add_done_callback(self._forget)
            await wait(self._listener.queued)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._listener.queued.set()

    async def _job(self, claim: Claim) -> None:
        await asyncio.sleep(random.uniform(*JOB_S))
        await self._ledger.finish(claim, Outcome(Status.COMPLETED, result="done"), None)
        if claim.tenant == A:
            await self._ledger.accept(replace(job.from_json(DATA | {"job_id": uuid.uuid4().hex}), tenant=A))
