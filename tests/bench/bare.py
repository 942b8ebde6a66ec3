"""`python -m tests.bench.bare DSN JOBS IN_FLIGHT shared|own`: a loop over LangGraph with its own saver, and nothing else.

The reference: no queue, no events, no results, no fence. `shared` is one saver for all runs, `own` one a run; both
stand over one pool. Prints the seconds that the jobs took, and the CPU seconds of this process, after as many warm ones
as are in flight.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from tests.bench import plain

CONNECTIONS = 16


async def main(dsn: str, jobs: int, in_flight: int, savers: str) -> None:
    """Warm up, run, print."""
    kwargs: dict[str, Any] = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
    async with AsyncConnectionPool(dsn, min_size=2, max_size=CONNECTIONS, kwargs=kwargs) as pool:
        shared = AsyncPostgresSaver(pool)  # type: ignore[arg-type]
        slots = asyncio.Semaphore(in_flight)

        async def one() -> None:
            async with slots:
                saver = shared if savers == "shared" else AsyncPostgresSaver(pool)  # type: ignore[arg-type]
                graph = plain.graph.copy({"checkpointer": saver})
                config: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}
                stream = graph.astream({"items": ["0"]}, config, stream_mode=["values", "custom"], durability="sync")
                async for _ in stream:
                    pass

        await asyncio.gather(*(one() for _ in range(max(in_flight, 8))))
        started, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one() for _ in range(jobs)))
        print(time.perf_counter() - started, time.process_time() - used)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
