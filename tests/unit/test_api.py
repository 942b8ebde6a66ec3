"""api: status codes, bodies and headers, with the service behind it faked or not there yet."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from agent_executor import api, app, job, threads, validation
from agent_executor.audit import Refusal
from agent_executor.callers import SCOPES, Caller, Holds
from agent_executor.errors import Conflict, Finding, NotFound, TooManyRequests, Unavailable
from agent_executor.event_stream import Streams
from agent_executor.graphs import Graphs
from agent_executor.health import Phase
from agent_executor.job import STRUCTURED, Answer, Origin, Status, Submission
from agent_executor.ledger import Receipt
from agent_executor.settings import Settings
from tests.definitions import DATA, adder, agent, event
from tests.definitions import answer as answer_event

CANARY = "canary-4711"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EVENT = event(agent([{"text": "x"}]), job_id="job-1")
OUTGOING: dict[str, Any] = {"specversion": "1.0", "id": "o", "data": {"job_id": "job-1"}}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def row(job_id: str = "job-1", status: str = "completed", **more: Any) -> dict[str, Any]:
    times = dict.fromkeys(("created_at", "due_at", "started_at", "finished_at", "updated_at"), NOW)
    found = {"job_id": job_id, "trace_id": "trace-1", "status": status, "attempt": 1, "result": None, "error": None}
    return {**found, **times, **more}


class FakeService:
    """Stands for service.Service, its ledger and its listener."""

    def __init__(self) -> None:
        self.ledger = self.listener = self.refusals = self.places = self.events = self
        self.phase = Phase.SERVING
        self.streams = Streams()
        self.graphs = Graphs({"known": lambda: None})
        self.answers = dict.fromkeys(("postgres", "dragonfly", "nats", "vault"), True)
        self.rows: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.accepted: list[tuple[Submission, str | None]] = []
        self.outcomes: list[Any] = []
        self.page: dict[str, Any] = {}
        self.tenants: list[str] = []
        self.refused: list[Refusal] = []
        self.bodies: dict[str, int] = {}
        self.no_place: Exception | None = None

    def body_limit(self, tenant: str) -> int:
        return self.bodies.get(tenant, 4096)

    async def take(self, tenant: str) -> nullcontext[None]:
        if self.no_place is not None:
            raise self.no_place
        return nullcontext()

    async def services(self) -> dict[str, bool]:
        return self.answers

    async def accept(self, submission: Submission, traceparent: str | None) -> Receipt:
        if self.failure is not None:
            raise self.failure
        self.accepted.append((submission, traceparent))
        self.tenants.append(submission.tenant)
        return Receipt(submission.job_id, Status.QUEUED, is_new=True)

    async def resume(self, answer: Answer, prefix: str) -> Receipt:
        self.tenants.append(answer.tenant)
        return Receipt(answer.job_id, Status.QUEUED, is_new=True)

    async def cancel(self, job_id: str, tenant: str, origin: Origin) -> None:
        self.tenants.append(tenant)

    async def redrive(self, job_id: str, tenant: str, origin: Origin) -> None:
        if self.failure is not None:
            raise self.failure
        self.tenants.append(tenant)

    async def forget_events(self, job_id: str, tenant: str) -> None:
        pass

    def add(self, refusal: Refusal) -> None:
        self.refused.append(refusal)

    async def job(self, job_id: str, tenant: str) -> dict[str, Any]:
        self.tenants.append(tenant)
        if self.failure is not None:
            raise self.failure
        for each in self.rows:
            if each["job_id"] == job_id:
                return dict(each)
        raise NotFound(f"no job {job_id}")

    async def jobs(self, tenant: str, status: str | None, limit: int, before: Any) -> list[dict[str, Any]]:
        self.page = {"status": status, "limit": limit, "before": before}
        self.tenants.append(tenant)
        return self.rows[:limit]

    async def xrevrange(self, key: str, *, count: int) -> list[Any]:
        return []

    async def outcome(self, job_id: str, tenant: str) -> Any:
        self.tenants.append(tenant)
        return self.outcomes.pop(0) if self.outcomes else None

    @contextmanager
    def finished(self, job_id: str) -> Iterator[asyncio.Event]:
        told = asyncio.Event()
        told.set()
        yield told


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def made(settings: Settings, service: FakeService) -> FastAPI:
    open_to_all = {"auth_mode": "none", "auth_allow_anonymous": True}
    application = app.create(settings.model_copy(update={"max_body_bytes": 4096, **open_to_all}))
    application.state.service = service
    return application


@pytest.fixture
async def http(made: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(made, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as client:
        yield client


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error in an answer, after a look at its shape; no error repeats what the caller sent."""
    assert answer.status_code == status, answer.text
    assert CANARY not in answer.text
    body: dict[str, Any] = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"type", "message", "fields"}
    assert body["error"]["message"]
    assert all(field.keys() == {"field", "message"} for field in body["error"]["fields"])
    return body["error"]  # type: ignore[no-any-return]


