"""Every route of the running service with every kind of credential, in both ways to have some.

The routes come from the application itself: one that is added is asked here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import httpx
import jwt
import pytest

from agent_executor import access
from agent_executor.callers import SCOPES
from tests.definitions import agent
from tests.integration.fixtures.issuer import Issuer
from tests.integration.fixtures.keys import expire, key, revoke
from tests.integration.fixtures.service import Service, Starter

SLOW = agent([{"text": "never", "delay_ms": 600_000}])
THEIRS, NOBODYS = "job-of-south", "job-of-nobody"


class Credentials(NamedTuple):
    """How to make good ones, of scopes and a tenant; the bad ones; and what a service needs to know of them."""

    settings: Mapping[str, str]
    good: Callable[..., str]
    bad: Mapping[str, str]


def of_keys(place: Mapping[str, str]) -> Credentials:
    bad = {name: key(place, "admin") for name in ("expired", "revoked", "altered", "of two")}
    expire(place, bad["expired"])
    revoke(place, bad["revoked"])
    bad["altered"] = bad["altered"][:-1] + ("0" if bad["altered"][-1] != "0" else "1")
    bad["of two"] = bad["of two"][:20] + key(place, "admin")[20:]
    return Credentials(
        {"AUTH_MODE": "token"},
        lambda *scopes, tenant="default": key(place, *scopes, tenant=tenant),
        bad | {"garbage": "garbage", "a token": "e30.e30.e30"},
    )


def of_tokens(issuer: Issuer) -> Credentials:
    withdrawn = issuer.token(scope="admin", org="default")
    issuer.rotate("two")

    def token(*scopes: str, tenant: str = "default", **changed: object) -> str:
        return issuer.token(scope=" ".join(scopes), org=tenant, **changed)

    claims = {"iss": issuer.url, "aud": "executor", "sub": "alice", "exp": 9_999_999_999, "scope": "admin"}
    return Credentials(
        issuer.settings | {"AUTH_JWT_TENANT_CLAIM": "org"},
        token,
        {
            "expired": token("admin", exp=1),
            "of a key that was withdrawn": withdrawn,
            "for somebody else": token("admin", aud="somebody"),
            "of somebody else": token("admin", iss="https://evil.example"),
            "not valid yet": token("admin", nbf=9_999_999_999),
            "unsigned": jwt.encode({**claims, "org": "default"}, "", "none", headers={"kid": "two"}),
            "garbage": "garbage",
            "a key": "ae_abcdefghijkl_" + "0" * 49,
        },
    )


def routes(service: Service) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every operation that the running service describes, with its path and what it needs."""
    for path, operations in service.http.get("/openapi.json").json()["paths"].items():
        for method in operations:
            declared = f"{method.upper()} {path}"
            yield method.upper(), path, access.NEEDS[declared.replace("_id}", "_id:path}")]


@pytest.mark.parametrize("mode", ["token", "jwt"])
def test_every_route_with_every_kind_of_credential(
    place: dict[str, str], start_service: Starter, issuer: Issuer, mode: str
) -> None:
    credentials = of_keys(place) if mode == "token" else of_tokens(issuer)
    by_scope = {scope: credentials.good(scope) for scope in SCOPES}
    theirs = credentials.good("admin", tenant="south")
    service = start_service(**credentials.settings).ready()

    def ask(method: str, path: str, credential: str | None) -> httpx.Response:
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return service.http.request(method, path, headers=headers)

    body = {"job_id": THEIRS, "agent_definition": SLOW, "input_payload": {"messages": []}}
    service.http.headers["authorization"] = f"Bearer {theirs}"
    assert service.http.post("/v1/jobs", json=body).status_code == 202
    del service.http.headers["authorization"]
    seen = 0
    for method, declared, needed in routes(service):
        seen += 1
        path = declared.replace("{job_id}", THEIRS)
        if needed == (access.OPEN,):
            assert ask(method, path, None).status_code == 200
            continue
        none = ask(method, path, None)
        assert (none.status_code, none.headers["www-authenticate"]) == (401, 'Bearer realm="agent-executor"')
        refused = {name: ask(method, path, each) for name, each in credentials.bad.items()}
        assert {name for name, each in refused.items() if each.status_code != 401} == set(), path
        assert len({each.text for each in refused.values()}) == 1  # nobody learns which it was
        for scope, credential in by_scope.items():
            given = ask(method, path, credential)
            is_allowed = scope in (*needed, "admin")
            assert (given.status_code not in (401, 403)) == is_allowed, (path, scope, given.text)
            if not is_allowed:
                assert given.status_code == 403
                assert all(each in given.json()["error"]["message"] for each in needed)
        if path != declared and not path.endswith("/resume"):  # which wants a body before it looks
            nobodys = ask(method, declared.replace("{job_id}", NOBODYS), by_scope["admin"])
            foreign = ask(method, path, by_scope["admin"])
            assert foreign.status_code == nobodys.status_code == 404
            assert foreign.text.replace(THEIRS, NOBODYS) == nobodys.text
    assert seen == len(access.NEEDS)
    assert ask("GET", "/v1/jobs", by_scope["admin"]).json()["jobs"] == []
    own = ask("GET", f"/v1/jobs/{THEIRS}", theirs)
    assert own.json()["status"] in ("queued", "running")
    assert ask("POST", f"/v1/jobs/{THEIRS}/cancel", theirs).status_code == 200
    log = service.log.read_text()
    known = [*by_scope.values(), theirs, *(each for each in credentials.bad.values() if len(each) > 40)]
    assert [each for each in known if each in log or each[-30:] in log] == []
