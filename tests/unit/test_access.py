"""access: every route has a scope, and one decision lets a request in. Also who may call without authentication."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute, iter_route_contexts

from agent_executor import access, app
from agent_executor.callers import SCOPES, Caller, Holds, is_tenant
from agent_executor.errors import Unavailable
from agent_executor.loopback import is_loopback, listens_on_loopback
from agent_executor.settings import Settings
from tests.definitions import agent, answer, event
from tests.unit.test_api import FakeService, error_of

DOCS = {"/docs", "/openapi.json", "/redoc"}


class Known:
    """Stands for api_keys.ApiKeys: the scopes of a caller are its credential, with dots for commas and colons."""

    async def admit(self, credential: str) -> tuple[Caller, Holds] | None:
        if credential == "away":
            raise Unavailable("away")
        if credential == "bad":
            return None
        scopes = frozenset(scope for scope in SCOPES if scope.replace(":", ".") in credential.split("~"))
        return Caller("known", "tenant-1", scopes, None), lambda: True


@pytest.fixture
def made(settings: Settings) -> FastAPI:
    application = app.create(settings)
    application.state.service = service = FakeService()
    service.authenticator = Known()  # type: ignore[attr-defined]
    return application


@pytest.fixture
async def http(made: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(made, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as client:
        yield client


def routes(application: FastAPI) -> dict[str, tuple[str, ...]]:
    """Every route that the application has beside its documentation: `METHOD /path` -> what it needs."""
    found = {}
    for each in iter_route_contexts(application.routes):
        if each.path not in DOCS:
            assert isinstance(each.original_route, APIRoute), each.path
            for method in each.methods or ():
                found[f"{method} {each.path}"] = access.NEEDS[f"{method} {each.path}"]
    return found


def address(route: str) -> tuple[str, str]:
    method, _, path = route.partition(" ")
    return method, path.replace("{job_id:path}", "job-1")


def bearer(*scopes: str) -> dict[str, str]:
    return {"authorization": f"Bearer {'~'.join(scopes or ('x',)).replace(':', '.')}"}


CLOSED = sorted(route for route, needed in access.NEEDS.items() if needed != (access.OPEN,))


def test_every_route_has_a_scope_and_every_scope_a_route(made: FastAPI) -> None:
    assert routes(made) == access.NEEDS
    needed = {scope for each in access.NEEDS.values() for scope in each}
    assert needed == SCOPES - {"admin"} | {access.OPEN}


def test_no_route_has_a_body_read_before_the_decision(made: FastAPI) -> None:
    for each in iter_route_contexts(made.routes):
        assert getattr(each.original_route, "body_field", None) is None, each.path


@pytest.mark.parametrize("route", CLOSED)
async def test_a_closed_route_is_401_without_a_good_credential(http: httpx.AsyncClient, route: str) -> None:
    for headers in (
        {},
        {"authorization": ""},
        {"authorization": "Basic dTpw"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer a b"},
        {"authorization": "Bearer bad"},
        {"authorization": f"Bearer {'a' * 20_000}"},
        {"authorization": "Bearer admin, Bearer admin"},
    ):
        answer = await http.request(*address(route), headers=headers)
        assert error_of(answer, 401)["type"] == "Unauthenticated"
        assert answer.headers["www-authenticate"].startswith('Bearer realm="agent-executor"')
        assert ("invalid_token" in answer.headers["www-authenticate"]) == bool(headers)


@pytest.mark.parametrize("route", CLOSED)
async def test_another_scope_is_403_and_the_missing_one_is_named(http: httpx.AsyncClient, route: str) -> None:
    needed = access.NEEDS[route]
    others = SCOPES - {"admin", *needed}
    answer = await http.request(*address(route), headers=bearer(*others))
    error = error_of(answer, 403)
    assert error["type"] == "Forbidden"
    for scope in needed:
        assert scope in error["message"]
        assert scope in answer.headers["www-authenticate"]


@pytest.mark.parametrize("scope", ["its own", "admin"])
@pytest.mark.parametrize("route", CLOSED)
async def test_its_scope_and_admin_open_a_route(http: httpx.AsyncClient, route: str, scope: str) -> None:
    scopes = access.NEEDS[route] if scope == "its own" else (scope,)
    answer = await http.request(*address(route), headers=bearer(*scopes))
    assert answer.status_code not in (401, 403)


@pytest.mark.parametrize(
    "headers", [[("authorization", "Bearer admin")] * 2, [("authorization", "Bearer admin"), ("authorization", "")]]
)
async def test_two_credentials_are_none(http: httpx.AsyncClient, headers: list[tuple[str, str]]) -> None:
    assert (await http.get("/v1/jobs", headers=headers)).status_code == 401


@pytest.mark.parametrize("value", [b"bEaReR admin", b"BEARER   admin", b" \tBearer admin\t "])
async def test_the_scheme_is_the_same_in_any_letters(http: httpx.AsyncClient, value: bytes) -> None:
    assert (await http.get("/v1/jobs", headers={b"authorization": value})).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        *(b"\xa0Bearer admin", b"Bearer admin\xa0", b"Bearer\xa0admin", b"Bearer\tadmin", b"Bearer admin\x0b"),
        *(b"Bearer \xc3\xa4dmin", b"Bearer: admin", b"Bearer=admin", b"Bearer admin;", b'Bearer "admin"', b"admin"),
        *(b"Bearer admin,", b"Bearer Bearer admin", b"Token admin", b"BearerX admin"),
    ],
)
async def test_what_is_almost_a_credential_is_none(http: httpx.AsyncClient, value: bytes) -> None:
    assert (await http.get("/v1/jobs", headers={b"authorization": value})).status_code == 401


@pytest.mark.parametrize(
    "asked",
    [
        {"params": {"access_token": "admin", "authorization": "Bearer admin"}},
        {"headers": {"proxy-authorization": "Bearer admin"}},
        {"headers": {"x-authorization": "Bearer admin", "x-api-key": "admin"}},
        {"headers": {"cookie": "authorization=Bearer admin; token=admin"}},
        {"headers": {"x-forwarded-user": "admin", "x-remote-user": "admin", "x-original-url": "/health"}},
    ],
)
async def test_a_credential_stands_in_one_place(http: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    assert (await http.get("/v1/jobs", **asked)).status_code == 401


async def test_what_a_cloud_event_asks_decides_its_scope(http: httpx.AsyncClient) -> None:
    execute, resume = event(agent([{"text": "x"}]), job_id="job-1"), answer("job-1", "yes")
    kind = {"content-type": "application/cloudevents+json"}
    for body, scope, other in ((execute, "jobs:submit", "jobs:control"), (resume, "jobs:control", "jobs:submit")):
        refused = await http.post("/", json=body, headers=bearer(other) | kind)
        assert scope in error_of(refused, 403)["message"]
        assert (await http.post("/", json=body, headers=bearer(scope) | kind)).status_code not in (401, 403)


async def test_a_route_that_nobody_declared_is_closed_to_all(made: FastAPI, http: httpx.AsyncClient) -> None:
    @made.get("/forgotten")
    async def forgotten() -> str:
        raise AssertionError("let in")

    assert (await http.get("/forgotten")).status_code == 401
    assert (await http.get("/forgotten", headers=bearer("admin"))).status_code == 403


@pytest.mark.parametrize("path", ["/health", "/ready", *sorted(DOCS)])
async def test_what_is_open(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200


async def test_the_documentation_can_be_taken_away(settings: Settings) -> None:
    transport = httpx.ASGITransport(app.create(settings.model_copy(update={"docs": "off"})))
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as client:
        assert {(await client.get(path)).status_code for path in DOCS} == {404}


async def test_metrics_can_be_opened(settings: Settings) -> None:
    transport = httpx.ASGITransport(app.create(settings.model_copy(update={"metrics_open": True})))
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/jobs")).status_code == 401


async def test_a_credential_waits_for_the_service_and_for_those_who_know_it(
    made: FastAPI, http: httpx.AsyncClient
) -> None:
    assert error_of(await http.get("/v1/jobs", headers=bearer("away")), 503)["type"] == "Unavailable"
    made.state.service = None
    assert error_of(await http.get("/v1/jobs", headers=bearer("jobs:read")), 503)["type"] == "Unavailable"
    assert (await http.get("/v1/jobs")).status_code == 401


async def test_the_caller_is_there_for_the_route(made: FastAPI) -> None:
    seen: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request"}

    route = next(each.original_route for each in iter_route_contexts(made.routes) if each.path == "/v1/jobs")
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/v1/jobs", "app": made, "route": route}
    request = Request({**scope, "state": {}, "headers": [(b"authorization", b"bearer jobs.read")]}, receive)
    await access.authorize(request)
    seen.append(request.state.caller)
    assert seen == [Caller("known", "tenant-1", frozenset({"jobs:read"}), None)]
    assert request.state.holds()


def test_the_openapi_document_says_what_is_closed(made: FastAPI) -> None:
    document = made.openapi()
    assert json.dumps(document["components"]["securitySchemes"]) == '{"bearer": {"type": "http", "scheme": "bearer"}}'
    for route, needed in access.NEEDS.items():
        method, path = route.replace(":path", "").split(" ")
        operation = document["paths"][path][method.lower()]
        assert ("401" in operation["responses"]) == ("security" in operation) == (needed != (access.OPEN,)), route


# Without authentication


async def _asked(application: FastAPI, server: Any, headers: dict[str, str]) -> int:
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/v1/jobs",
        "headers": raw,
    }
    scope |= {"raw_path": b"/v1/jobs", "query_string": b"", "server": server, "client": ("127.0.0.1", 5)}
    await application(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize(
    ("server", "headers", "status"),
    [
        (("127.0.0.1", 8080), {"host": "localhost:8080"}, 200),
        (("::1", 8080), {"host": "[::1]:8080"}, 200),
        (("127.0.0.1", 8080), {"host": "127.0.0.1:8080", "origin": "http://localhost:3000"}, 200),
        (("127.0.0.1", 8080), {"host": "rebound.example:8080"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost:8080", "origin": "https://page.example"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost:8080", "origin": "null"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost:8080", "x-forwarded-for": "127.0.0.1"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost:8080", "forwarded": "for=127.0.0.1"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost:8080", "x-forwarded-proto": "https"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost:8080", "x-real-ip": "127.0.0.1"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost:8080", "via": "1.1 proxy"}, 403),
        (("127.0.0.1", 8080), {"host": "localhost@evil.example"}, 403),
        (("127.0.0.1", 8080), {}, 403),
        (("10.0.0.5", 8080), {"host": "localhost:8080"}, 403),
        (("/run/socket", None), {"host": "localhost"}, 403),
        (None, {"host": "localhost"}, 403),
    ],
)
async def test_without_authentication_only_this_machine_is_let_in(
    settings: Settings, server: Any, headers: dict[str, str], status: int
) -> None:
    application = app.create(settings.model_copy(update={"auth_mode": "none"}))
    application.state.service = FakeService()
    assert await _asked(application, server, headers) == status
    application.state.settings = settings.model_copy(update={"auth_mode": "none", "auth_allow_anonymous": True})
    assert await _asked(application, server, headers) == 200


UVICORN = ("/venv/lib/uvicorn/__main__.py", "--factory", "agent_executor.app:main")


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (UVICORN, True),
        (("/venv/bin/uvicorn", "--factory", "x:y", "--reload", "--host", "localhost"), True),
        ((*UVICORN, "--host=::1"), True),
        ((*UVICORN, "--host", "0.0.0.0"), False),
        ((*UVICORN, "--host="), False),
        ((*UVICORN, "--host", "::"), False),
        ((*UVICORN, "--host", "127.0.0.1", "--host", "10.0.0.5"), False),
        ((*UVICORN, "--uds", "/run/socket"), False),
        ((*UVICORN, "--fd", "3"), False),
        ((*UVICORN, "--unheard-of"), False),
        (("/venv/bin/gunicorn", "-k", "uvicorn.workers.UvicornWorker"), False),
        (("-c",), False),
    ],
)
def test_where_the_server_listens(command: tuple[str, ...], found: bool) -> None:
    assert listens_on_loopback(command) == found


def test_where_the_server_listens_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_HOST", "0.0.0.0")
    assert not listens_on_loopback(UVICORN)


@pytest.mark.parametrize(
    ("host", "found"),
    [
        *[(host, True) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1")],
        *[(host, False) for host in ("", "0.0.0.0", "::", "10.0.0.5", "localhost.example", "127.0.0.1.example", None)],
    ],
)
def test_what_is_loopback(host: Any, found: bool) -> None:
    assert is_loopback(host) == found


def test_the_start_is_refused_or_told(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTH_MODE", "none")
    monkeypatch.setattr("sys.argv", [*UVICORN, "--host", "0.0.0.0"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 64
    assert "AUTH_ALLOW_ANONYMOUS" in json.loads(capsys.readouterr().out)["reason"]
    monkeypatch.setenv("AUTH_ALLOW_ANONYMOUS", "true")
    app.main()
    line = json.loads(capsys.readouterr().out)
    assert (line["event"], line["level"]) == ("anonymous_allowed", "warning")
    monkeypatch.delenv("AUTH_ALLOW_ANONYMOUS")
    monkeypatch.setattr("sys.argv", list(UVICORN))
    app.main()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("word", "found"), [("team-1_A", True), ("", False), ("a.b", False), ("a b", False), ("x" * 65, False), (5, False)]
)
def test_what_can_name_a_tenant(word: object, found: bool) -> None:
    assert is_tenant(word) == found
