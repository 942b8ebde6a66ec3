"""Limits per tenant, exact over all processes, and slots in turn between tenants.

First the queries against PostgreSQL, then two running services on one database.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from agent_executor import database as connections
from agent_executor import job, places, quotas, tenant_command
from agent_executor.errors import Conflict, NotFound, TooManyRequests, Unavailable
from agent_executor.job import STRUCTURED, Answer, Outcome, Status, Submission
from agent_executor.ledger import Ledger
from agent_executor.places import Places
from agent_executor.quotas import UNLIMITED, Allowance
from tests.definitions import DATA, agent, event
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.nats import jetstream, publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Service
from tests.integration.fixtures.tenants import OF_NATS, OTHER, Tenants

NORTH, SOUTH = OF_NATS, OTHER
HELLO = agent([{"text": "hello"}])
NEVER = agent([{"text": "never", "delay_ms": 600_000}])
FAILED = Outcome(Status.FAILED, error={"message": "no luck", "type": "ValueError", "stack_trace": ""})
QUEUED = "select count(*)::int from jobs where tenant = %s and status = 'queued'"
RUNNING = "select count(*)::int from jobs where tenant = %s and status = 'running'"


def fresh() -> str:
    return uuid.uuid4().hex


def submission(tenant: str = NORTH, job_id: str | None = None) -> Submission:
    return replace(job.from_json(DATA | {"job_id": job_id or fresh()}), tenant=tenant)


def limit(database: Database, tenant: str, **limits: int | str) -> None:
    """As an operator sets it."""
    words = [word for name, value in limits.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert tenant_command.main(["set", tenant, *words], database.environment) == 0


def filled(database: Database, tenant: str, count: int) -> None:
    """That many queued jobs, quickly."""
    fill = (
        "insert into jobs (job_id, tenant, trace_id, body_hash, definition, input)"
        " select %s || n, %s, 't', '', %s::json, %s::json from generate_series(1, %s) n"
    )
    words = [fresh(), tenant, json.dumps(HELLO), json.dumps(DATA["input_payload"]), count]
    rows(database, fill, *words)


# The queries


class Processes:
    """Ledgers that share a database and nothing else, as those of several processes do."""

    def __init__(self, pools: list[connections.Pool]) -> None:
        self.pools = pools

    def ledgers(self, allowance: Allowance = UNLIMITED) -> list[Ledger]:
        return [Ledger(pool, lease_s=3600, allowance=allowance) for pool in self.pools]


@pytest.fixture
async def processes(database: Database) -> AsyncIterator[Processes]:
    async with connections.pool(database.dsn, 8) as one, connections.pool(database.dsn, 8) as other:
        for pool in (one, other):
            await pool.resize(8)
            await pool.wait()
        yield Processes([one, other])


async def submitted(ledgers: list[Ledger], count: int, tenant: str = NORTH) -> list[TooManyRequests]:
    """Submit new jobs at once; returns the refusals."""
    asked = (ledgers[number % len(ledgers)].accept(submission(tenant)) for number in range(count))
    found = await asyncio.gather(*asked, return_exceptions=True)
    refused = [each for each in found if isinstance(each, TooManyRequests)]
    assert [each for each in found if isinstance(each, BaseException) and each not in refused] == []
    return refused


async def test_as_many_jobs_are_queued_as_may_be_and_not_one_more(processes: Processes, database: Database) -> None:
    ledgers = processes.ledgers(Allowance(max_queued_jobs=7))
    for more in (7, 3, 1):
        refused = await submitted(ledgers, 20)
        assert len(refused) == 20 - more
        assert rows(database, QUEUED, NORTH) == [(7,)]
        if more > 1:
            assert len(await ledgers[0].claim(fresh(), 3 if more == 7 else 1)) == (3 if more == 7 else 1)
    assert {(str(each.findings[0]), each.retry_after_s) for each in refused} == {
        ("TENANT_MAX_QUEUED_JOBS: at most 7", 5.0)
    }
    assert await submitted(ledgers, 3, SOUTH) == []


async def test_a_repeated_submit_meets_no_limit(processes: Processes) -> None:
    [ledger, other] = processes.ledgers(Allowance(max_queued_jobs=1, max_submits_per_minute=2))
    first = submission()
    assert (await ledger.accept(first)).is_new
    for _ in range(5):
        assert not (await other.accept(first)).is_new
    with pytest.raises(TooManyRequests):
        await other.accept(submission())
    with pytest.raises(Conflict):
        await other.accept(replace(first, input={"messages": []}))
    await ledger.claim("worker", 1)
    assert (await ledger.accept(submission())).is_new, "the repetitions were charged"


async def test_submits_come_back_evenly(processes: Processes, database: Database) -> None:
    ledgers = processes.ledgers(Allowance(max_submits_per_minute=6))
    [*refused] = await submitted(ledgers, 20)
    assert len(refused) == 14
    assert {str(each.findings[0]) for each in refused} == {"TENANT_MAX_SUBMITS_PER_MINUTE: at most 6"}
    assert all(0 < each.retry_after_s <= 10 for each in refused)
    rows(database, "update tenant_usage set submits_until = submits_until - interval '20 s'")
    assert len(await submitted(ledgers, 20)) == 18
    rows(database, "update tenant_usage set submits_until = submits_until - interval '1 hour'")
    assert len(await submitted(ledgers, 20)) == 14


async def test_a_tenants_own_limit_goes_before_the_setting_at_once(processes: Processes, database: Database) -> None:
    ledgers = processes.ledgers(Allowance(max_queued_jobs=2))
    assert len(await submitted(ledgers, 5)) == 3
    limit(database, NORTH, max_queued_jobs=4)
    assert len(await submitted(ledgers, 5)) == 3
    limit(database, NORTH, max_queued_jobs=0)
    assert await submitted(ledgers, 5) == []
    limit(database, NORTH, max_queued_jobs=3)
    assert len(await submitted(ledgers, 2)) == 2
    limit(database, NORTH, max_queued_jobs="default")
    assert len(await submitted(ledgers, 2)) == 2
    assert len(await submitted(ledgers, 3, SOUTH)) == 1
    limit(database, SOUTH, max_queued_jobs=10)
    assert await submitted(ledgers, 2, SOUTH) == []
    limit(database, SOUTH, max_queued_jobs=5)
    assert len(await submitted(ledgers, 5, SOUTH)) == 4


async def test_what_was_accepted_goes_on_and_a_redriven_job_waits_its_turn(
    processes: Processes, database: Database
) -> None:
    [ledger, _] = processes.ledgers(Allowance(max_queued_jobs=2))
    for _ in range(2):
        await ledger.accept(submission())
    asking, failing = await ledger.claim("worker", 2)
    await ledger.interrupt(asking, [{"id": "one", "value": "how?"}], None)
    await ledger.finish(failing, FAILED, None)
    assert await submitted([ledger], 2) == []
    with pytest.raises(TooManyRequests):
        await ledger.redrive(failing.job_id, NORTH)
    assert (await ledger.job(failing.job_id, NORTH))["status"] == "failed"
    assert (await ledger.resume(Answer(asking.job_id, 1, tenant=NORTH))).status is Status.QUEUED
    assert rows(database, QUEUED, NORTH) == [(3,)]
    with pytest.raises(NotFound):
        await ledger.redrive("nowhere", NORTH)
    with pytest.raises(Conflict):
        await ledger.redrive(asking.job_id, NORTH)
    await ledger.claim("worker", 2)
    await ledger.redrive(failing.job_id, NORTH)
    assert len(await submitted([ledger], 1)) == 1


async def test_no_more_jobs_run_than_may(processes: Processes, database: Database) -> None:
    ledgers = processes.ledgers(Allowance(max_running_jobs=5))
    limit(database, SOUTH, max_running_jobs=2)
    filled(database, NORTH, 50)
    filled(database, SOUTH, 50)
    chance = random.Random(7)
    every = {job_id for (job_id,) in rows(database, "select job_id from jobs")}
    for _ in range(3):
        owners = {fresh(): {*chance.sample(sorted(every), 50)} for _ in range(16)}  # of which they know
        claimed = await asyncio.gather(
            *(ledgers[number % 2].claim(owner, 4, held) for number, (owner, held) in enumerate(owners.items()))
        )
        found = [claim for claims in claimed for claim in claims]
        assert rows(database, RUNNING, NORTH) == [(5,)]
        assert rows(database, RUNNING, SOUTH) == [(2,)]
        await asyncio.gather(*(ledgers[0].finish(claim, FAILED, None) for claim in found))


async def test_the_next_slot_is_the_tenants_that_has_the_fewest(processes: Processes, database: Database) -> None:
    [ledger, _] = processes.ledgers()
    filled(database, NORTH, 500)
    assert [each.tenant for each in await ledger.claim("one", 3)] == [NORTH] * 3
    for tenant in (SOUTH, "east"):
        filled(database, tenant, 3)
    assert sorted(each.tenant for each in await ledger.claim("two", 5)) == ["east"] * 2 + [SOUTH] * 3
    assert sorted(each.tenant for each in await ledger.claim("three", 3)) == ["east", NORTH, NORTH]


async def test_of_many_tenants_those_that_wait_longest_come_first(processes: Processes, database: Database) -> None:
    [ledger, _] = processes.ledgers()
    fill = (
        "insert into jobs (job_id, tenant, trace_id, body_hash, definition, input, due_at)"
        " select n::text, 't-' || n % 60, 't', '', '{}', '{}', now() - make_interval(secs => 100 + n * 37 % 60)"
        " from generate_series(0, 119) n"
    )
    rows(database, fill)
    order = [f"t-{number}" for number in sorted(range(60), key=lambda number: -((number * 37) % 60))]
    assert {each.tenant for each in await ledger.claim("one", 20)} == {*order[:20]}
    assert {each.tenant for each in await ledger.claim("two", 40)} == {*order[20:]}
    assert len(await ledger.claim("three", 100)) == 60


async def test_jobs_that_others_lock_keep_nobody_from_those_behind(processes: Processes, database: Database) -> None:
    [ledger, _] = processes.ledgers()
    filled(database, NORTH, 200)
    with psycopg.connect(database.dsn) as holder:
        first = "select job_id from jobs order by due_at, job_id limit 100 for update"
        locked = {job_id for (job_id,) in holder.execute(first)}
        found = {each.job_id for each in await ledger.claim("worker", 8)}
    assert len(found) == 8
    assert not found & locked


async def test_a_job_that_is_not_due_keeps_no_other_tenant_waiting(processes: Processes, database: Database) -> None:
    [ledger, _] = processes.ledgers()
    for tenant in (NORTH, SOUTH, "west"):
        filled(database, tenant, 2)
    rows(database, "update jobs set due_at = now() + interval '1 h' where tenant <> %s", SOUTH)
    assert [each.tenant for each in await ledger.claim("worker", 5)] == [SOUTH] * 2


async def test_not_one_stream_too_many_is_opened(processes: Processes, database: Database) -> None:
    held = [Places(pool, Allowance(max_open_streams=5), 1) for pool in processes.pools]
    asked = (held[number % 2].take(NORTH) for number in range(20))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, TooManyRequests) for each in found) == 15
    assert rows(database, "select count(*)::int from open_streams") == [(5,)]
    limit(database, NORTH, max_open_streams=0)
    await held[0].take(NORTH)
    limit(database, SOUTH, max_open_streams=1)
    asks = {"id": fresh(), "tenant": SOUTH, "expiry_s": 30, "max_open_streams": 0}
    with psycopg.connect(database.dsn) as other:  # in the middle of taking the last place
        other.execute(places.SQL["in_turn"], asks)
        other.execute(places.SQL["take"], asks)
        taking = asyncio.create_task(held[0].take(SOUTH))
        waits = "select pid from pg_locks where locktype = 'advisory' and not granted"
        await asyncio.to_thread(until, lambda: taking.done() or rows(database, waits), "it does not come so far")
        other.commit()
        with pytest.raises(TooManyRequests):
            await taking


async def test_a_tenant_at_its_limit_is_in_nobodys_way(processes: Processes, database: Database) -> None:
    [ledger, _] = processes.ledgers(Allowance(max_queued_jobs=2))
    assert len(await submitted([ledger], 3)) == 1
    with psycopg.connect(database.dsn) as holder:  # whose submits take long
        holder.execute("select from tenant_usage where tenant = %s for update", [NORTH])
        asking = asyncio.create_task(submitted([ledger], 30))
        waits = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        await asyncio.to_thread(until, lambda: rows(database, waits), "nobody waits")
        async with asyncio.timeout(5):
            assert await submitted([ledger], 2, SOUTH) == []
        assert len(rows(database, waits)) == 1
        holder.rollback()
        assert len(await asking) == 30
    await ledger.claim("worker", 1)
    assert len(await submitted([ledger], 30)) == 29


async def test_the_largest_limits_can_be_counted_with(processes: Processes, database: Database) -> None:
    most = 2**31 - 1
    allowance = Allowance(*[most] * len(fields(Allowance)))
    [ledger, other] = processes.ledgers(allowance)
    assert await submitted([ledger, other], 4) == []
    limit(database, SOUTH, **dict.fromkeys(allowance.parameters(), most))
    assert await submitted([ledger, other], 4, SOUTH) == []
    assert len(await ledger.claim("worker", 10)) == 8
    with await Places(processes.pools[0], allowance, 1).take(NORTH):
        pass


async def test_after_an_outage_no_process_waits_for_another_to_renew_its_places(
    processes: Processes, database: Database
) -> None:
    one, other = (Places(pool, Allowance(max_open_streams=5), 1) for pool in processes.pools)
    for each in (one, other):
        await each.take(NORTH)
    rows(database, "update open_streams set expires_at = now() - interval '1 s'")
    with psycopg.connect(database.dsn) as holder:  # as `one` does in the middle of renewing
        [place] = one._held
        holder.execute("update open_streams set expires_at = now() + interval '30 s' where id = %s", [place])
        async with asyncio.timeout(5):
            await other._renew()
        holder.commit()
    assert rows(database, "select count(*)::int from open_streams where expires_at > now()") == [(2,)]


async def test_a_limit_that_changes_in_the_middle_of_a_submit_is_no_conflict(
    processes: Processes, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    [ledger, _] = processes.ledgers(Allowance(max_queued_jobs=2))
    count = quotas.make_room

    async def counted(*arguments: Any) -> None:
        await count(*arguments)
        limit(database, NORTH, max_queued_jobs=9)

    monkeypatch.setattr(quotas, "make_room", counted)
    with pytest.raises(Unavailable):
        await ledger.accept(submission())
    monkeypatch.undo()
    assert await submitted([ledger], 3) == []


# Two running services


@pytest.fixture(scope="module")
def second(tenants: Tenants, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Another process beside that of `tenants`, on the same servers."""
    made = Service(tenants.service.environment, tmp_path_factory.mktemp("second") / "service.log")
    yield made.ready()
    made.close()