def fields_of(answer: httpx.Response, status: int = 400) -> list[str]:
    return [field["field"] for field in error_of(answer, status)["fields"]]


async def send(http: httpx.AsyncClient, body: Any, path: str = "/", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await http.post(path, content=content, headers={"content-type": STRUCTURED} | headers)


# While the process starts


async def test_health_answers_while_the_service_starts(http: httpx.AsyncClient, made: FastAPI) -> None:
    made.state.service = None
    answer = await http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/job-1"),
        ("GET", "/v1/jobs/job-1/events"),
        ("POST", "/v1/jobs/job-1/cancel"),
        ("POST", "/v1/jobs/job-1/redrive"),
    ],
)
async def test_everything_else_is_503_while_the_service_starts(
    http: httpx.AsyncClient, made: FastAPI, method: str, path: str
) -> None:
    made.state.service = None
    answer = await http.request(method, path, json=EVENT)
    assert error_of(answer, 503)["type"] == "Unavailable"
    assert answer.headers["retry-after"] == "1"


async def test_metrics_answer_while_the_service_starts(http: httpx.AsyncClient, made: FastAPI) -> None:
    made.state.service = None
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "\nagent_executor_db_connection_errors_total " in answer.text


@pytest.mark.parametrize(("path", "body"), [("/", EVENT), ("/v1/jobs", DATA)])
async def test_what_is_wrong_around_a_definition_hides_nothing_in_it(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    body = copy.deepcopy(body)
    data = body.get("data", body)
    data["job_id"] = 5
    data["agent_definition"]["nodes"] = 5
    error = error_of(await send(http, body, path), 400)
    place = "data." if "data" in body else ""
    assert [each["field"] for each in error["fields"]] == [f"{place}job_id", f"{place}agent_definition.nodes"]


@pytest.mark.parametrize(("path", "body"), [("/", EVENT), ("/v1/jobs", DATA), ("/v1/definitions/validate", adder())])
async def test_a_large_body_is_looked_at_in_a_thread(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    names: list[str] = []

    def check(*given: Any) -> validation.Report:
        names.append(threading.current_thread().name)
        return validation.Report(None, [], [])

    monkeypatch.setattr(validation, "check", check)
    assert (await send(http, body, path)).is_success
    monkeypatch.setattr(threads, "_SMALL_BYTES", 100)
    assert (await send(http, body, path)).is_success
    assert names[0] == "MainThread" != names[1]


@pytest.mark.parametrize(
    ("phase", "draining", "postgres", "status"),
    [
        (Phase.SERVING, False, True, 200),
        (Phase.STARTING, False, True, 503),
        (Phase.DRAINING, False, True, 503),
        (Phase.SERVING, True, True, 503),
        (Phase.SERVING, False, False, 503),
    ],
)
async def test_readiness(settings: Settings, *, phase: Phase, draining: bool, postgres: bool, status: int) -> None:
    made, service = app.create(settings), FakeService()
    made.state.service, made.state.draining, service.phase = service, draining, phase
    service.answers = {"postgres": postgres, "dragonfly": False, "nats": False, "vault": False}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://service.example") as client:
        answer = await client.get("/ready")
    assert answer.status_code == status
    assert answer.json() == {"status": "ready" if status == 200 else "not_ready", "services": service.answers}


async def test_a_starting_process_is_not_ready(http: httpx.AsyncClient, made: FastAPI) -> None:
    made.state.service = None
    answer = await http.get("/ready")
    assert answer.status_code == 503
    assert not any(answer.json()["services"].values())


# CloudEvents


async def test_a_structured_event_is_accepted(http: httpx.AsyncClient, service: FakeService) -> None:
    answer = await send(http, EVENT | {"traceparent": TRACEPARENT}, **{"content-type": f"{STRUCTURED}; charset=utf-8"})
    assert (answer.status_code, answer.json()) == (202, {"job_id": "job-1", "status": "queued"})
    assert answer.headers["location"] == "/v1/jobs/job-1"
    [(submission, traceparent)] = service.accepted
    assert (submission.source, submission.event_id) == ("tests", "event-job-1")
    assert traceparent == TRACEPARENT


async def test_a_binary_event_is_accepted(http: httpx.AsyncClient, service: FakeService) -> None:
    headers = {f"CE-{name}": value for name, value in EVENT.items() if name != "data"}
    answer = await send(http, EVENT["data"], **headers, **{"content-type": "application/json"})
    assert answer.status_code == 202
    assert service.accepted[0][0].event_id == "event-job-1"


async def test_a_location_leads_back(http: httpx.AsyncClient, service: FakeService) -> None:
    service.rows = [row("a b?ä")]
    answer = await send(http, event(agent([{"text": "x"}]), job_id="a b?ä"))
    assert (await http.get(answer.headers["location"])).json()["job_id"] == "a b?ä"


@pytest.mark.parametrize("job_id", ["a/b", "a\tb", "a\u00a0b"])
async def test_an_id_that_is_accepted_can_be_asked_for(
    http: httpx.AsyncClient, service: FakeService, job_id: str
) -> None:
    service.rows = [row(job_id)]
    answer = await send(http, event(agent([{"text": "x"}]), job_id=job_id, id="event-1"))
    if answer.status_code == 202:
        assert (await http.get(answer.headers["location"])).status_code == 200
    else:
        assert fields_of(answer) == ["data.job_id"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": CANARY}, "type"),
        ({"source": [CANARY]}, "source"),
        ({"data": CANARY}, "data"),
        ({"data": {**DATA, "job_id": {CANARY: 1}}}, "data.job_id"),
        ({"data": {**DATA, "input_payload": CANARY}}, "data.input_payload"),
        ({"data": {**DATA, "agent_definition": {"nodes": CANARY}}}, "data.agent_definition.nodes"),
    ],
)
async def test_a_bad_event_names_the_field(
    http: httpx.AsyncClient, service: FakeService, change: dict[str, Any], field: str
) -> None:
    answer = await send(http, EVENT | change)
    assert fields_of(answer) == [field]
    assert error_of(answer, 400)["type"] == "InvalidInput"
    assert service.accepted == []


@pytest.mark.parametrize("body", [b"", CANARY.encode(), b'{"a": NaN}', b"\xff", b"[1]", b'"' + CANARY.encode() + b'"'])
async def test_a_body_that_is_no_event_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    error_of(await send(http, body), 400)


@pytest.mark.parametrize("content_type", ["application/json", CANARY, ""])
async def test_an_event_needs_its_media_type_or_headers(http: httpx.AsyncClient, content_type: str) -> None:
    assert fields_of(await send(http, EVENT, **{"content-type": content_type})) == ["content-type"]


@pytest.mark.parametrize(("path", "body", "status"), [("/", EVENT, 400), ("/v1/jobs", DATA, 409)])
async def test_a_conflict(http: httpx.AsyncClient, service: FakeService, path: str, body: Any, status: int) -> None:
    service.failure = Conflict("job job-1 exists with another definition or input")
    assert error_of(await send(http, body, path), status)["type"] == "Conflict"


@pytest.mark.parametrize(("path", "body"), [("/", EVENT), ("/v1/jobs", DATA)])
async def test_a_database_that_is_away_is_503(
    http: httpx.AsyncClient, service: FakeService, path: str, body: Any
) -> None:
    service.failure = Unavailable("the database does not answer")
    answer = await send(http, body, path)
    error_of(answer, 503)
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/", EVENT),
        ("POST", "/?wait=1", EVENT),
        ("POST", "/v1/jobs", DATA),
        ("POST", "/v1/jobs/job-1/redrive", None),
    ],
)
async def test_a_limit_is_429_and_says_which_and_for_how_long(
    http: httpx.AsyncClient, service: FakeService, method: str, path: str, body: Any
) -> None:
    service.failure = TooManyRequests("the tenant is at its limit L: 3", Finding("L", "at most 3"), 12.2)
    content = None if body is None else json.dumps(body)
    answer = await http.request(method, path, content=content, headers={"content-type": STRUCTURED})
    error = error_of(answer, 429)
    assert error["type"] == "TooManyRequests"
    assert error["fields"] == [{"field": "L", "message": "at most 3"}]
    assert answer.headers["retry-after"] == "13"


