"""Who may call: the running service, its keys in PostgreSQL, an issuer of tokens, and nobody without either.

Every route with every kind of credential: test_access_matrix.py.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import httpx
import jwt
import psycopg
import pytest

from tests.definitions import agent, answer, event
from tests.integration.fixtures.issuer import Issuer
from tests.integration.fixtures.keys import dsn, expire, key, revoke
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import PATIENCE_S, Service, Starter
from tests.integration.fixtures.tenants import Tenants
from tier3.stack import Postgres

DEFINITION = agent([{"text": "done"}])
SLOW = agent([{"text": "done", "delay_ms": 60_000}])


def command(place: dict[str, str], *words: str, status: int = 0) -> str:
    """What `python -m agent_executor api-key` prints."""
    ended = subprocess.run(
        [sys.executable, "-m", "agent_executor", "api-key", *words],
        env={**os.environ, **place},
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def test_a_job_from_its_submission_to_its_last_event(tenants: Tenants) -> None:
    submits, reads, controls = (tenants.key(f"jobs:{scope}") for scope in ("submit", "read", "control"))
    with httpx.Client(base_url=tenants.service.http.base_url, timeout=PATIENCE_S) as http:
        kind = {"Content-Type": "application/cloudevents+json"}
        sent = event(DEFINITION, job_id="scoped")
        assert http.post("/", json=sent, headers=controls | kind).status_code == 403
        given = http.post("/?wait=20", json=sent, headers=submits | kind)
        assert given.status_code == 200, given.text
        resume = answer("scoped", "yes")
        assert http.post("/", json=resume, headers=submits | kind).status_code == 403
        assert http.post("/", json=resume, headers=controls | kind).status_code in (400, 409)
        assert "event: end" in http.get("/v1/jobs/scoped/events", headers=reads).text
        assert http.get("/v1/jobs/scoped", headers=submits).status_code == 403


@pytest.mark.parametrize("how", [revoke, expire])
def test_an_open_stream_ends_with_its_key(tenants: Tenants, how: Callable[[Mapping[str, str], str], None]) -> None:
    job_id, reads, place = how.__name__, tenants.key("jobs:read", days=1), tenants.database.environment
    admin = tenants.service.http  # has a key of its own
    body = {"job_id": job_id, "agent_definition": SLOW, "input_payload": {"messages": []}}
    assert admin.post("/v1/jobs", json=body).status_code == 202
    with admin.stream("GET", f"/v1/jobs/{job_id}/events", headers=reads) as stream:
        assert stream.status_code == 200
        how(place, reads["authorization"].partition(" ")[2])
        assert "event: end" not in "".join(stream.iter_text())
    assert admin.get(f"/v1/jobs/{job_id}", headers=reads).status_code == 401
    assert admin.post(f"/v1/jobs/{job_id}/cancel").status_code == 200


def test_keys_are_listed_without_their_secrets(tenants: Tenants) -> None:
    place, service = tenants.database.environment, tenants.service
    made = command(place, "new", "nightly", "--scopes", "metrics:read", "--tenant", "team-a").strip()
    key_id = made.split("_")[1]

    def line() -> list[str]:
        return next(each.split() for each in command(place, "list").splitlines() if key_id in each)

    assert line()[1:4] == ["nightly", "team-a", "metrics:read"]
    assert line()[-1] == "-"
    service.until(
        lambda: service.http.get("/metrics", headers=bearer(made)).status_code == 200, "a new key is not let in"
    )
    service.until(lambda: line()[-1] != "-", "its use is not noted")
    with psycopg.connect(dsn(place)) as connection:
        stored = str(connection.execute("select api_keys::text from api_keys").fetchall())
    assert made[16:] not in command(place, "list") + stored
    command(place, "revoke", key_id)
    service.until(
        lambda: service.http.get("/metrics", headers=bearer(made)).status_code == 401, "a revoked key is let in"
    )
    command(place, "revoke", "nobody", status=1)
    command(place | {"POSTGRES_PORT": "1"}, "list", status=4)


def test_without_the_database_a_known_key_is_known_for_a_while(
    own_postgres: Database, place: dict[str, str], start_service: Starter
) -> None:
    place |= own_postgres.environment
    validates = key(place, "definitions:validate")
    service = start_service(AUTH_MODE="token").ready()
    assert isinstance(own_postgres.server, Postgres)
    own_postgres.server.stop()
    schema = "/v1/definitions/schema"
    assert service.http.get(schema, headers=bearer(validates)).status_code == 200
    assert service.http.get(schema, headers=bearer("garbage")).status_code == 401


def test_tokens_of_an_issuer(start_service: Starter, issuer: Issuer) -> None:
    """Which is away at first, goes away again, and exchanges its key while tokens of both come in."""
    issuer.is_away = True
    service = start_service(**issuer.settings).ready()

    def status(token: str, path: str = "/v1/jobs") -> int:
        return service.http.get(path, headers=bearer(token)).status_code

    first = issuer.token()
    assert status(first) == 503
    assert service.status("/v1/jobs") == status("garbage") == 401
    issuer.is_away = False
    service.until(lambda: status(first) == 200, "the keys are not fetched")
    issuer.is_away = True
    assert status(first) == 200
    unsigned = jwt.encode({"iss": issuer.url, "aud": "executor", "sub": "a", "exp": 9e9}, "", "none")
    for bad in (unsigned, issuer.token(aud="x"), issuer.token(iss="x"), issuer.token(exp=1), issuer.token(nbf=9e9)):
        assert status(bad) == 401
    try:
        huge = service.http.get("/v1/jobs", headers=bearer("a" * 2**20)).status_code
        assert huge in (400, 401, 431)
    except httpx.TransportError:
        pass  # uvicorn does not read so large a header
    issuer.rotate("two")
    second = issuer.token()
    assert (status(first), status(second)) == (200, 401)
    issuer.is_away = False
    seen: dict[str, list[int]] = {first: [], second: []}

    def both() -> bool:
        for token, statuses in seen.items():
            statuses.append(status(token))
        return seen[second][-1] == 200

    service.until(both, "the new key is not fetched")
    both()
    changes = {token: [code for code, _ in itertools.groupby(statuses)] for token, statuses in seen.items()}
    assert changes == {first: [200, 401], second: [401, 200]}
    log = service.log.read_text()
    assert not [token for token in (first, second) if token in log or token.rpartition(".")[2] in log]


def test_a_stream_ends_with_its_token(start_service: Starter, issuer: Issuer) -> None:
    service = start_service(**issuer.settings, AUTH_JWT_LEEWAY_S="0").ready()
    admin = bearer(issuer.token(scope="admin"))
    body = {"job_id": "job-1", "agent_definition": SLOW, "input_payload": {"messages": []}}
    assert service.http.post("/v1/jobs", json=body, headers=admin).status_code == 202
    for seconds in (2, 10, 30):  # until it is long enough for this machine
        short = bearer(issuer.token(exp=int(time.time()) + seconds))
        with service.http.stream("GET", "/v1/jobs/job-1/events", headers=short) as stream:
            if stream.status_code == 200:
                assert "event: end" not in "".join(stream.iter_text())
                break
    else:
        pytest.fail("no stream is opened")
    assert service.http.post("/v1/jobs/job-1/cancel", headers=admin).status_code == 200


def test_without_authentication_only_loopback_is_served(service: Service, start_service: Starter) -> None:
    exposed = start_service(UVICORN_HOST="0.0.0.0")
    assert exposed.process.wait(30) == 64
    assert "AUTH_ALLOW_ANONYMOUS" in json.loads(exposed.log.read_text().splitlines()[-1])["reason"]
    allowed = start_service(UVICORN_HOST="0.0.0.0", AUTH_ALLOW_ANONYMOUS="true").ready()
    assert allowed.status("/v1/jobs") == 200
    assert '"event": "anonymous_allowed"' in allowed.log.read_text()
    assert service.status("/v1/jobs") == 200
    assert service.http.get("/v1/jobs", headers={"Host": "rebound.example"}).status_code == 403
    assert service.http.post("/v1/jobs", content=b"{}", headers={"Origin": "https://page.example"}).status_code == 403
