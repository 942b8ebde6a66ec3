"""The audit: every action and every refusal of a running service has its row and its line, and no more than that."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import psycopg
import pytest

from agent_executor import api_key_command, api_keys, audit, audit_command, job
from agent_executor import database as connections
from agent_executor.access import NEEDS
from agent_executor.audit import OF_CALLERS, OF_STRANGERS
from agent_executor.job import Answer, Origin, Outcome, Status
from agent_executor.ledger import Ledger
from agent_executor.refusals import CHANGES
from tests.definitions import DATA, agent, event
from tests.integration.fixtures.issuer import Issuer
from tests.integration.fixtures.keys import dsn, key
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.nats import publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Service, Starter
from tests.integration.fixtures.tenants import OF_NATS, OTHER, Tenants, serving
from tests.integration.test_access import bearer, command
from tests.integration.test_tenants import STRUCTURED, fresh, made, submit
from tier3.stack import Stack

HERE = "127.0.0.1"
ORIGIN = Origin("http", "alice", "key-1", "10.0.0.1")
HELLO = agent([{"text": "hello"}])
FAILED = Outcome(Status.FAILED, error={"message": "no luck", "type": "ValueError", "stack_trace": ""})
OUTLINE = "select action, outcome, actor, tenant, address, via, detail from audit where job_id = %s order by id"

pytestmark = pytest.mark.xdist_group("audit")


@pytest.fixture(scope="module")
def tenants(stack: Stack, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    """A service of its own, since refusals of others would be counted with those that are looked for."""
    with serving(stack, template, tmp_path_factory.mktemp("audited"), "audited") as found:
        yield found


def lines(service: Service, *events: str) -> list[dict[str, Any]]:
    """What the service has logged of these events."""
    found = [json.loads(line) for line in service.log.read_text().splitlines() if line[:1] == "{"]
    return [each for each in found if each["event"] in events]


# What is done


def test_who_did_what_to_a_job(tenants: Tenants) -> None:
    """One row and one line for each action, and none for what changed nothing."""
    south, by_http = tenants.of(OTHER), ("done", f"of-{OTHER}", OTHER, HERE, "http", None)
    asks, failed, running = (made(tenants, OTHER, status) for status in ("interrupted", "failed", "running"))
    decided = {"value": {"decisions": [{"type": "approve"}]}, "request_id": "r-1"}
    for _ in range(2):
        assert south.post(f"/v1/jobs/{asks}/resume", json=decided).status_code == 202
    assert south.post(f"/v1/jobs/{failed}/redrive").status_code == 202
    for _ in range(2):
        assert south.post(f"/v1/jobs/{running}/cancel").status_code == 200
    sent = event(HELLO, job_id=fresh(), id=fresh())
    for path in ("/?wait=20", "/"):
        assert south.post(path, content=json.dumps(sent), headers=STRUCTURED).is_success
    ids = {"resume": asks, "redrive": failed, "cancel": running, "submit": sent["data"]["job_id"]}
    for action, job_id in ids.items():
        assert rows(tenants.database, OUTLINE, job_id)[-1] == (action, *by_http)
        assert len(rows(tenants.database, OUTLINE, job_id)) == (1 if action == "submit" else 2)
    [(key_id,)] = rows(tenants.database, "select distinct key_id from audit where job_id = any(%s)", [*ids.values()])
    whose = {"actor": f"of-{OTHER}", "key_id": key_id, "tenant": OTHER, "address": HERE, "via": "http"}
    for action, name in {"cancel": "job_cancelled", "redrive": "job_redriven", "resume": "job_resumed"}.items():
        told = [
            each for each in lines(tenants.service, name) if each["job_id"] == ids[action] and each.get("new", True)
        ]
        assert [each | whose for each in told] == told
        assert len(told) == 1
    of_job = [each for each in lines(tenants.service, "job_accepted", "job_started") if each["job_id"] == running]
    assert {each["tenant"] for each in of_job} == {OTHER}


async def test_what_comes_by_nats_has_no_actor(tenants: Tenants) -> None:
    url, job_id = tenants.service.environment["NATS_URL"], fresh()
    for body in (event(HELLO, job_id=job_id, id=fresh()), b"no event"):
        await publish(url, body)
    submitted = [("submit", "done", None, OF_NATS, None, "nats", None)]
    tenants.service.until(lambda: rows(tenants.database, OUTLINE, job_id) == submitted, "the submit is not written")
    query = "select action, outcome, actor, tenant, detail from audit where via = 'nats' and job_id is null"
    refused = ("message", "refused", None, OF_NATS, "InvalidInput")
    tenants.service.until(lambda: refused in rows(tenants.database, query), "the refusal is not written")


# What is refused


def test_who_was_refused_what(tenants: Tenants) -> None:
    audited = fresh()  # a tenant that no other test has refused
    http, south = tenants.service.http, tenants.of(audited)
    theirs, mine = made(tenants, OF_NATS, "completed"), made(tenants, audited, "completed")
    reads = key(tenants.database.environment, "jobs:read", tenant=audited, name=f"reads-{audited}")
    tenants.service.until(lambda: http.get("/v1/jobs", headers=bearer(reads)).is_success, "the key is not known")
    known: list[tuple[str, str, str | None]] = []
    for path in CHANGES:
        address = path.removeprefix("POST ").replace("{job_id:path}", theirs)
        http.post(address, headers={"authorization": ""})
        http.post(address, json={}, headers=bearer("garbage"))
        assert http.post(address, json={}, headers=bearer(reads)).status_code in (400, 403)
        if theirs in address:
            assert south.post(address, json={"value": 1}).status_code == 404
            known.append((CHANGES[path], "NotFound", theirs))
            if not address.endswith("resume"):
                known.append((CHANGES[path], "Conflict", mine))
                assert south.post(address.replace(theirs, mine)).status_code == 409
    http.get("/v1/jobs", headers=bearer("garbage"))
    other = agent([{"text": "other"}])
    assert submit(south, mine, other).status_code == 409
    asked = json.dumps(event(other, job_id=theirs, id=fresh()))
    assert south.post("/", content=asked, headers=STRUCTURED).status_code == 400
    assert south.post("/v1/jobs", json={"job_id": "x"}).status_code == 400
    known += [("submit", "Conflict", mine), ("submit", "Conflict", theirs), ("submit", "InvalidInput", None)]
    query = "select action, detail, job_id from audit where outcome = 'refused' and actor = %s and address = %s"
    whose = (f"of-{audited}", HERE)
    tenants.service.until(
        lambda: {*known} <= {*rows(tenants.database, query, *whose)}, "not all refusals of a caller are written"
    )
    assert sorted(map(str, rows(tenants.database, query, *whose))) == sorted(map(str, known))
    lacking = {
        *((CHANGES[path], scope) for path in CHANGES if path != "POST /" for scope in NEEDS[path]),
        ("submit", " or ".join(NEEDS["POST /"])),
    }
    refused = {(action, f"Forbidden: the credential lacks the scope {scope}") for action, scope in lacking}
    tenants.service.until(
        lambda: {row[:2] for row in rows(tenants.database, query, f"reads-{audited}", HERE)} == refused,
        "not all lacks are written",
    )
    bad = {(word, "Unauthenticated: the credential is not valid", None) for word in (*CHANGES.values(), "read")}
    strangers = (
        "select action, detail, job_id from audit where outcome = 'refused' and actor is null and tenant is null"
    )
    tenants.service.until(lambda: bad <= {*rows(tenants.database, strangers)}, "not all of strangers are written")
    told = {(each["action"], each["detail"], each.get("job_id")) for each in lines(tenants.service, "request_refused")}
    assert {*known} <= told


def test_a_flood_of_refusals_makes_few_rows_and_loses_none(place: dict[str, str], start_service: Starter) -> None:
    """Of strangers from everywhere, as a proxy says, and of a caller who varies all it can; up to the very end."""
    admin = bearer(key(place, "admin", name="test"))
    service = start_service(AUTH_MODE="token").ready()
    for number in range(1000):
        path = f"/v1/jobs/{number}/{('cancel', 'resume', 'redrive')[number % 3]}"
        headers = {"x-forwarded-for": f"10.0.{number // 200}.{number % 200}", "user-agent": str(number)}
        assert service.http.post(path, headers=bearer(f"x{number}") | headers).status_code == 401
        assert service.http.post(path, json={"value": 1}, headers=admin).status_code == 404
    assert service.http.get("/health").status_code == 200
    service.stop()
    with psycopg.connect(dsn(place)) as connection:
        of_whom = (
            "select actor, count(*), sum(count) from audit where outcome = 'refused' group by actor order by actor"
        )
        callers, strangers = connection.execute(of_whom).fetchall()
    assert (callers[0], callers[2]) == ("test", 1000)
    assert (strangers[0], strangers[2]) == (None, 1000)
    minutes = 3  # at most, or the machine is very slow
    assert callers[1] <= minutes * 2 * OF_CALLERS
    assert OF_STRANGERS < strangers[1] <= minutes * 2 * (OF_STRANGERS + 1)
    assert len(lines(service, "request_refused")) == callers[1] + strangers[1]


# Together or not at all


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[connections.Pool]:
    async with connections.pool(database.dsn, 4) as opened:
        yield opened


@pytest.fixture
def ledger(pool: connections.Pool) -> Ledger:
    return Ledger(pool)


async def ready(ledger: Ledger, status: str) -> Callable[[], Awaitable[object]]:
    """A job in a state, and what somebody may do to it then."""
    submission = replace(job.from_json(DATA | {"job_id": "a"}), origin=ORIGIN)
    if status == "nowhere":
        return lambda: ledger.accept(submission)
    await ledger.accept(submission)
    if status == "queued":
        return lambda: ledger.cancel("a", "default", ORIGIN)
    [claim] = await ledger.claim("worker", 1)
    if status == "failed":
        await ledger.finish(claim, FAILED, None)
        return lambda: ledger.redrive("a", "default", ORIGIN)
    await ledger.interrupt(claim, [{"id": "one", "value": "how?"}], None)
    return lambda: ledger.resume(Answer("a", 1, origin=ORIGIN))


@pytest.mark.parametrize(
    ("status", "action"),
    [("nowhere", "submit"), ("queued", "cancel"), ("failed", "redrive"), ("interrupted", "resume")],
)
async def test_what_cannot_be_written_is_not_done(ledger: Ledger, database: Database, status: str, action: str) -> None:
    act = await ready(ledger, status)
    everything = "select json_agg(jobs)::text, (select json_agg(outbox)::text from outbox) from jobs"
    before = rows(database, everything)
    rows(database, "alter table audit add constraint broken check (action is null) not valid")
    with pytest.raises(psycopg.errors.CheckViolation):
        await act()
    assert rows(database, everything) == before
    rows(database, "alter table audit drop constraint broken")
    await act()
    query = "select action, actor, key_id, tenant, address, via, count from audit order by id desc limit 1"
    assert rows(database, query) == [(action, "alice", "key-1", "default", "10.0.0.1", "http", 1)]


async def test_what_a_worker_does_is_nobodys_doing(ledger: Ledger, database: Database) -> None:
    await ready(ledger, "failed")
    assert rows(database, "select action from audit") == [("submit",)]


# How long


@pytest.mark.parametrize("statement", ["update audit set actor = 'eve'", "delete from audit", "truncate audit"])
async def test_what_was_written_stays(ledger: Ledger, database: Database, statement: str) -> None:
    await ready(ledger, "queued")
    with pytest.raises(psycopg.errors.RaiseException, match="never changed"):
        rows(database, statement)
    assert rows(database, "select actor from audit") == [("alice",)]


async def test_old_entries_and_keys_go(pool: connections.Pool, database: Database) -> None:
    old = (
        "insert into audit (at, action, outcome, via) select now() - make_interval(days => d), 'submit', 'done', 'http'"
    )
    rows(database, f"{old} from generate_series(20, 1, -1) d")
    deleted = [await audit.expire(pool, 10, 4) for _ in range(4)]
    assert deleted == [4, 4, 3, 0]
    assert rows(database, "select count(*), min(at) > now() - interval '10 days' from audit") == [(9, True)]
    for column in ("revoked_at", "expires_at"):
        for days in (5, 15):
            name, hashed = f"{column}-{days}", b"x" * 32
            made = f"insert into api_keys (id, name, tenant, scopes, hash, {column}) values (%s, 'n', 't', '{{}}', %s,"
            rows(database, f"{made} now() - make_interval(days => %s))", name, hashed, days)
    rows(
        database, "insert into api_keys (id, name, tenant, scopes, hash) values ('good', 'n', 't', '{}', %s)", b"x" * 32
    )
    assert [await api_keys.expire(pool, 10, 1) for _ in range(3)] == [1, 1, 0]
    kept = [("expires_at-5",), ("good",), ("revoked_at-5",)]
    assert rows(database, "select id from api_keys order by id") == kept


# Reading it


Read = Callable[..., str]


@pytest.fixture
def read(database: Database, capsys: pytest.CaptureFixture[str]) -> Read:
    """What `python -m agent_executor audit` prints."""

    def ask(*words: str, status: int = 0, **environment: str) -> str:
        capsys.readouterr()
        assert audit_command.main(words, database.environment | environment) == status
        return capsys.readouterr().out

    return ask


async def test_the_command_answers_who_it_was(
    ledger: Ledger, pool: connections.Pool, database: Database, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    def keys(*words: str) -> int:
        return api_key_command.main(words, database.environment)

    await (await ready(ledger, "queued"))()
    writer = audit.Refusals(pool)
    for _ in range(3):
        writer.add(audit.Refusal("cancel", "Unauthenticated", Origin("http", address="10.0.0.9")))
    await writer.flush()
    assert keys("new", "nightly", "--scopes", "jobs:read", "--tenant", "team-a") == 0
    made = capsys.readouterr().out.split()[-1]
    key_id = made.split("_")[1]
    assert [keys("revoke", each) for each in (key_id, key_id, "nobody")] == [0, 0, 1]
    header, *found = [line.split() for line in read("--job", "a").splitlines()]
    assert header[:5] == ["at", "action", "outcome", "actor", "key_id"]
    assert [line[1:10] for line in found] == [
        [action, "done", "alice", "key-1", "default", "a", "10.0.0.1", "http", "1"] for action in ("submit", "cancel")
    ]
    [refused] = [json.loads(line) for line in read("--refused", "--since", "5m", "--json").splitlines()]
    assert (refused["address"], refused["count"], refused["detail"]) == ("10.0.0.9", 3, "Unauthenticated")
    actions = [json.loads(line)["action"] for line in read("--actor", key_id, "--json").splitlines()]
    assert actions == ["key_new", "key_revoke"]
    told = read("--tenant", "team-a")
    assert "nightly: jobs:read" in told
    assert made[16:] not in told
    assert len(read("--limit", "1", "--json").splitlines()) == 1
    read("--since", "2099-01-01", status=1)
    read(POSTGRES_PORT="1", status=4)


# What stands in none


def everywhere(http: httpx.Client, credential: str, good: dict[str, str]) -> None:
    """Send a credential in every place where somebody may put it, with and without a good one beside it."""
    wrong = [bearer(f"{credential}x"), {"authorization": f"Basic {credential}"}, {"authorization": credential}]
    wrong += [{"authorization": f"Bearer {credential}, Bearer {credential}"}, {"authorization": f"Bearer {good} x"}]
    names = (
        "x-api-key",
        "cookie",
        "x-forwarded-for",
        "x-forwarded-user",
        "ce-id",
        "traceparent",
        "prefer",
        "user-agent",
    )
    beside = dict.fromkeys(names, credential)
    for headers in (*wrong, beside, good | beside):
        http.post(f"/v1/jobs/{credential}/cancel?access_token={credential}", headers=headers)
    data = DATA | {"job_id": f"job {credential}", "agent_definition": {"nodes": credential}}
    for headers in (good | beside, bearer(credential)):
        for path in (
            f"/v1/jobs?access_token={credential}&limit={credential}",
            f"/v1/jobs/{credential}",
            f"/{credential}",
        ):
            http.get(path, headers=headers)
        for action in ("cancel", "redrive", "resume"):
            http.post(
                f"/v1/jobs/x%00{credential}/{action}?key={credential}", json={"value": credential}, headers=headers
            )
        for path in ("/v1/jobs", "/"):
            http.post(path, json=data, headers=headers)
            http.post(f"{path}?wait={credential}", json=event(HELLO, type=credential), headers=headers | STRUCTURED)


def shown(place: dict[str, str], service: Service, credentials: list[str]) -> None:
    """Look for the secret parts of credentials in all that was written."""
    refused = "select count(*) from audit where detail = 'NotFound' and job_id like '%[redacted]%'"
    with psycopg.connect(dsn(place), autocommit=True) as connection:
        service.until(lambda: connection.execute(refused).fetchone() != (0,), "nothing was written")
        written = str(connection.execute("select audit::text from audit").fetchall())
    for output in (written, service.log.read_text()):
        assert "Unauthenticated" in output
        assert "[redacted]" in output
        for credential in credentials:
            parts = credential.split(".")[1:] or [credential[16:]]
            assert [part for part in parts if part in output] == []


def test_no_api_key_is_written_wherever_it_was_sent(tenants: Tenants) -> None:
    place, good = tenants.database.environment, {"authorization": tenants.of(OTHER).headers["authorization"]}
    revoked = key(place, "admin")
    command(place, "revoke", revoked.split("_")[1])
    credentials = [good["authorization"].split()[1], revoked]
    for credential in credentials:
        everywhere(tenants.service.http, credential, good)
    shown(place, tenants.service, credentials)


def test_no_token_is_written_wherever_it_was_sent(
    place: dict[str, str], start_service: Starter, issuer: Issuer
) -> None:
    tokens = [issuer.token(scope="admin"), issuer.token(exp=1), issuer.token(aud="nobody", jti=fresh())]
    named = {"AUTH_JWT_ISSUER": issuer.url, "AUTH_JWT_AUDIENCE": "executor"}
    service = start_service(AUTH_MODE="jwt", LOG_LEVEL="debug", **named).ready()
    for token in tokens:
        everywhere(service.http, token, bearer(tokens[0]))
    shown(place, service, tokens)
