"""The ledger's queries against PostgreSQL: who gets a job, who may end it, and what the database refuses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import product
from typing import Any

import psycopg
import pytest

from agent_executor import checkpoint_commits, job
from agent_executor import database as connections
from agent_executor import ledger as ledger_module
from agent_executor.announcements import interrupted_event, outcome_id
from agent_executor.errors import Conflict, InvalidInput, LeaseLost, NotFound
from agent_executor.job import DEFAULT_TENANT as TENANT
from agent_executor.job import TERMINAL, TRANSITIONS, Answer, Outcome, Status
from agent_executor.ledger import SQL, Claim, Ledger, Receipt
from agent_executor.outbox import Outbox
from tests.definitions import DATA
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.postgres import Database

LEASE_S = 3.0
DONE = Outcome(Status.COMPLETED, result="5")
ERROR = {"message": "no luck", "type": "ValueError", "stack_trace": ""}
FAILED = Outcome(Status.FAILED, error=ERROR)
BUSY = Outcome(Status.FAILED, error=ERROR, may_pass=True)


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[connections.Pool]:
    async with connections.pool(database.dsn, 60) as opened:
        yield opened


@pytest.fixture
def ledger(pool: connections.Pool) -> Ledger:
    return Ledger(pool, lease_s=LEASE_S, sink=True)


async def submit(ledger: Ledger, *job_ids: str) -> None:
    for job_id in job_ids:
        await ledger.accept(job.from_json(DATA | {"job_id": job_id}))


async def claimed(ledger: Ledger, owner: str = "worker") -> Claim:
    [claim] = await ledger.claim(owner, 1)
    return claim


async def test_a_claim_says_how_long_ago_the_first_one_was(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    first = await claimed(ledger)
    assert first.age_s == 0
    await ledger.release(first)
    rows(database, "update jobs set started_at = started_at - interval '10 minutes'")
    assert 600 <= (await claimed(ledger)).age_s < 660


def expire(database: Database, job_id: str = "a") -> None:
    """The worker fell silent some time ago, and PostgreSQL has been up since long before."""
    rows(database, "update jobs set lease_until = now() - interval '1 ms' where job_id = %s", job_id)


def row(database: Database, job_id: str = "a") -> tuple[Any, ...]:
    [found] = rows(database, "select status, attempt, fence from jobs where job_id = %s", job_id)
    return found


def letters(database: Database, job_id: str = "a") -> list[tuple[Any, ...]]:
    return rows(database, "select target, subject, msg_id from outbox where job_id = %s order by id", job_id)


@pytest.fixture
def long_running(database: Database) -> None:
    """A server that was started longer ago than a lease, so that it cannot be why one ran out."""
    uptime = "select now() - pg_postmaster_start_time() > make_interval(secs => %s)"
    until(lambda: rows(database, uptime, LEASE_S) == [(True,)], "the server does not grow older")


async def test_fifty_claimers_share_one_job(ledger: Ledger) -> None:
    await submit(ledger, "a")
    claims = await asyncio.gather(*(ledger.claim(f"worker-{number}", 1) for number in range(50)))
    assert [claim.job_id for each in claims for claim in each] == ["a"]


async def test_jobs_are_claimed_in_the_order_they_came(ledger: Ledger) -> None:
    await submit(ledger, "b", "a", "c")
    first = await ledger.claim("worker", 2)
    assert sorted(claim.job_id for claim in first) == ["a", "b"]
    assert [claim.job_id for claim in await ledger.claim("worker", 2, ["a", "b"])] == ["c"]


async def test_a_job_waits_until_it_is_due(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    rows(database, "update jobs set due_at = now() + interval '1 hour'")
    assert await ledger.claim("worker", 1) == []


@pytest.mark.usefixtures("long_running")
async def test_a_silent_workers_job_is_taken_over_and_counts(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    lost = await claimed(ledger, "silent")
    assert await ledger.claim("other", 1) == []
    expire(database)
    taken = await claimed(ledger, "other")
    assert (taken.attempt, taken.fence) == (2, 2)
    with pytest.raises(LeaseLost):
        await ledger.finish(lost, DONE, None)
    assert not await ledger.release(lost)
    assert await ledger.retry(lost, BUSY) is None
    assert row(database) == ("running", 2, 2)
    assert letters(database) == []


async def test_a_lease_that_ran_out_while_postgres_was_restarted_counts_as_no_attempt(
    ledger: Ledger, database: Database
) -> None:
    """The server of these tests was started after the last renewal that this row tells of."""
    await submit(ledger, "a")
    await claimed(ledger, "silent")
    rows(database, "update jobs set lease_until = pg_postmaster_start_time(), attempt = 3")
    assert (await claimed(ledger, "other")).attempt == 3
    assert await ledger.fail_silent() == []


@pytest.mark.usefixtures("long_running")
async def test_nothing_is_taken_over_by_one_who_cannot_judge(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a", "b")
    await claimed(ledger, "silent")
    expire(database)
    assert [claim.job_id for claim in await ledger.claim("other", 2, take_over=False)] == ["b"]


async def test_ones_own_claim_whose_answer_was_lost_is_found_again(ledger: Ledger) -> None:
    await submit(ledger, "a", "b")
    lost = await claimed(ledger)
    again = await ledger.claim("worker", 2)
    assert {claim.job_id: (claim.attempt, claim.fence) for claim in again} == {"a": (1, 2), "b": (1, 1)}
    assert lost.job_id == "a"
    assert await ledger.claim("worker", 2, ["a", "b"]) == []


async def test_a_job_given_back_counts_no_attempt(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    for fence in (1, 2, 3):
        claim = await claimed(ledger)
        assert (claim.attempt, claim.fence) == (1, fence)
        assert await ledger.release(claim)
    assert row(database) == ("queued", 0, 3)


async def test_an_outcome_recorded_twice_is_recorded_once(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    claim = await claimed(ledger)
    await ledger.finish(claim, DONE, None)
    await ledger.finish(claim, DONE, None)
    event_id = outcome_id("a", 1)
    assert letters(database) == [
        ("nats", "agent.status.completed", event_id),
        ("sink", "agent.status.completed", f"{event_id}:sink"),
    ]


async def test_a_failure_that_may_pass_waits_longer_each_time(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    delays = []
    for attempt in (1, 2):
        rows(database, "update jobs set due_at = now()")
        claim = await claimed(ledger)
        assert claim.attempt == attempt
        assert await ledger.retry(claim, BUSY) is not None
        [(delay,)] = rows(database, "select extract(epoch from due_at - updated_at)::float from jobs")
        delays.append(delay)
    assert 1 <= delays[0] <= 2
    assert 2 <= delays[1] <= 4
    shown = await ledger.job("a", TENANT)
    assert (shown["status"], shown["error"]) == ("queued", ERROR)


async def test_the_last_failure_that_might_have_passed_is_a_dead_letter(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await ledger.finish(await claimed(ledger), BUSY, None)
    assert [subject for _, subject, _ in letters(database)] == [
        *("agent.status.failed", "agent.status.failed", "agent.dead.attempts")
    ]


async def test_a_failure_that_does_not_pass_is_no_dead_letter(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await ledger.finish(await claimed(ledger), FAILED, None)
    assert {subject for _, subject, _ in letters(database)} == {"agent.status.failed"}


@pytest.mark.usefixtures("long_running")
async def test_a_job_that_silenced_its_worker_in_every_attempt_fails(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    for number in range(3):
        assert await ledger.fail_silent() == []
        await claimed(ledger, f"worker-{number}")
        expire(database)
    assert await ledger.claim("worker-4", 1) == []
    [ended] = await ledger.fail_silent()
    assert (ended.job_id, ended.fence, ended.outcome.status) == ("a", 4, Status.FAILED)
    assert row(database) == ("failed", 3, 4)
    assert (await ledger.job("a", TENANT))["error"]["type"] == "WorkerLost"
    assert "agent.dead.attempts" in {subject for _, subject, _ in letters(database)}
    assert await ledger.fail_silent() == []


@pytest.mark.usefixtures("long_running")
async def test_a_worker_that_renews_at_the_last_moment_keeps_its_job(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was seen as silent, and renewed before it was failed."""
    await submit(ledger, "a")
    for number in range(3):
        await claimed(ledger, f"worker-{number}")
        expire(database)
    found = await ledger._rows("silent_for_good", max_attempts=3, lease_s=LEASE_S)
    rows(database, "update jobs set lease_until = now() + interval '9 s'")
    original = ledger._rows

    async def stale(query: str, **parameters: Any) -> Any:
        return found if query == "silent_for_good" else await original(query, **parameters)

    monkeypatch.setattr(ledger, "_rows", stale)
    assert await ledger.fail_silent() == []
    assert row(database)[0] == "running"


