"""Jobs a second, and how long one takes: the service, from a CloudEvent to its result, beside a bare loop.

Both run the same graph; the service's jobs come and go by NATS.

The service's figures hold everything that it does: intake, queue, leases, fenced checkpoints, events to Redis, outcome
and result. The loop's hold the runs and LangGraph's own checkpoints, both at durability `sync`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nats
from nats.js.api import DeliverPolicy

from agent_executor import migrate
from tests.bench.figures import Figure
from tests.bench.processes import cpu_s, services
from tier3.stack import Stack

ROOT = Path(__file__).parents[2]
MIGRATIONS = ROOT / "migrations"
RUNS, QUICK_RUNS, QUICK_SHARE = 5, 1, 3
BARE = {"shared": "bare LangGraph (one saver)", "own": "bare LangGraph (a saver a run)"}
QUICK_BARE = ("shared",)
SLOTS = 8  # as the setting has it where nobody sets it
PLAIN = {"agent_definition": {"graph": "plain"}, "input_payload": {"items": ["0"]}}


@dataclass(frozen=True)
class Case:
    """So many jobs, so many of them in flight in each of so many processes.

    `goal`: how many times the rate of the bare loop with one saver, in one process.
    """

    in_flight: int
    processes: int
    jobs: int
    goal: float | None


CASES = (Case(1, 1, 60, None), Case(8, 1, 300, 1.4), Case(64, 1, 600, 1.8), Case(64, 2, 800, 2.4))


@dataclass(frozen=True)
class Run:
    """What one contender did: jobs a second, milliseconds of CPU a job in its own processes, and of each job."""

    rate: float
    cpu_ms: float
    each_ms: list[float]


def measure(stack: Stack, *, quick: bool = False, cases: tuple[Case, ...] = CASES) -> list[Figure]:
    """Every figure of throughput, in turns; quick with a third of the jobs, once, in one process, beside one saver."""
    figures: list[Figure] = []
    loops = QUICK_BARE if quick else BARE
    for case in (quickly(each) for each in cases if each.processes == 1) if quick else cases:
        dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
        migrate.up(migrate.Settings(dsn, MIGRATIONS))
        with_schema = f"{dsn}?options=-csearch_path%3Dagent_executor"
        found: dict[str, list[Run]] = {name: [] for name in (*loops, "ours")}
        warm = max(case.in_flight * case.processes, 8)
        with services(stack, dsn, case.processes, MAX_CONCURRENT_JOBS=str(max(case.in_flight, SLOTS))) as processes:
            asyncio.run(through_nats(stack, replace(case, jobs=warm), processes))
            for _ in range(QUICK_RUNS if quick else RUNS):
                for savers in loops:
                    found[savers].append(bare(with_schema, case, savers))
                found["ours"].append(asyncio.run(through_nats(stack, case, processes)))
        figures += rates(case, found)
        if case.in_flight == 1:
            figures += _latencies(found)
    return figures


def quickly(case: Case) -> Case:
    """The same with fewer jobs; as many as are in flight at least, since fewer say something else."""
    return replace(case, jobs=max(case.jobs // QUICK_SHARE, case.in_flight))


def rates(case: Case, found: Mapping[str, list[Run]], what: str = "jobs a second") -> list[Figure]:
    """A figure for each contender; the ratios are to the bare loop with one saver."""
    bare = statistics.median(run.rate for run in found["shared"])
    where = f"{case.in_flight} in flight" + (f" in each of {case.processes} processes" if case.processes > 1 else "")
    panel = f"{what}, {where}"
    figures = []
    for name, runs in found.items():
        ratio = statistics.median(run.rate for run in runs) / bare
        goal = case.goal if name == "ours" else None
        figures.append(
            Figure(
                f"{panel}, {BARE.get(name, 'the service')}",
                [run.rate for run in runs],
                "" if goal is None else f"at least {goal:g} x",
                None if goal is None else ratio >= goal,
                "/s",
                more_is_better=True,
                ratio=None if name == "shared" else ratio,
                of="bare",
                cpu_ms=statistics.median(run.cpu_ms for run in runs),
                panel=panel if case.in_flight > 1 else "",
                ours=name == "ours",
            )
        )
    return figures


def _latencies(found: Mapping[str, list[Run]]) -> list[Figure]:
    bare, ours = ([each for run in found[name] for each in run.each_ms] for name in ("shared", "ours"))
    p50 = statistics.median(ours) / statistics.median(bare)
    p99 = _p99(ours) / _p99(bare)
    told = f"at most 1.4 x; at p99 {p99:.2f} x, at most 2"
    return [
        Figure("one job, bare LangGraph", bare),
        Figure("one job, from its event to its result", ours, told, p50 <= 1.4 and p99 <= 2, ratio=p50, of="bare"),
    ]


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def bare(dsn: str, case: Case, savers: str, graph: str = "plain") -> Run:
    """A loop in a process of its own."""
    words = [sys.executable, "-m", "tests.bench.bare", dsn, str(case.jobs), str(case.in_flight), savers, graph]
    said = json.loads(subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    each_ms = [seconds * 1000 for seconds in said["each_s"]]
    return Run(case.jobs / said["took_s"], said["cpu_s"] * 1000 / case.jobs, each_ms)


async def through_nats(
    stack: Stack, case: Case, processes: Sequence[subprocess.Popen[bytes]], asked: Mapping[str, Any] = PLAIN
) -> Run:
    """Publish jobs for what is `asked`, and wait for their results; one after the other where one is in flight."""
    client = await nats.connect(stack.nats.url)
    prefix = uuid.uuid4().hex[:8]
    waiting = {f"{prefix}-{number}": asyncio.get_running_loop().create_future() for number in range(case.jobs)}

    async def on_result(message: Any) -> None:
        result = waiting.get(json.loads(message.data)["subject"])
        if result is not None and not result.done():
            assert message.subject == "agent.status.completed", message.data
            result.set_result(time.perf_counter())

    js = client.jetstream(publish_async_max_pending=1000)
    await js.subscribe("agent.status.*", cb=on_result, deliver_policy=DeliverPolicy.NEW, ordered_consumer=True)
    events = {job_id: cloud_event(job_id, asked) for job_id in waiting}
    sent: dict[str, float] = {}
    started, used = time.perf_counter(), cpu_s(processes)
    for job_id, event in events.items():
        sent[job_id] = time.perf_counter()
        await js.publish_async("agent.execute.bench", event)
        if case.in_flight == 1:
            await waiting[job_id]
    await asyncio.gather(*waiting.values())
    took_s, used = time.perf_counter() - started, cpu_s(processes) - used
    await client.close()
    each_ms = [(result.result() - sent[job_id]) * 1000 for job_id, result in waiting.items()]
    return Run(case.jobs / took_s, used * 1000 / case.jobs, each_ms)


def cloud_event(job_id: str, asked: Mapping[str, Any] = PLAIN) -> bytes:
    """The CloudEvent that asks for it."""
    said = {"specversion": "1.0", "type": "dev.my-platform.agent.execute", "source": "bench", "id": job_id}
    return json.dumps({**said, "data": {"job_id": job_id, "trace_id": "bench", **asked}}).encode()
