"""audit and refusals: which requests are written down, how few rows many of them make, and what stands in none.

Also the words of the command that reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from agent_executor import app, audit, audit_command, metrics, refusals
from agent_executor.access import NEEDS
from agent_executor.api_keys import new_key
from agent_executor.audit import OF_CALLERS, OF_STRANGERS, Refusal, Refusals, Window
from agent_executor.callers import SCOPES, Caller, Holds
from agent_executor.errors import Conflict, Unavailable
from agent_executor.job import Origin
from agent_executor.settings import Settings
from tests.definitions import DATA, answer
from tests.unit.test_api import FakeService

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
ALICE = Origin("http", "alice", "key-1", "10.0.0.1")


def strangers(address: str = "10.9.9.9", detail: str = "Unauthenticated") -> Refusal:
    return Refusal("submit", detail, Origin("http", address=address))


def callers(job_id: str | None = None, action: str = "cancel", address: str = "10.0.0.1") -> Refusal:
    return Refusal(action, "NotFound", Origin("http", "alice", "key-1", address), "tenant-1", job_id)


def filled(*refused: Refusal) -> Window:
    window = Window()
    for each in refused:
        window.add(each)
    return window


def test_alike_ones_are_told_at_once_and_their_rest_when_the_minute_is_over() -> None:
    window = filled(*[strangers()] * 3, callers())
    assert window.due(is_over=False) == [(strangers(), 3), (callers(), 1)]
    for _ in range(500):
        window.add(strangers())
    assert window.due(is_over=False) == []
    assert window.due(is_over=True) == [(strangers(), 500)]
    assert window.due(is_over=True) == []
    window.add(strangers())
    assert window.due(is_over=False) == [(strangers(), 1)]


def test_there_is_room_for_so_many_different_ones_and_none_is_uncounted() -> None:
    window = filled(*(strangers(str(number)) for number in range(5000)))
    told = window.due(is_over=False)
    assert len(told) == OF_STRANGERS + 1
    assert told[-1] == (Refusal("any", "more of strangers than are told apart", Origin("http")), 5000 - OF_STRANGERS)
    for number in range(5000):
        window.add(strangers(str(number)))
    assert window.due(is_over=False) == []
    assert sum(count for _, count in window.due(is_over=True)) == 5000


def test_strangers_do_not_hide_callers() -> None:
    window = filled(*(strangers(str(number)) for number in range(5000)), callers("job-1"))
    assert (callers("job-1"), 1) in window.due(is_over=False)


def test_callers_lose_the_ids_of_jobs_first() -> None:
    window = filled(*(callers(str(number)) for number in range(5000)), callers(action="resume"))
    told = window.due(is_over=False)
    assert told[-2:] == [(callers(), 5000 - OF_CALLERS // 2), (callers(action="resume"), 1)]
    assert len(told) == OF_CALLERS // 2 + 2
    more = filled(*(callers(address=str(number)) for number in range(5000))).due(is_over=True)
    assert len(more) == OF_CALLERS + 1
    assert more[-1][0].detail == "more of callers than are told apart"


def test_the_next_minute_has_room_again() -> None:
    window = filled(*(strangers(str(number)) for number in range(5000)))
    window.due(is_over=True)
    window.add(strangers("new"))
    assert window.due(is_over=False) == [(strangers("new"), 1)]


def test_what_is_told_by_its_number_alone_is_counted() -> None:
    before = metrics.audit_overflow._value.get()
    filled(*(strangers(str(number)) for number in range(OF_STRANGERS + 7)))
    assert metrics.audit_overflow._value.get() - before == 7


# The writer


class Table:
    """Stands for the database: what was written to it, and whether it is away."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.is_away = False

    async def execute(self, query: str, columns: dict[str, list[Any]]) -> None:
        assert query == audit.SQL["refused"]
        assert len({len(column) for column in columns.values()}) == 1
        self.written += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table()

    @asynccontextmanager
    async def connection(pool: Any) -> AsyncIterator[Table]:
        if made.is_away:
            raise Unavailable("away")
        yield made

    monkeypatch.setattr(audit, "connection", connection)
    monkeypatch.setattr(audit, "_PAUSE_S", 0)
    return made


async def test_a_refusal_is_written_by_itself_and_the_rest_of_the_minute_later(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "WINDOW_S", 0.2)
    writer = Refusals(SimpleNamespace())  # type: ignore[arg-type]
    running = asyncio.create_task(writer.run())
    async with asyncio.timeout(10):
        for more in (50, 950):
            for _ in range(more):
                writer.add(strangers())
            while table.written[-1:] == [] or table.written[-1]["counts"] != more:  # noqa: ASYNC110 - a part's own time
                await asyncio.sleep(0.01)
    running.cancel()
    assert [row["counts"] for row in table.written] == [50, 950]
    assert {row["addresses"] for row in table.written} == {"10.9.9.9"}


