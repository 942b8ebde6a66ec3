"""Who may call: the running service, its keys in PostgreSQL, an issuer of tokens, and nobody without either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent_executor import access
from agent_executor.callers import SCOPES
from tests.definitions import agent, answer, event
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import Service, Starter
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


def key(place: dict[str, str], *scopes: str, **flags: str) -> str:
    more = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return command(place, "new", "test", "--scopes", ",".join(scopes), *more).strip()


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def routes(service: Service) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every operation that the running service describes, with a path to ask and what it needs."""
    for path, operations in service.http.get("/openapi.json").json()["paths"].items():
        for method in operations:
            declared = f"{method.upper()} {path}"
            yield method.upper(), path.replace("{job_id}", "job-0"), access.NEEDS[declared.replace("_id}", "_id:path}")]


def expire(place: dict[str, str], credential: str) -> None:
    """Have the key's time be over."""
    with psycopg.connect(dsn(place)) as connection:
        begun = "expires_at = now() - interval '1 second'"
        connection.execute(f"update api_keys set {begun} where id = %s", [credential.split("_")[1]])


def dsn(place: dict[str, str]) -> str:
    named = {"host": "HOST", "port": "PORT", "dbname": "DB", "user": "USER", "password": "PASSWORD"}
    parts = {name: place[f"POSTGRES_{variable}"] for name, variable in named.items()}
    return psycopg.conninfo.make_conninfo(**parts, options="-csearch_path=agent_executor")


def test_every_route_with_every_kind_of_credential(place: dict[str, str], start_service: Starter) -> None:
    expired, revoked = key(place, "admin"), key(place, "admin")
    expire(place, expired)
    command(place, "revoke", revoked.split("_")[1])
    by_scope = {scope: key(place, scope) for scope in SCOPES}
    other = key(place, "admin")
    service = start_service(AUTH_MODE="token").ready()
    forged = other[:-1] + ("0" if other[-1] != "0" else "1")
    bad = [expired, revoked, forged, f"{by_scope['admin'][:20]}{other[20:]}", "garbage", "e30.e30.e30"]
    seen = 0
    for method, path, needed in routes(service):
        seen += 1
        if needed == (access.OPEN,):
            assert service.http.request(method, path).status_code == 200
            continue
        none = service.http.request(method, path)
        assert none.status_code == 401
        assert none.headers["www-authenticate"] == 'Bearer realm="agent-executor"'
        answers = [service.http.request(method, path, headers=bearer(each)) for each in bad]
        assert {each.status_code for each in answers} == {401}, path
        assert len({each.text for each in answers}) == 1  # nobody learns which it was
        for scope, credential in by_scope.items():
            given = service.http.request(method, path, headers=bearer(credential))
            is_allowed = scope in (*needed, "admin")
            assert (given.status_code not in (401, 403)) == is_allowed, (path, scope, given.text)
            if not is_allowed:
                assert given.status_code == 403
                assert all(each in given.json()["error"]["message"] for each in needed)
    assert seen == len(access.NEEDS)
    log = service.log.read_text()
    assert [each for each in (*bad[:4], *by_scope.values()) if each in log or each[16:] in log] == []


def test_a_job_from_its_submission_to_its_last_event(place: dict[str, str], start_service: Starter) -> None:
    submits, reads, controls = key(place, "jobs:submit"), key(place, "jobs:read"), key(place, "jobs:control")
    service = start_service(AUTH_MODE="token").ready()
    kind = {"Content-Type": "application/cloudevents+json"}
    sent = event(DEFINITION, job_id="job-1")
    assert service.http.post("/", json=sent, headers=bearer(controls) | kind).status_code == 403
    given = service.http.post("/?wait=20", json=sent, headers=bearer(submits) | kind)
    assert given.status_code == 200, given.text
    resume = answer("job-1", "yes")
    assert service.http.post("/", json=resume, headers=bearer(submits) | kind).status_code == 403
    assert service.http.post("/", json=resume, headers=bearer(controls) | kind).status_code in (400, 409)
    events = service.http.get("/v1/jobs/job-1/events", headers=bearer(reads))
    assert "event: end" in events.text
    assert service.http.get("/v1/jobs/job-1", headers=bearer(submits)).status_code == 403


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_an_open_stream_ends_with_its_key(place: dict[str, str], start_service: Starter, how: str) -> None:
    admin, reads = key(place, "admin"), key(place, "jobs:read", days="1")
    service = start_service(AUTH_MODE="token").ready()
    body = {"job_id": "job-1", "agent_definition": SLOW, "input_payload": {"messages": []}}
    assert service.http.post("/v1/jobs", json=body, headers=bearer(admin)).status_code == 202
    with service.http.stream("GET", "/v1/jobs/job-1/events", headers=bearer(reads)) as stream:
        assert stream.status_code == 200
        if how == "revoked":
            command(place, "revoke", reads.split("_")[1])
        else:
            expire(place, reads)
        begun = time.monotonic()
        assert "event: end" not in "".join(stream.iter_text())
        assert time.monotonic() - begun < 10
    assert service.http.get("/v1/jobs/job-1", headers=bearer(reads)).status_code == 401
    assert service.http.post("/v1/jobs/job-1/cancel", headers=bearer(admin)).status_code == 200


