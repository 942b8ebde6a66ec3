"""The fenced saver beside LangGraph's own, each over one pool: the same small graph, one at a time and many."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from agent_executor import database, job, migrate
from agent_executor.checkpoint_commits import savers_of
from agent_executor.checkpoints import Saver
from agent_executor.database import Pool
from agent_executor.ledger import Ledger
from tests.bench import plain
from tests.bench.figures import Figure, compared, side_by_side, timed
from tests.definitions import DATA
from tier3.stack import Postgres

MIGRATIONS = Path(__file__).parents[2] / "migrations"
NODES, JOBS, AT_ONCE = 3, 40, 8
RUNS, QUICK_RUNS = 9, 2
MOST = 1.15


def _add(state: plain.State) -> plain.State:
    return {"items": ["x"]}


def measure(server: Postgres, *, quick: bool = False) -> list[Figure]:
    """Every figure of the saver."""
    dsn = server.create_database("bench_checkpoints")
    migrate.up(migrate.Settings(dsn, MIGRATIONS))
    with_schema = f"{dsn}?options=-csearch_path%3Dagent_executor"
    loop = asyncio.new_event_loop()
    pool = database.pool(with_schema, 16)
    loop.run_until_complete(_opened(pool))
    graph, group = plain.chain(NODES, _add).compile(), savers_of(pool)

    def many(saver_of: Callable[[Any], Any], at_once: int) -> Callable[[], float]:
        def run() -> float:
            claims = loop.run_until_complete(_claims(pool))
            return timed(lambda: loop.run_until_complete(_all(graph, saver_of, claims, at_once)))

        return run

    def ours(claim: Any) -> Saver:
        return Saver(pool, claim.job_id, claim.fence, group=group)

    def stock(claim: Any) -> AsyncPostgresSaver:
        return AsyncPostgresSaver(pool)

    contenders = {
        f"{name} {at_once}": many(saver_of, at_once)
        for at_once in (1, AT_ONCE)
        for name, saver_of in (("stock", stock), ("ours", ours))
    }
    found = side_by_side(contenders, QUICK_RUNS if quick else RUNS)
    loop.run_until_complete(pool.close())
    loop.close()
    what = f"{JOBS} runs of {NODES} nodes"
    figures = []
    for at_once in (1, AT_ONCE):
        label = f"{what}, {at_once} at once"
        ours_ms, stock_ms = found[f"ours {at_once}"], found[f"stock {at_once}"]
        figures.append(Figure(f"{label}, LangGraph's saver", stock_ms, panel=label))
        ours_figure = compared(f"{label}, the fenced saver", ours_ms, stock_ms, "LangGraph's", MOST)
        figures.append(replace(ours_figure, panel=label, ours=True))
    return figures


async def _opened(pool: Pool) -> None:
    await pool.open(wait=True)


async def _claims(pool: Pool) -> list[Any]:
    ledger = Ledger(pool, lease_s=3600)
    for _ in range(JOBS):
        await ledger.accept(job.from_json(DATA | {"job_id": uuid.uuid4().hex}))
    return await ledger.claim(uuid.uuid4().hex, JOBS)


async def _all(graph: Any, saver_of: Callable[[Any], Any], claims: list[Any], at_once: int) -> None:
    slots = asyncio.Semaphore(at_once)

    async def one(claim: Any) -> None:
        async with slots:
            bound = graph.copy({"checkpointer": saver_of(claim)})
            config = {"configurable": {"thread_id": claim.job_id}}
            await bound.ainvoke({"items": []}, config, durability="sync")

    running: list[Awaitable[None]] = [one(claim) for claim in claims]
    await asyncio.gather(*running)