async def test_what_cannot_be_written_is_kept_and_of_it_not_more_than_so_many_rows(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_MAX_UNWRITTEN", 3)
    writer = Refusals(SimpleNamespace())  # type: ignore[arg-type]
    table.is_away = True
    before = metrics.audit_overflow._value.get()
    for number in range(5):
        writer.add(strangers(str(number)))
        await writer.flush()
    assert table.written == []
    assert metrics.audit_overflow._value.get() - before == 2
    table.is_away = False
    await writer.flush()
    assert [row["addresses"] for row in table.written] == ["2", "3", "4"]
    await writer.flush()
    assert len(table.written) == 3


# Requests


class Known:
    """Stands for api_keys.ApiKeys: a credential names its scope, with a dot for the colon."""

    async def admit(self, credential: str) -> tuple[Caller, Holds] | None:
        scope = credential.replace(".", ":")
        return (Caller("alice", "tenant-1", frozenset({scope}), None, "key-1"), bool) if scope in SCOPES else None


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def made(settings: Settings, service: FakeService) -> FastAPI:
    application = app.create(settings.model_copy(update={"max_body_bytes": 4096}))
    application.state.service = service
    service.authenticator = Known()  # type: ignore[attr-defined]
    return application


@pytest.fixture
async def http(made: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(made, raise_app_exceptions=False, client=("10.0.0.1", 5))
    headers = {"authorization": "Bearer admin"}
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example", headers=headers) as client:
        yield client


def test_every_route_that_changes_something_has_its_word() -> None:
    assert set(refusals.CHANGES) == {
        route for route, needed in NEEDS.items() if {"jobs:submit", "jobs:control"} & {*needed}
    }


@pytest.mark.parametrize(
    ("method", "path", "credential", "action", "detail"),
    [
        ("POST", "/v1/jobs", "", "submit", "Unauthenticated: the credential is not valid"),
        ("POST", "/v1/jobs/job-1/cancel", "bad", "cancel", "Unauthenticated: the credential is not valid"),
        ("GET", "/metrics", "bad", "read", "Unauthenticated: the credential is not valid"),
        ("GET", "/v1/jobs", "metrics.read", "read", "Forbidden: the credential lacks the scope jobs:read"),
        (
            "POST",
            "/v1/jobs/job-1/redrive",
            "jobs.read",
            "redrive",
            "Forbidden: the credential lacks the scope jobs:control",
        ),
    ],
)
async def test_refusals_for_a_credential(
    http: httpx.AsyncClient, service: FakeService, method: str, path: str, credential: str, action: str, detail: str
) -> None:
    await http.request(method, path, headers={"authorization": f"Bearer {credential}"})
    known = credential not in ("", "bad")
    origin = ALICE if known else Origin("http", address="10.0.0.1")
    job_id = "job-1" if known and "job-1" in path else None
    assert service.refused == [Refusal(action, detail, origin, "tenant-1" if known else None, job_id)]


@pytest.mark.parametrize(
    ("path", "body", "action", "detail", "job_id"),
    [
        ("/v1/jobs", DATA, "submit", "Conflict", "job-1"),
        ("/v1/jobs", {"job_id": "x"}, "submit", "InvalidInput", None),
        ("/v1/jobs", {"pad": "x" * 5000}, "submit", "PayloadTooLarge", None),
        ("/?wait=x", {}, "submit", "InvalidInput", None),
        ("/v1/jobs/job-9/resume", {}, "resume", "InvalidInput", "job-9"),
        ("/v1/jobs/job-9%00/cancel", {}, "cancel", "NotFound", "job-9?"),
    ],
)
async def test_other_refusals_where_something_was_to_be_changed(
    http: httpx.AsyncClient, service: FakeService, path: str, body: Any, action: str, detail: str, job_id: str | None
) -> None:
    service.failure = Conflict("taken")
    assert (await http.post(path, json=body)).is_client_error
    assert service.refused == [Refusal(action, detail, ALICE, "tenant-1", job_id)]


async def test_what_is_no_refusal(http: httpx.AsyncClient, service: FakeService) -> None:
    assert (await http.get("/v1/jobs/nobody")).status_code == 404
    assert (await http.get("/v1/jobs?limit=x")).status_code == 400
    assert (await http.get("/nowhere")).status_code == 404
    service.failure = Unavailable("away")
    assert (await http.post("/v1/jobs", json=DATA)).status_code == 503
    assert service.refused == []


async def test_what_an_event_asks_is_known_when_it_was_read(http: httpx.AsyncClient, service: FakeService) -> None:
    headers = {"content-type": "application/cloudevents+json", "authorization": "Bearer jobs.submit"}
    assert (await http.post("/", json=answer("job-1", "yes"), headers=headers)).status_code == 403
    [refused] = service.refused
    assert (refused.action, refused.job_id) == ("resume", "job-1")


@pytest.mark.parametrize("credential", [new_key().text, JWT], ids=["key", "token"])
async def test_a_credential_in_the_place_of_an_id_is_not_written(
    http: httpx.AsyncClient, service: FakeService, credential: str
) -> None:
    for path in (f"/v1/jobs/{credential}/resume", f"/v1/jobs/{'x' * 250}{credential}/resume"):
        await http.post(path, json={})
    assert [credential[:12] in str(each) or credential[16:] in str(each) for each in service.refused] == [False] * 2


# The command


@pytest.mark.parametrize(
    "words", [["--since", "yesterday"], ["--since", "2w"], ["--limit", "0"], ["--limit", "x"], ["--act", "a"], ["x"]]
)
def test_a_wrong_call_of_the_command(words: list[str]) -> None:
    assert audit_command.main(words, {}) == 2


def test_the_command_needs_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command.main(["--since", "2026-01-31T03:00"], {}) == 2
    assert "POSTGRES_PASSWORD" in capsys.readouterr().err