@pytest.fixture(autouse=True)
def _unlimited(request: pytest.FixtureRequest) -> Iterator[None]:
    """No limits are left behind, and nothing that runs."""
    yield
    if "tenants" in request.fixturenames:
        found: Tenants = request.getfixturevalue("tenants")
        rows(found.database, "delete from tenant_limits")
        rows(found.database, "delete from jobs where status = 'queued'")
        for job_id, tenant in rows(found.database, "select job_id, tenant from jobs where status = 'running'"):
            found.of(tenant).post(f"/v1/jobs/{job_id}/cancel")


def at(service: Service, http: httpx.Client) -> httpx.Client:
    """The same caller at another process."""
    return httpx.Client(base_url=service.http.base_url, headers=http.headers, timeout=30)


def posted(https: list[httpx.Client], count: int, definition: Any) -> list[httpx.Response]:
    """New jobs, at once, from all clients."""
    with ThreadPoolExecutor(count) as pool:
        return list(
            pool.map(
                lambda number: https[number % len(https)].post(
                    "/v1/jobs", json=DATA | {"job_id": fresh(), "agent_definition": definition}
                ),
                range(count),
            )
        )


def refused(answers: list[httpx.Response], setting: str, most: int) -> int:
    """How many of the answers are refusals, all by this limit; the others have to be successes."""
    found = [each for each in answers if each.status_code == 429]
    for each in found:
        assert each.json()["error"] == {
            "type": "TooManyRequests",
            "message": f"the tenant is at its limit {setting}: {most}",
            "fields": [{"field": setting, "message": f"at most {most}"}],
        }
        assert 1 <= int(each.headers["retry-after"]) <= 60
    assert {each.status_code for each in answers} <= {202, 429}
    return len(found)


