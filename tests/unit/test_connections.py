"""connections: real sockets, and an application that says what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from agent_executor.connections import MAX_HEADERS, Connection, Limits

PATIENCE_S = 30.0
EVER = 3600.0
LARGE = b"x" * 24 * 2**20
HEAD = b"POST /first HTTP/1.1\r\nHost: a\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"
LIMITS = {"connections": 100, "header_bytes": 8192, "header_s": EVER, "body_s": EVER, "stall_s": EVER}


class Application:
    """Answers with what it is asked. `/stream` is answered for as long as somebody reads."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.connections: set[Any] = set()
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.begun.append(path)
        body, more = b"", path != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append(path)
                return
            body, more = body + message["body"], message["more_body"]
        if path == "/stream":
            await self._stream(receive, send)
        elif path == "/large":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": LARGE})
        else:
            await self.hold.wait()
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            about = {"path": path, "headers": headers, "body": body.decode()}
            told = json.dumps({**about, "from": [scope["client"][0], scope["scheme"]]}).encode()
            length = (b"content-length", str(len(told)).encode())
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send({"type": "http.response.body", "body": told})
        self.ended.append(path)

    async def _stream(self, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)


class Client:
    """One connection; `answers` are those that came until the server closed it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, Any]]:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            return int(head.split()[1]), json.loads(await self.reader.readexactly(length))

    async def answers(self) -> list[int]:
        found = []
        try:
            while True:
                found.append((await self.answer())[0])
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return found

    async def closed(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionResetError:
                return


Connect = Callable[[], Any]


@asynccontextmanager
async def serving(application: Application, keep_alive_s: int = 3600, **limits: float) -> AsyncIterator[Connect]:
    """A way to connect to `application`."""
    Connection.limits = Limits(**{**LIMITS, **limits})  # type: ignore[arg-type]
    config = Config(application, http=Connection, log_config=None, timeout_keep_alive=keep_alive_s, lifespan="off")
    config.load()
    state = ServerState()
    application.connections = state.connections
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    try:
        yield connect
    finally:
        for client in clients:
            client.writer.close()
        server.close()
        async with asyncio.timeout(PATIENCE_S):
            while state.connections or state.tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
def application() -> Application:
    return Application()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_requests_on_one_connection_are_answered_in_turn(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        for _ in range(3):
            client.send(HEAD + b"Content-Length: 2\r\n\r\nhi" + SECOND)
            assert [(await client.answer())[1]["path"] for _ in range(2)] == ["/first", "/second"]


async def test_a_trailer_field_is_no_header(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nAuthorization: Bearer x\r\n\r\n" + SECOND
        )
        (_, first), (_, second) = await client.answer(), await client.answer()
        assert (first["headers"], first["body"]) == ({"host": "a", "transfer-encoding": "chunked"}, "hi")
        assert second["headers"] == {"host": "a"}


@pytest.mark.parametrize(
    ("allowed", "seen"), [("127.0.0.1", ["198.51.100.7", "https"]), ("192.0.2.1,10.0.0.0/8", ["127.0.0.1", "http"])]
)
async def test_where_a_client_is_says_a_proxy_that_is_named(
    application: Application, monkeypatch: pytest.MonkeyPatch, allowed: str, seen: list[str]
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", allowed)
    async with serving(application) as connect:
        client = await connect()
        forwarded = b"X-Forwarded-For: 10.9.9.9, 198.51.100.7\r\nX-Forwarded-Proto: https\r\n"
        client.send(SECOND[:-2] + forwarded + b"Forwarded: for=203.0.113.1\r\nX-Real-IP: 203.0.113.1\r\n\r\n")
        assert (await client.answer())[1]["from"] == seen


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"a" * 9000 + b"\r\n\r\n",
        b"X: " + b"a" * 9000,
        b"X: y\r\n" * MAX_HEADERS + b"\r\n",
        b"".join(b"X: " + b"a" * 1000 + b"\r\n" for _ in range(9)),
    ],
)
async def test_headers_that_are_too_large(application: Application, head: bytes) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(HEAD + head)
        assert (await client.answers(), application.begun) == ([431], [])


@pytest.mark.parametrize(
    "start",
    [b"\r\n" * 5000, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n", SECOND.replace(b"second", b"a" * 9000)],
)
async def test_a_beginning_that_is_too_large(application: Application, start: bytes) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(start)
        assert await client.answers() == [431]


async def test_a_large_body_beside_small_headers_is_none_of_that(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(HEAD)
        await client.writer.drain()
        for _ in range(2):
            client.send(b"Content-Length: 100000\r\n\r\n" + b"b" * 100000 + HEAD)
            assert (await client.answer())[0] == 200


@pytest.mark.parametrize("endless", [b"0\r\nX: ", b"0\r\n", b"2;"])
@pytest.mark.parametrize(("path", "told"), [(b"first", [431]), (b"early", [200])])
async def test_what_never_becomes_a_body_is_not_kept(
    application: Application, endless: bytes, path: bytes, told: list[int]
) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(HEAD.replace(b"first", path) + b"Transfer-Encoding: chunked\r\n\r\n" + endless)
        answers = asyncio.create_task(client.answers())
        for _ in range(50):
            if answers.done():
                break
            client.send(b"X: " + b"a" * 995 + b"\r\n" if endless == b"0\r\n" else b"a" * 1000)
            await asyncio.sleep(0.001)  # so that the server reads it in pieces
        assert await answers == told


async def test_small_chunks_are_no_such_thing(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            client.send(b"1;" + b"a" * 100 + b"\r\nb\r\n")
            await asyncio.sleep(0.001)
        client.send(b"0\r\n\r\n")
        assert (await client.answer())[1]["body"] == "b" * 200


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX", b"\r\n", b"GET /x HTTP/1.1\r\n"])
async def test_headers_that_do_not_end(application: Application, start: bytes) -> None:
    async with serving(application, header_s=0.2) as connect:
        client = await connect()
        client.send(start)
        assert (await client.answers(), application.begun) == ([408], [])


async def test_who_dribbles_gains_no_time(application: Application) -> None:
    async with serving(application, header_s=0.5) as connect:
        client = await connect()
        client.send(SECOND + b"GET / HTTP/1.1\r\nX: ")
        assert (await client.answer())[0] == 200
        answers = asyncio.create_task(client.answers())
        while not answers.done():
            client.send(b"a")
            await asyncio.sleep(0.02)
        assert await answers == [408]


async def test_who_says_nothing_is_closed_without_a_word(application: Application) -> None:
    async with serving(application, header_s=0.1) as connect:
        assert await (await connect()).answers() == []


async def test_an_idle_connection_is_closed_and_one_that_drips_blank_lines_as_well(application: Application) -> None:
    async with serving(application, keep_alive_s=0, header_s=1.0) as connect:
        silent, dripping = await connect(), await connect()
        silent.send(SECOND)
        assert await silent.answers() == [200]
        dripping.send(SECOND + b"\r\n")
        answers = asyncio.create_task(dripping.answers())
        while not answers.done():
            dripping.send(b"\r\n")
            await asyncio.sleep(0.02)
        assert (await answers)[0] == 200


async def test_a_body_that_does_not_end(application: Application) -> None:
    async with serving(application, body_s=0.2) as connect:
        client = await connect()
        client.send(HEAD + b"Content-Length: 20\r\n\r\nhi")
        assert await client.answers() == [408]
        await until(lambda: application.ended == ["/first"])


async def test_a_body_behind_another_request_has_its_time_too(application: Application) -> None:
    application.hold.clear()
    async with serving(application, body_s=0.2) as connect:
        client = await connect()
        client.send(SECOND + HEAD + b"Content-Length: 20\r\n\r\nhi")
        await until(lambda: application.begun)
        await asyncio.sleep(0.4)  # the time of the body runs out while nobody could answer
        application.hold.set()
        assert await client.answers() == [200, 408]


async def test_a_body_that_is_wrong_in_the_middle(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nxyz\r\n")
        assert await client.answers() == [400]
        await until(lambda: application.begun == application.ended)


async def test_an_answer_that_did_not_wait_for_the_body(application: Application) -> None:
    early = HEAD.replace(b"first", b"early") + b"Content-Length: 4\r\n\r\nhi"
    async with serving(application, keep_alive_s=0, header_s=1.0) as connect:
        patient, other = await connect(), await connect()
        for client in (patient, other):
            client.send(early)
            assert (await client.answer())[0] == 200
        other.send(b"ho" + SECOND)
        assert await other.answers() == [200]
        assert await patient.answers() == []


async def test_what_follows_the_rest_of_a_body_is_not_waited_for_without_end(application: Application) -> None:
    async with serving(application, keep_alive_s=0) as connect:
        client = await connect()
        client.send(HEAD.replace(b"first", b"early") + b"Content-Length: 4\r\n\r\nhi")
        assert (await client.answer())[0] == 200
        client.send(b"ho")
        assert await client.answers() == []


async def test_requests_in_pieces_do_not_add_up(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        for _ in range(12):
            client.send(SECOND[:-2] + b"X: " + b"a" * 1000)
            await client.writer.drain()
            await asyncio.sleep(0.01)  # so that the server reads it by itself
            client.send(b"\r\n\r\n")
            assert (await client.answer())[0] == 200


async def test_what_is_wrong_waits_for_the_answers_before_it(application: Application) -> None:
    application.hold.clear()
    async with serving(application) as connect:
        for wrong in (b"nonsense\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"):
            client = await connect()
            client.send(SECOND + SECOND + wrong + SECOND)
            application.hold.set()
            assert await client.answers() == [200, 200]
        assert "/first" not in application.begun


async def test_an_upgrade_is_ignored_and_ends_the_connection(application: Application) -> None:
    async with serving(application) as connect:
        for kind in (b"websocket", b"h2c"):
            application.hold.clear()
            application.begun.clear()
            client = await connect()
            client.send(SECOND[:-2] + b"Connection: Upgrade\r\nUpgrade: " + kind + b"\r\n\r\n" + HEAD)
            await until(lambda: application.begun)
            client.send(HEAD)
            application.hold.set()
            assert await client.answers() == [200]
        assert set(application.begun) == {"/second"}


async def test_only_so_many_requests_wait_on_one_connection(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(SECOND * 200)
        assert len(await client.answers()) < 20


async def test_a_stream_before_another_request_ends_with_its_reader(application: Application) -> None:
    async with serving(application) as connect:
        client = await connect()
        client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n" + SECOND)
        await client.reader.readuntil(b"\r\n\r\n")
        client.writer.transport.abort()
        await until(lambda: application.ended == ["/stream"])
        assert application.begun == ["/stream"]


async def test_a_reader_that_does_not_read_is_let_go(application: Application) -> None:
    async with serving(application, stall_s=0.3) as connect:
        client = await connect()
        client.writer.transport.pause_reading()
        client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: application.ended == ["/stream"])


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
async def test_a_large_answer_may_be_read_slowly(application: Application, more: bytes) -> None:
    async with serving(application, stall_s=0.4) as connect:
        client = await connect()
        client.send(b"GET /large HTTP/1.0\r\nHost: a\r\n" + more + b"\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        for _ in range(48):
            await client.reader.readexactly(len(LARGE) // 48)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
async def test_who_stops_reading_a_large_answer_is_let_go(application: Application, more: bytes) -> None:
    async with serving(application, stall_s=0.2) as connect:
        client = await connect()
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n" + more + b"\r\n")
        await client.reader.readexactly(2**20)
        client.writer.transport.pause_reading()
        await until(lambda: not application.connections)
        client.writer.transport.resume_reading()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.reader.readexactly(len(LARGE))


async def test_the_one_that_waited_longest_makes_room(application: Application) -> None:
    async with serving(application, connections=2) as connect:
        first, second = await connect(), await connect()
        first.send(SECOND)
        assert (await first.answer())[0] == 200
        third = await connect()
        await second.closed()
        for client in (first, third):
            client.send(SECOND)
            assert (await client.answer())[0] == 200
        await connect()
        await first.closed()


async def test_where_all_are_busy_only_probes_are_answered(application: Application) -> None:
    async with serving(application, connections=2) as connect:
        application.hold.clear()
        busy = [await connect(), await connect()]
        for client in busy:
            client.send(SECOND)
        await until(lambda: len(application.begun) == 2)
        late = await connect()
        late.send(SECOND)
        assert await late.answers() == [503]
        probe = await connect()
        probe.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: "/health" in application.begun)
        application.hold.set()
        assert [(await client.answer())[0] for client in (*busy, probe)] == [200, 200, 200]
