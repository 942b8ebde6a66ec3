"""Connections of HTTP clients: `uvicorn --http agent_executor.connections:Connection`.

Owns what uvicorn's own protocol leaves open: how long a client may take over a request and over reading its answer, how
much it may send before a request begins, how many may be connected, and that no request can be read in two ways (RFC
9112, section 11.2). What a request means is none of its concern.

llhttp, the parser, refuses most of what is ambiguous; the checks here are of what it lets pass.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

PROBES = frozenset({"/health", "/ready"})
MAX_HEADERS = 100
_MAX_PIPELINED = 8
_LEAST_READ_BYTES = 48 * 2**10  # what an event stream's reader has to read before more is written
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")  # RFC 3986, section 3.2
_NOTED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_SAYS = {
    400: "the request is not valid HTTP/1.1",
    408: "the request took too long to arrive",
    431: "the request's headers are too large",
    503: "too many connections",
}


@dataclass(frozen=True)
class Limits:
    """What one process allows its clients."""

    connections: int
    header_bytes: int
    """Of a request's target and headers together."""
    header_s: float
    """For a request's headers to be complete, since the connection or the request began."""
    body_s: float
    """For its body to be complete, since its headers were."""
    stall_s: float
    """For a reader to take some of what waits for it, though not every bit: a large answer takes its time."""


class _Phase(Enum):
    IDLE = 0
    HEAD = 1
    BODY = 2


