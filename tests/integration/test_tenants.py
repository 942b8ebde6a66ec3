"""Two tenants: what is another's is not there, on any way in, and cannot be taken.

First the queries against PostgreSQL, then a running service.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis

from agent_executor import database as connections
from agent_executor import job
from agent_executor.errors import Conflict, LeaseLost, NotFound
from agent_executor.job import DEFAULT_TENANT, Answer, Origin, Outcome, Status, Submission
from agent_executor.ledger import Claim, Ledger
from tests.definitions import DATA, EXAMPLES, agent, answer, event, tool
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.nats import jetstream, messages, publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.tenants import OF_NATS, OTHER, Tenants

LEASE_S = 3.0
NORTH, SOUTH = OF_NATS, OTHER
DONE = Outcome(Status.COMPLETED, result="5")
FAILED = Outcome(Status.FAILED, error={"message": "no luck", "type": "ValueError", "stack_trace": ""})
ASKED = [{"id": "one", "value": "how?"}]
STRUCTURED = {"content-type": job.STRUCTURED}
HELLO = agent([{"text": "hello"}])
BROKEN = """
from langchain_core.tools import tool

@tool
def broken() -> str:
    "Fails."
    raise ValueError("no luck")
"""


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[connections.Pool]:
    async with connections.pool(database.dsn, 20) as opened:
        yield opened


@pytest.fixture
def ledger(pool: connections.Pool) -> Ledger:
    return Ledger(pool, lease_s=LEASE_S)


def submission(job_id: str, tenant: str, **attributes: Any) -> Submission:
    asked = job.from_event(event(HELLO, job_id=job_id, **attributes))
    assert isinstance(asked, Submission)
    return replace(asked, tenant=tenant)


async def reach(ledger: Ledger, status: str) -> None:
    """Have job "a" of the north in a state."""
    await ledger.accept(submission("a", NORTH))
    if status == "cancelled":
        await ledger.cancel("a", NORTH)
    elif status != "queued":
        [claim] = await ledger.claim("worker", 1)
        if status == "interrupted":
            await ledger.interrupt(claim, ASKED, None)
        elif status != "running":
            await ledger.finish(claim, DONE if status == "completed" else FAILED, None)


def everything(database: Database) -> list[Any]:
    return [
        rows(database, f"select to_jsonb({table}) from {table} order by 1") for table in ("jobs", "answers", "outbox")
    ]


@pytest.mark.parametrize("status", [*Status])
async def test_nothing_can_be_done_with_anothers_job_and_nothing_seen(
    ledger: Ledger, database: Database, status: str
) -> None:
    await reach(ledger, status)
    before = everything(database)
    for look in (
        lambda: ledger.job("a", SOUTH),
        lambda: ledger.cancel("a", SOUTH),
        lambda: ledger.redrive("a", SOUTH),
        lambda: ledger.resume(Answer("a", 1, tenant=SOUTH)),
        lambda: ledger.resume(Answer("a", 1, "one", tenant=SOUTH)),
    ):
        with pytest.raises(NotFound) as raised:
            await look()
        assert str(raised.value) == "no job a"
    assert await ledger.outcome("a", SOUTH) is None
    assert await ledger.jobs(SOUTH, None, 10, None) == []
    assert await ledger.jobs(SOUTH, status, 10, None) == []
    for other in (submission("a", SOUTH), submission("a", SOUTH, source="another")):
        with pytest.raises(Conflict) as taken:
            await ledger.accept(other)
        assert str(taken.value) == "job a exists with another definition or input"
    assert everything(database) == before
    assert [row["status"] for row in await ledger.jobs(NORTH, status, 10, None)] == [status]


async def test_an_id_that_is_taken_is_refused_in_the_same_words_whoever_has_it(ledger: Ledger) -> None:
    await ledger.accept(submission("a", NORTH))
    refusals = []
    for tenant in (NORTH, SOUTH):
        other = job.from_json(DATA | {"job_id": "a", "input_payload": {"messages": []}})
        with pytest.raises(Conflict) as raised:
            await ledger.accept(replace(other, tenant=tenant))
        refusals.append(str(raised.value))
    assert refusals[0] == refusals[1]


async def test_an_events_source_and_id_count_within_a_tenant(ledger: Ledger) -> None:
    same = {"source": "shop", "id": "1"}
    assert (await ledger.accept(submission("a", NORTH, **same))).is_new
    assert (await ledger.accept(submission("b", SOUTH, **same))).is_new
    assert not (await ledger.accept(submission("b", SOUTH, **same))).is_new
    for tenant in (NORTH, SOUTH):
        with pytest.raises(Conflict, match="source and id belong to another job"):
            await ledger.accept(submission("c", tenant, **same))
    with pytest.raises(Conflict, match="job a exists with another definition or input"):
        await ledger.accept(submission("a", SOUTH, source="shop", id="2"))
    with pytest.raises(Conflict, match="source and id belong to another job"):
        await ledger.accept(submission("a", SOUTH, **same))


async def test_of_two_tenants_that_want_one_id_at_once_one_gets_it(ledger: Ledger) -> None:
    for number in range(10):
        asked = [submission(f"job-{number}", tenant) for tenant in (NORTH, SOUTH) for _ in range(5)]
        found = await asyncio.gather(*(ledger.accept(each) for each in asked), return_exceptions=True)
        got = {each.tenant for each, receipt in zip(asked, found, strict=True) if not isinstance(receipt, Exception)}
        assert len(got) == 1
        assert sum(isinstance(each, Conflict) for each in found) == 5


async def test_workers_work_for_all_tenants_and_know_whose_a_job_is(ledger: Ledger) -> None:
    for job_id, tenant in (("a", NORTH), ("b", SOUTH), ("c", DEFAULT_TENANT)):
        await ledger.accept(submission(job_id, tenant))
    claims = {claim.job_id: claim for claim in await ledger.claim("worker", 3)}
    assert {job_id: claim.tenant for job_id, claim in claims.items()} == {"a": NORTH, "b": SOUTH, "c": DEFAULT_TENANT}
    await ledger.finish(claims["a"], DONE, None)
    await ledger.interrupt(claims["b"], ASKED, None)
    assert (await ledger.outcome("a", NORTH) or {})["subject"] == "a"
    assert (await ledger.job("b", SOUTH))["interrupts"] == ASKED
    assert (await ledger.resume(Answer("b", 1, tenant=SOUTH))).status is Status.QUEUED
    assert {ended.job_id for ended in await ledger.endings(["a", "b", "c"])} == {"a"}


async def test_a_job_of_a_tenant_that_silenced_its_workers_is_failed(ledger: Ledger, database: Database) -> None:
    uptime = "select now() - pg_postmaster_start_time() > make_interval(secs => %s)"
    await asyncio.to_thread(until, lambda: rows(database, uptime, LEASE_S) == [(True,)], "the server grows no older")
    await reach(ledger, "running")
    rows(database, "update jobs set lease_until = now() - interval '1 ms', attempt = 3")
    assert [ended.job_id for ended in await ledger.fail_silent()] == ["a"]
    assert (await ledger.job("a", NORTH))["error"]["type"] == "WorkerLost"


async def test_a_claim_of_one_tenant_ends_no_job_of_another(ledger: Ledger) -> None:
    """As after an id was freed by retention and taken by somebody else, while its first worker was frozen."""
    await reach(ledger, "running")
    stale = Claim("a", "trace-1", {}, {}, None, attempt=1, fence=1, tenant=SOUTH)
    with pytest.raises(LeaseLost):
        await ledger.finish(stale, DONE, None)
    assert (await ledger.job("a", NORTH))["status"] == "running"
    await ledger.finish(replace(stale, tenant=NORTH), DONE, None)
    with pytest.raises(LeaseLost):
        await ledger.finish(stale, DONE, None)


async def test_what_follows_a_look_is_bound_to_the_tenant_by_itself(ledger: Ledger, database: Database) -> None:
    """So that no look that was forgotten opens a way."""
    await reach(ledger, "interrupted")
    looked = {"job_id": "a", "tenant": SOUTH, "fence": 1, "status": "interrupted", "answer_count": 0}
    looked |= vars(Origin("http"))
    before = everything(database)
    assert await ledger._rows("resume", **looked, interrupt_id="one", value="1", request_id=None) == []
    assert everything(database) == before
    await ledger.resume(Answer("a", 1, tenant=NORTH))
    [claim] = await ledger.claim("worker", 1)
    await ledger.finish(claim, DONE, None)
    before = everything(database)
    await ledger._rows("announce_again", job_id="a", tenant=SOUTH, request_id="r")
    assert everything(database) == before


async def test_a_tenants_page_is_read_from_its_own_index(ledger: Ledger, database: Database) -> None:
    """Or one with few jobs would wait for all jobs of the others to be looked at."""
    fill = (
        "insert into jobs (job_id, trace_id, body_hash, definition, input, tenant, created_at)"
        " select n::text, 't', '', '{}', '{}', case when n % 1000 = 0 then 'south' else 'north' end,"
        " now() - make_interval(secs => n) from generate_series(1, 20000) n"
    )
    rows(database, fill)
    rows(database, "analyze jobs")
    plan = rows(
        database,
        "explain (format json) select job_id from jobs where tenant = 'south' and (created_at, job_id) < (now(), 'x')"
        " order by created_at desc, job_id desc limit 5",
    )
    assert "jobs_of_tenant" in json.dumps(plan)
    assert "Sort" not in json.dumps(plan)
    assert [row["job_id"] for row in await ledger.jobs(SOUTH, None, 3, None)] == ["1000", "2000", "3000"]


# The running service


def fresh() -> str:
    """A job id that nobody has; all are of one length."""
    return uuid.uuid4().hex


def submit(http: httpx.Client, job_id: str, definition: Any = HELLO) -> httpx.Response:
    return http.post("/v1/jobs", json=DATA | {"job_id": job_id, "agent_definition": definition})


def made(tenants: Tenants, tenant: str, status: str) -> str:
    """A job of a tenant in a state; returns its id."""
    definitions = {
        "running": agent([{"text": "never", "delay_ms": 600_000}]),
        "interrupted": json.loads((EXAMPLES / "approval.json").read_text())["agent_definition"],
        "failed": agent([{"tool_calls": [{"name": "broken"}]}], tools=[tool("broken", BROKEN)]),
    }
    job_id, http = fresh(), tenants.of(tenant)
    definition = definitions.get("running" if status == "cancelled" else status, HELLO)
    assert submit(http, job_id, definition).status_code == 202
    if status == "cancelled":
        assert http.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    found = lambda: http.get(f"/v1/jobs/{job_id}").json()["status"] == status  # noqa: E731 - waited for
    tenants.service.until(found, f"the job is not {status}")
    return job_id


def seen(answered: httpx.Response, job_id: str) -> tuple[int, str, dict[str, str]]:
    """All that an answer shows, but the id that was asked for and the time."""
    headers = {name: value for name, value in answered.headers.items() if name != "date"}
    return answered.status_code, answered.text.replace(job_id, "JOB"), headers


def requests(tenants: Tenants) -> list[tuple[str, str, dict[str, Any]]]:
    """Every request about one job, made from the service's own routes, and the event that answers one."""
    paths = tenants.service.http.get("/openapi.json").json()["paths"]
    found: list[tuple[str, str, dict[str, Any]]] = [
        (method, path, {"json": {"value": 1}} if method == "post" else {})
        for path, operations in paths.items()
        for method in operations
        if "{job_id}" in path
    ]
    assert len(found) >= 5
    position = {"headers": {"last-event-id": "1-1"}}
    found += [(method, path, position) for method, path, _ in found if path.endswith("/events")]
    found += [("post", path, {"answer": True}) for path in ("/", "/?wait=5")]
    return found


