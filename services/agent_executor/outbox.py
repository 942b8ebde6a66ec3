"""Results on their way out: outbox rows -> NATS and K_SINK.

Owns delivery, at least once: a row is taken for a while, and marked published after the receiver confirmed it. What
fails is tried again with growing pauses, by whichever process looks first. Those of one job keep their order; of
different jobs the oldest go first, but may overtake each other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import structlog
from nats.js.errors import NoStreamResponseError
from psycopg.rows import DictRow

from . import crash, database, sql, strict_json, tracing
from .announcements import ERROR_EXTENSION, Letter, by_reference
from .broker import Broker
from .database import Pool
from .errors import Unavailable
from .job import STRUCTURED
from .notify import POLL_S, wait

SQL = sql.load("outbox.sql")
_BATCH = 100
_TIMEOUT_S = 5.0
_HIDDEN_S = 15.0  # longer than a delivery and its record take
_RECORD_S = 0.05  # whoever crashes meanwhile has what it delivered repeated, under the same ids
_HEADERS_BYTES = 1024  # what NATS' max_payload counts besides the event

Deliver = Callable[[str, str, dict[str, Any]], Awaitable[None]]
"""(message id, subject, event): returns once the receiver has it, raises otherwise."""

log = structlog.get_logger()


class Outbox:
    """Delivers the rows of one target: `look` has it look at once, `take` gives it what has just been committed here.

    `on_delivered` is called with the ids of the jobs of each batch that it found by itself.
    """

    def __init__(
        self, pool: Pool, target: str, deliver: Deliver, can_deliver: Callable[[], bool] = lambda: True
    ) -> None:
        """`can_deliver`: whether to try at all now, so that an outage costs no row a pause that outlives it."""
        self._pool = pool
        self.target = target
        self._deliver = deliver
        self._can_deliver = can_deliver
        self.on_delivered: Callable[[set[str]], Awaitable[None]] | None = None
        self._in_hand: list[Letter] = []
        self._delivering = asyncio.Lock()
        self._delivered: list[str] = []
        self._recording = asyncio.Lock()
        self._recorder: asyncio.Task[None] | None = None
        self._awake = asyncio.Event()
        self._is_to_look = True
        self._looked_at = 0.0
        self._hurried = False

    def look(self) -> None:
        """Something may be due."""
        self._is_to_look = True
        self._awake.set()

    def hurry(self) -> None:
        """The receiver is back: try everything now that was put off."""
        self._hurried = True
        self.look()

    def may_take(self) -> bool:
        """Whether it would deliver a letter at once."""
        return self._can_deliver() and len(self._in_hand) < _BATCH

    def take(self, letter: Letter) -> None:
        """Deliver a letter that has just been committed, and is not due for `ledger.IN_HAND_S`."""
        self._in_hand.append(letter)
        self._awake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                await self._in_hand_and_due()
            except Unavailable as error:
                log.warning("outbox_unreadable", error=str(error))
            await wait(self._awake)

    async def flush(self) -> int:
        """Deliver one batch of what is due; returns how many rows were delivered."""
        if not self._can_deliver():
            return 0
        async with self._delivering:
            await self._recorded()  # or what took long to deliver would be found due
            rows = await self._rows("take", target=self.target, limit=_BATCH, hidden_s=_HIDDEN_S)
            done = await self._send([Letter(row["msg_id"], self.target, row["subject"], row["event"]) for row in rows])
            if done:
                await self._rows("published", msg_ids=done)
                if self.on_delivered is not None:
                    await self.on_delivered({row["job_id"] for row in rows})
            return len(done)

    async def drain(self) -> None:
        """Deliver everything that is in hand or due, and return once that is recorded."""
        while self._in_hand:
            await self._hand_out()
        while await self.flush():
            pass
        async with self._delivering:
            await self._recorded()

    async def _in_hand_and_due(self) -> None:
        while self._in_hand or self._is_to_look or time.monotonic() - self._looked_at >= POLL_S:
            if self._in_hand:
                await self._hand_out()
            if self._is_to_look or time.monotonic() - self._looked_at >= POLL_S:
                await self._look()

    async def _look(self) -> None:
        self._looked_at, self._is_to_look = time.monotonic(), False
        if self._hurried:
            await self._rows("hurry", target=self.target)
            self._hurried = False
        if await self.flush():
            self._is_to_look = True

    async def _hand_out(self) -> None:
        """Deliver what is in hand. It is recorded soon."""
        async with self._delivering:
            letters, self._in_hand = self._in_hand, []
            done = await self._send(letters)
            self._delivered += done
        recorder = self._recorder
        if recorder is None or recorder.done():
            self._recorder = asyncio.create_task(self._record_soon())
            if recorder is not None:
                recorder.result()

    async def _record_soon(self) -> None:
        while self._delivered:
            await asyncio.sleep(_RECORD_S)
            await self._recorded()

    async def _recorded(self) -> None:
        """Record what was delivered; a record that fails is told once, and stops no later delivery."""
        async with self._recording:
            done, self._delivered = self._delivered, []
            if not done:
                return
            try:
                await self._rows("published", msg_ids=done)
            except Unavailable as error:  # they will be found due, and delivered again under the same ids
                log.warning("outbox_unreadable", error=str(error))

    async def _send(self, letters: Sequence[Letter]) -> list[str]:
        """Deliver these, and put off those that fail; returns the ids of the others."""
        delivered = await asyncio.gather(*map(self._try, letters))
        done = [letter.msg_id for letter, ok in zip(letters, delivered, strict=True) if ok]
        failed = [letter.msg_id for letter, ok in zip(letters, delivered, strict=True) if not ok]
        if failed:
            await self._rows("postpone", msg_ids=failed)
        if done:
            crash.point("after_publish")
        return done

    async def _rows(self, query: str, **parameters: Any) -> list[DictRow]:
        async with database.connection(self._pool) as connection:
            cursor = await connection.execute(SQL[query], parameters)
            return await cursor.fetchall() if cursor.description else []

    async def _try(self, letter: Letter) -> bool:
        try:
            with tracing.span("deliver result", letter.event.get("traceparent"), target=self.target):
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._deliver(letter.msg_id, letter.subject, letter.event)
        except Exception as error:  # noqa: BLE001 - one that cannot be delivered must hold up no other
            kind = type(error).__name__
            log.warning("delivery_failed", target=self.target, msg_id=letter.msg_id, error=kind)
            return False
        return True


def to_nats(broker: Broker) -> Deliver:
    """Publish to JetStream, with `Nats-Msg-Id` so that a repeated delivery is dropped there.

    What is larger than the server takes goes without its result; `dataref` says where that is.
    """

    async def deliver(msg_id: str, subject: str, event: dict[str, Any]) -> None:
        await broker.ready.wait()
        body = strict_json.dumps(event)
        if len(body) > broker.client.max_payload - _HEADERS_BYTES:
            body = strict_json.dumps(by_reference(event))
        try:
            await broker.js.publish(subject, body, headers=_headers(msg_id, event))
        except NoStreamResponseError:  # somebody deleted it; the next try finds it again
            await broker.repair()
            raise

    return deliver


def _headers(msg_id: str, event: dict[str, Any]) -> dict[str, str]:
    headers = {"Nats-Msg-Id": msg_id, "Content-Type": STRUCTURED}
    if "traceparent" in event:
        headers["traceparent"] = event["traceparent"]
    if ERROR_EXTENSION in event:
        headers["Agent-Error"] = " ".join(event[ERROR_EXTENSION].split())
    return headers


def to_sink(client: httpx.AsyncClient, url: str) -> Deliver:
    """POST the structured CloudEvent to K_SINK; anything but 2xx is a failure."""

    async def deliver(msg_id: str, subject: str, event: dict[str, Any]) -> None:
        response = await client.post(url, content=strict_json.dumps(event), headers={"Content-Type": STRUCTURED})
        response.raise_for_status()

    return deliver
