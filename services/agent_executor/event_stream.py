"""A job's events as Server-Sent Events: replayed from Redis, then live, ending with its `end`.

Owns what a reader is told when events are gone: one `warning`, and from the ledger the `end`, or what the job asks. The
ledger is asked when nothing comes, when the job is said to have ended, and now and then, since that may be missed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from . import stream, strict_json
from .errors import Finding, InvalidInput, Unavailable
from .job import TERMINAL, Status

if TYPE_CHECKING:
    from .service import Service

_BLOCK_MS = 1000
_FIRST_EVENTS = 25  # of unknown size
_PIECE_BYTES = 64 * 2**10
_END_S = 1.0
_LOOK_S = 15.0
_LAST = TERMINAL | {Status.INTERRUPTED}  # after which no event follows, for now
_EVENT_ID = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
_REDIS_AWAY = (RedisError, OSError, TimeoutError)
BEGINNING = "0-0"


class Stream(EventSourceResponse):
    """The answer that sends `pieces`, holding a place meanwhile; however it ends, the place is given back."""

    def __init__(self, pieces: AsyncIterator[bytes], place: AbstractContextManager[None]) -> None:
        super().__init__(pieces, ping=15, sep="\n")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, as an ASGI application does."""
        with self._place:
            await super().__call__(scope, receive, send)


class Streams:
    """The open streams of a process, so that it can end them before it goes: their readers come back elsewhere."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._open = 0

    @contextmanager
    def one(self) -> Iterator[asyncio.Task[Any]]:
        """Count a stream as open; yields a task that is done when it has to end."""
        self._open += 1
        self._none_open.clear()
        going_down = asyncio.create_task(self._ended.wait())
        try:
            yield going_down
        finally:
            going_down.cancel()
            self._open -= 1
            if not self._open:
                self._none_open.set()

    async def end(self) -> None:
        """Tell the open streams to end, and wait until they have, at most `_END_S`. Later ones are not concerned."""
        ended, self._ended = self._ended, asyncio.Event()
        ended.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._none_open.wait()


def first_position(last_event_id: str | None) -> str:
    """Where to go on from. Raises InvalidInput for a Last-Event-ID that is none of ours."""
    if last_event_id is None or not last_event_id.strip():
        return BEGINNING
    if not _EVENT_ID.fullmatch(last_event_id.strip()):
        raise InvalidInput("invalid header", [Finding("last-event-id", "must be the id of an event of this stream")])
    return last_event_id.strip()


async def follow(
    service: Service, job_id: str, tenant: str, position: str, holds: Callable[[], bool] = lambda: True
) -> AsyncIterator[bytes]:
    """Yield the events of a tenant's job after `position`, several in a piece, until its `end`, until the process goes
    down, or until the reader's credential `holds` no more, which is looked at before each batch and about every second.

    A reader that is cut off comes back with the last id it saw, here or at another process.
    """
    with service.streams.one() as going_down, service.listener.finished(job_id) as finished:
        looks = _follow(service, job_id, tenant, position, going_down=going_down, finished=finished, holds=holds)
        async for piece in looks:
            yield piece


async def _follow(
    service: Service,
    job_id: str,
    tenant: str,
    position: str,
    *,
    going_down: asyncio.Task[Any],
    finished: asyncio.Event,
    holds: Callable[[], bool],
) -> AsyncIterator[bytes]:
    warned, asked, look_at, count = False, False, 0.0, _FIRST_EVENTS
    now = asyncio.get_running_loop().time
    found: dict[str, Any] | None = None  # the job's row; its last events have the time of one more look to arrive
    if await _missing(service, job_id, position):
        warned = True
        yield _warning(job_id)
    while not going_down.done():
        reading = asyncio.create_task(_next(service, job_id, position, count))
        await asyncio.wait((reading, going_down), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            reading.cancel()
            return
        if not holds():
            return
        events = reading.result()
        for piece in _pieces(events):
            yield piece
        if events:
            last = events[-1]
            if last.event_type == "end":
                return
            position, asked, count = last.id, last.event_type == "on_interrupt", stream.fitting(events)
            look_at, found = 0.0 if found else look_at, None
            await asyncio.sleep(0)  # a long replay must not hold the loop
        elif found is None:
            if finished.is_set() or now() >= look_at:
                finished.clear()
                row = await _job(service, job_id, tenant)
                look_at = now() + _LOOK_S if row else 0.0
                found = row if row and row["status"] in _LAST else None
        else:
            instead = await _instead(service, job_id, position, found, warned=warned, asked=asked)
            for made in instead:
                yield made
            if found["status"] in TERMINAL:
                return
            found, warned, asked = None, warned or bool(instead), asked or bool(instead)


async def _instead(
    service: Service, job_id: str, position: str, found: dict[str, Any], *, warned: bool, asked: bool
) -> list[bytes]:
    """What the reader gets in place of events that are gone, `found` being the job's row."""
    warning = [] if warned else [_warning(job_id)]
    if found["status"] in TERMINAL:
        end = _synthetic("end", {"status": found["status"]})
        return [end] if await _is_last(service, job_id, position) else [*warning, end]
    if asked or not await _is_empty(service, job_id):
        return []
    return [*warning, *(_synthetic("on_interrupt", each) for each in found["interrupts"] or ())]