def ask(http: httpx.Client, method: str, path: str, more: dict[str, Any], job_id: str) -> httpx.Response:
    if more.get("answer"):
        more = {"content": json.dumps(answer(job_id, 1, event_id=fresh())), "headers": STRUCTURED}
    return http.request(method, path.replace("{job_id}", job_id), **more)


@pytest.mark.parametrize("status", ["running", "interrupted", "completed", "failed", "cancelled"])
def test_anothers_job_is_not_told_from_one_that_is_not_there(tenants: Tenants, status: str) -> None:
    theirs, south = made(tenants, NORTH, status), tenants.of(SOUTH)
    before = tenants.of(NORTH).get(f"/v1/jobs/{theirs}").json()
    for method, path, more in requests(tenants):
        nowhere = fresh()
        found = seen(ask(south, method, path, more, theirs), theirs)
        assert found == seen(ask(south, method, path, more, nowhere), nowhere), (method, path)
        assert found[0] == 404, (method, path)
        assert "location" not in found[2]
        anybody = seen(ask(tenants.service.http, method, path, more, theirs), theirs)
        assert anybody == found, (method, path)
    assert tenants.of(NORTH).get(f"/v1/jobs/{theirs}").json() == before
    tenants.of(NORTH).post(f"/v1/jobs/{theirs}/cancel")


