"""Jobs a second, and how long one takes, through HTTP: the service beside Aegra, on the same graph and servers.

One process of each, which runs 64 jobs at once. Clients wait for their jobs as the API offers it, each for one after
the other; or all jobs are submitted in the background, and the rate is from the first request to the end of the last
job as its service recorded it, so that it does not matter how clients wait.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent_executor import migrate
from tests.bench import aegra
from tests.bench.connections import Connections
from tests.bench.figures import Figure
from tests.bench.processes import cpu_s, services
from tests.bench.throughput import MIGRATIONS, PLAIN, Run, cloud_event
from tier3.stack import Stack

RESULT = ["0", "x", "x", "x"]
RUN = {"assistant_id": "plain", "input": PLAIN["input_payload"], "stream_mode": ["values", "custom"]}  # the same events
AT_LEAST, AT_MOST = 10, 0.01
ASK_EVERY_S = 0.05
AT_ONCE = 64


@dataclass(frozen=True)
class Work:
    """Jobs of clients that wait, or in the background; in how many rounds, and how many jobs of each service in one."""

    clients: int
    rounds: int
    theirs: int
    ours: int
    background: bool = False

    @property
    def name(self) -> str:
        """What the chart calls it."""
        if self.background:
            return f"jobs a second through HTTP, {AT_ONCE} in flight in the background"
        return f"jobs a second through HTTP, {self.clients} clients that wait"


ALONE = Work(1, 2, 2, 50)
FULL = (ALONE, Work(8, 2, 16, 300), Work(AT_ONCE, 2, 2 * AT_ONCE, 600), Work(AT_ONCE, 2, 60, 600, background=True))
QUICK = (Work(1, 1, 2, 20), Work(AT_ONCE, 1, 40, 200, background=True))


class Peer(Protocol):
    """A service as its clients see it. A job is named by its id."""

    async def submit(self, job_id: str) -> None:
        """Have it run in the background."""

    async def ended(self, job_id: str) -> datetime:
        """When it had run to its end, once it has. AssertionError if its result is not what the graph makes."""

    async def wait(self, job_id: str) -> None:
        """Have it run, and wait for its result."""


class Ours:
    """The service."""

    def __init__(self, connections: Connections) -> None:
        self._ask = connections.ask

    async def submit(self, job_id: str) -> None:
        await self._ask("POST", "/", cloud_event(job_id), kind="application/cloudevents+json")

    async def ended(self, job_id: str) -> datetime:
        while True:
            job = await self._ask("GET", f"/v1/jobs/{job_id}")
            if job["finished_at"] is not None:
                assert job["result"] == {"output": {"items": RESULT}, "status": "completed"}, job
                return datetime.fromisoformat(job["finished_at"])
            await asyncio.sleep(ASK_EVERY_S)

    async def wait(self, job_id: str) -> None:
        done = await self._ask("POST", "/?wait=30", cloud_event(job_id), kind="application/cloudevents+json")
        assert done["data"]["result"]["output"] == {"items": RESULT}, done


class Aegra:
    """Aegra; a job is a thread with one run."""

    def __init__(self, connections: Connections) -> None:
        self._ask = connections.ask
        self._runs: dict[str, str] = {}

    async def submit(self, job_id: str) -> None:
        run = await self._ask("POST", f"/threads/{job_id}/runs", RUN)
        self._runs[job_id] = run["run_id"]

    async def ended(self, job_id: str) -> datetime:
        run = f"/threads/{job_id}/runs/{self._runs[job_id]}"
        output = await self._ask("GET", f"{run}/join")
        assert output == {"items": RESULT}, output
        return datetime.fromisoformat((await self._ask("GET", run))["updated_at"])

    async def wait(self, job_id: str) -> None:
        done = await self._ask("POST", f"/threads/{job_id}/runs/wait", RUN)
        assert done == {"items": RESULT}, done


@dataclass(frozen=True)
class Contender:
    """A running service."""

    kind: Callable[[Connections], Peer]
    process: subprocess.Popen[bytes]
    port: int


def measure(stack: Stack, *, quick: bool = False) -> list[Figure]:
    """Every figure of peers, in turns.

    Raises:
        LeftOut: Aegra cannot be had here.
    """
    python = aegra.installed()
    figures: list[Figure] = []
    with _theirs(stack, python) as theirs, _ours(stack) as ours:
        for each in (theirs, ours):
            asyncio.run(_in_background(each, AT_ONCE, AT_ONCE))  # as many at once as ever: they open their connections
        for work in QUICK if quick else FULL:
            found: dict[str, list[Run]] = {"Aegra": [], "the service": []}
            go = _in_background if work.background else _waiting
            for _ in range(work.rounds):
                found["Aegra"].append(asyncio.run(go(theirs, work.clients, work.theirs)))
                found["the service"].append(asyncio.run(go(ours, work.clients, work.ours)))
            figures += _rates(work, found) if work.clients > 1 else _waits(found)
    return figures


@contextmanager
def _theirs(stack: Stack, python: Path) -> Iterator[Contender]:
    dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
    with aegra.serving(python, stack, dsn, AT_ONCE) as process:
        yield Contender(Aegra, process, process.port)


@contextmanager
def _ours(stack: Stack) -> Iterator[Contender]:
    dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
    migrate.up(migrate.Settings(dsn, MIGRATIONS))
    with services(stack, dsn, 1, MAX_CONCURRENT_JOBS=str(AT_ONCE)) as [process]:
        yield Contender(Ours, process, process.port)


async def _in_background(contender: Contender, clients: int, jobs: int) -> Run:
    """All are submitted at once; each is looked at when the last has ended."""
    connections = Connections(contender.port, clients)
    peer = contender.kind(connections)
    ids = [str(uuid.uuid4()) for _ in range(jobs)]
    started, used = time.time(), cpu_s([contender.process])
    await asyncio.gather(*map(peer.submit, ids))
    await peer.ended(ids[-1])
    used = cpu_s([contender.process]) - used
    last = max([(await peer.ended(each)).timestamp() for each in ids])
    connections.close()
    return Run(jobs / (last - started), used * 1000 / jobs, [])


async def _waiting(contender: Contender, clients: int, jobs: int) -> Run:
    """Each client waits for a job before it asks for the next."""
    connections = Connections(contender.port, clients)
    peer = contender.kind(connections)
    slots = asyncio.Semaphore(clients)

    async def one() -> float:
        async with slots:
            started = time.perf_counter()
            await peer.wait(str(uuid.uuid4()))
            return (time.perf_counter() - started) * 1000

    started, used = time.perf_counter(), cpu_s([contender.process])
    each_ms = await asyncio.gather(*(one() for _ in range(jobs)))
    took_s, used = time.perf_counter() - started, cpu_s([contender.process]) - used
    connections.close()
    return Run(jobs / took_s, used * 1000 / jobs, each_ms)


def _rates(work: Work, found: Mapping[str, list[Run]]) -> list[Figure]:
    theirs, ours = (
        Figure(
            f"{work.name}, {name}",
            [run.rate for run in runs],
            unit="/s",
            more_is_better=True,
            cpu_ms=statistics.median(run.cpu_ms for run in runs),
            panel=work.name if work.clients == AT_ONCE else "",
        )
        for name, runs in found.items()
    )
    ratio = ours.median / theirs.median
    goal, reached = f"at least {AT_LEAST} x", ratio >= AT_LEAST
    return [theirs, replace(ours, goal=goal, reached=reached, ratio=ratio, of="Aegra", ours=True)]


def _waits(found: Mapping[str, list[Run]]) -> list[Figure]:
    panel = "one job at a time through HTTP, until its result is there"
    theirs, ours = (
        Figure(f"{panel}, {name}", [ms for run in runs for ms in run.each_ms], panel=panel)
        for name, runs in found.items()
    )
    ratio = ours.median / theirs.median
    goal, reached = f"at most {AT_MOST:g} x", ratio <= AT_MOST
    return [theirs, replace(ours, goal=goal, reached=reached, ratio=ratio, of="Aegra", ours=True)]