@pytest.mark.parametrize("status", ["queued", "running", "interrupted"])
async def test_a_job_is_cancelled_wherever_it_is(ledger: Ledger, database: Database, status: str) -> None:
    await submit(ledger, "a")
    claim = None
    if status != "queued":
        claim = await claimed(ledger)
    if status == "interrupted":
        assert claim is not None
        await ledger.interrupt(claim, [{"id": "one", "value": 1}], None)
    fence = row(database)[2]
    ended = await ledger.cancel("a", TENANT)
    assert ended is not None
    assert (ended.fence, ended.outcome.status) == (fence + 1, Status.CANCELLED)
    assert row(database)[0] == "cancelled"
    assert [subject for _, subject, _ in letters(database)][-2:] == ["agent.status.failed"] * 2
    event = await ledger.outcome("a", TENANT)
    assert event is not None
    assert event["data"]["error"]["type"] == "Cancelled"
    if claim is not None:
        with pytest.raises(LeaseLost):
            await ledger.finish(claim, DONE, None)
    assert await ledger.cancel("a", TENANT) is None


async def test_what_has_ended_is_not_cancelled(ledger: Ledger) -> None:
    await submit(ledger, "a")
    await ledger.finish(await claimed(ledger), DONE, None)
    with pytest.raises(Conflict, match="completed"):
        await ledger.cancel("a", TENANT)
    with pytest.raises(NotFound):
        await ledger.cancel("b", TENANT)


