"""Events of running jobs, to Redis and back.

Owns the pub/sub channel `langgraph:stream:{thread_id}` and the Redis Stream `langgraph:events:{thread_id}`. Best
effort: Redis being away never fails a job. An event's id is `<fence>-<number>`, so ids grow over takeovers without a
clock, a batch sent twice is stored once, and Redis itself refuses what a worker that lost its job still sends.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.credentials import CredentialProvider
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig

from . import metrics, strict_json, tls

KEPT_S = 24 * 3600
KEPT_EVENTS = 100_000
_BATCH = 250
_BATCH_BYTES = 2**20
_BUFFERED_EVENTS = 20_000
_BUFFERED_BYTES = 64 * 2**20
_PAUSE_S = 1.0
_TURNS = 60
_BEHIND_S = 0.002
_TIMEOUT_S = 0.5
FAILURES = (RedisError, OSError, TimeoutError)
_PASSING = (ReadOnlyError, OutOfMemoryError, MasterDownError, ClusterDownError)
_PASSING_CODES = ("READONLY", "OOM", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS")
"""Refusals of a Redis that is full, or where another one is the master now: as good as away."""

# One job's events, each published only if it is stored: of a batch sent twice, or by a worker that lost its job,
# subscribers hear nothing. An event that is refused costs no other: returns its number, and the reason after it.
_STORE_AND_PUBLISH = """
local refused = {}
for i = 4, #ARGV, 3 do
  local reply = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], ARGV[i], 'type', ARGV[i + 1], 'event', ARGV[i + 2])
  if type(reply) == 'string' then reply = redis.pcall('PUBLISH', ARGV[3], ARGV[i + 2]) end
  if type(reply) == 'table' then
    refused[#refused + 1] = (i - 4) / 3
    refused[#refused + 1] = reply.err
  end
end
redis.pcall('EXPIRE', KEYS[1], ARGV[2])
return refused
"""

log = structlog.get_logger()


class _Current(CredentialProvider):
    """User and password of the URL as it is now: they may be rotated."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        parts = urlsplit(self._url())
        password = unquote(parts.password or "")
        return (unquote(parts.username), password) if parts.username else (password,)


class _Verified(SSLConnection):
    """By TLS, and certainly with the server that the URL names.

    redis-py by itself would read all authorities of the system for each connection, and trust them beside `cacert`.
    """

    def __init__(self, cacert: str | None, **named: Any) -> None:
        self._cacert = cacert
        self._has_options = any(name.startswith("ssl_") for name in named)  # the URL's own, such as a certificate
        if cacert and self._has_options:
            named["ssl_ca_certs"] = cacert
        super().__init__(**named)

    def _connection_arguments(self) -> Mapping[str, Any]:
        found = dict(super()._connection_arguments())
        return found if self._has_options else found | {"ssl": tls.trusted(self._cacert)}

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except OSError as error:
            tls.note("redis", error)
            raise


def connect(
    url: str | Callable[[], str],
    *,
    cacert: str | None = None,
    timeout_s: float = _TIMEOUT_S,
    connections: int = 100,
) -> Redis:
    """A client with short timeouts that retries nothing by itself: the publisher's pause does that for all jobs.

    `url` may be a function: user and password are then asked of it for each connection. `cacert`, a file, has it speak
    TLS in any case.
    """
    more: dict[str, Any] = {}
    if callable(url):
        parts, source = urlsplit(url()), url
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        if parts.password:
            more["credential_provider"] = _Current(source)
    if cacert:
        url = re.sub("^redis:", "rediss:", url)
    client: Redis = Redis.from_url(
        url,
        **more,
        socket_timeout=timeout_s,
        socket_connect_timeout=_TIMEOUT_S,
        retry=None,
        max_connections=connections,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),  # a question only Redis Cloud answers
    )
    if client.connection_pool.connection_class is SSLConnection:
        client.connection_pool.connection_class = _Verified
        client.connection_pool.connection_kwargs["cacert"] = cacert
    return client


def channel(thread_id: str) -> str:
    """Name of the pub/sub channel."""
    return f"langgraph:stream:{thread_id}"


def key(thread_id: str) -> str:
    """Name of the Redis Stream."""
    return f"langgraph:events:{thread_id}"


class Event(NamedTuple):
    """One event as readers get it: `id` in its stream, its type, and the JSON published."""

    id: str
    event_type: str
    body: bytes


class Publisher:
    """Sends events of all jobs of this process, in order, in batches: one pipeline is in flight at a time.

    What is queued meanwhile goes with the next, one call of a script for each job, so that nobody waits for a timer.
    While Redis is away events are kept, up to a bound, and sent when it is back; what does not fit is dropped oldest
    first and counted.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._buffer: deque[tuple[str, Event]] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def channel(self, thread_id: str, fence: int, trace_id: str, count: int = 0) -> Channel:
        """The events of one claimed job, `count` of which were sent before."""
        return Channel(self, thread_id, fence, trace_id, count)

    def put(self, thread_id: str, event: Event) -> None:
        """Queue an event; never blocks."""
        self._buffer.append((thread_id, event))
        self._bytes += len(event.body)
        while len(self._buffer) > _BUFFERED_EVENTS or (self._bytes > _BUFFERED_BYTES and len(self._buffer) > 1):
            self._pop()
            metrics.redis_publish_errors.inc()
        self._idle.clear()
        self._more.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._more.wait()
            await self._stand_back()
            batch = self._next()
            try:
                await self._send(batch)
            except FAILURES as error:
                metrics.redis_publish_errors.inc(len(batch))
                log.warning("events_delayed", error=type(error).__name__, waiting=len(self._buffer))
                await asyncio.sleep(_PAUSE_S)
                continue
            for sent in batch:
                if self._buffer and self._buffer[0] is sent:
                    self._pop()
            if not self._buffer:
                self._more.clear()
                self._idle.set()

    async def _stand_back(self) -> None:
        """Let the steps of jobs go first, which wait for the database next: meanwhile there is time to send."""
        until = time.monotonic() + _BEHIND_S
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if time.monotonic() > until:
                return

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything queued was sent, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("events_lost", waiting=len(self._buffer))

    def _pop(self) -> None:
        _, event = self._buffer.popleft()
        self._bytes -= len(event.body)

    def _next(self) -> list[tuple[str, Event]]:
        """The oldest events, as many as may go at once."""
        batch: list[tuple[str, Event]] = []
        size = 0
        for each in islice(self._buffer, _BATCH):
            size += len(each[1].body)
            if batch and size > _BATCH_BYTES:
                break
            batch.append(each)
        return batch

    async def _send(self, batch: list[tuple[str, Event]]) -> None:
        by_job: defaultdict[str, list[Event]] = defaultdict(list)
        for thread_id, event in batch:
            by_job[thread_id].append(event)
        pipeline = self._redis.pipeline(transaction=False)
        for thread_id, events in by_job.items():
            words = [word for event in events for word in (event.id, event.event_type, event.body)]
            pipeline.eval(_STORE_AND_PUBLISH, 1, key(thread_id), KEPT_EVENTS, KEPT_S, channel(thread_id), *words)
        replies = await pipeline.execute(raise_on_error=False)
        for events, reply in zip(by_job.values(), replies, strict=True):
            _count(events, reply)


def _count(events: list[Event], reply: Any) -> None:
    """Tell what became of one job's events. What was refused is its own trouble; the others must not wait for it."""
    if isinstance(reply, ResponseError) and not isinstance(reply, _PASSING):
        refused = dict.fromkeys(range(len(events)), str(reply))
    elif isinstance(reply, Exception):
        raise reply
    else:
        refused = {number: reason.decode() for number, reason in zip(reply[::2], reply[1::2], strict=True)}
    for number, reason in refused.items():
        if reason.startswith(_PASSING_CODES):
            raise ResponseError(reason)
        if "equal or smaller" in reason:
            continue  # sent before, or by a worker that no longer owns the job
        log.error("event_refused", event_id=events[number].id, error=reason)
        metrics.redis_publish_errors.inc()
    stored = Counter(event.event_type for number, event in enumerate(events) if number not in refused)
    for event_type, times in stored.items():
        metrics.redis_publish.labels(event_type).inc(times)


class Channel:
    """Where one run's events go. `emit` never waits and never fails."""

    def __init__(self, publisher: Publisher, thread_id: str, fence: int, trace_id: str, count: int = 0) -> None:
        self._publisher = publisher
        self._thread_id = thread_id
        self._fence = fence
        self._trace_id = trace_id
        self.count = count

    def emit(self, event_type: str, data: Any) -> None:
        """Send `{"event_type", "data", "id", "time", "trace_id"}`; `data` must be JSON, or an `orjson.Fragment`."""
        self.count += 1
        event_id = f"{self._fence}-{self.count}"
        body = {
            "event_type": event_type,
            "data": data,
            "id": event_id,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "trace_id": self._trace_id,
        }
        self._publisher.put(self._thread_id, Event(event_id, event_type, strict_json.dumps(body)))


async def read(redis: Redis, thread_id: str, after: str, block_ms: int, count: int = _BATCH) -> list[Event]:
    """The next events after id `after` ("0" for all), `count` at most, waiting up to `block_ms` for the first.

    Raises:
        RedisError, OSError, TimeoutError: Redis is away.
    """
    replies: Any = await redis.xread({key(thread_id): after}, count=count, block=block_ms)
    if not replies:
        return []
    streams = replies.values() if isinstance(replies, dict) else [entries for _, entries in replies]
    found: list[Event] = []
    for entries in streams:
        found += [_event(*entry) for entry in (entries[0] if entries and isinstance(entries[0], list) else entries)]
    return found


def fitting(events: list[Event]) -> int:
    """How many events like these are to be read at once, so that a slow reader's take no more memory than a batch's."""
    size = sum(len(event.body) for event in events)
    return max(1, min(_BATCH, _BATCH_BYTES * len(events) // size))


async def forget(redis: Redis, thread_id: str) -> None:
    """Drop the events of a job that runs again, but not the knowledge of the last id: what is older stays refused."""
    await redis.xtrim(key(thread_id), maxlen=0, approximate=False)


async def first_id(redis: Redis, thread_id: str) -> str | None:
    """The id of the oldest event that is still there."""
    entries: Any = await redis.xrange(key(thread_id), count=1)
    return entries[0][0].decode() if entries else None


async def last(redis: Redis, thread_id: str) -> Event | None:
    """The newest event that is there."""
    entries: Any = await redis.xrevrange(key(thread_id), count=1)
    return _event(*entries[0]) if entries else None


def _event(event_id: bytes, fields: dict[bytes, bytes]) -> Event:
    return Event(event_id.decode(), fields[b"type"].decode(), fields[b"event"])