async def _next(
    service: Service, job_id: str, position: str, count: int, block_ms: int = _BLOCK_MS
) -> list[stream.Event]:
    """The next events, the last of them the job's `end` if it is among them."""
    try:
        events = await stream.read(service.events, job_id, position, block_ms, count)
    except _REDIS_AWAY:
        await asyncio.sleep(block_ms / 1000)
        return []
    ends = (number for number, event in enumerate(events, 1) if event.event_type == "end")
    return events[: next(ends, len(events))]


def _pieces(events: Iterable[stream.Event]) -> Iterator[bytes]:
    """These events as they are sent: small ones together, since what a piece costs does not depend on its size."""
    piece, size = [], 0
    for event in events:
        piece.append(b"id: %b\n%b" % (event.id.encode(), _without_id(event.event_type, event.body)))
        size += len(piece[-1])
        if size >= _PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


async def _missing(service: Service, job_id: str, position: str) -> bool:
    """Whether events after `position` were trimmed or have expired."""
    try:
        first = await stream.first_id(service.events, job_id)
    except _REDIS_AWAY:
        return False
    if first is None:
        return position != BEGINNING
    (fence, number), (at_fence, at_number) = _parts(first), _parts(position)
    if position == BEGINNING:
        return number != 1
    return (fence, number) > (at_fence, at_number + 1) and number != 1


async def is_over(service: Service, job_id: str, position: str) -> bool:
    """Whether the event at `position` is the job's `end`, so that nothing can follow."""
    last = await _last(service, job_id)
    return last is not None and (last.id, last.event_type) == (position, "end")


async def _is_last(service: Service, job_id: str, position: str) -> bool:
    last = await _last(service, job_id)
    return last is not None and last.id == position


async def _last(service: Service, job_id: str) -> stream.Event | None:
    try:
        return await stream.last(service.events, job_id)
    except _REDIS_AWAY:
        return None


async def _is_empty(service: Service, job_id: str) -> bool:
    try:
        return await stream.first_id(service.events, job_id) is None
    except _REDIS_AWAY:
        return False


async def _job(service: Service, job_id: str, tenant: str) -> dict[str, Any] | None:
    try:
        return await service.ledger.job(job_id, tenant)
    except Unavailable:
        return None


def _parts(event_id: str) -> tuple[int, int]:
    left, _, right = event_id.partition("-")
    return int(left), int(right)


def _warning(job_id: str) -> bytes:
    return _synthetic("warning", {"message": "events of this job are gone", "about": job_id})


def _synthetic(event_type: str, data: Any) -> bytes:
    return _without_id(event_type, strict_json.dumps({"event_type": event_type, "data": data}))


def _without_id(event_type: str, body: bytes) -> bytes:
    """One Server-Sent Event, its `body` being on one line, as `strict_json.dumps` has it.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    return b"event: %b\ndata: %b\n\n" % (event_type.encode(), body)
