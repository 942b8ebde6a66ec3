"""browsers: headers of every answer, pages of other origins, and the pages that show the API."""

from __future__ import annotations

import base64
import hashlib
import re

import httpx
import pytest
from fastapi import Request, Response

from agent_executor import app
from agent_executor.settings import Settings

ORIGIN = "https://app.example:8443"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,last-event-id,prefer",
}


def client(settings: Settings) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app.create(settings), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


@pytest.fixture
def http(settings: Settings) -> httpx.AsyncClient:
    return client(settings)


@pytest.fixture
def with_cors(settings: Settings) -> httpx.AsyncClient:
    return client(settings.model_copy(update={"cors_allow_origins": f"https://other.example, {ORIGIN}"}))


@pytest.mark.parametrize(
    "path", ["/health", "/v1/jobs", "/nowhere", "/openapi.json", "/docs", "/v1/definitions/schema"]
)
async def test_no_answer_is_stored_or_taken_for_what_it_is_not(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_nor_is_an_unexpected_error(settings: Settings) -> None:
    made = app.create(settings)

    async def fail(request: Request) -> Response:
        raise RuntimeError

    made.add_route("/fails", fail)
    transport = httpx.ASGITransport(made, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        answer = await http.get("/fails")
    assert (answer.status_code, answer.headers["cache-control"]) == (500, "no-store")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_a_page_runs_what_it_names_and_nothing_else(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for tag in re.findall("<(?:script src|link)[^>]*>", answer.text):
        source = re.search('(?:src|href)="([^"]*)"', tag)
        assert source is not None
        assert re.search('integrity="sha384-[A-Za-z0-9+/]{64}"', tag)
        assert source[1].startswith(policy["script-src"].split()[0])
    for script in re.findall("<script>([^<]*)</script>", answer.text):
        shown = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{shown}'" in policy["script-src"].split()
    assert "unsafe" not in policy["script-src"]
    assert (policy["default-src"], policy["frame-ancestors"], policy["connect-src"]) == ("'none'", "'none'", "'self'")
    assert (answer.headers["x-frame-options"], answer.headers["referrer-policy"]) == ("DENY", "no-referrer")


async def test_pages_of_listed_origins_may_call(with_cors: httpx.AsyncClient) -> None:
    answer = await with_cors.options("/v1/jobs", headers={"Origin": ORIGIN, **PREFLIGHT})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    asked = await with_cors.get("/v1/jobs", headers={"Origin": ORIGIN})
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert asked.headers["access-control-expose-headers"] == "Location, Retry-After"
    assert "access-control-allow-credentials" not in asked.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ORIGIN.upper(), "http://app.example:8443"])
async def test_pages_of_others_may_not(with_cors: httpx.AsyncClient, origin: str) -> None:
    preflight = await with_cors.options("/v1/jobs", headers={"Origin": origin, **PREFLIGHT})
    asked = await with_cors.get("/health", headers={"Origin": origin})
    assert preflight.status_code == 400
    assert not any("access-control-allow-origin" in answer.headers for answer in (preflight, asked))


async def test_without_a_list_there_is_no_cors(http: httpx.AsyncClient) -> None:
    answer = await http.options("/v1/jobs", headers={"Origin": ORIGIN, **PREFLIGHT})
    assert answer.status_code == 405