def test_limits_hold_over_two_processes(tenants: Tenants, second: Service) -> None:
    north, database = tenants.of(NORTH), tenants.database
    with at(second, north) as elsewhere:
        both = [north, elsewhere]
        limit(database, NORTH, max_running_jobs=2, max_queued_jobs=5)
        assert refused(posted(both, 2, NEVER), "TENANT_MAX_QUEUED_JOBS", 5) == 0
        until(lambda: rows(database, RUNNING, NORTH) == [(2,)], "the jobs do not run")
        answers = posted(both, 20, HELLO)
        assert refused(answers, "TENANT_MAX_QUEUED_JOBS", 5) == 15
        assert rows(database, QUEUED, NORTH) == [(5,)]
        [one, *_] = [each.json()["job_id"] for each in answers if each.status_code == 202]
        again = elsewhere.post("/v1/jobs", json=DATA | {"job_id": one, "agent_definition": HELLO})
        assert (again.status_code, again.json()["status"]) == (202, "queued")
        asked = event(HELLO, job_id=fresh(), id=fresh())
        by_event = north.post("/", content=json.dumps(asked), headers={"content-type": STRUCTURED})
        assert refused([by_event], "TENANT_MAX_QUEUED_JOBS", 5) == 1
        seen = {0}
        for (job_id,) in rows(database, "select job_id from jobs where status = 'running' and tenant = %s", NORTH):
            north.post(f"/v1/jobs/{job_id}/cancel")

        def ended() -> bool:
            seen.add(rows(database, RUNNING, NORTH)[0][0])
            return rows(database, QUEUED, NORTH) == [(0,)]

        until(ended, "the jobs do not go on")
        assert max(seen) <= 2
        limit(database, NORTH, max_submits_per_minute=4)
        assert refused(posted(both, 12, HELLO), "TENANT_MAX_SUBMITS_PER_MINUTE", 4) == 8
        assert refused(posted([tenants.of(SOUTH)], 3, HELLO), "", 0) == 0