@pytest.mark.parametrize("status", ["running", "completed"])
@pytest.mark.parametrize("same", [True, False])
def test_anothers_id_is_refused_like_ones_own_with_another_body(tenants: Tenants, status: str, same: bool) -> None:
    theirs, mine, south = made(tenants, NORTH, status), made(tenants, SOUTH, "completed"), tenants.of(SOUTH)
    undelivered = "select msg_id from outbox where job_id = %s and published_at is null"
    until(lambda: not rows(tenants.database, undelivered, theirs), "it is not delivered")
    before = rows(tenants.database, "select msg_id, published_at from outbox where job_id = %s", theirs)
    text = {"running": agent([{"text": "never", "delay_ms": 600_000}]), "completed": HELLO}[status]
    body = text if same else agent([{"text": "other"}])
    taken = seen(submit(south, theirs, body), theirs)
    assert taken == seen(submit(south, mine, agent([{"text": "other"}])), mine)
    assert taken[0] == 409
    for path in ("/", "/?wait=20"):
        asked = event(body, job_id=theirs, id=fresh())
        refused = south.post(path, content=json.dumps(asked), headers=STRUCTURED)
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "Conflict")
        own = event(agent([{"text": "other"}]), job_id=mine, id=fresh())
        assert seen(refused, theirs) == seen(south.post(path, content=json.dumps(own), headers=STRUCTURED), mine)
    assert rows(tenants.database, "select msg_id, published_at from outbox where job_id = %s", theirs) == before
    tenants.of(NORTH).post(f"/v1/jobs/{theirs}/cancel")


