"""Jobs a second, and how long one takes, through HTTP: the service beside Aegra, on the same graph and servers.

One process of each, with as many jobs in flight. A rate is from the first request to the end of the last job as its
service recorded it, so that it does not matter how its clients wait: they submit jobs in the background, and then ask
for the last one as its API offers it. Whoever waits for one job at a time gets the result in answer to the submission.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent_executor import migrate
from tests.bench import aegra
from tests.bench.connections import Connections
from tests.bench.figures import Figure
from tests.bench.processes import cpu_s, port_of, services
from tests.bench.throughput import MIGRATIONS, PLAIN, Run, cloud_event
from tier3.stack import Stack

RESULT = ["0", "x", "x", "x"]
RUN = {"assistant_id": "plain", "input": PLAIN["input_payload"], "stream_mode": ["values", "custom"]}  # the same events
AT_LEAST, AT_MOST = 10, 0.01
ASK_EVERY_S = 0.05


@dataclass(frozen=True)
class Plan:
    """How many jobs in flight, how often, how many jobs of each; and how many waits of each for one job."""

    in_flight: tuple[int, ...]
    rounds: int
    theirs: int
    ours: int
    waits: tuple[int, int]


FULL = Plan((8, 64), 3, 60, 600, (4, 100))
QUICK = Plan((64,), 1, 40, 200, (2, 20))


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
    """A running service, and how many jobs it gets in a round, and how many waits for one."""

    kind: Callable[[Connections], Peer]
    process: subprocess.Popen[bytes]
    port: int
    jobs: int
    waits: int


def measure(stack: Stack, *, quick: bool = False) -> list[Figure]:
    """Every figure of peers, in turns.

    Raises:
        LeftOut: Aegra cannot be had here.
    """
    python = aegra.installed()
    plan = QUICK if quick else FULL
    figures: list[Figure] = []
    for in_flight in plan.in_flight:
        with ExitStack() as opened:
            contenders = _contenders(stack, python, plan, in_flight, opened)
            found: dict[str, list[Run]] = {name: [] for name in contenders}
            for each in contenders.values():
                asyncio.run(_together(each, in_flight, min(in_flight, each.jobs)))
            for _ in range(plan.rounds):
                for name, each in contenders.items():
                    found[name].append(asyncio.run(_together(each, in_flight, each.jobs)))
            figures += _rates(in_flight, found)
            if in_flight == plan.in_flight[-1]:
                figures += _waits({name: asyncio.run(_one_by_one(each)) for name, each in contenders.items()})
    return figures


def _contenders(stack: Stack, python: Path, plan: Plan, in_flight: int, opened: ExitStack) -> dict[str, Contender]:
    theirs_dsn, ours_dsn = (stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}") for _ in range(2))
    migrate.up(migrate.Settings(ours_dsn, MIGRATIONS))
    theirs, port = opened.enter_context(aegra.serving(python, stack, theirs_dsn, in_flight))
    [ours] = opened.enter_context(services(stack, ours_dsn, 1, MAX_CONCURRENT_JOBS=str(in_flight)))
    return {
        "Aegra": Contender(Aegra, theirs, port, plan.theirs, plan.waits[0]),
        "the service": Contender(Ours, ours, port_of(ours), plan.ours, plan.waits[1]),
    }


async def _together(contender: Contender, in_flight: int, jobs: int) -> Run:
    """All are submitted, by as many clients as there are jobs in flight; each is looked at once the last has ended."""
    connections = Connections(contender.port, in_flight)
    peer = contender.kind(connections)
    ids = [str(uuid.uuid4()) for _ in range(jobs)]
    started, used = time.time(), cpu_s([contender.process])
    await asyncio.gather(*map(peer.submit, ids))
    await peer.ended(ids[-1])
    used = cpu_s([contender.process]) - used
    last = max([(await peer.ended(each)).timestamp() for each in ids])
    connections.close()
    return Run(jobs / (last - started), used * 1000 / jobs, [])


async def _one_by_one(contender: Contender) -> list[float]:
    connections = Connections(contender.port, 1)
    peer = contender.kind(connections)
    found = []
    for _ in range(contender.waits):
        started = time.perf_counter()
        await peer.wait(str(uuid.uuid4()))
        found.append((time.perf_counter() - started) * 1000)
    connections.close()
    return found


def _rates(in_flight: int, found: Mapping[str, list[Run]]) -> list[Figure]:
    panel = f"jobs a second through HTTP, {in_flight} in flight"
    theirs, ours = (
        Figure(
            f"{panel}, {name}",
            [run.rate for run in runs],
            unit="/s",
            more_is_better=True,
            cpu_ms=statistics.median(run.cpu_ms for run in runs),
            panel=panel,
        )
        for name, runs in found.items()
    )
    ratio = ours.median / theirs.median
    goal, reached = f"at least {AT_LEAST} x", ratio >= AT_LEAST
    return [theirs, replace(ours, goal=goal, reached=reached, ratio=ratio, of="Aegra", ours=True)]


def _waits(found: Mapping[str, list[float]]) -> list[Figure]:
    panel = "one job at a time through HTTP, until its result is there"
    theirs, ours = (Figure(f"{panel}, {name}", each_ms, panel=panel) for name, each_ms in found.items())
    ratio = ours.median / theirs.median
    goal, reached = f"at most {AT_MOST:g} x", ratio <= AT_MOST
    return [theirs, replace(ours, goal=goal, reached=reached, ratio=ratio, of="Aegra", ours=True)]