def _answer(status: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    body = json.dumps({"error": {"type": "HttpError", "message": _SAYS[status], "fields": []}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"), (b"connection", b"close")]
    return headers + [(b"retry-after", b"1")] * (status == 503), body


def _raw(status: int) -> bytes:
    headers, body = _answer(status)
    return STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n" + body


_ANSWERS = {status: _raw(status) for status in (400, 408, 431)}
_BUSY = _answer(503)


def _note(status: int) -> None:
    from .metrics import http_refused  # not before /health answers

    http_refused.labels(status).inc()


async def _busy(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    _note(503)
    headers, body = _BUSY
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Connection(HttpToolsProtocol):
    """One client's connection. `limits` is set before the first."""

    limits: ClassVar[Limits]
    _waiting: ClassVar[dict[Connection, None]] = {}
    """Those of which no request is being answered, the one that has waited longest first."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.ws_protocol_class = None
        self._phase = _Phase.IDLE
        self._messages = 0
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._pieces = 0
        self._has_host = False
        self._lengths = 0
        self._refusal = 400
        self._ended = False
        self._active: RequestResponseCycle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._watched = (False, 0)
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Where there are too many, close the one that has waited longest for its client."""
        super().connection_made(transport)
        self._waiting[self] = None
        self._arm(self.limits.header_s)
        if len(self.connections) > self.limits.connections:
            oldest = next(iter(self._waiting))
            if oldest is not self:
                oldest._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, which uvicorn does for the last one of a pipeline only."""
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()
        self._waiting.pop(self, None)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._active is not None and not self._active.response_complete:
            self._active.disconnected = True
            self._active.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse; refuse what is not HTTP, and see to it that what is incomplete does not stay so."""
        if self._ended:
            return
        self._unset_keepalive_if_required()
        before = self._messages, self._pieces
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade:  # a server may ignore that (RFC 9110, section 7.8), but cannot tell what comes next
            self._end()
        except HttpParserError:
            self._refuse(self._refusal)
        else:
            self._watch(len(data), *before)

    def on_message_begin(self) -> None:
        """Called by the parser, at the first character of a request."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests at once")
        self._phase = _Phase.HEAD
        self._head_bytes = 0
        self._has_host = False
        self._lengths = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Called by the parser, for each piece of it."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; ValueError refuses the request, here as elsewhere."""
        if self._phase is not _Phase.HEAD:  # a trailer field, which uvicorn would take for a header
            return
        name = name.lower()
        self._head_bytes += len(name) + len(value) + 4
        if name in _NOTED:
            self._note_header(name, value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by the parser: the request can begin."""
        self._check()
        self._pieces += 1
        super().on_headers_complete()
        self._phase = _Phase.BODY

    def on_body(self, body: bytes) -> None:
        """Called by the parser, for each piece of it."""
        self._pieces += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser: the body is there, too."""
        self._phase = _Phase.IDLE
        self._messages += 1
        self._pieces += 1
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Called when the application has answered."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._linger()
        elif self._active is not None and self._active.response_complete:  # no other request is being answered
            self._waiting[self] = None
            if self._phase is not _Phase.IDLE:  # an answer that did not wait for the body, or half a request
                self._unset_keepalive_if_required()
                self._arm(self.limits.header_s)
        elif self._phase is _Phase.BODY and self._active is self.cycle:
            self._arm(self.limits.body_s)

    def pause_writing(self) -> None:
        """Called by the transport: the client does not read as fast as we write."""
        super().pause_writing()
        if self._stalled is None:
            self._await_reader()

    def resume_writing(self) -> None:
        """Called by the transport: it has read."""
        super().resume_writing()
        if self._stalled is not None and not self.transport.is_closing():
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        """Called when no other request came."""
        self._close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        self._waiting.pop(self, None)
        is_full = len(self.connections) - len(self._waiting) > self.limits.connections
        super()._start_asgi_task(cycle, _busy if is_full and cycle.scope["path"] not in PROBES else app)

    def _note_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            if self._has_host or not _HOST.fullmatch(value):
                raise ValueError("which host?")
            self._has_host = True
        elif name == b"content-length":
            self._lengths += 1
        elif name == b"transfer-encoding":
            self._lengths += 1
            if value.lower() != b"chunked" or self.parser.get_http_version() == "1.0":
                raise ValueError("a coding that is not taken away here")
        elif value.lower() == b"100-continue":
            self.expect_100_continue = True

    def _check(self) -> None:
        """Raise ValueError for headers that are too large, and for a request that might be taken for two."""
        if self._head_bytes > self.limits.header_bytes or len(self.headers) > MAX_HEADERS:
            self._refusal = 431
            raise ValueError("too large")
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0") or (version == "1.1" and not self._has_host):
            raise ValueError("version or host")
        if self._lengths > 1:
            raise ValueError("how long?")
        if not self.url.startswith(b"/"):  # https://www.rfc-editor.org/rfc/rfc9112#name-absolute-form
            host = next((value for name, value in self.headers if name == b"host"), b"")
            scheme, found, rest = self.url.partition(b"://")
            if not found or scheme.lower() not in (b"http", b"https") or not host:
                raise ValueError("form of the target")
            if re.split(rb"[/?#]", rest, maxsplit=1)[0].lower() != host.lower():
                raise ValueError("which host?")

    def _watch(self, size: int, messages: int, pieces: int) -> None:
        """See to it that what has begun is complete in time. `messages`, `pieces`: before these `size` bytes."""
        if self._phase is _Phase.IDLE and self._messages != messages:
            self._unparsed_bytes = 0
            self._disarm()
            if self.cycle.response_complete and not self.transport.is_closing():
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._close)
            return
        # Of a header, perhaps, or of a trailer: the parser keeps such a field, and shows it when it is complete.
        self._unparsed_bytes = self._unparsed_bytes + size if self._pieces == pieces else 0
        if self._unparsed_bytes > self.limits.header_bytes:
            self._refuse(431)
            return
        is_body = self._phase is _Phase.BODY
        if self._deadline is None or self._watched != (is_body, self._messages):
            self._watched = (is_body, self._messages)
            self._arm(self.limits.body_s if is_body else self.limits.header_s)

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(delay_s, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        active = self._active
        if active is None or active.response_complete:
            is_silent = self._phase is _Phase.IDLE and not self._unparsed_bytes
            self._close() if is_silent else self._refuse(408)
        elif self._phase is _Phase.BODY and self.cycle is active and not active.response_started:
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        """Answer what cannot be a request, unless others are being answered: those are, and then comes the end."""
        _note(status)
        active = self._active
        is_incomplete = self._phase is _Phase.BODY
        self._end()
        if active is not None and not active.response_complete:
            if is_incomplete and self.pipeline:
                self.pipeline.popleft()
                self._end()
            if self.cycle is not active or not is_incomplete or active.response_started:
                return
            active.disconnected = True
        elif is_incomplete:  # it has had its answer
            self._close()
            return
        if not self.transport.is_closing():
            self.transport.write(_ANSWERS[status])
            self._close()

    def _end(self) -> None:
        """Read no other request."""
        self._ended = True
        self._disarm()
        last = self.pipeline[0][0] if self.pipeline else self._active
        if last is not None and not last.response_complete:
            last.keep_alive = False

    def _close(self) -> None:
        """Close once what was written is sent, and before long where nobody reads it."""
        self._waiting.pop(self, None)
        if not self.transport.is_closing():
            self.transport.close()
        self._linger()

    def _linger(self) -> None:
        self._disarm()
        if self._stalled is None:
            self._await_reader()

    def _await_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self.limits.stall_s, self._abort_unless_read, unread)

    def _abort_unless_read(self, unread: int) -> None:
        """Let go a client that has read next to nothing of so many bytes."""
        if unread - self.transport.get_write_buffer_size() < _LEAST_READ_BYTES:
            self.transport.abort()
        else:
            self._await_reader()
