"""`python -m tests.bench.bare DSN JOBS IN_FLIGHT shared|own plain|agent`: a loop over LangGraph with its own saver.

The reference, and no more than that: no queue, no events, no results, no fence. `shared` is one saver for all runs,
`own` one a run; both stand over one pool. Prints, as JSON, the seconds that the jobs took together and each alone, and
the CPU seconds of this process, after as many warm ones as are in flight.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

CONNECTIONS = 16


async def main(dsn: str, jobs: int, in_flight: int, savers: str, name: str) -> None:
    """Warm up, run, print."""
    kwargs = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
    pool = AsyncConnectionPool[AsyncConnection[DictRow]](
        dsn, min_size=2, max_size=CONNECTIONS, kwargs=kwargs, open=False
    )
    run = await GRAPHS[name]()
    async with pool:
        shared = AsyncPostgresSaver(pool)
        slots = asyncio.Semaphore(in_flight)

        async def one() -> float:
            async with slots:
                started = time.perf_counter()
                await run(shared if savers == "shared" else AsyncPostgresSaver(pool))
                return time.perf_counter() - started

        await asyncio.gather(*(one() for _ in range(max(in_flight, 8))))
        started, used = time.perf_counter(), time.process_time()
        each_s = await asyncio.gather(*(one() for _ in range(jobs)))
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - used
        sys.stdout.write(json.dumps({"took_s": took_s, "cpu_s": cpu_s, "each_s": each_s}))


Run = Callable[[AsyncPostgresSaver], Awaitable[None]]


async def _plain() -> Run:
    from tests.bench import plain

    return lambda saver: _run(plain.graph, {"items": ["0"]}, saver, ["values", "custom"])


async def _agent() -> Run:
    from tests.bench import agent

    graph = await agent.graph()
    return lambda saver: _run(graph, agent.INPUT, saver, ["values", "messages", "custom"], subgraphs=True)


GRAPHS: dict[str, Callable[[], Awaitable[Run]]] = {"plain": _plain, "agent": _agent}


async def _run(graph: Any, given: Any, saver: AsyncPostgresSaver, modes: list[str], **more: Any) -> None:
    bound = graph.copy({"checkpointer": saver})
    config: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}
    async for _ in bound.astream(given, config, stream_mode=modes, durability="sync", **more):
        pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]))