def test_keys_are_listed_without_their_secrets(place: dict[str, str], start_service: Starter) -> None:
    service = start_service(AUTH_MODE="token").ready()
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


class Issuer:
    """An OIDC issuer on loopback."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.rotate("one")

    def rotate(self, kid: str) -> None:
        self.keys = {kid: ec.generate_private_key(ec.SECP256R1())}

    def documents(self) -> dict[str, Any]:
        algorithm = jwt.algorithms.ECAlgorithm
        keys = [{**algorithm.to_jwk(each.public_key(), as_dict=True), "kid": kid} for kid, each in self.keys.items()]
        discovered = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        return {"/.well-known/openid-configuration": discovered, "/keys": {"keys": keys}}

    def token(self, **changed: Any) -> str:
        [(kid, private)] = self.keys.items()
        claims = {"iss": self.url, "aud": "executor", "sub": "alice", "exp": time.time() + 60, "scope": "jobs:read"}
        return jwt.encode({**claims, **changed}, private, "ES256", headers={"kid": kid})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(made.documents()[self.path]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Issuer(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


def test_tokens_of_an_issuer(start_service: Starter, issuer: Issuer) -> None:
    service = start_service(AUTH_MODE="jwt", AUTH_JWT_ISSUER=issuer.url, AUTH_JWT_AUDIENCE="executor").ready()

    def status(token: str, path: str = "/v1/jobs") -> int:
        return service.http.get(path, headers=bearer(token)).status_code

    first = issuer.token()
    assert status(first) == 200
    assert status(first, "/metrics") == 403
    assert status(issuer.token(scope=["metrics:read"]), "/metrics") == 200
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
    service.until(lambda: status(second) == 200, "the new key is not fetched")
    assert status(first) == 401
    log = service.log.read_text()
    assert not [token for token in (first, second) if token in log or token.rpartition(".")[2] in log]


def test_a_stream_ends_with_its_token(start_service: Starter, issuer: Issuer) -> None:
    named = {"AUTH_JWT_ISSUER": issuer.url, "AUTH_JWT_AUDIENCE": "executor", "AUTH_JWT_LEEWAY_S": "0"}
    service = start_service(AUTH_MODE="jwt", **named).ready()
    admin = bearer(issuer.token(scope="admin"))
    body = {"job_id": "job-1", "agent_definition": SLOW, "input_payload": {"messages": []}}
    assert service.http.post("/v1/jobs", json=body, headers=admin).status_code == 202
    short = bearer(issuer.token(exp=int(time.time()) + 3))
    with service.http.stream("GET", "/v1/jobs/job-1/events", headers=short) as stream:
        assert stream.status_code == 200
        assert "event: end" not in "".join(stream.iter_text())
    assert service.http.post("/v1/jobs/job-1/cancel", headers=admin).status_code == 200


def test_without_authentication_only_loopback_is_served(place: dict[str, str], start_service: Starter) -> None:
    exposed = start_service(UVICORN_HOST="0.0.0.0")
    assert exposed.process.wait(30) == 64
    assert "AUTH_ALLOW_ANONYMOUS" in json.loads(exposed.log.read_text().splitlines()[-1])["reason"]
    allowed = start_service(UVICORN_HOST="0.0.0.0", AUTH_ALLOW_ANONYMOUS="true").ready()
    assert allowed.status("/v1/jobs") == 200
    assert '"event": "anonymous_allowed"' in allowed.log.read_text()
    local = start_service().ready()
    assert local.status("/v1/jobs") == 200
    assert local.http.get("/v1/jobs", headers={"Host": "rebound.example"}).status_code == 403
    assert local.http.post("/v1/jobs", content=b"{}", headers={"Origin": "https://page.example"}).status_code == 403