def sends_smaller_bodies(http: httpx.Client) -> None:
    large = DATA | {"input_payload": {"messages": [{"role": "user", "content": "x" * 2000}]}}

    def ask() -> httpx.Response:
        return http.post("/v1/jobs", json=large | {"job_id": fresh()})

    until(lambda: ask().status_code == 413, "the limit is not known")
    assert ask().json()["error"] == {
        "type": "PayloadTooLarge",
        "message": "the body is larger than 2000 bytes",
        "fields": [{"field": "MAX_BODY_BYTES", "message": "at most 2000"}],
    }
    assert http.post("/v1/jobs", json=DATA | {"job_id": fresh()}).status_code == 202


def test_open_streams_are_counted_over_processes_and_those_of_the_dead_expire(
    tenants: Tenants, second: Service, tmp_path: Path
) -> None:
    south, database = tenants.of(SOUTH), tenants.database
    [answer] = posted([south], 1, NEVER)
    path = f"/v1/jobs/{answer.json()['job_id']}/events"
    limit(database, SOUTH, max_open_streams=2, max_body_bytes=2000)
    third = Service(tenants.service.environment, tmp_path / "third.log")
    try:
        with at(second, south) as elsewhere, at(third.ready(), south) as doomed, ExitStack() as opened:
            sends_smaller_bodies(doomed)
            assert opened.enter_context(doomed.stream("GET", path)).status_code == 200
            with elsewhere.stream("GET", path) as streamed:
                assert streamed.status_code == 200
                for http in (south, elsewhere, doomed):
                    assert refused([http.get(path)], "TENANT_MAX_OPEN_STREAMS", 2) == 1
            south_opens(south, opened, path, "the place is not given back")
            assert refused([elsewhere.get(path)], "TENANT_MAX_OPEN_STREAMS", 2) == 1
            third.stop(signal.SIGKILL)
            left = "select extract(epoch from expires_at - now())::float8 from open_streams where tenant = %s"
            assert len(rows(database, left, SOUTH)) == 2
            assert all(0 < seconds <= 30 for (seconds,) in rows(database, left, SOUTH))
            assert refused([south.get(path)], "TENANT_MAX_OPEN_STREAMS", 2) == 1
            past = "update open_streams set expires_at = expires_at - interval '31 s' where tenant = %s"
            rows(database, past, SOUTH)
            south_opens(south, opened, path, "the place of the dead process does not expire")
        until(lambda: rows(database, "select id from open_streams where expires_at > now()") == [], "places are left")
    finally:
        third.close()