def pages(http: httpx.Client, **query: Any) -> list[str]:
    found, cursor = [], None
    while True:
        page = http.get("/v1/jobs", params=query | ({} if cursor is None else {"cursor": cursor})).json()
        found += [each["job_id"] for each in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_lists_and_their_pages_hold_a_tenants_own_jobs(tenants: Tenants) -> None:
    names = [f"tenant-{fresh()}" for _ in range(3)]
    own: dict[str, list[str]] = {name: [] for name in names}
    for _ in range(5):
        for name in names[:2]:
            own[name].insert(0, fresh())
            assert submit(tenants.of(name), own[name][0]).status_code == 202
    for name in names:
        for limit in (1, 2, 5, 200):
            assert pages(tenants.of(name), limit=limit) == own[name]
    cursor = tenants.of(names[0]).get("/v1/jobs?limit=1").json()["next_cursor"]
    assert {*pages(tenants.of(names[1]), limit=2)} == {*own[names[1]]}
    onwards = tenants.of(names[1]).get("/v1/jobs", params={"cursor": cursor}).json()["jobs"]
    assert {each["job_id"] for each in onwards} <= {*own[names[1]]}
    for status in Status:
        assert not {*pages(tenants.of(names[0]), status=status.value)} - {*own[names[0]]}


def test_a_tenants_own_jobs_are_all_there(tenants: Tenants) -> None:
    """On every route on which they are nowhere for others."""
    south = tenants.of(SOUTH)
    asks = made(tenants, SOUTH, "interrupted")
    refused = south.post(f"/v1/jobs/{asks}/resume", json={"value": 1})
    assert refused.status_code == 400, "an approval wants decisions"
    decided = {"value": {"decisions": [{"type": "approve"}]}}
    assert south.post(f"/v1/jobs/{asks}/resume", json=decided).status_code == 202
    tenants.service.until(
        lambda: south.get(f"/v1/jobs/{asks}").json()["status"] in ("completed", "interrupted"), "it does not go on"
    )
    failed = made(tenants, SOUTH, "failed")
    assert south.post(f"/v1/jobs/{failed}/redrive").status_code == 202
    running = made(tenants, SOUTH, "running")
    assert south.post(f"/v1/jobs/{running}/cancel").status_code == 200
    events = south.get(f"/v1/jobs/{running}/events").text
    assert re.findall(r"(?m)^event: (\w+)$", events)[-1] == "end"
    asked = event(HELLO, job_id=fresh(), id=fresh())
    waited = south.post("/?wait=20", content=json.dumps(asked), headers=STRUCTURED)
    assert (waited.status_code, waited.json()["data"]["result"]["output"]) == (200, "hello")


def test_a_stream_whose_events_are_gone_ends_by_the_tenants_own_job(tenants: Tenants) -> None:
    ended, south = made(tenants, SOUTH, "completed"), tenants.of(SOUTH)
    assert len(south.get(f"/v1/jobs/{ended}/events").text.splitlines()) > 5
    with redis.from_url(tenants.service.environment["REDIS_URL"]) as client:
        assert client.delete(f"langgraph:events:{ended}") == 1
    told = south.get(f"/v1/jobs/{ended}/events").text
    assert re.findall(r"(?m)^event: (\w+)$", told) == ["warning", "end"]


def test_two_tenants_may_use_the_same_events_source_and_id(tenants: Tenants) -> None:
    number = fresh()
    for tenant in (NORTH, SOUTH):
        asked = event(HELLO, job_id=f"{tenant}-{number}", id=number)
        answered = tenants.of(tenant).post("/", content=json.dumps(asked), headers=STRUCTURED)
        assert answered.status_code == 202, answered.text


def test_nothing_in_a_request_names_a_tenant(tenants: Tenants) -> None:
    asked = event(HELLO, job_id=fresh(), id=fresh(), tenant=NORTH, source=NORTH)
    asked["data"]["tenant"] = NORTH
    headers = STRUCTURED | {"x-tenant": NORTH, "tenant": NORTH}
    answered = tenants.of(SOUTH).post(f"/?tenant={NORTH}", content=json.dumps(asked), headers=headers)
    assert answered.status_code == 202
    job_id = answered.json()["job_id"]
    assert tenants.of(SOUTH).get(f"/v1/jobs/{job_id}").status_code == 200
    assert tenants.of(NORTH).get(f"/v1/jobs/{job_id}?tenant={SOUTH}").status_code == 404


# NATS


async def test_what_arrives_by_nats_is_the_tenants_that_the_setting_names(tenants: Tenants) -> None:
    job_id = fresh()
    await publish(tenants.service.environment["NATS_URL"], event(HELLO, job_id=job_id, id=fresh(), tenant=SOUTH))
    north = tenants.of(NORTH)
    tenants.service.until(lambda: north.get(f"/v1/jobs/{job_id}").is_success, "it does not arrive")
    for other in (tenants.of(SOUTH), tenants.service.http):
        assert other.get(f"/v1/jobs/{job_id}").status_code == 404
    assert rows(tenants.database, "select tenant from jobs where job_id = %s", job_id) == [(NORTH,)]


@pytest.mark.parametrize("status", ["running", "completed"])
async def test_anothers_id_by_nats_is_a_dead_letter_and_announces_nothing(tenants: Tenants, status: str) -> None:
    theirs, url = made(tenants, SOUTH, status), tenants.service.environment["NATS_URL"]
    letters = "select subject, msg_id from outbox where job_id = %s"
    before = rows(tenants.database, letters, theirs)
    await publish(url, event(HELLO, job_id=theirs, id=fresh()))
    [(_, headers)] = await messages(url, "AGENT_DEAD", "agent.dead.conflict", theirs)
    assert headers["Agent-Error"] == f"job {theirs} exists with another definition or input"
    await settled(url)
    assert rows(tenants.database, letters, theirs) == before
    assert tenants.of(SOUTH).get(f"/v1/jobs/{theirs}").json()["status"] == status
    tenants.of(SOUTH).post(f"/v1/jobs/{theirs}/cancel")


async def test_an_answer_by_nats_reaches_no_job_of_another(tenants: Tenants) -> None:
    theirs, url = made(tenants, SOUTH, "interrupted"), tenants.service.environment["NATS_URL"]
    await publish(url, answer(theirs, {"decisions": [{"type": "approve"}]}, event_id=fresh()))
    [(_, headers)] = await messages(url, "AGENT_DEAD", "agent.dead.not-found", theirs)
    assert headers["Agent-Error"] == f"no job {theirs}"
    assert tenants.of(SOUTH).get(f"/v1/jobs/{theirs}").json()["status"] == "interrupted"


async def settled(url: str) -> None:
    """Wait until every message has been dealt with."""
    async with asyncio.timeout(30), jetstream(url) as js:
        while True:
            info = await js.consumer_info("AGENT_EXECUTION", "agent-executor-workers")
            if not info.num_pending and not info.num_ack_pending:
                return
            await asyncio.sleep(0.05)
