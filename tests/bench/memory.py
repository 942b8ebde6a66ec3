"""Resident memory of a process of the service: idle, with a provider's packages, after many jobs, of each one held.

What is told is the service's own process; the one that tools are forked from is its child, and told apart. Jobs come
and go by NATS. What stays of finished ones is the slope of a line through the readings, so that no single one decides.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nats
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy

from agent_executor import migrate
from tests.bench.figures import Figure
from tests.bench.processes import PLAIN, Process, service, services, until_200, until_ready
from tests.definitions import agent, event
from tier3.stack import Stack

MIGRATIONS = Path(__file__).parents[2] / "migrations"
IN_FLIGHT = 64
STEP, WARM, STEPS = 1000, 2, 10
QUICK_STEP, QUICK_WARM, QUICK_STEPS = 250, 1, 2
HELD, QUICK_HELD = 500, 100
MOST_MIB, MOST_GROWTH_MIB = 130, 10
MODELS = {"openai": "gpt-4.1-mini", "anthropic": "claude-3-5-haiku-latest"}
_WAIT_S = 60


def measure(stack: Stack, *, quick: bool = False) -> list[Figure]:
    """Every figure of memory; growth is told for 10,000 jobs, however many there were."""
    if quick:
        return [*_idle(stack, "openai"), _growth(stack, QUICK_STEP, QUICK_WARM, QUICK_STEPS), _held(stack, QUICK_HELD)]
    figures = [figure for provider in MODELS for figure in _idle(stack, provider)]
    return [*figures, _growth(stack, STEP, WARM, STEPS), _held(stack, HELD)]


def _idle(stack: Stack, provider: str) -> list[Figure]:
    """After /ready, and after a job that has had the provider's client made, and been refused by the provider."""
    with _refusal() as address:
        named = {f"{provider.upper()}_API_KEY": "none", f"{provider.upper()}_BASE_URL": address}
        with service(stack, _database(stack), PLAIN, **named) as process:
            until_ready(process)
            tools_mib = _rss_mib(_zygote(process))
            ready_mib = _rss_mib(process.pid)
            model = {"provider": provider, "model": MODELS[provider]}
            asyncio.run(_run(stack, [event(agent([], model=model), job_id=uuid.uuid4().hex)], "failed"))
            idle_mib = _rss_mib(process.pid)
    name = f"memory, idle, {provider} loaded"
    if provider != "openai":
        return [Figure(name, [idle_mib], unit="MiB")]
    return [
        Figure("memory, after /ready", [ready_mib], unit="MiB"),
        Figure("memory, after /ready, of the process that tools are forked from", [tools_mib], unit="MiB"),
        Figure(name, [idle_mib], f"at most {MOST_MIB} MiB", idle_mib <= MOST_MIB, "MiB"),
    ]


def _growth(stack: Stack, step: int, warm: int, steps: int) -> Figure:
    with services(stack, _database(stack), 1, MAX_CONCURRENT_JOBS=str(IN_FLIGHT)) as [process]:
        readings = []
        for _ in range(warm + steps):
            asyncio.run(_run(stack, [_job("plain") for _ in range(step)], "completed"))
            readings.append(_rss_mib(process.pid))
    readings = readings[warm - 1 :]
    slope, _ = statistics.linear_regression(range(len(readings)), readings)
    grown_mib = slope * 10_000 / step
    jobs = f"{warm * step:,} jobs", f"{(warm + steps) * step:,}"
    goal = f"{readings[0]:.1f} after {jobs[0]}, {readings[-1]:.1f} after {jobs[1]}; at most {MOST_GROWTH_MIB} MiB"
    return Figure("memory, growth over 10,000 jobs", [grown_mib], goal, grown_mib <= MOST_GROWTH_MIB, "MiB")


def _held(stack: Stack, held: int) -> Figure:
    """Jobs that wait; not counting the first one, which has had loaded what all of them need."""
    more = {"MAX_CONCURRENT_JOBS": str(held + 1), "SHUTDOWN_GRACE_S": "1"}
    graphs = {"waiting": "tests/bench/waiting.py:graph"}
    with service(stack, _database(stack), graphs, **more) as process:
        until_ready(process)
        readings = []
        for running, jobs in ((1, 1), (held + 1, held)):
            asyncio.run(_publish(stack, [_job("waiting") for _ in range(jobs)]))
            is_running = partial(_holds, f"\nagent_executor_jobs_running {running:.1f}\n")
            until_200(process, "/metrics", is_running)
            readings.append(_rss_mib(process.pid))
    each_kib = (readings[1] - readings[0]) * 1024 / held
    return Figure(f"memory of each running job, {held} that wait", [each_kib], unit="KiB")


def _database(stack: Stack) -> str:
    dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
    migrate.up(migrate.Settings(dsn, MIGRATIONS))
    return dsn


def _rss_mib(process: int) -> float:
    """Resident memory, of libraries as well (Rss in proc_pid_smaps(5))."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def _zygote(process: Process) -> int:
    """The service's only child, once it has imported what tools need and does nothing."""
    deadline = time.monotonic() + _WAIT_S
    while "sandbox_off" not in process.log.read_text():
        assert time.monotonic() < deadline, "the process that tools are forked from does not start"
        time.sleep(0.05)
    [child] = [
        int(child)
        for children in Path(f"/proc/{process.pid}/task").glob("*/children")
        for child in children.read_text().split()
    ]
    return child


def _job(graph: str) -> dict[str, Any]:
    asked = event({"graph": graph}, job_id=uuid.uuid4().hex)
    asked["data"]["input_payload"] = {"items": ["0"]}
    return asked


def _holds(words: str, text: str) -> bool:
    return words in text


async def _publish(stack: Stack, events: Sequence[dict[str, Any]]) -> None:
    client = await nats.connect(stack.nats.url)
    js = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    for each in events:
        await js.publish_async("agent.execute.bench", json.dumps(each).encode())
    await js.publish_async_completed()
    await client.close()


async def _run(stack: Stack, events: Sequence[dict[str, Any]], status: str) -> None:
    """Publish these, and wait until every one has ended as `status` says."""
    client = await nats.connect(stack.nats.url)
    waiting = {each["data"]["job_id"] for each in events}
    ended = asyncio.Event()

    async def on_result(message: Msg) -> None:
        said = json.loads(message.data)
        if said["subject"] in waiting:
            assert message.subject == f"agent.status.{status}", said
            waiting.remove(said["subject"])
        if not waiting:
            ended.set()

    js = client.jetstream()
    await js.subscribe("agent.status.*", cb=on_result, deliver_policy=DeliverPolicy.NEW, ordered_consumer=True)
    await _publish(stack, events)
    await asyncio.wait_for(ended.wait(), _WAIT_S)
    await client.close()


class _Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_error(401)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def _refusal() -> Iterator[str]:
    """The address of a provider that takes no key."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
