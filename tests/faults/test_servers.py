"""PostgreSQL, NATS and Redis that restart, are cut off, swallow everything, or lose their answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.definitions import event
from tests.faults.conftest import Figure
from tests.faults.fixtures.journal import Journal, check, delivered, ended, outcomes
from tests.faults.fixtures.proxy import Proxy
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.nats import jetstream, messages, publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Service, Starter
from tier3.stack import Nats, Postgres

SEED = 11
CLOCK = Path(__file__).with_name("clock")
JOBS = [f"job-{number}" for number in range(12)]


def submit(service: Service, journal: Journal, seconds: float = 0) -> None:
    for job_id in JOBS:
        assert service.submit(journal.job(job_id, seconds=seconds), job_id).status_code == 202


def metric(service: Service, name: str) -> float:
    """The sum of a counter's samples."""
    families = text_string_to_metric_families(service.http.get("/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def logged(service: Service, name: str) -> None:
    """Wait for a log event."""
    service.until(lambda: f'"event": "{name}"' in service.log.read_text(), f"no {name} in the log")


def _past(moment: float) -> bool:
    return time.monotonic() > moment


def attempts(database: Database) -> set[int]:
    return {attempt for (attempt,) in rows(database, "select attempt from jobs")}


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_a_restart_of_postgres_under_load_fails_no_job_and_costs_no_attempt(
    own_postgres: Database, start_service: Starter, journal: Journal, how: str
) -> None:
    service = start_service(**own_postgres.environment, MAX_CONCURRENT_JOBS="16").ready()
    submit(service, journal, 0.5)
    service.until(lambda: sum(journal.started(job_id, 2) for job_id in JOBS) >= 4, "the jobs do not start")
    server = own_postgres.server
    assert isinstance(server, Postgres)
    if how == "crash":
        server.kill()
        server.start()
    else:
        server.restart()
    ended(own_postgres, JOBS)
    delivered(own_postgres)
    check(journal, own_postgres, service.environment["NATS_URL"], JOBS)
    assert attempts(own_postgres) == {1}


def test_an_outage_longer_than_all_leases_costs_no_attempt(
    own_postgres: Database, start_service: Starter, journal: Journal
) -> None:
    """Two workers: when it is back, neither takes the other for dead."""
    workers = [start_service(**own_postgres.environment, LEASE_S="3").ready() for _ in range(2)]
    journal.hold(2)  # eight jobs in one of them, four in the other
    submit(workers[0], journal, 0.1)
    until(lambda: all(journal.started(job_id, 2) for job_id in JOBS), "the jobs do not start")
    server = own_postgres.server
    assert isinstance(server, Postgres)
    server.kill()
    for worker in workers:
        logged(worker, "lease_lost")
    journal.let_go(2)
    server.start()
    ended(own_postgres, JOBS)
    delivered(own_postgres)
    check(journal, own_postgres, workers[0].environment["NATS_URL"], JOBS)
    assert attempts(own_postgres) == {1}


def test_a_postgres_that_is_read_only_for_a_while_fails_no_job(
    start_service: Starter, journal: Journal, database: Database
) -> None:
    """As in a failover."""
    service = start_service().ready()
    submit(service, journal, 0.1)
    for _ in range(4):
        service.until(lambda: any(journal.started(job_id, 1) for job_id in JOBS), "the jobs do not start")
        for state in ("on", "off"):
            rows(database, f"alter system set default_transaction_read_only = {state}")
            rows(database, "select pg_reload_conf()")
            until(partial(_past, time.monotonic() + 0.3), "time stands still")
    ended(database, JOBS)
    delivered(database)
    check(journal, database, service.environment["NATS_URL"], JOBS)


@pytest.mark.parametrize("how", ["cut", "blackhole"])
def test_a_process_without_postgres_can_still_be_asked_to_go(
    postgres_proxy: Proxy, start_service: Starter, journal: Journal, figure: Figure, how: str
) -> None:
    service = start_service(SHUTDOWN_GRACE_S="1").ready()
    journal.hold(1)
    service.submit(journal.job("job"), "job")
    service.until(lambda: journal.started("job", 1), "the job does not start")
    getattr(postgres_proxy, how)()
    journal.let_go(1)  # and so writes, in vain
    asked_at = time.monotonic()
    service.stop()
    figure(f"SIGTERM with PostgreSQL {how}: ends after, s (grace 1 s)", f"{time.monotonic() - asked_at:.1f}")


def test_a_stream_that_somebody_deletes_is_made_again(
    own_nats: Nats, start_service: Starter, journal: Journal, database: Database
) -> None:
    service = start_service().ready()
    service.run(journal.job("before"), "before")
    delivered(database)

    async def delete(stream: str) -> None:
        async with jetstream(own_nats.url) as js:
            await js.delete_stream(stream)

    asyncio.run(delete("AGENT_STATUS"))
    service.run(journal.job("after"), "after")
    delivered(database)
    asyncio.run(delete("AGENT_DEAD"))
    asyncio.run(publish(own_nats.url, {"data": "nothing"}))
    asyncio.run(messages(own_nats.url, "AGENT_DEAD", "agent.dead.invalid", "nothing"))
    assert set(outcomes(own_nats.url)) == {"after"}


@pytest.mark.parametrize("how", ["cut", "blackhole"])
def test_postgres_cut_off_is_noticed_and_fails_no_job(
    postgres_proxy: Proxy, start_service: Starter, journal: Journal, database: Database, figure: Figure, how: str
) -> None:
    service = start_service().ready()
    service.run(journal.job("before", 1, seconds=4), "before")  # so that the leases' own connection is open
    submit(service, journal, 0.2)
    service.until(lambda: journal.started(JOBS[0], 1), "the jobs do not start")
    cut_at = time.monotonic()
    getattr(postgres_proxy, how)()
    service.until(lambda: "lease_lost" in service.log.read_text(), "the leases are not given up")
    noticed = time.monotonic() - cut_at
    service.until(lambda: service.http.get("/ready").status_code == 503, "the process stays ready")
    figure(f"PostgreSQL {how}: runs are stopped after, s (lease 9 s)", f"{noticed:.1f}")
    service.until(lambda: "release_failed" in service.log.read_text(), "the jobs are not given back")
    figure(f"PostgreSQL {how}: pool gives up after, s", f"{time.monotonic() - cut_at:.1f}")
    postgres_proxy.forget()
    healed_at = time.monotonic()
    ended(database, JOBS, 90)
    figure(f"PostgreSQL {how}: all {len(JOBS)} jobs done after its return, s", f"{time.monotonic() - healed_at:.1f}")
    delivered(database)
    check(journal, database, service.environment["NATS_URL"], JOBS, kills=2)
    service.run(journal.job("lasting", 1, seconds=10), "lasting")
    assert journal.started("lasting", 1) == 1, "leases are not renewed any more"
    assert attempts(database) == {1}


@pytest.mark.parametrize(
    ("how", "away_s"),
    [
        *(("restart", 0), ("cut", 0), ("blackhole", 0)),
        *(pytest.param(how, 300, marks=pytest.mark.long) for how in ("restart", "blackhole")),
    ],
)
def test_nats_is_listened_to_again_soon_after_its_return(
    nats_proxy: Proxy,
    own_nats: Nats,
    start_service: Starter,
    journal: Journal,
    database: Database,
    figure: Figure,
    how: str,
    away_s: int,
) -> None:
    service = start_service().ready()
    _away(nats_proxy, own_nats, how)
    returns_at = time.monotonic() + away_s
    service.submit(journal.job("meanwhile"), "meanwhile")
    assert service.ended("meanwhile")["status"] == "completed"
    until(partial(_past, returns_at), "time stands still", away_s + 10)
    assert service.status("/health") == 200
    returned_at = _back(nats_proxy, own_nats, how)
    took = _consuming(own_nats, journal, database, returned_at)
    figure(f"NATS {how} for {away_s} s: consuming again after, s", f"{took:.1f}")
    delivered(database)
    check(journal, database, own_nats.url, ["meanwhile", "afterwards"], kills=0)


def _away(nats_proxy: Proxy, own_nats: Nats, how: str) -> None:
    if how == "restart":
        own_nats.stop()
    else:
        getattr(nats_proxy, how)()


def _back(nats_proxy: Proxy, own_nats: Nats, how: str) -> float:
    if how == "restart":
        own_nats.start()
    else:
        nats_proxy.heal()
    return time.monotonic()


def _consuming(own_nats: Nats, journal: Journal, database: Database, returned_at: float) -> float:
    """Send a job by NATS; returns the seconds from its return until the job was accepted."""
    asyncio.run(publish(own_nats.url, event(journal.job("afterwards"), job_id="afterwards")))
    accepted = "select 1 from jobs where job_id = 'afterwards'"
    until(lambda: rows(database, accepted), "NATS is not listened to")
    took = time.monotonic() - returned_at
    ended(database, ["afterwards"])
    return took


@pytest.mark.parametrize("how", ["cut", "blackhole"])
def test_redis_away_holds_up_no_job_and_is_counted(
    redis_proxy: Proxy, start_service: Starter, journal: Journal, database: Database, figure: Figure, how: str
) -> None:
    """The same jobs one after the other, with Redis and without, in one process."""
    service = start_service().ready()
    service.run(journal.job("warm"), "warm")

    def took(names: list[str]) -> list[float]:
        times = []
        for job_id in names:
            began = time.monotonic()
            assert service.run(journal.job(job_id), job_id)["status"] == "completed"
            times.append(time.monotonic() - began)
        return times

    def middle(times: list[float]) -> float:
        return sorted(times)[len(times) // 2] * 1000

    there, away = [], []
    for number in range(5):  # in turn, so that other work on the machine concerns both
        there += took([f"there-{number}-{each}" for each in range(4)])
        getattr(redis_proxy, how)()
        away += took([f"away-{number}-{each}" for each in range(4)])
        redis_proxy.heal()
    figure(f"Redis {how}: a job takes, ms (median with, without)", f"{middle(there):.0f}, {middle(away):.0f}")
    service.until(lambda: metric(service, "agent_executor_redis_publish_errors_total") > 0, "it is not counted")
    service.run(journal.job("back"), "back")
    lines = service.http.get("/v1/jobs/back/events").text
    assert "event: end" in lines
    delivered(database)
    check(journal, database, service.environment["NATS_URL"], ["back", "away-3-1"], kills=0)


def one_in_ten(marks: tuple[bytes, ...]) -> Callable[[bytes], bool]:
    chance = random.Random(SEED)
    return lambda answer: any(mark in answer for mark in marks) and chance.random() < 0.1


def test_writes_and_publishes_that_fail_after_they_took_effect(
    postgres_proxy: Proxy,
    nats_proxy: Proxy,
    own_nats: Nats,
    start_service: Starter,
    journal: Journal,
    database: Database,
    figure: Figure,
) -> None:
    """One answer in ten is lost, with its connection, when it may say that something was written or published."""
    workers = [start_service(LEASE_S="3", MAX_ATTEMPTS="3").ready() for _ in range(2)]
    postgres_proxy.tears = one_in_ten((b"INSERT 0 ", b"UPDATE ", b"DELETE ", b"SELECT 1\0", b"COMMIT\0"))
    nats_proxy.tears = one_in_ten((b'"stream":"AGENT_STATUS"',))
    for job_id in JOBS:
        until(partial(_taken, workers[0], journal.job(job_id), job_id), "the job is not accepted")
    ended(database, JOBS, 120)
    delivered(database, 120)
    figure("answers lost (PostgreSQL, NATS)", f"{postgres_proxy.torn}, {nats_proxy.torn}")
    assert postgres_proxy.torn > len(JOBS)
    verdict = check(journal, database, own_nats.url, JOBS, kills=3)
    figure("node starts under lost answers (ideal)", f"{verdict.starts} ({verdict.ideal})")


def _taken(service: Service, definition: object, job_id: str) -> bool:
    return service.submit(definition, job_id).status_code == 202


def test_an_acknowledgement_that_is_lost_announces_nothing_twice(
    nats_proxy: Proxy, own_nats: Nats, start_service: Starter, journal: Journal, database: Database
) -> None:
    """Published, but the answer never came: it is published again, and JetStream knows it."""
    lost: list[bytes] = []

    def first(answer: bytes) -> bool:
        is_it = b'"stream":"AGENT_STATUS"' in answer and not lost
        lost.extend([answer] * is_it)
        return is_it

    service = start_service().ready()
    nats_proxy.tears = first
    service.submit(journal.job("job"), "job")
    ended(database, ["job"])
    delivered(database)
    assert lost
    assert rows(database, "select tries > 1 from outbox") == [(True,)]
    assert check(journal, database, own_nats.url, ["job"], kills=0).announcements == 1


@pytest.mark.parametrize("shift_s", [3600, -3600], ids=["ahead", "behind"])
def test_a_clock_that_is_an_hour_off_changes_nothing(
    start_service: Starter, journal: Journal, database: Database, shift_s: int
) -> None:
    """A job goes from a machine with the right time to one with another, and back."""
    clock = {"PYTHONPATH": str(CLOCK), "CLOCK_SHIFT_S": str(shift_s)}
    for step, more in enumerate(({}, clock, {}), start=1):
        journal.hold(step)
        worker = start_service(SHUTDOWN_GRACE_S="0", **more).ready()
        if step == 1:
            worker.submit(journal.job("job", 4), "job")
        else:
            journal.let_go(step - 1)
        worker.until(partial(journal.started, "job", step), "the job does not go on")
        if step < 3:
            worker.stop()
    journal.let_go(3)
    ended(database, ["job"])
    delivered(database)
    check(journal, database, worker.environment["NATS_URL"], ["job"], steps=4)
    assert worker.job("job")["result"]["output"] == "job:4"