def south_opens(south: httpx.Client, opened: ExitStack, path: str, complaint: str) -> None:
    """A stream can be opened, and stays open."""

    def is_open() -> bool:
        with ExitStack() as trying:
            if trying.enter_context(south.stream("GET", path)).status_code != 200:
                return False
            opened.push(trying.pop_all())
            return True

    until(is_open, complaint)


async def dead_letters(url: str) -> int:
    async with jetstream(url) as js:
        return int((await js.stream_info("AGENT_DEAD")).state.messages)


async def test_what_comes_by_nats_waits_for_room_and_none_is_lost(tenants: Tenants, second: Service) -> None:
    database, url = tenants.database, tenants.service.environment["NATS_URL"]
    limit(database, NORTH, max_running_jobs=1, max_queued_jobs=2)
    [answer] = posted([tenants.of(NORTH)], 1, NEVER)
    until(lambda: rows(database, RUNNING, NORTH) == [(1,)], "the job does not run")
    both = (tenants.service, second)
    before, dead = [len(service.log.read_text()) for service in both], await dead_letters(url)
    job_ids = [fresh() for _ in range(12)]
    for job_id in job_ids:
        await publish(url, event(HELLO, job_id=job_id, id=job_id))

    def told(service: Service, start: int) -> list[str]:
        return re.findall('"intake_(paused|resumed)"', service.log.read_text()[start:])

    until(lambda: any(map(told, both, before)), "no intake pauses")
    arrived = "select count(*)::int from jobs where job_id = any(%s)"
    assert rows(database, arrived, job_ids) == [(2,)]
    gauges = [service.http.get("/metrics", headers=tenants.of(SOUTH).headers).text for service in both]
    assert any(re.search(r"(?m)^agent_executor_intake_paused 1", gauge) for gauge in gauges)
    tenants.of(NORTH).post(f"/v1/jobs/{answer.json()['job_id']}/cancel")
    limit(database, NORTH, max_running_jobs=0)
    done = f"{arrived} and status = 'completed'"
    until(lambda: rows(database, done, job_ids) == [(12,)], "not all jobs are done")
    for words in map(told, both, before):  # once each time, and not at every message
        assert words == ["paused", "resumed"] * (len(words) // 2) + ["paused"] * (len(words) % 2)
    assert await dead_letters(url) == dead


def test_a_tenants_jobs_go_through_while_another_has_thousands_waiting(tenants: Tenants, second: Service) -> None:
    filled(tenants.database, NORTH, 3000)
    until(lambda: rows(tenants.database, RUNNING, NORTH)[0][0] > 0, "the jobs do not run")
    south = tenants.of(SOUTH)
    job_ids = [answer.json()["job_id"] for answer in posted([south], 10, HELLO)]
    done = "select count(*)::int from jobs where job_id = any(%s) and status = 'completed'"
    until(lambda: rows(tenants.database, done, job_ids) == [(10,)], "the jobs do not run")
    assert rows(tenants.database, QUEUED, NORTH)[0][0] > 1000


def test_the_command_shows_what_is_set_and_used(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    filled(database, SOUTH, 3)
    limit(database, NORTH, max_running_jobs=4, max_queued_jobs=9)
    limit(database, NORTH, max_open_streams=0, max_queued_jobs="default")
    assert tenant_command.main(["list"], database.environment) == 0
    header, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["tenant", *(f"max_{name}" for name in LIMITS), "queued", "running", "streams"]
    assert lines == [[NORTH, "-", "4", "-", "0", "-", "0", "0", "0"], [SOUTH, *"-----", "3", "0", "0"]]
    assert tenant_command.main(["unset", NORTH], database.environment) == 0
    assert tenant_command.main(["unset", NORTH], database.environment) == 1


LIMITS = ("queued_jobs", "running_jobs", "submits_per_minute", "open_streams", "body_bytes")
