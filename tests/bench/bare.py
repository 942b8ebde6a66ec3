"""`python -m tests.bench.bare DSN JOBS IN_FLIGHT shared|own`: a loop over LangGraph with its own saver, and no more.

The reference: no queue, no events, no results, no fence. `shared` is one saver for all runs, `own` one a run; both
stand over one pool. Prints, as JSON, the seconds that the jobs took together and each alone, and the CPU seconds of
this process, after as many warm ones as are in flight.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from tests.bench import plain

CONNECTIONS = 16


async def main(dsn: str, jobs: int, in_flight: int, savers: str) -> None:
    """Warm up, run, print."""
    kwargs = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
    pool = AsyncConnectionPool[AsyncConnection[DictRow]](
        dsn, min_size=2, max_size=CONNECTIONS, kwargs=kwargs, open=False
    )
    async with pool:
        shared = AsyncPostgresSaver(pool)
        slots = asyncio.Semaphore(in_flight)

        async def one() -> float:
            async with slots:
                started = time.perf_counter()
                graph = plain.graph.copy({"checkpointer": shared if savers == "shared" else AsyncPostgresSaver(pool)})
                config: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}
                modes: Any = ["values", "custom"]
                async for _ in graph.astream({"items": ["0"]}, config, stream_mode=modes, durability="sync"):
                    pass
                return time.perf_counter() - started

        await asyncio.gather(*(one() for _ in range(max(in_flight, 8))))
        started, used = time.perf_counter(), time.process_time()
        each_s = await asyncio.gather(*(one() for _ in range(jobs)))
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - used
        sys.stdout.write(json.dumps({"took_s": took_s, "cpu_s": cpu_s, "each_s": each_s}))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