async def test_a_failed_job_is_redriven_with_all_its_attempts(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await ledger.finish(await claimed(ledger), FAILED, None)
    await ledger.redrive("a", TENANT)
    assert row(database) == ("queued", 0, 1)
    claim = await claimed(ledger)
    assert (claim.attempt, claim.fence) == (1, 2)
    await ledger.finish(claim, DONE, None)
    assert (await ledger.job("a", TENANT))["error"] is None
    assert len({msg_id for _, _, msg_id in letters(database)}) == 4


@pytest.mark.parametrize("outcome", [None, DONE])
async def test_only_a_failed_job_is_redriven(ledger: Ledger, outcome: Outcome | None) -> None:
    await submit(ledger, "a")
    if outcome is not None:
        await ledger.finish(await claimed(ledger), outcome, None)
    with pytest.raises(Conflict, match="only a failed job"):
        await ledger.redrive("a", TENANT)
    with pytest.raises(NotFound):
        await ledger.redrive("b", TENANT)


@pytest.mark.parametrize(("before", "after"), [*product(Status, Status)])
def test_the_database_knows_the_same_transitions(database_once: Database, before: Status, after: Status) -> None:
    """Running to running is a takeover; every other state may be written again as it is."""
    allowed = before is after or after in TRANSITIONS[before]
    with psycopg.connect(database_once.dsn) as connection:
        place = {"before": before.value, "after": after.value}
        connection.execute(
            "insert into jobs (job_id, trace_id, body_hash, definition, input, status, lease_owner, lease_until,"
            " outcome_id, finished_at) select 'x', 't', '', '{}', '{}', %(before)s,"
            " case when running then 'w' end, case when running then now() end, case when ended then 'o' end,"
            " case when ended then now() end from (values (%(running)s, %(ended)s)) as told (running, ended)",
            place | {"running": before is Status.RUNNING, "ended": before in TERMINAL},
        )
        change = (
            "update jobs set status = %(after)s, lease_owner = case when %(running)s then 'w' end,"
            " lease_until = case when %(running)s then now() end, outcome_id = case when %(ended)s then 'o' end,"
            " finished_at = case when %(ended)s then now() end"
        )
        held = place | {"running": after is Status.RUNNING, "ended": after in TERMINAL}
        if allowed:
            connection.execute(change, held)
        else:
            with pytest.raises(psycopg.errors.CheckViolation, match="may not go from"):
                connection.execute(change, held)
        connection.rollback()


@pytest.fixture(scope="module")
def database_once(stack: Any, template: str) -> Database:
    stack.postgres.create_database("transitions", template)
    return Database(stack.postgres, "transitions")


@pytest.mark.parametrize("change", ["fence = fence - 1", "outcome_id = 'another'"])
async def test_the_database_refuses_a_step_back_and_another_outcome(
    ledger: Ledger, database: Database, change: str
) -> None:
    await submit(ledger, "a")
    await ledger.finish(await claimed(ledger), DONE, None)
    with pytest.raises(psycopg.errors.CheckViolation):
        rows(database, f"update jobs set {change}")


async def test_what_ended_long_ago_is_deleted_with_everything_of_its(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "old", "undelivered", "recent", "waiting")
    for claim in await ledger.claim("worker", 3):
        await ledger.finish(claim, DONE, None)
    for job_id in ("old", "recent", "undelivered", "waiting"):
        rows(database, "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values (%s, '1', '{}')", job_id)
        rows(
            database,
            "insert into checkpoint_blobs (thread_id, channel, version, type) values (%s, 'c', '1', 'empty')",
            job_id,
        )
        rows(
            database,
            "insert into checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob)"
            " values (%s, '1', 't', 0, 'c', '')",
            job_id,
        )
    rows(database, "update outbox set published_at = now() where job_id <> 'undelivered'")
    rows(database, "update jobs set finished_at = now() - interval '31 days' where job_id in ('old', 'undelivered')")
    rows(
        database,
        "insert into outbox (msg_id, job_id, target, subject, event, published_at)"
        " values ('r', 'refused', 'nats', 's', '{}', now() - interval '31 days')",
    )
    assert await ledger.expire(30, 100) == 2
    assert await ledger.expire(30, 100) == 0
    kept = [("recent",), ("undelivered",), ("waiting",)]
    assert rows(database, "select job_id from jobs order by 1") == kept
    for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
        assert rows(database, f"select thread_id from {table} order by 1") == kept
    assert rows(database, "select distinct job_id from outbox order by 1") == [("recent",), ("undelivered",)]


async def test_retention_works_in_batches(ledger: Ledger, database: Database) -> None:
    await submit(ledger, *"abcde")
    for claim in await ledger.claim("worker", 5):
        await ledger.finish(claim, DONE, None)
    rows(database, "update outbox set published_at = now()")
    rows(database, "update jobs set finished_at = now() - interval '31 days'")
    assert [await ledger.expire(30, 2) for _ in range(4)] == [2, 2, 1, 0]


async def test_what_waits_is_counted(ledger: Ledger) -> None:
    await submit(ledger, *"abc")
    await ledger.finish(await claimed(ledger), DONE, None)
    assert await ledger.waiting() == (2, 2)


ASKED: list[dict[str, Any]] = [{"id": "one", "value": "how?"}, {"id": "two", "value": {"how": "much"}}]


async def asks(ledger: Ledger, *asked: dict[str, Any]) -> Claim:
    claim = await claimed(ledger)
    assert await ledger.interrupt(claim, list(asked) or ASKED[:1], None) is Status.INTERRUPTED
    return claim


def answers(database: Database) -> dict[str, Any]:
    return dict(rows(database, "select interrupt_id, value from answers where job_id = 'a'"))


async def test_a_job_that_asks_waits_and_goes_on_with_its_answer(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    claim = await asks(ledger)
    assert row(database) == ("interrupted", 0, 1)
    assert (await ledger.job("a", TENANT))["interrupts"] == ASKED[:1]
    event_id = interrupted_event("a", 1, [], None)["id"]
    subject = "agent.status.interrupted"
    assert letters(database) == [("nats", subject, event_id), ("sink", subject, f"{event_id}:sink")]
    assert await ledger.claim("worker", 1) == []
    assert await ledger.resume(Answer("a", None)) == Receipt("a", Status.QUEUED, is_new=True)
    assert (await ledger.job("a", TENANT))["interrupts"] is None
    again = await claimed(ledger)
    assert (again.answers, again.attempt, again.fence) == ({"one": None}, 1, 2)
    await ledger.finish(again, DONE, None)
    assert (await ledger.job("a", TENANT))["interrupts"] is None
    assert claim.answers == {}


async def test_to_interrupt_again_after_a_lost_answer_finds_it_done(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    claim = await asks(ledger)
    assert await ledger.interrupt(claim, ASKED[:1], None) is Status.INTERRUPTED
    assert len(letters(database)) == 2
    await ledger.resume(Answer("a", 1))
    assert await ledger.interrupt(claim, ASKED[:1], None) is Status.QUEUED
    await claimed(ledger)
    with pytest.raises(LeaseLost):
        await ledger.interrupt(claim, ASKED[:1], None)


@pytest.mark.parametrize("lost", ["taken over", "cancelled"])
async def test_who_lost_a_job_does_not_interrupt_it(ledger: Ledger, database: Database, lost: str) -> None:
    await submit(ledger, "a")
    claim = await claimed(ledger)
    if lost == "cancelled":
        await ledger.cancel("a", TENANT)
    else:
        expire(database)
        await claimed(ledger, "another")
    before = row(database)
    with pytest.raises(LeaseLost):
        await ledger.interrupt(claim, ASKED, None)
    assert row(database) == before
    assert "agent.status.interrupted" not in {subject for _, subject, _ in letters(database)}


async def test_answers_to_one_asking_are_used_as_they_come(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await asks(ledger, *ASKED)
    await ledger.resume(Answer("a", 2, "two"))
    claim = await claimed(ledger)
    assert claim.answers == {"two": 2}
    assert (await ledger.job("a", TENANT))["interrupts"] == ASKED[:1]
    assert await ledger.resume(Answer("a", 1)) == Receipt("a", Status.RUNNING, is_new=True)
    written = letters(database)
    assert await ledger.interrupt(claim, ASKED[:1], None) is Status.QUEUED  # the answer was faster
    assert letters(database) == written
    assert (await claimed(ledger)).answers == {"one": 1, "two": 2}


async def test_an_answer_between_the_look_and_the_act_is_not_overlooked(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the job would wait for what it has."""
    await submit(ledger, "a")
    await asks(ledger, *ASKED)
    await ledger.resume(Answer("a", 2, "two"))
    claim = await claimed(ledger)
    original = ledger._rows

    async def slow(query: str, **parameters: Any) -> Any:
        if query == "interrupt":
            monkeypatch.setattr(ledger, "_rows", original)
            await ledger.resume(Answer("a", 1, "one"))
        return await original(query, **parameters)

    monkeypatch.setattr(ledger, "_rows", slow)
    assert await ledger.interrupt(claim, ASKED[:1], None) is Status.QUEUED
    assert answers(database) == {"one": 1, "two": 2}


async def test_no_event_of_a_job_overtakes_an_older_one(
    ledger: Ledger, pool: connections.Pool, database: Database
) -> None:
    told: list[tuple[str, str]] = []
    refused = {"a"}

    async def deliver(msg_id: str, subject: str, event: dict[str, Any]) -> None:
        if event["subject"] in refused:
            raise OSError
        told.append((event["subject"], subject))

    box = Outbox(pool, "nats", deliver)
    await submit(ledger, "a")
    await asks(ledger)
    assert await box.flush() == 0
    await ledger.resume(Answer("a", 1))
    await ledger.finish(await claimed(ledger), BUSY, None)
    refused.clear()
    await submit(ledger, "b")
    await ledger.finish(await claimed(ledger), DONE, None)
    assert await box.flush() == 1
    assert told == [("b", "agent.status.completed")]
    box.hurry()
    running = asyncio.create_task(box.run())
    await asyncio.to_thread(until, lambda: len(told) == 4, "not all are told")
    running.cancel()
    subjects = ["agent.status.interrupted", "agent.status.failed", "agent.dead.attempts"]
    assert told[1:] == [("a", subject) for subject in subjects]


async def test_what_nobody_took_in_an_hour_holds_up_nothing(
    ledger: Ledger, pool: connections.Pool, database: Database
) -> None:
    told: list[str] = []

    async def deliver(msg_id: str, subject: str, event: dict[str, Any]) -> None:
        if subject == "agent.status.interrupted":
            raise OSError
        told.append(subject)

    box = Outbox(pool, "nats", deliver)
    await submit(ledger, "a")
    await asks(ledger)
    await ledger.resume(Answer("a", 1))
    await ledger.finish(await claimed(ledger), DONE, None)
    assert (await box.flush(), await box.flush()) == (0, 0)
    async with connections.connection(pool) as connection:
        await connection.execute("update outbox set created_at = now() - interval '61 minutes' where id = 1")
    assert await box.flush() == 1
    assert told == ["agent.status.completed"]


async def test_what_was_used_stays_with_the_job(ledger: Ledger) -> None:
    await submit(ledger, "a")
    claim = await claimed(ledger)
    assert claim.usage == {}
    used = {"model_calls": 1, "tokens": 20, "seconds": 1.5}
    assert await ledger.interrupt(claim, ASKED[:1], None, usage=used) is Status.INTERRUPTED
    await ledger.resume(Answer("a", 1))
    claim = await claimed(ledger)
    assert claim.usage == used
    await ledger.release(claim)
    claim = await claimed(ledger)
    assert claim.usage == used
    await ledger.finish(claim, replace(FAILED, usage={**used, "tokens": 30}), None)
    await ledger.redrive("a", TENANT)
    assert (await claimed(ledger)).usage == {**used, "tokens": 30}


async def test_an_answer_that_the_graph_did_not_take_is_asked_for_again(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await asks(ledger, *ASKED)
    await ledger.resume(Answer("a", 1, "one"))
    await ledger.resume(Answer("a", 2, "two"))
    assert await ledger.interrupt(await claimed(ledger), ASKED[:1], None) is Status.INTERRUPTED
    assert answers(database) == {"two": 2}
    assert (await ledger.job("a", TENANT))["interrupts"] == ASKED[:1]
    await ledger.resume(Answer("a", 3))
    assert (await claimed(ledger)).answers == {"one": 3, "two": 2}


@pytest.mark.parametrize(
    "again",
    [
        Answer("a", {"x": 1}, "one"),
        Answer("a", {"x": 1}, "one", "another"),
        Answer("a", {"x": 1}, None, "r"),
        Answer("a", {"x": 1}, "two", "r"),
    ],
)
async def test_the_same_answer_again_changes_nothing(ledger: Ledger, database: Database, again: Answer) -> None:
    await submit(ledger, "a")
    await asks(ledger, *ASKED)
    await ledger.resume(Answer("a", {"x": 1}, "one", "r"))
    for status in (Status.QUEUED, Status.RUNNING, Status.INTERRUPTED):
        if status is Status.RUNNING:
            claim = await claimed(ledger)
        if status is Status.INTERRUPTED:
            await ledger.interrupt(claim, ASKED[1:], None)
        assert await ledger.resume(again) == Receipt("a", status, is_new=False)
    assert answers(database) == {"one": {"x": 1}}


@pytest.mark.parametrize("other", [Answer("a", 2, "one"), Answer("a", 2, None, "r"), Answer("a", 2, "three")])
async def test_another_answer_is_a_conflict(ledger: Ledger, database: Database, other: Answer) -> None:
    await submit(ledger, "a")
    await asks(ledger, *ASKED)
    await ledger.resume(Answer("a", 1, "one", "r"))
    with pytest.raises(Conflict, match="job a"):
        await ledger.resume(other)
    assert answers(database) == {"one": 1}


async def test_who_answers_one_of_several_has_to_say_which(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await asks(ledger, *ASKED)
    with pytest.raises(InvalidInput, match=r"data\.interrupt_id: is required.*: one, two"):
        await ledger.resume(Answer("a", 1), "data.")
    assert row(database)[0] == "interrupted"


@pytest.mark.parametrize("status", ["queued", "running", "completed", "cancelled", "failed"])
async def test_a_job_that_asks_nothing_takes_no_answer(ledger: Ledger, status: str) -> None:
    await submit(ledger, "a")
    if status not in ("queued", "cancelled"):
        claim = await claimed(ledger)
    if status in ("completed", "failed"):
        await ledger.finish(claim, DONE if status == "completed" else FAILED, None)
    if status == "cancelled":
        await ledger.cancel("a", TENANT)
    for answer in (Answer("a", 1), Answer("a", 1, "one")):
        with pytest.raises(Conflict, match=f"job a is {status}; it waits for no answer"):
            await ledger.resume(answer)
    with pytest.raises(NotFound):
        await ledger.resume(Answer("b", 1))


async def test_of_many_answers_at_once_one_counts(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await asks(ledger)
    calls = [ledger.resume(Answer("a", number, "one")) for number in range(20)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, Conflict) for each in found) == 19
    [number] = [number for number, each in enumerate(found) if isinstance(each, Receipt)]
    assert answers(database) == {"one": number}


async def test_a_redriven_job_has_its_answers(ledger: Ledger) -> None:
    await submit(ledger, "a")
    await asks(ledger)
    await ledger.resume(Answer("a", 1))
    await ledger.finish(await claimed(ledger), FAILED, None)
    await ledger.redrive("a", TENANT)
    assert (await claimed(ledger)).answers == {"one": 1}


async def test_a_retried_or_released_job_keeps_what_it_asks(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await asks(ledger, *ASKED)
    await ledger.resume(Answer("a", 1, "one"))
    await ledger.retry(await claimed(ledger), BUSY)
    assert (await ledger.job("a", TENANT))["interrupts"] == ASKED[1:]
    rows(database, "update jobs set due_at = now()")
    await ledger.release(await claimed(ledger))
    await ledger.resume(Answer("a", 2))
    assert (await claimed(ledger)).answers == {"one": 1, "two": 2}


async def test_answers_are_deleted_with_their_job(ledger: Ledger, database: Database) -> None:
    await submit(ledger, "a")
    await asks(ledger)
    await ledger.resume(Answer("a", 1))
    await ledger.finish(await claimed(ledger), DONE, None)
    rows(database, "update outbox set published_at = now()")
    rows(database, "update jobs set finished_at = now() - interval '31 days'")
    assert await ledger.expire(30, 100) == 1
    assert answers(database) == {}


async def test_the_last_events_of_interrupted_jobs_can_be_repeated(ledger: Ledger) -> None:
    await submit(ledger, "a", "b")
    claim = await claimed(ledger)
    await ledger.interrupt(claim, ASKED, None, event_count=7)
    [ended] = await ledger.endings(["a", "b"])
    assert (ended.job_id, ended.fence, ended.event_count) == ("a", 1, 7)
    assert (ended.outcome.status, ended.outcome.interrupts) == (Status.INTERRUPTED, tuple(ASKED))


def plan(database: Database, query: str) -> list[str]:
    """How PostgreSQL would run a prepared statement with whatever parameters."""
    names: dict[str, str] = {}

    def number(parameter: re.Match[str]) -> str:
        return names.setdefault(parameter[1], f"${len(names) + 1}")

    with psycopg.connect(database.dsn, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        for setting in connections._PLANS:
            connection.execute(f"set {setting}")
        explain = "explain (generic_plan) " + re.sub(r"%\((\w+)\)[sb]", number, query)
        return [line for (line,) in connection.execute(explain).fetchall()]


COMMIT = checkpoint_commits.statement(("puts", "blobs", "writes"), alone=False)
FEW = (
    "insert into jobs (job_id, trace_id, body_hash, definition, input)"
    " select n::text, 't', '', '{}', '{}' from generate_series(1, 20) n"
)


@pytest.mark.parametrize("jobs", [0, 20])
@pytest.mark.parametrize(
    "query", [SQL["accept"], SQL["claim"], SQL["finish"], COMMIT], ids=["accept", "claim", "finish", "commit"]
)
def test_a_plan_that_is_made_while_there_are_few_jobs_looks_them_up_by_id(
    database: Database, query: str, jobs: int
) -> None:
    """PostgreSQL keeps it while the tables grow, until they are next analyzed."""
    if jobs:
        rows(database, FEW)
        rows(database, "analyze jobs")
    found = plan(database, query)
    assert not [line for line in found if "Seq Scan on jobs" in line or "jobs_of_tenant" in line]
    assert [line for line in found if re.search(r"Index Cond: \(job_id = ", line)]
    assert not [line for line in found if "due_at" in line and "job_id = candidate" in line]


@pytest.mark.parametrize(
    ("status", "index", "condition"),
    [(None, "jobs_of_tenant", "ROW(created_at, job_id) < ROW("), ("queued", "jobs_queued_of_tenant", "tenant = ")],
)
def test_a_page_of_jobs_is_read_by_an_index_of_its_own(
    database: Database, status: str | None, index: str, condition: str
) -> None:
    fill = (
        "insert into jobs (job_id, tenant, trace_id, body_hash, definition, input, status)"
        " select n::text, 'a', 't', '', '{}', '{}', case when n = 7 then 'queued' else 'interrupted' end"
        " from generate_series(1, 20000) n"
    )
    rows(database, fill)
    rows(database, "vacuum analyze jobs")
    found = "\n".join(plan(database, ledger_module._PAGES[status]))
    assert index in found
    assert re.search(f"Index Cond: .*{re.escape(condition)}", found)
