"""What arrives at the port: forged headers, requests with two meanings, and clients that are slow on purpose."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest

from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.service import PATIENCE_S, Service, surroundings
from tests.integration.fixtures.tenants import client as client_of
from tier3.stack import Nats, Redis, Stack

SLOW_CLIENTS = 200
LIMITS = {
    "REQUEST_HEADER_TIMEOUT_S": "2",
    "REQUEST_BODY_TIMEOUT_S": "2",
    "POSTGRES_POOL_SIZE": "4",
    "AUTH_MODE": "token",
    "FORWARDED_ALLOW_IPS": "192.0.2.1",
}


class Port:
    """The service's port, and a key that opens it."""

    def __init__(self, service: Service, http: httpx.Client) -> None:
        self.service, self.http = service, http
        self.bearer = f"Authorization: {http.headers['authorization']}\r\n".encode()

    def head(
        self, start: bytes = b"POST /v1/definitions/validate HTTP/1.1", host: bytes = b"Host: service\r\n"
    ) -> bytes:
        """The beginning of a request with a credential."""
        return start + b"\r\n" + host + self.bearer

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.service.port))
        made.settimeout(PATIENCE_S)
        return made

    def statuses(self, data: bytes) -> list[int]:
        """Send `data`; the statuses of what is answered until the service closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            return statuses(everything(connection))


def everything(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:  # it was closed before it had read everything
        return received
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.fixture(scope="module")
def port(stack: Stack, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    place = tmp_path_factory.mktemp("transport")
    stack.postgres.create_database("transport", template)
    database = Database(stack.postgres, "transport")
    with Nats(place) as nats, Redis(place) as redis:
        service = Service(surroundings(database, nats, redis, stack) | LIMITS, place / "service.log")
        try:
            service.ready()
            with closing(client_of(service, database, "default")) as http:
                yield Port(service, http)
        finally:
            service.close()
    stack.postgres.drop_database("transport")


SMUGGLED = b"GET /v1/jobs HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
TWO_LENGTHS = {
    "length and coding": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "coding and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 60\r\n\r\n{}",
    "one length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "lengths in a list": b"Content-Length: 2, 2\r\n\r\n{}",
    "a length below zero": b"Content-Length: -1\r\n\r\n",
    "a signed length": b"Content-Length: +2\r\n\r\n{}",
    "a hexadecimal length": b"Content-Length: 0x2\r\n\r\n{}",
    "a length in two words": b"Content-Length: 2 2\r\n\r\n{}",
    "an empty length": b"Content-Length:\r\n\r\n",
    "a length over 64 bits": b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "a coding nobody knows": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
    "two codings": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, then not": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "coding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a quoted coding": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a vertical tab before the coding": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n",
    "a line without carriage return": b"X: y\nContent-Length: 2\r\n\r\n{}",
    "a line without line feed": b"X: y\rContent-Length: 2\r\n\r\n{}",
    "a carriage return in a value": b"X: y\rz\r\n\r\n",
    "a NUL in a value": b"X: y\0z\r\n\r\n",
    "a NUL in a name": b"X\0: y\r\n\r\n",
    "a name with a space": b"Content Length: 2\r\n\r\n{}",
    "no name": b": y\r\n\r\n",
    "no colon": b"chunked\r\n\r\n",
    "a second host": b"Host: other\r\n\r\n",
    "a chunk's extension with a line feed": CHUNKED + b"2;a\n{}\r\n0\r\n\r\n",
    "a chunk's extension with a carriage return": CHUNKED + b"2;a\rx{}\r\n0\r\n\r\n",
    "chunks without carriage returns": CHUNKED + b"2\n{}\n0\n\n",
    "a chunk over 64 bits": CHUNKED + b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a chunk below zero": CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "a hexadecimal prefix": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a space before a chunk's size": CHUNKED + b" 2\r\n{}\r\n0\r\n\r\n",
    "a space after a chunk's size": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "no chunk's size": CHUNKED + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"2\r\n{}{}\r\n0\r\n\r\n",
    "a length in a trailer": CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 60\r\n\r\n",
}
BEGINNINGS = {
    "HTTP/0.9": b"GET /v1/jobs\r\n",
    "HTTP/1.2": b"GET /v1/jobs HTTP/1.2\r\n",
    "HTTP/1.10": b"GET /v1/jobs HTTP/1.10\r\n",
    "HTTP/2 in words": b"GET /v1/jobs HTTP/2.0\r\n",
    "a version in small letters": b"GET /v1/jobs http/1.1\r\n",
    "line feeds alone": b"GET /v1/jobs HTTP/1.1\n",
    "a space in the target": b"GET /v1/jobs /health HTTP/1.1\r\n",
    "tabs": b"GET\t/v1/jobs\tHTTP/1.1\r\n",
    "a target that is no path": b"GET v1/jobs HTTP/1.1\r\n",
    "an octet that is no character": b"GET /v1/jobs\xff HTTP/1.1\r\n",
    "a NUL in the target": b"GET /v1/jobs\0 HTTP/1.1\r\n",
    "another host in the target": b"GET http://other/v1/jobs HTTP/1.1\r\n",
    "a user in the target": b"GET http://service@other/v1/jobs HTTP/1.1\r\n",
    "a tunnel": b"CONNECT service:80 HTTP/1.1\r\n",
    "a method nobody knows": b"SMUGGLE /v1/jobs HTTP/1.1\r\n",
    "a header before the host": b"GET /v1/jobs HTTP/1.1\r\n X: y\r\n",
}


@pytest.mark.parametrize("rest", TWO_LENGTHS.values(), ids=TWO_LENGTHS.keys())
def test_what_has_two_meanings_is_refused_and_nothing_after_it_runs(port: Port, rest: bytes) -> None:
    assert port.statuses(port.head() + rest + SMUGGLED) == [400]


@pytest.mark.parametrize("start", BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_what_is_not_http_1_1_is_refused(port: Port, start: bytes) -> None:
    assert port.statuses(port.head(start.removesuffix(b"\r\n")) + b"\r\n" + SMUGGLED) == [400]


@pytest.mark.parametrize("data", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_other_protocols_are_refused(port: Port, data: bytes) -> None:
    assert port.statuses(data) == [400]


@pytest.mark.parametrize("host", [b"", b"Host: a/b\r\n", b"Host: a@b\r\n", b"Host: a, b\r\n", b"Host: a b\r\n"])
def test_no_host_or_one_that_is_none(port: Port, host: bytes) -> None:
    assert port.statuses(port.head(host=host) + b"Content-Length: 2\r\n\r\n{}" + SMUGGLED) == [400]


@pytest.mark.parametrize(
    ("rest", "own"),
    [
        (b"Content-Length: 2\r\n\r\n{}", 200),
        (b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, 400),  # as a body it is no JSON
        (CHUNKED + b"2;a=b\r\n{}\r\n0\r\nAuthorization: Bearer x\r\n\r\n", 200),
        (b"Content_Length: 60\r\nContent-Length: 2\r\n\r\n{}", 200),
    ],
)
def test_each_request_has_its_own_credential(port: Port, rest: bytes, own: int) -> None:
    assert port.statuses(port.head() + rest + SMUGGLED) == [own, 401]


def test_a_credential_in_a_trailer_is_none(port: Port) -> None:
    head = b"POST /v1/definitions/validate HTTP/1.1\r\nHost: service\r\n"
    assert port.statuses(head + CHUNKED + b"2\r\n{}\r\n0\r\n" + port.bearer + b"\r\n" + SMUGGLED) == [401, 401]


@pytest.mark.parametrize("kind", [b"websocket", b"h2c"])
def test_an_upgrade_is_not_taken(port: Port, kind: bytes) -> None:
    head = port.head(b"GET /v1/jobs HTTP/1.1") + b"Connection: Upgrade\r\nUpgrade: " + kind + b"\r\n\r\n"
    assert port.statuses(head + SMUGGLED) == [200]


FORGED = {
    "Host": "evil.example",
    "Forwarded": "for=127.0.0.1;host=evil.example;proto=https",
    "X-Forwarded-For": "127.0.0.1",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/evil",
    "X-Real-IP": "127.0.0.1",
    "X-Original-URL": "/health",
    "X-Rewrite-URL": "/health",
    "X-HTTP-Method-Override": "GET",
    "X-Forwarded-User": "admin",
    "X-Remote-User": "admin",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_changes_nothing(port: Port, name: str) -> None:
    forged = {name: FORGED[name]}
    with httpx.Client(base_url=port.service.http.base_url) as stranger:
        assert stranger.get("/v1/jobs", headers=forged).status_code == 401
        assert stranger.post("/v1/jobs", json={}, headers=forged).status_code == 401
        assert stranger.get("/health/", headers=forged).status_code == 404
        assert stranger.get("/health", headers=forged).headers.get("server") is None
    job = {"job_id": f"forged {name}", "agent_definition": {"nodes": []}, "input_payload": {"a": 1}}
    answer = port.http.post("/v1/jobs", json=job, headers=forged)
    assert answer.status_code == 400, answer.text  # the scope and the body that were sent, not those of another route
    for path in ("/openapi.json", "/docs", "/redoc", "/v1/jobs", "/health", "/nowhere"):
        assert "evil" not in (found := port.http.get(path, headers=forged)).text + str(found.headers)


@pytest.mark.parametrize(
    "target",
    [
        *(b"//v1/jobs", b"/health/../v1/jobs", b"/health/..%2fv1/jobs", b"/%2e%2e/v1/jobs", b"/v1%2fjobs", b"/V1/jobs"),
        *(b"http://service/v1/jobs", b"/v1/jobs;/health", b"/v1/jobs?/health", b"/v1/jobs#/health", b"/v1/./jobs"),
    ],
)
def test_no_way_of_writing_a_path_goes_round_its_scope(port: Port, target: bytes) -> None:
    (status,) = port.statuses(b"GET " + target + b" HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n")
    assert status in (401, 404)


class Slow:
    """A client that sends `start`, then one byte after another until it is closed."""

    def __init__(self, port: Port, start: bytes) -> None:
        self.connection = port.connect()
        self.connection.sendall(start)
        self.connection.setblocking(False)
        self.received = b""
        self.is_closed = False

    def dribble(self) -> None:
        try:
            self.connection.send(b"a")
            chunk = self.connection.recv(65536)
            self.received += chunk
            self.is_closed = not chunk
        except BlockingIOError:
            return
        except OSError:
            self.is_closed = True


def test_slow_clients_are_closed_and_hold_up_nobody(port: Port) -> None:
    job = port.head(b"POST /v1/jobs HTTP/1.1")
    starts = [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: service\r\nX: ",
        job + b"X: ",
        job + b"Content-Length: 100000\r\n\r\n",
    ]
    with ExitStack() as opened:
        slow = [Slow(port, starts[index % len(starts)]) for index in range(SLOW_CLIENTS)]
        for each in slow:
            opened.callback(each.connection.close)
        done = threading.Event()

        def dribble() -> None:
            while not done.wait(0.1):
                for each in slow:
                    if not each.is_closed:
                        each.dribble()

        dribbling = threading.Thread(target=dribble)
        dribbling.start()
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not all(each.is_closed for each in slow):
                assert time.monotonic() < deadline, sum(not each.is_closed for each in slow)
                assert port.service.status("/health") == 200
                assert port.http.get("/v1/jobs").status_code == 200  # needs one of few connections to PostgreSQL
                time.sleep(0.05)
        finally:
            done.set()
            dribbling.join()
    told = [statuses(each.received) for each in slow]
    assert told.count([408]) + told.count([]) == SLOW_CLIENTS  # a reset may overtake the answer
    assert [408] in told
    assert "Traceback" not in port.service.log.read_text()


def test_refusals_are_counted_and_answered_as_errors_are(port: Port) -> None:
    with port.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["type"] == "HttpError"
    assert 'agent_executor_http_refused_total{status="400"}' in port.http.get("/metrics").text