async def test_a_stream_over_the_limit_is_429_and_no_stream(http: httpx.AsyncClient, service: FakeService) -> None:
    service.rows = [row(status="running")]
    service.no_place = TooManyRequests("the tenant is at its limit L: 3", Finding("L", "at most 3"), 5)
    answer = await http.get("/v1/jobs/job-1/events")
    assert error_of(answer, 429)["type"] == "TooManyRequests"
    assert answer.headers["content-type"] == "application/json"


async def test_a_bug_says_nothing_of_itself(http: httpx.AsyncClient, service: FakeService) -> None:
    service.failure = RuntimeError(CANARY)
    assert error_of(await send(http, EVENT), 500)["type"] == "InternalError"


# Bodies that are too large


class Body:
    """A body sent in chunks; knows how many were asked for."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.read < self.chunks:
            self.read += 1
            yield b"x" * 1000


@pytest.mark.parametrize("path", ["/", "/v1/jobs"])
async def test_a_declared_size_is_refused_before_anything_is_read(http: httpx.AsyncClient, path: str) -> None:
    body = Body(100)
    answer = await http.post(path, content=body, headers={"content-length": "100000", "content-type": STRUCTURED})
    assert "4096 bytes" in error_of(answer, 413)["message"]
    assert body.read == 0


@pytest.mark.parametrize("path", ["/", "/v1/jobs"])
async def test_a_body_in_chunks_is_refused_as_soon_as_it_is_too_large(http: httpx.AsyncClient, path: str) -> None:
    body = Body(100)
    answer = await http.post(path, content=body, headers={"content-type": STRUCTURED})
    assert error_of(answer, 413)["type"] == "PayloadTooLarge"
    assert body.read <= 6


async def test_a_tenant_may_have_a_smaller_limit(http: httpx.AsyncClient, service: FakeService) -> None:
    service.bodies = {"default": 100}
    error = error_of(await send(http, EVENT), 413)
    assert error["message"] == "the body is larger than 100 bytes"
    assert error["fields"] == [{"field": "MAX_BODY_BYTES", "message": "at most 100"}]


async def test_a_body_of_exactly_the_limit_is_read(http: httpx.AsyncClient) -> None:
    body = json.dumps(EVENT).encode().ljust(4096)
    assert (await send(http, body)).status_code == 202
    error_of(await send(http, body + b" "), 413)


# Waiting for the outcome


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ("wait=10", 10),
        ("WAIT=10", 10),
        ('wait="10"', 10),
        ("wait=0.5", 0.5),
        ("respond-async, wait=10", 10),
        ("respond-async,wait=10", 10),
        ("respond-async; foo=bar, wait=10", 10),
        ("wait=10, handling=strict", 10),
        ("wait=86400", api.MAX_WAIT_S),
        ("", None),
        ("respond-async", None),
        ("wait=soon", None),
        ("wait=-1", None),
        ("await=10", None),
        ("wait", None),
    ],
)
def test_the_preference_to_wait(prefer: str, wait_s: float | None) -> None:
    assert api._preferred_wait([prefer]) == wait_s


@pytest.mark.parametrize(("query", "headers"), [("?wait=5", {}), ("", {"prefer": "wait=5"})])
async def test_whoever_waits_gets_the_outgoing_event(
    http: httpx.AsyncClient, service: FakeService, query: str, headers: dict[str, str]
) -> None:
    service.outcomes = [None, OUTGOING]
    answer = await send(http, EVENT, f"/{query}", **headers)
    assert (answer.status_code, answer.json()) == (200, OUTGOING)
    assert answer.headers["content-type"] == STRUCTURED
    assert len(service.accepted) == 1


async def test_several_prefer_headers_are_one(http: httpx.AsyncClient, service: FakeService) -> None:
    """RFC 7240, section 2: they may be combined."""
    service.outcomes = [OUTGOING]
    headers = [("content-type", STRUCTURED), ("prefer", "respond-async"), ("prefer", "wait=5")]
    answer = await http.post("/", content=json.dumps(EVENT), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/?wait=0", "/", "/?wait=0.01"])
async def test_whoever_does_not_wait_long_enough_gets_a_location(
    http: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    answer = await send(http, EVENT, path)
    assert answer.status_code == 202
    assert answer.headers["location"] == "/v1/jobs/job-1"


async def test_whoever_waits_is_let_go_when_the_process_goes_down(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.phase = Phase.DRAINED
    assert (await send(http, EVENT, "/?wait=600")).status_code == 202


@pytest.mark.parametrize("wait", [CANARY, "-1", "601", "nan", "inf", ""])
async def test_a_wait_that_makes_no_sense_is_refused(http: httpx.AsyncClient, wait: str) -> None:
    assert fields_of(await send(http, EVENT, f"/?wait={wait}")) == ["wait"]


# Jobs


async def test_plain_json_is_accepted_and_may_leave_out_the_ids(http: httpx.AsyncClient, service: FakeService) -> None:
    body = {name: DATA[name] for name in ("agent_definition", "input_payload")}
    answer = await send(http, body, "/v1/jobs")
    [(submission, _)] = service.accepted
    assert answer.status_code == 202
    assert answer.json()["job_id"] == submission.job_id
    assert answer.headers["location"] == f"/v1/jobs/{submission.job_id}"


async def test_bad_plain_json_names_the_field(http: httpx.AsyncClient) -> None:
    assert fields_of(await send(http, {**DATA, "trace_id": [CANARY]}, "/v1/jobs")) == ["trace_id"]
    answer = await send(http, {**DATA, "agent_definition": {"nodes": CANARY}}, "/v1/jobs")
    assert fields_of(answer) == ["agent_definition.nodes"]


async def test_a_completed_job(http: httpx.AsyncClient, service: FakeService) -> None:
    service.rows = [row(result="5", error=None)]
    body = (await http.get("/v1/jobs/job-1")).json()
    assert body["result"] == {"output": "5", "status": "completed"}
    assert (body["job_id"], body["status"], body["attempt"], body["error"]) == ("job-1", "completed", 1, None)
    assert datetime.fromisoformat(body["created_at"]) == NOW


async def test_a_failed_job(http: httpx.AsyncClient, service: FakeService) -> None:
    error = {"message": "no luck", "type": "ValueError", "stack_trace": "..."}
    service.rows = [row(status="failed", result=None, error=error)]
    body = (await http.get("/v1/jobs/job-1")).json()
    assert (body["result"], body["error"]) == (None, error)


@pytest.mark.parametrize(
    "path", ["/v1/jobs/nobody", f"/v1/jobs/{'x' * 300}", "/v1/jobs/a%00b", "/v1/jobs/nobody/events"]
)
async def test_a_job_that_is_not_there(http: httpx.AsyncClient, path: str) -> None:
    assert error_of(await http.get(path), 404)["type"] == "NotFound"


async def test_events_of_a_bad_position_are_refused(http: httpx.AsyncClient, service: FakeService) -> None:
    service.rows = [row()]
    answer = await http.get("/v1/jobs/job-1/events", headers={"last-event-id": CANARY})
    assert fields_of(answer) == ["last-event-id"]


async def test_jobs_are_listed_page_by_page(http: httpx.AsyncClient, service: FakeService) -> None:
    rows = [row(f"job {number}", "failed") | {"created_at": NOW - timedelta(seconds=number)} for number in range(3)]
    service.rows = rows
    first = (await http.get("/v1/jobs?limit=2&status=failed")).json()
    assert [each["job_id"] for each in first["jobs"]] == ["job 0", "job 1"]
    assert service.page == {"status": "failed", "limit": 3, "before": None}
    service.rows = rows[2:]
    second = (await http.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert service.page["before"] == (NOW - timedelta(seconds=1), "job 1")
    assert [each["job_id"] for each in second["jobs"]] == ["job 2"]
    assert second["next_cursor"] is None


@pytest.mark.parametrize("job_id", ["a", "a b", "ä/ö?&=+", "x" * 256, "\u4e16" * 256])
async def test_the_cursor_of_a_page_is_taken_whatever_the_ids(
    http: httpx.AsyncClient, service: FakeService, job_id: str
) -> None:
    service.rows = [row(job_id), row("b")]
    cursor = (await http.get("/v1/jobs?limit=1")).json()["next_cursor"]
    answer = await http.get("/v1/jobs", params={"cursor": cursor})
    assert answer.status_code == 200, answer.text
    assert service.page["before"] == (NOW, job_id)


@pytest.mark.parametrize("cursor", [CANARY, "", "!!", "w", "AAAA", "w6TDpA==", "\u00e4", "MjAyNi0wMS0wMiBhAGI="])
async def test_a_cursor_of_no_page_is_refused(http: httpx.AsyncClient, cursor: str) -> None:
    assert fields_of(await http.get("/v1/jobs", params={"cursor": cursor})) == ["cursor"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", f"limit={CANARY}", f"status={CANARY}"])
async def test_a_bad_query_names_the_parameter(http: httpx.AsyncClient, query: str) -> None:
    assert fields_of(await http.get(f"/v1/jobs?{query}")) == [query.partition("=")[0]]


# Tenants


class OneKey:
    """Stands for api_keys.ApiKeys: every key is of this tenant."""

    def __init__(self, tenant: str) -> None:
        self._caller = Caller("somebody", tenant, SCOPES, None)

    async def admit(self, credential: str) -> tuple[Caller, Holds]:
        return self._caller, lambda: True


REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/", EVENT),
    ("POST", "/?wait=1", EVENT),
    ("POST", "/", answer_event("job-1", 1)),
    ("POST", "/v1/jobs", DATA),
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/jobs/job-1", None),
    ("GET", "/v1/jobs/nobody/events", None),
    ("POST", "/v1/jobs/job-1/cancel", None),
    ("POST", "/v1/jobs/job-1/redrive", None),
    ("POST", "/v1/jobs/job-1/resume", {"value": 1}),
]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
@pytest.mark.parametrize("tenant", ["tenant-1", "default"])
async def test_the_tenant_is_the_credentials_and_nothing_in_the_request_counts(
    made: FastAPI, service: FakeService, method: str, path: str, body: Any, tenant: str
) -> None:
    service.rows = [row()]
    service.outcomes = [OUTGOING]
    if tenant != "default":  # which is whose nobody has to say who they are
        made.state.settings = made.state.settings.model_copy(update={"auth_mode": "token"})
        service.authenticator = OneKey(tenant)  # type: ignore[attr-defined]
    said = {"tenant": CANARY, "caller": CANARY}
    body = {**body, **said, "data": body.get("data", {}) | said} if body is not None else None
    transport = httpx.ASGITransport(made)
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as http:
        headers = {"content-type": STRUCTURED, "tenant": CANARY, "x-tenant": CANARY, "authorization": "Bearer x"}
        await http.request(method, path, json=body, headers=headers, params=said if "?" not in path else None)
    assert service.tenants
    assert set(service.tenants) == {tenant}


def test_every_route_of_jobs_is_among_these_requests(made: FastAPI) -> None:
    asked = {(method, re.sub("job-1|nobody", "{job_id}", path.partition("?")[0])) for method, path, _ in REQUESTS}
    routes = {(method.upper(), path) for path, found in made.openapi()["paths"].items() for method in found}
    assert asked == {each for each in routes if each[1] == "/" or each[1].startswith("/v1/jobs")}


# Everything else


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", f"/{CANARY}", 404), ("GET", "/v1", 404), ("DELETE", "/health", 405), ("GET", "/", 405)],
)
async def test_unknown_routes_have_the_same_error_body(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await http.request(method, path)
    error_of(answer, status)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/jobs", "GET, POST"), ("/v1/jobs/job-1/cancel", "POST"), ("/openapi.json", "GET, HEAD")]
)
async def test_allow_names_every_method_of_a_path(http: httpx.AsyncClient, path: str, allowed: str) -> None:
    answer = await http.delete(path)
    assert {*answer.headers["allow"].split(", ")} == {*allowed.split(", ")}


def test_the_examples_of_bodies_are_what_they_exemplify(made: FastAPI) -> None:
    bodies = {
        path: operation["post"]["requestBody"]["content"]
        for path, operation in made.openapi()["paths"].items()
        if "requestBody" in operation.get("post", {})
    }
    [submitted] = bodies["/v1/jobs"]["application/json"]["schema"]["examples"]
    [event] = bodies["/"][job.STRUCTURED]["schema"]["examples"]
    look = validation.look(())
    asked = job.from_event(event, look)
    assert isinstance(asked, Submission)
    assert job.from_json(submitted, look).definition == asked.definition
    [given] = bodies["/v1/jobs/{job_id}/resume"]["application/json"]["schema"]["examples"]
    job.answer_from_json("job-1", given)


def responses(made: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    """(operation, status, response) of the OpenAPI document."""
    return [
        (f"{method} {path}", status, response)
        for path, operations in made.openapi()["paths"].items()
        for method, operation in operations.items()
        for status, response in operation["responses"].items()
    ]


def test_every_answer_has_a_schema(made: FastAPI) -> None:
    bare = [
        (operation, status)
        for operation, status, response in responses(made)
        if status != "204" and not any(content.get("schema") for content in response.get("content", {}).values())
    ]
    assert bare == []


def test_every_error_in_the_openapi_has_our_shape(made: FastAPI) -> None:
    others = [
        (operation, status)
        for operation, status, response in responses(made)
        if not status.startswith("2") and "ErrorBody" not in json.dumps(response) and operation != "get /ready"
    ]
    assert others == []


def test_the_openapi_names_the_answers_of_the_contract(made: FastAPI) -> None:
    found: dict[str, set[str]] = {}
    for operation, status, _ in responses(made):
        found.setdefault(operation, set()).add(status)
    assert found["post /"] >= {"200", "202", "400", "413", "503"}
    assert found["post /v1/jobs"] >= {"202", "400", "409", "413", "503"}
    assert found["get /v1/jobs/{job_id}"] >= {"200", "404", "503"}


async def test_the_documents_are_served(http: httpx.AsyncClient) -> None:
    assert (await http.get("/docs")).status_code == 200
    assert (await http.get("/openapi.json")).json()["info"]["title"] == "agent-executor"


# Definitions


async def test_a_definition_is_validated_with_all_its_findings(http: httpx.AsyncClient, made: FastAPI) -> None:
    """It needs no service: nothing is asked of any server."""
    made.state.service = None
    document = agent([{"text": CANARY}])
    document["nodes"][0]["config"]["tools"] = [CANARY]
    document["edges"] = [{"source": "Lead", "target": CANARY}]
    answer = await http.post("/v1/definitions/validate", json=document)
    assert answer.status_code == 200
    assert CANARY not in answer.text
    body = answer.json()
    assert body["valid"] is False
    assert [each["field"] for each in body["errors"]] == ["nodes[0].config.tools[0]"]
    assert [each["field"] for each in body["warnings"]] == ["nodes[0].config.system_prompt", "edges[0].target"]


async def test_a_valid_definition_is_valid(http: httpx.AsyncClient) -> None:
    body = (await http.post("/v1/definitions/validate", json=adder())).json()
    assert body == {"valid": True, "errors": [], "warnings": []}


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":1,"a":2}'])
async def test_what_is_no_json_cannot_be_validated(http: httpx.AsyncClient, body: bytes) -> None:
    assert error_of(await http.post("/v1/definitions/validate", content=body), 400)["type"] == "InvalidInput"


async def test_the_schema_of_definitions_is_published(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/v1/definitions/schema")).json()
    assert {"nodes", "tool_definitions", "edges"} <= schema["$defs"]["Definition"]["properties"].keys()
    assert {"graph", "config"} <= schema["$defs"]["GraphReference"]["properties"].keys()
