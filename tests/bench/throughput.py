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
from dataclasses import dataclass
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
RUNS, QUICK_RUNS = 5, 1
BARE = {"shared": "bare LangGraph, one saver", "own": "bare LangGraph, a saver a run"}


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
    """Every figure of throughput, in turns."""
    figures: list[Figure] = []
    for case in cases:
        dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
        migrate.up(migrate.Settings(dsn, MIGRATIONS))
        with_schema = f"{dsn}?options=-csearch_path%3Dagent_executor"
        found: dict[str, list[Run]] = {"shared": [], "own": [], "ours": []}
        with services(stack, dsn, case.processes, MAX_CONCURRENT_JOBS=str(case.in_flight)) as processes:
            asyncio.run(_through_nats(stack, case, processes, max(case.in_flight * case.processes, 8)))
            for _ in range(QUICK_RUNS if quick else RUNS):
                for savers in BARE:
                    found[savers].append(_bare(with_schema, case, savers))
                found["ours"].append(asyncio.run(_through_nats(stack, case, processes, case.jobs)))
        figures += _rates(case, found)
        if case.in_flight == 1:
            figures += _latencies(found)
    return figures


def _rates(case: Case, found: Mapping[str, list[Run]]) -> list[Figure]:
    bare = statistics.median(run.rate for run in found["shared"])
    where = f"{case.in_flight} in flight" + (f" in each of {case.processes} processes" if case.processes > 1 else "")
    figures = []
    for name, runs in found.items():
        rates = [run.rate for run in runs]
        ratio = statistics.median(rates) / bare
        cpu = f"{statistics.median(run.cpu_ms for run in runs):.1f} ms CPU a job"
        goal = case.goal if name == "ours" else None
        told = f"{ratio:.2f} x bare, {cpu}" + ("" if goal is None else f", at least {goal:g} x")
        reached = None if goal is None else ratio >= goal
        label = f"jobs a second, {where}, {BARE.get(name, 'the service')}"
        figures.append(Figure(label, rates, told, reached, "/s", more_is_better=True))
    return figures


def _latencies(found: Mapping[str, list[Run]]) -> list[Figure]:
    bare, ours = ([each for run in found[name] for each in run.each_ms] for name in ("shared", "ours"))
    p50 = statistics.median(ours) / statistics.median(bare)
    p99 = _p99(ours) / _p99(bare)
    told = f"p50 {p50:.2f} x bare, at most 1.4; p99 {p99:.2f} x bare, at most 2"
    return [
        Figure("one job, bare LangGraph", bare),
        Figure("one job, from its event to its result", ours, told, p50 <= 1.4 and p99 <= 2),
    ]


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _bare(dsn: str, case: Case, savers: str) -> Run:
    words = [sys.executable, "-m", "tests.bench.bare", dsn, str(case.jobs), str(case.in_flight), savers]
    said = json.loads(subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    each_ms = [seconds * 1000 for seconds in said["each_s"]]
    return Run(case.jobs / said["took_s"], said["cpu_s"] * 1000 / case.jobs, each_ms)


async def _through_nats(stack: Stack, case: Case, processes: Sequence[subprocess.Popen[bytes]], jobs: int) -> Run:
    """Publish the jobs, and wait for as many results; one after the other where one is in flight."""
    client = await nats.connect(stack.nats.url)
    prefix = uuid.uuid4().hex[:8]
    waiting = {f"{prefix}-{number}": asyncio.get_running_loop().create_future() for number in range(jobs)}

    async def on_result(message: Any) -> None:
        result = waiting.get(json.loads(message.data)["subject"])
        if result is not None and not result.done():
            assert message.subject == "agent.status.completed", message.data
            result.set_result(time.perf_counter())

    js = client.jetstream(publish_async_max_pending=1000)
    await js.subscribe("agent.status.*", cb=on_result, deliver_policy=DeliverPolicy.NEW, ordered_consumer=True)
    events = {job_id: _event(job_id) for job_id in waiting}
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
    return Run(jobs / took_s, used * 1000 / jobs, each_ms)


def _event(job_id: str) -> bytes:
    data = {
        "job_id": job_id,
        "trace_id": "bench",
        "agent_definition": {"graph": "plain"},
        "input_payload": {"items": ["0"]},
    }
    event = {"specversion": "1.0", "type": "dev.my-platform.agent.execute", "source": "bench", "id": job_id}
    return json.dumps({**event, "data": data}).encode()
