"""How long a start takes: to the first answer of `/health`, and until `/ready` says that all services are there.

Beside it, with the same flags of uvicorn, a bare FastAPI of one route; and a process that only imports, in the
ordinary way, the packages that a run needs, and opens and serves nothing. All from the start of the process, with
bytecode, in turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from agent_executor import migrate
from tests.bench.figures import Figure, compared, side_by_side, timed
from tests.bench.processes import Process, service, until_200, until_ready, uvicorn
from tier3.stack import Stack

ROOT = Path(__file__).parents[2]
RUNS, QUICK_RUNS = 9, 3
NEEDED = (
    *("langgraph.graph", "langgraph.checkpoint.postgres.aio", "deepagents", "langchain.agents"),
    *("psycopg", "psycopg_pool", "nats", "redis.asyncio", "httpx", "hvac", "prometheus_client", "structlog"),
)
"""What graphs, checkpoints and definitions are made of; the clients of PostgreSQL, NATS, Redis, HTTP and Vault; what is
counted and logged. Neither FastAPI nor uvicorn, of which a run knows nothing."""


def measure(stack: Stack, *, quick: bool = False) -> list[Figure]:
    """Every figure of a start."""
    dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
    migrate.up(migrate.Settings(dsn, ROOT / "migrations"))
    found = side_by_side(
        {
            "bare": _bare,
            "health": lambda: _ours(stack, dsn, _until_healthy),
            "imports": lambda: timed(_imports),
            "ready": lambda: _ours(stack, dsn, _until_ready),
        },
        QUICK_RUNS if quick else RUNS,
    )
    what = "process start to the first 200"
    return [
        Figure(f"{what}, a bare FastAPI", found["bare"]),
        compared(f"{what} of /health", found["health"], found["bare"], "a bare FastAPI", 1.15),
        Figure("process start to the end of the imports that a run needs", found["imports"]),
        compared(f"{what} of /ready, all services up", found["ready"], found["imports"], "these imports", 1.15),
    ]


def _bare() -> float:
    started = time.perf_counter()
    with uvicorn("tests.bench.hello:app", environment=os.environ) as process:
        _until_healthy(process)
        return (time.perf_counter() - started) * 1000


def _ours(stack: Stack, dsn: str, until: Callable[[Process], None]) -> float:
    started = time.perf_counter()
    with service(stack, dsn) as process:
        until(process)
        return (time.perf_counter() - started) * 1000


def _imports() -> None:
    subprocess.run([sys.executable, "-c", f"import {', '.join(NEEDED)}, os; os._exit(0)"], cwd=ROOT, check=True)


def _until_healthy(process: Process) -> None:
    until_200(process, "/health", poll_s=0.002)  # before it listens nobody is disturbed


def _until_ready(process: Process) -> None:
    """Asked only when it may be ready: each question takes time from the imports."""
    while '"serving"' not in process.log.read_text():
        time.sleep(0.002)
    until_ready(process)
