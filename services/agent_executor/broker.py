"""The connection to NATS, and the JetStream streams and consumer this service needs.

Owns their settings. What is absent is created; what is there is compared, every difference is logged by name, and
corrected where JetStream allows it: a durable that exists keeps its old settings otherwise, whatever the code says.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import structlog
from nats.aio.client import Client, RawCredentials
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from . import tls
from .announcements import DEAD_SUBJECT, STATUS_SUBJECT
from .pull import Pull

JOBS_SUBJECT = "agent.execute.*"
STATUS_STREAM = "AGENT_STATUS"
DEAD_STREAM = "AGENT_DEAD"
ACK_WAIT_S = 12.0
_DAY_S = 24 * 3600.0
_RETRY_S = 1.0
_CONNECT_S = 10.0
_CONSUMER_SETTINGS = (
    *("ack_policy", "ack_wait", "max_ack_pending", "max_deliver", "deliver_subject"),
    *("filter_subject", "filter_subjects", "headers_only"),
)
_AWAY = (NatsError, OSError, TimeoutError)

log = structlog.get_logger()


def server(url: Callable[[], str], credentials: Callable[[], str | None]) -> dict[str, Any]:
    """Where to connect, and as whom, as nats-py takes it; it asks for user and password at each connection.

    It would not decode what a URL holds, so that is done here.
    """

    def of_url(part: str) -> str:
        return unquote(getattr(urlsplit(url().split(",")[0]), part) or "")

    urls = [each.strip() for each in url().split(",")]
    as_whom: dict[str, Any] = {}
    if credentials():
        as_whom = {"user_credentials": _Current(credentials)}
    elif urlsplit(urls[0]).password:
        as_whom = {"user": lambda: of_url("username"), "password": lambda: of_url("password")}
    elif urlsplit(urls[0]).username:
        as_whom = {"token": lambda: of_url("username")}
    return {"servers": [_without_user(each) if as_whom else each for each in urls], **as_whom}


def client(url: str, cacert: str | None) -> Client:
    """A client that is not connected yet. It speaks TLS if a URL says so, and with `cacert`, a file, in any case."""
    is_secure = any(urlsplit(each.strip()).scheme in ("tls", "wss") for each in url.split(","))
    return _Verified(cacert) if is_secure or cacert else Client()


class _Verified(Client):
    """By TLS, and certainly with the server that the URL names.

    nats-py by itself would send everything, the password included, without TLS if the server, or whoever stands
    between, says that it has none; for tls:// as well.
    """

    def __init__(self, cacert: str | None) -> None:
        super().__init__()
        self._cacert = cacert

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Asked for at each connection."""
        return tls.trusted(self._cacert)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Called with what the server says of itself, before anything is sent."""
        server = self._current_server
        if initial_connection and not (server and server.uri.scheme == "wss"):
            if (server and server.uri.scheme == "ws") or not (info.get("tls_required") or info.get("tls_available")):
                raise ssl.SSLError("the server does not speak TLS")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class _Current(RawCredentials):
    """The content of a .creds file as it is now; nats reads it at each connection."""

    def __init__(self, source: Callable[[], str | None]) -> None:
        self._source = source

    @property
    def data(self) -> str:  # type: ignore[override]
        return self._source() or ""


class Broker:
    """A connection that never gives up. `js` may be used once `ready` is set; `on_ready` is called then, and whenever
    the connection is up again.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        stream: str,
        consumer: str,
        credentials: Callable[[], str | None] = lambda: None,
        cacert: str | None = None,
    ) -> None:
        """`url` may be a function: user and password are then asked of it for each connection, as `credentials`, the
        content of a .creds file, are. `cacert`: as for `client`."""
        self._cacert = cacert
        self._url = url if callable(url) else lambda: url
        self._credentials = credentials
        self.on_ready: Callable[[], None] = lambda: None
        self.stream = stream
        self.consumer = consumer
        self.ready = asyncio.Event()
        self._back = asyncio.Event()
        self._client: Client | None = None
        self._form: object = None

    @property
    def connected(self) -> bool:
        """Whether the connection is up now."""
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        """The connection; only after `ready`."""
        assert self._client is not None
        return self._client

    @property
    def js(self) -> JetStreamContext:
        """JetStream; only after `ready`."""
        return self.client.jetstream(timeout=5)

    def pull(self) -> Pull:
        """The consumer's messages over this connection; only after `ready`."""
        return Pull(self.client, self.stream, self.consumer)

    async def run(self) -> None:
        """Connect and prepare, trying until it works; again after each reconnect, since a server may lose its data."""
        while True:
            self._back.clear()
            try:
                if self._client is None or self._client.is_closed:
                    self._client = await self._connect()
                await self._prepare()
            except _AWAY as error:
                log.warning("nats_unavailable", error=type(error).__name__, reason=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            self.ready.set()
            self.on_ready()
            log.info("nats_ready", stream=self.stream, consumer=self.consumer)
            await self._back.wait()

    async def repair(self) -> None:
        """Make again what somebody deleted, or what a NATS that lost its data no longer has."""
        try:
            await self._prepare()
        except _AWAY as error:
            log.warning("nats_unavailable", error=type(error).__name__, reason=str(error))

    async def renew(self) -> None:
        """Connect anew if we are to do so in another way: other servers, or as somebody who is told otherwise.

        Another password of the same user is asked for at the next connection anyway.
        """
        if self._client is not None and _form(self._server()) != self._form:
            await self._client.close()

    async def close(self) -> None:
        """Send what is buffered (acks, above all), then close. Not `drain`: it waits for pulls nobody answers."""
        if self._client is None or self._client.is_closed:
            return
        with suppress(*_AWAY):
            await self._client.flush(timeout=1)
        await self._client.close()

    async def _connect(self) -> Client:
        async def on_event(name: str, error: Exception | None = None) -> None:
            log.info(f"nats_{name}", **({} if error is None else {"error": type(error).__name__}))

        async def on_error(error: Exception) -> None:
            tls.note("nats", error)
            await on_event("error", error)

        async def on_disconnect() -> None:
            await on_event("disconnected")

        async def on_reconnect() -> None:
            await on_event("reconnected")
            self._back.set()

        async def on_close() -> None:  # by us, or by a server that knows our password no more
            await on_event("closed")
            self._back.set()

        connecting, server = client(self._url(), self._cacert), self._server()
        self._form = _form(server)
        try:
            async with asyncio.timeout(_CONNECT_S):  # then with what is right by then
                await connecting.connect(
                    **server,
                    name="agent-executor",
                    connect_timeout=2,
                    reconnect_time_wait=1,
                    max_reconnect_attempts=-1,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    error_cb=on_error,
                    disconnected_cb=on_disconnect,
                    reconnected_cb=on_reconnect,
                    closed_cb=on_close,
                )
        except BaseException:
            with suppress(*_AWAY):
                await connecting.close()
            raise
        return connecting

    def _server(self) -> dict[str, Any]:
        return server(self._url, self._credentials)

    async def _prepare(self) -> None:
        for config in self._streams():
            await self._ensure_stream(config)
        await self._ensure_consumer()

    def _streams(self) -> list[StreamConfig]:
        common: dict[str, Any] = {
            "storage": StorageType.FILE,
            "retention": RetentionPolicy.LIMITS,
            "duplicate_window": 3600.0,
        }
        return [
            StreamConfig(name=self.stream, subjects=[JOBS_SUBJECT], max_age=_DAY_S, **common),
            StreamConfig(name=STATUS_STREAM, subjects=[f"{STATUS_SUBJECT}*"], max_age=7 * _DAY_S, **common),
            StreamConfig(name=DEAD_STREAM, subjects=[f"{DEAD_SUBJECT}*"], max_age=30 * _DAY_S, **common),
        ]

    async def _ensure_stream(self, wanted: StreamConfig) -> None:
        try:
            found = (await self.js.stream_info(str(wanted.name))).config
        except NotFoundError:
            await self.js.add_stream(wanted)
            log.info("stream_created", stream=wanted.name)
            return
        names = ("subjects", "storage", "retention", "max_age", "duplicate_window")
        differing = _differences(wanted, found, names)
        if not differing:
            return
        log.warning("stream_differs", stream=wanted.name, **differing)
        for name in differing:
            setattr(found, name, getattr(wanted, name))
        await _corrected(self.js.update_stream(found), "stream", str(wanted.name))

    async def _ensure_consumer(self) -> None:
        wanted = ConsumerConfig(
            durable_name=self.consumer, ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_S, max_ack_pending=1000
        )
        try:
            found = (await self.js.consumer_info(self.stream, self.consumer)).config
        except NotFoundError:
            await self.js.add_consumer(self.stream, wanted)
            log.info("consumer_created", consumer=self.consumer)
            return
        differing = _differences(wanted, found, _CONSUMER_SETTINGS)
        if not differing:
            return
        log.warning("consumer_differs", consumer=self.consumer, **differing)
        for name in differing:
            setattr(found, name, getattr(wanted, name))
        await _corrected(self.js.add_consumer(self.stream, found), "consumer", self.consumer)


def _differences(wanted: Any, found: Any, names: tuple[str, ...]) -> dict[str, str]:
    """Settings of `found` that are not as wanted, as `{name: "is X, should be Y"}`."""
    return {
        name: f"is {is_now!s}, should be {should_be!s}"
        for name in names
        if (is_now := _plain(getattr(found, name))) != (should_be := _plain(getattr(wanted, name)))
    }


def _plain(value: Any) -> Any:
    if value in (None, -1, "", False, []):
        return None
    return getattr(value, "value", value)


async def _corrected(update: Any, kind: str, name: str) -> None:
    try:
        await update
        log.info(f"{kind}_corrected", **{kind: name})
    except APIError as error:
        log.error(f"{kind}_not_corrected", **{kind: name}, reason=error.description)


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _form(server: Mapping[str, Any]) -> object:
    return tuple(server["servers"]), frozenset(server)
