"""What it costs to find out who calls: a cached API key and tokens beside no authentication at all.

The decision by itself, and requests over HTTP, on one connection, to a route that does little else.
"""

from __future__ import annotations

import asyncio
import http.client
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI, Request

from agent_executor import access, api_keys, app
from agent_executor.api_keys import ApiKeys
from agent_executor.callers import SCOPES, Caller
from agent_executor.issuer import Issuer
from agent_executor.settings import Settings
from agent_executor.tokens import Claims, Tokens
from tests.bench.figures import Figure, side_by_side, timed

CALLS, REQUESTS, RUNS, QUICK_RUNS = 100, 50, 15, 3
MOST_MS = 0.2
NAME, AUDIENCE, PATH = "https://issuer.example", "bench", "/v1/definitions/schema"


def measure(*, quick: bool = False) -> list[Figure]:
    """Every figure of access."""
    runs = QUICK_RUNS if quick else RUNS
    made = {"nothing": _application("none", None, ""), "a key": _application("token", *_key())}
    private: Mapping[str, Any] = {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
    }
    for name, key in private.items():
        made[f"a known {name} token"] = _application("jwt", *_token(name, key))
        made[f"a new {name} token"] = _application("jwt", *_token(name, key, Forgetful))
    decided = side_by_side({name: partial(_decisions, *each) for name, each in made.items()}, runs)
    with ExitStack() as opened:
        ask = {name: opened.enter_context(_served(*each)) for name, each in made.items()}
        answered = side_by_side({name: partial(timed, one) for name, one in ask.items()}, runs)
    return [
        *_figures(f"{CALLS} decisions, with {{}}", decided, CALLS),
        *_figures(f"{REQUESTS} requests over HTTP, with {{}}", answered, REQUESTS),
    ]


def _figures(name: str, found: Mapping[str, list[float]], count: int) -> Iterator[Figure]:
    none = statistics.median(found["nothing"])
    for who, runs in found.items():
        median = statistics.median(runs)
        over_ms = (median - none) / count
        told, ratio = f"{over_ms:.3f} ms more each", median / none
        if who == "nothing":
            yield Figure(name.format(who), runs)
        elif who == "a key":
            goal = f"{told}, at most {MOST_MS}"
            yield Figure(name.format(who), runs, goal, over_ms <= MOST_MS, ratio=ratio, of="nothing")
        else:
            yield Figure(name.format(who), runs, told, ratio=ratio, of="nothing")


def _application(mode: Any, authenticator: Any, credential: str) -> tuple[FastAPI, str]:
    settings = Settings.model_construct(auth_mode=mode, auth_allow_anonymous=True, metrics_open=False, docs="off")
    made = app.create(settings)
    made.state.service = SimpleNamespace(authenticator=authenticator)
    return made, credential


def _key() -> tuple[ApiKeys, str]:
    key = api_keys.new_key()
    keys = ApiKeys(None)  # type: ignore[arg-type]  # what it would read is here already
    keys._known = {key.id: api_keys._Known(key.hash, Caller("bench", "bench", SCOPES, None))}
    keys._read_at = math.inf
    return keys, key.text


class Forgetful(Tokens):
    """To whom every token is new."""

    def _keep(self, *verified: Any) -> None:
        pass


def _token(algorithm: str, private: Any, kind: type[Tokens] = Tokens) -> tuple[Tokens, str]:
    public = {**jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True), "kid": "one"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"keys": [public]}))
    issuer = Issuer(NAME, httpx.AsyncClient(transport=transport), jwks_url=f"{NAME}/keys")
    now = int(time.time())
    claims = {"iss": NAME, "aud": AUDIENCE, "sub": "bench", "iat": now, "exp": now + 3600, "scope": "admin"}
    token = jwt.encode(claims, private, algorithm, headers={"kid": "one"})
    return kind(issuer, AUDIENCE, Claims(), 30), token


def _decisions(made: FastAPI, credential: str) -> float:
    """Milliseconds of all."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {credential}".encode())]
    route = SimpleNamespace(path=PATH)
    scope = {"type": "http", "method": "GET", "path": PATH, "app": made, "route": route, "headers": headers}

    async def many() -> float:
        await access.authorize(Request({**scope, "state": {}}))  # the keys are fetched
        started = time.perf_counter()
        for _ in range(CALLS):
            await access.authorize(Request({**scope, "state": {}}))
        return (time.perf_counter() - started) * 1000

    return asyncio.run(many())


@contextmanager
def _served(made: FastAPI, credential: str) -> Iterator[Callable[[], None]]:
    """Something that sends REQUESTS requests, one after the other."""
    server = uvicorn.Server(uvicorn.Config(made, port=0, lifespan="off", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    connection = http.client.HTTPConnection(*server.servers[0].sockets[0].getsockname())
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}

    def ask() -> None:
        for _ in range(REQUESTS):
            connection.request("GET", PATH, headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.status
            answer.read()

    yield ask
    connection.close()
    server.should_exit = True
    thread.join()
