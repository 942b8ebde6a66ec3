"""A process that dies at any named point, with and without a second delivery of the same event."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from agent_executor.crash import POINTS
from tests.definitions import event
from tests.faults.conftest import Figure
from tests.faults.fixtures.journal import Journal, check, delivered, ended, outcomes
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.nats import jetstream, messages, publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Service, Starter

STEPS = 3
LEASE_S = "3"
# How many tries of the job are counted: an accepted job may have been claimed before its process died, or not. Further
# points concern interrupted jobs.
ATTEMPTS = {
    "after_fetch": {1},
    "after_accept": {1, 2},
    "after_ack": {1, 2},
    "after_claim": {2},
    "after_run": {2},
    "before_commit": {2},
    "after_commit": {1},
    "after_publish": {1},
}
DUPLICATE = pytest.mark.parametrize("duplicate", [False, True], ids=["once", "twice"])


def nats_ready(service: Service) -> Service:
    service.until(lambda: "nats_ready" in service.log.read_text(), "NATS is not ready")
    return service


def send(service: Service, definition: object, times: int) -> None:
    for _ in range(times):
        asyncio.run(publish(service.environment["NATS_URL"], event(definition, job_id="job")))  # type: ignore[arg-type]


def died(service: Service) -> None:
    assert service.process.wait(30) == -signal.SIGKILL


def acked(service: Service) -> bool:
    async def pending() -> bool:
        async with jetstream(service.environment["NATS_URL"]) as js:
            found = await js.consumer_info("AGENT_EXECUTION", "agent-executor-workers")
            return not found.num_pending and not found.num_ack_pending

    return asyncio.run(pending())


@DUPLICATE
@pytest.mark.parametrize("point", [point for point in POINTS if point in ATTEMPTS])
def test_a_crash_at_any_point_loses_nothing_and_doubles_nothing(
    start_service: Starter, journal: Journal, database: Database, point: str, duplicate: bool
) -> None:
    first = nats_ready(start_service(CRASH_AT=point, LEASE_S=LEASE_S))
    definition = journal.job("job", STEPS)
    send(first, definition, 1)
    died(first)
    second = start_service(LEASE_S=LEASE_S)
    if duplicate:
        send(second, definition, 1)
    # What was fetched and not acked comes again after the consumer's ack_wait of 12 s.
    until(lambda: rows(database, "select 1 from jobs"), "the job does not come", 60)
    ended(database, ["job"])
    delivered(database)
    environment = second.environment
    check(journal, database, environment["NATS_URL"], ["job"], redis_url=environment["REDIS_URL"])
    [(attempt,)] = rows(database, "select attempt from jobs")
    assert attempt in ATTEMPTS[point]
    assert rows(database, "select action, job_id from audit") == [("submit", "job")]


@DUPLICATE
@pytest.mark.parametrize("step", [1, 2, STEPS], ids=["first", "middle", "last"])
def test_a_crash_in_any_node_repeats_no_other(
    start_service: Starter, journal: Journal, database: Database, step: int, duplicate: bool
) -> None:
    journal.kill_in(step)
    first = nats_ready(start_service(LEASE_S=LEASE_S))
    definition = journal.job("job", STEPS)
    send(first, definition, 1 + duplicate)
    died(first)
    second = start_service(LEASE_S=LEASE_S)
    if duplicate:
        send(second, definition, 1)
    ended(database, ["job"])
    delivered(database)
    environment = second.environment
    verdict = check(journal, database, environment["NATS_URL"], ["job"], redis_url=environment["REDIS_URL"])
    assert verdict.starts == STEPS + 1
    assert [journal.started("job", number) for number in (1, 2, 3)].count(2) == 1
    assert journal.started("job", step) == 2


def test_a_crash_in_a_specialist_with_parallel_calls_repeats_only_what_was_in_flight(
    start_service: Starter, journal: Journal, database: Database
) -> None:
    journal.hold(3)
    first = nats_ready(start_service(LEASE_S=LEASE_S))
    send(first, journal.parallel("job"), 1)
    first.until(lambda: [each.word for each in journal.lines()].count("end") == 2, "two steps do not end")
    first.until(lambda: journal.started("job", 3), "the third step does not start")
    writes = "select count(*) from checkpoint_writes where channel = 'messages' and checkpoint_ns <> ''"
    first.until(lambda: rows(database, writes)[0][0] >= 3, "what the two wrote is not committed")
    first.stop(signal.SIGKILL)
    journal.let_go(3)
    second = start_service(LEASE_S=LEASE_S)
    ended(database, ["job"])
    delivered(database)
    assert [journal.started("job", number) for number in (1, 2, 3)] == [1, 1, 2]
    keys = {(each.number, each.key) for each in journal.lines()}
    assert len(keys) == 3, "a repeated call has another key"
    assert second.environment["NATS_URL"]


def test_a_request_for_a_finished_job_is_answered_again_and_runs_nothing(
    start_service: Starter, journal: Journal, database: Database
) -> None:
    service = nats_ready(start_service())
    definition = journal.job("job", STEPS)
    send(service, definition, 1)
    ended(database, ["job"])
    delivered(database)
    asyncio.run(publish(service.environment["NATS_URL"], event(definition, job_id="job", id="another-request")))
    asyncio.run(messages(service.environment["NATS_URL"], "AGENT_STATUS", "agent.status.completed", "job", count=2))
    first, second = outcomes(service.environment["NATS_URL"])["job"]
    assert first == second
    assert check(journal, database, service.environment["NATS_URL"], ["job"]).starts == STEPS


def test_what_a_killed_worker_ran_is_taken_over(
    start_service: Starter, journal: Journal, database: Database, figure: Figure
) -> None:
    """With the default lease, and another worker there."""
    jobs = [f"job-{number}" for number in range(4)]
    first = start_service().ready()
    journal.hold(2)
    for job_id in jobs:
        first.submit(journal.job(job_id, STEPS), job_id)
    first.until(lambda: all(journal.started(job_id, 2) for job_id in jobs), "the jobs do not start")
    second = start_service().ready()
    killed_at = time.monotonic()
    first.stop(signal.SIGKILL)
    took: dict[str, float] = {}

    def taken_over() -> bool:
        for job_id in jobs:
            if journal.started(job_id, 2) == 2:
                took.setdefault(job_id, time.monotonic() - killed_at)
        return len(took) == len(jobs)

    second.until(taken_over, "the jobs are not taken over")
    journal.let_go(2)
    ended(database, jobs)
    delivered(database)
    check(journal, database, second.environment["NATS_URL"], jobs)
    times = sorted(took.values())
    figure("takeover after kill -9, s (p50, max; lease 9 s)", f"{times[len(times) // 2]:.1f}, {times[-1]:.1f}")


def test_a_job_that_kills_its_worker_is_failed_and_can_be_redriven(
    start_service: Starter, journal: Journal, database: Database
) -> None:
    journal.poison(poisoned=True)
    workers = [start_service(LEASE_S=LEASE_S)]
    nats_ready(workers[0])
    send(workers[0], journal.job("job", STEPS), 1)
    for number in range(3):
        died(workers[number])
        workers.append(start_service(LEASE_S=LEASE_S))
    last = workers[-1]
    ended(database, ["job"])
    delivered(database)
    check(journal, database, last.environment["NATS_URL"], ["job"], kills=3, status="failed")
    assert last.job("job")["error"]["type"] == "WorkerLost"
    [(dead, headers)] = asyncio.run(messages(last.environment["NATS_URL"], "AGENT_DEAD", "agent.dead.attempts", "job"))
    assert dead["data"]["job_id"] == "job"
    assert headers["Agent-Error"].startswith("WorkerLost: ")
    journal.poison(poisoned=False)
    assert last.http.post("/v1/jobs/job/redrive").status_code == 202
    done = last.ended("job")
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert journal.started("job", 1) == 4
    events = last.http.get("/v1/jobs/job/events").text
    assert events.count("event: end") == 1
    assert events.rstrip().rpartition("\n")[2].startswith('data: {"event_type":"end","data":{"status":"completed"}')
    assert acked(last)
