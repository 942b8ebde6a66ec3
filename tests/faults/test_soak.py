"""Three busy workers, and somebody who kills workers, PostgreSQL and NATS at random."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import count

import nats
import pytest

from tests.definitions import event
from tests.faults.conftest import Figure
from tests.faults.fixtures.journal import Journal, check, delivered
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Service, Starter
from tier3.stack import Nats, Postgres

JOBS = 200
STEPS = 3
KILLS = 20
SEED = 5
LEASE_S = "3"
PAUSE_S = (1.0, 3.0)
WAITING = 60
"""How many jobs are in the queue or under way while the soak lasts."""


class Chaos:
    """Kills one thing after the other, and starts it again; what it did is in `kills`."""

    def __init__(self, start: Callable[[], Service], postgres: Postgres, own_nats: Nats, most: float) -> None:
        self.kills: Counter[str] = Counter()
        self.workers = [start() for _ in range(3)]
        self._start = start
        self._most = most
        self._postgres = postgres
        self._nats = own_nats
        self._chance = random.Random(SEED)
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`, or until it has killed enough."""
        while sum(self.kills.values()) < self._most and not self._over.wait(self._chance.uniform(*PAUSE_S)):
            what = self._chance.choice([self._kill_worker, self._kill_worker, self._kill_postgres, self._kill_nats])
            what()

    def stop(self) -> None:
        self._over.set()

    def _kill_worker(self) -> None:
        index = self._chance.randrange(len(self.workers))
        self.workers[index].stop(signal.SIGKILL)
        self.workers[index] = self._start()
        self.kills["workers"] += 1

    def _kill_postgres(self) -> None:
        self._postgres.kill()
        self._postgres.start()
        self.kills["PostgreSQL"] += 1

    def _kill_nats(self) -> None:
        self._nats.kill()
        self._nats.start()
        self.kills["NATS"] += 1


def unfinished(database: Database) -> int:
    [(found,)] = rows(database, "select count(*) from jobs where finished_at is null")
    return int(found)


def send_all(url: str, journal: Journal, database: Database, numbers: Iterator[int]) -> list[str]:
    """Publish a job for each number, as a client would that keeps on until it is told that the stream has it."""

    async def send() -> list[str]:
        sent: list[str] = []
        client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
        js = client.jetstream()
        for number in numbers:
            job_id = f"job-{number}"
            body = _encoded(event(journal.job(job_id, STEPS, seconds=0.1), job_id=job_id))
            while True:
                try:
                    await js.publish("agent.execute.soak", body, timeout=1, headers={"Nats-Msg-Id": job_id})
                    break
                except (nats.errors.Error, nats.js.errors.APIError, TimeoutError):
                    await asyncio.sleep(0.2)
            sent.append(job_id)
            while await asyncio.to_thread(_quietly, unfinished, database) > WAITING:  # noqa: ASYNC110 - a query
                await asyncio.sleep(0.1)
        await client.close()
        return sent

    return asyncio.run(send())


def _encoded(document: object) -> bytes:
    import json

    return json.dumps(document).encode()


def _quietly(ask: Callable[[Database], int], database: Database) -> int:
    """The answer, or "too many" while PostgreSQL is away."""
    import psycopg

    try:
        return ask(database)
    except psycopg.OperationalError:
        return WAITING + 1


def numbers(seconds: float) -> Iterator[int]:
    """1 to JOBS, or on and on for so long."""
    deadline = time.monotonic() + seconds
    for number in count(1):
        if (number > JOBS) and time.monotonic() > deadline:
            return
        yield number


def all_ended(database: Database, jobs: list[str]) -> bool:
    query = "select count(*) from jobs where finished_at is not null and job_id = any(%s)"
    return rows(database, query, jobs) == [(len(jobs),)]


def test_soak(
    request: pytest.FixtureRequest,
    own_postgres: Database,
    own_nats: Nats,
    start_service: Starter,
    journal: Journal,
    figure: Figure,
) -> None:
    server = own_postgres.server
    assert isinstance(server, Postgres)

    def start() -> Service:
        return start_service(**own_postgres.environment, LEASE_S=LEASE_S, MAX_ATTEMPTS="20", MAX_CONCURRENT_JOBS="8")

    seconds = request.config.getoption("--soak")
    chaos = Chaos(start, server, own_nats, most=float("inf") if seconds else KILLS)
    for worker in chaos.workers:
        worker.ready()
    doing = threading.Thread(target=chaos.run)
    doing.start()
    try:
        jobs = send_all(own_nats.url, journal, own_postgres, numbers(seconds))
    finally:
        chaos.stop()
        doing.join()
    until(lambda: all_ended(own_postgres, jobs), "not all jobs end", 120)
    delivered(own_postgres)
    verdict = check(journal, own_postgres, own_nats.url, jobs, kills=sum(chaos.kills.values()), steps=STEPS)
    starts: defaultdict[str, int] = defaultdict(int)
    for line in journal.lines():
        starts[line.job_id] += line.word == "start"
    figure("soak: jobs, lost, doubled", f"{verdict.jobs}, {verdict.lost}, {verdict.doubled}")
    figure("soak: kills", ", ".join(f"{times} {name}" for name, times in sorted(chaos.kills.items())))
    figure("soak: node starts (ideal)", f"{verdict.starts} ({verdict.ideal})")
    [(most_attempts,)] = rows(own_postgres, "select max(attempt) from jobs")
    figure("soak: attempts of a job at most (20 allowed)", most_attempts)
    figure("soak: announcements kept (jobs)", f"{verdict.announcements} ({verdict.jobs})")
