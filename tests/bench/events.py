"""Events end to end: from a node that emits to a client that has them, live and replayed, beside a bare stream.

The client is a blocking socket that notes when each piece arrived and looks into none before the end, so that it takes
next to no CPU. Both processes run the same graphs, are warm, and are asked in turns. A rate counts from the moment that
the first event was emitted until the last one was there.
"""

from __future__ import annotations

import bisect
import json
import os
import socket
import statistics
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agent_executor import migrate
from tests.bench.figures import Figure
from tests.bench.processes import Process, cpu_s, python, services, until_200
from tier3.stack import Stack

ROOT = Path(__file__).parents[2]
MIGRATIONS = ROOT / "migrations"
GRAPHS = {name: f"tests/bench/emitting.py:{name}_graph" for name in ("burst", "tokens", "paced")}
RUNS, QUICK_RUNS = 15, 3
EVENTS, A_SECOND = 1000, 700
LEAST_A_SECOND, MOST_MS = 10_000, 1.0
_LEAD_S = 0.3
T = TypeVar("T")


@dataclass(frozen=True)
class Heard:
    """The events that a client got, and when: seconds since 1970."""

    at: list[float]
    events: list[Any]
    asked_at: float

    @property
    def emitted(self) -> list[tuple[float, float]]:
        """Of each event that says when it was emitted: that moment, and when it was there."""
        said = ((event["data"].get("at") or event["data"].get("content"), at) for event, at in self.pairs)
        return [(float(since), at) for since, at in said if since]

    @property
    def pairs(self) -> Iterator[tuple[Any, float]]:
        """Each event, and when it was there."""
        return zip(self.events, self.at, strict=True)

    @property
    def rate(self) -> float:
        """Events a second, since the first was emitted."""
        return len(self.emitted) / (self.emitted[-1][1] - self.emitted[0][0])

    @property
    def replay_rate(self) -> float:
        """Events a second, since the client asked for them."""
        return len(self.at) / (self.at[-1] - self.asked_at)


@dataclass(frozen=True)
class Machine:
    """What is measured: a process of the service, its Redis, and a bare one."""

    ours: Process
    redis_pid: int
    bare: Process

    def live(self, graph: str, *, is_ours: bool = True) -> Heard:
        """What a client gets that is connected before the first event."""
        start_at = time.time() + _LEAD_S
        if is_ours:
            heard = _follow(self.ours, f"/v1/jobs/{self.submit(graph, start_at)}/events")
        else:
            heard = _follow(self.bare, f"/{graph}?events={EVENTS}&a_second={A_SECOND}&start_at={start_at}")
        assert len(heard.emitted) == EVENTS, heard.events[-1]
        return heard

    def submit(self, graph: str, start_at: float) -> str:
        """Have a job run; returns its id."""
        given = {"events": EVENTS, "a_second": A_SECOND, "start_at": start_at}
        body = json.dumps({"agent_definition": {"graph": graph}, "input_payload": given}).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.ours.port}/v1/jobs", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(json.load(answer)["job_id"])

    def used_us(self, events: int, work: Callable[[], T]) -> tuple[T, str]:
        """What `work` returns, and what it took of CPU in words, by so many events."""
        pids = [self.ours.pid, self.redis_pid]
        before = [cpu_s([pid]) for pid in pids]
        done = work()
        service, redis = ((cpu_s([pid]) - start) / events * 1e6 for pid, start in zip(pids, before, strict=True))
        return done, f"{service:.0f} us CPU an event, and {redis:.0f} in Redis"


def measure(stack: Stack, *, quick: bool = False) -> Iterator[Figure]:
    """Every figure of events."""
    dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
    migrate.up(migrate.Settings(dsn, MIGRATIONS))
    runs = QUICK_RUNS if quick else RUNS
    with (
        services(stack, dsn, 1, GRAPHS) as [ours],
        python("tests.bench.bare_events", environment=os.environ) as bare,
    ):
        until_200(bare, "/ready")
        machine = Machine(ours, stack.redis.pid, bare)
        for graph in ("burst", "tokens"):
            for is_ours in (True, False):
                machine.live(graph, is_ours=is_ours)
        yield from _rates(machine, "burst", "events", runs, LEAST_A_SECOND)
        yield from _rates(machine, "tokens", "tokens", runs)
        yield from _replays(machine, runs)
        yield from _delays(machine, max(1, runs // 5))


def _rates(machine: Machine, graph: str, what: str, runs: int, goal: float | None = None) -> Iterator[Figure]:
    found: dict[bool, list[float]] = {False: [], True: []}
    for is_ours, rates in list(found.items()) * runs:
        rates.append(machine.live(graph, is_ours=is_ours).rate)
    reached = None if goal is None else statistics.median(found[True]) >= goal
    _, used = machine.used_us(runs * EVENTS, lambda: [machine.live(graph) for _ in range(runs)])
    told = f"{used}, with its job" + ("" if goal is None else f", at least {goal}")
    yield _rate(f"{EVENTS} {what} as they are emitted, bare LangGraph", found[False])
    yield _rate(f"{EVENTS} {what} as they are emitted", found[True], told, reached)


def _replays(machine: Machine, runs: int) -> Iterator[Figure]:
    job_id = machine.submit("burst", time.time())
    _follow(machine.ours, f"/v1/jobs/{job_id}/events")
    found, used = machine.used_us(
        runs * EVENTS, lambda: [_follow(machine.ours, f"/v1/jobs/{job_id}/events").replay_rate for _ in range(runs)]
    )
    yield _rate(f"{EVENTS} events of a finished job", found, used)


def _rate(name: str, rates: list[float], goal: str = "", reached: bool | None = None) -> Figure:
    return Figure(name, rates, goal, reached, "/s", more_is_better=True)


def _delays(machine: Machine, runs: int) -> Iterator[Figure]:
    found: dict[bool, list[float]] = {False: [], True: []}
    for is_ours, delays in list(found.items()) * runs:
        heard = machine.live("paced", is_ours=is_ours)
        delays += [(at - since) * 1000 for since, at in heard.emitted]
    median, p99 = statistics.median(found[True]), statistics.quantiles(found[True], n=100)[98]
    told = f"at most {MOST_MS:g}, p99 {p99:.1f}"
    yield Figure(f"delay of an event, {A_SECOND} a second, bare LangGraph", found[False])
    yield Figure(f"delay of an event, {A_SECOND} a second", found[True], told, median <= MOST_MS)


def _follow(process: Process, path: str) -> Heard:
    """Read a stream to its end."""
    pieces, ends, at, size = [], [], [], 0
    with socket.create_connection(("127.0.0.1", process.port), 30) as connection:
        asked_at = time.time()
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        while piece := connection.recv(2**18):
            at.append(time.time())
            size += len(piece)
            pieces.append(piece)
            ends.append(size)
    answer = b"".join(pieces)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]
    found: list[tuple[float, Any]] = []
    line = answer.find(b"\ndata: ")
    while line >= 0:
        end = answer.index(b"\n", line + 1)
        found.append((at[bisect.bisect_left(ends, end + 1)], json.loads(answer[line + 7 : end])))
        line = answer.find(b"\ndata: ", end)
    return Heard([moment for moment, _ in found], [event for _, event in found], asked_at)
