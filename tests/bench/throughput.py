"""Jobs a second: the service from a CloudEvent on NATS to its result on NATS, beside a bare loop over the same graph.

The service's figure holds everything that it does: intake, queue, leases, fenced checkpoints, events to Redis, outcome
and result. The loop's holds the runs and LangGraph's own checkpoints at durability `sync`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
from nats.js.api import DeliverPolicy

from agent_executor import migrate
from tests.bench.figures import Figure
from tier3.stack import Stack
from tier3.stack.ports import free_port

ROOT = Path(__file__).parents[2]
MIGRATIONS = ROOT / "migrations"
_READY_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rate:
    """One run: jobs a second, and milliseconds of CPU a job that the contender's own processes took."""

    jobs_a_second: float
    cpu_ms: float


@dataclass(frozen=True)
class Case:
    """So many jobs in flight in each of so many processes."""

    in_flight: int
    processes: int
    jobs: int


CASES = (Case(1, 1, 60), Case(8, 1, 300), Case(64, 1, 600), Case(64, 2, 800))


def measure(stack: Stack, runs: int, cases: tuple[Case, ...] = CASES) -> list[Figure]:
    """Every figure of throughput, in turns."""
    figures = []
    for case in cases:
        dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
        migrate.up(migrate.Settings(dsn, MIGRATIONS))
        with_schema = f"{dsn}?options=-csearch_path%3Dagent_executor"
        found: dict[str, list[Rate]] = {"shared": [], "own": [], "ours": []}
        with services(stack, dsn, case) as processes:
            asyncio.run(_through_nats(stack, case, processes, warm=True))
            for _ in range(runs):
                for savers in ("shared", "own"):
                    found[savers].append(_bare(with_schema, case, savers))
                found["ours"].append(asyncio.run(_through_nats(stack, case, processes)))
        figures += _figures(case, found)
    return figures


def _figures(case: Case, found: Mapping[str, list[Rate]]) -> list[Figure]:
    for name, rates in found.items():
        median = statistics.median(rate.jobs_a_second for rate in rates)
        cpu = statistics.median(rate.cpu_ms for rate in rates)
        spread = f"{min(r.jobs_a_second for r in rates):.0f}-{max(r.jobs_a_second for r in rates):.0f}"
        base = statistics.median(rate.jobs_a_second for rate in found["shared"])
        print(
            f"{case.in_flight:3d} in flight, {case.processes} p, {name:7s} {median:6.1f}/s ({spread}) "
            f"{median / base:5.2f} x bare, {cpu:5.2f} ms CPU a job",
            flush=True,
        )
    return []


def _bare(dsn: str, case: Case, savers: str) -> Rate:
    words = [sys.executable, "-m", "tests.bench.bare", dsn, str(case.jobs), str(case.in_flight), savers]
    printed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    seconds, cpu = map(float, printed.split())
    return Rate(case.jobs / seconds, cpu * 1000 / case.jobs)


@contextlib.contextmanager
def services(stack: Stack, dsn: str, case: Case, **more: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of the service that serve the graph, ready."""
    directory = ROOT / "artifacts"
    directory.mkdir(exist_ok=True)
    config = directory / "bench-langgraph.json"
    config.write_text(json.dumps({"dependencies": ["."], "graphs": {"plain": f"{ROOT}/tests/bench/plain.py:graph"}}))
    server = stack.postgres
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ},
        "POSTGRES_HOST": server.host,
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_DB": dsn.rpartition("/")[2],
        "POSTGRES_USER": server.user,
        "POSTGRES_PASSWORD": server.password,
        "NATS_URL": stack.nats.url,
        "REDIS_URL": stack.redis.url,
        "AUTH_MODE": "none",
        "TOOL_SANDBOX": "off",
        "LANGGRAPH_CONFIG": str(config),
        "MAX_CONCURRENT_JOBS": str(case.in_flight),
        "NATS_STREAM_NAME": "AGENT_EXECUTION",
        "OPENAI_API_KEY": "none",
        **more,
    }
    processes = []
    try:
        for number in range(case.processes):
            port = free_port()
            words = ["-m", "uvicorn", "--factory", "agent_executor.app:main", "--port", str(port), "--no-access-log"]
            with (directory / f"bench-service-{number}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen([sys.executable, *words], env=environment, cwd=ROOT, stdout=log, stderr=log)
                )
            _until_ready(port)
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


def _until_ready(port: int) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
                services = json.load(answer)["services"]
                if services["nats"] and services["dragonfly"]:
                    return
        time.sleep(0.05)
    raise RuntimeError("the service is not ready")


async def _through_nats(stack: Stack, case: Case, processes: list[Any], *, warm: bool = False) -> Rate:
    """Publish the jobs, and wait for as many results."""
    jobs = max(case.in_flight * case.processes, 8) if warm else case.jobs
    client = await nats.connect(stack.nats.url)
    js = client.jetstream(publish_async_max_pending=1000)
    prefix, seen, done = uuid.uuid4().hex[:8], set[str](), asyncio.Event()

    async def on_result(message: Any) -> None:
        job_id = json.loads(message.data)["subject"]
        if job_id.startswith(prefix):
            assert message.subject.endswith("completed"), message.data
            seen.add(job_id)
            if len(seen) == jobs:
                done.set()

    await js.subscribe("agent.status.*", cb=on_result, deliver_policy=DeliverPolicy.NEW, ordered_consumer=True)
    events = [_event(f"{prefix}-{number}") for number in range(jobs)]
    started, used = time.perf_counter(), _cpu_s(processes)
    acks = [await js.publish_async("agent.execute.bench", event) for event in events]
    await asyncio.gather(*acks)
    await done.wait()
    seconds, cpu = time.perf_counter() - started, _cpu_s(processes) - used
    await client.close()
    return Rate(jobs / seconds, cpu * 1000 / jobs)


def _event(job_id: str) -> bytes:
    data = {
        "job_id": job_id,
        "trace_id": "bench",
        "agent_definition": {"graph": "plain"},
        "input_payload": {"items": ["0"]},
    }
    event = {"specversion": "1.0", "type": "dev.my-platform.agent.execute", "source": "bench", "id": job_id}
    return json.dumps({**event, "data": data}).encode()


def _cpu_s(processes: list[Any]) -> float:
    total = 0
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS
