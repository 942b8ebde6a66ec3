"""Results on their way out: outbox rows -> NATS and K_SINK.

Owns delivery, at least once: a row is taken for a while, and marked published after the receiver confirmed it. What
fails is tried again with growing pauses, by whichever process looks first. Those of one job keep their order; of
different jobs the oldest go first, but may overtake each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import structlog
from nats.js.errors import NoStreamResponseError
from psycopg.rows import DictRow

from . import crash, database, sql, strict_json, tracing
from .announcements import ERROR_EXTENSION, by_reference
from .broker import Broker
from .database import Pool
from .errors import Unavailable
from .job import STRUCTURED
from .notify import wait

SQL = sql.load("outbox.sql")
_BATCH = 100
_TIMEOUT_S = 5.0
_HIDDEN_S = 15.0  # longer than a delivery and its record take
_HEADERS_BYTES = 1024  # what NATS' max_payload counts besides the event

Deliver = Callable[[str, str, dict[str, Any]], Awaitable[None]]
"""(message id, subject, event): returns once the receiver has it, raises otherwise."""

log = structlog.get_logger()


class Outbox:
    """Delivers the rows of one target. Set `due` to have it look at once.

    `on_delivered` is called with the ids of the jobs of each batch.
    """

    def __init__(
        self, pool: Pool, target: str, deliver: Deliver, can_deliver: Callable[[], bool] = lambda: True
    ) -> None:
        """`can_deliver`: whether to try at all now, so that an outage costs no row a pause that outlives it."""
        self._pool = pool
        self._target = target
        self._deliver = deliver
        self._can_deliver = can_deliver
        self.on_delivered: Callable[[set[str]], Awaitable[None]] | None = None
        self.due = asyncio.Event()
        self._hurried = False

    def hurry(self) -> None:
        """The receiver is back: try everything now that was put off."""
        self._hurried = True
        self.due.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                if self._hurried:
                    await self._rows("hurry", target=self._target)
                    self._hurried = False
                while await self.flush():
                    pass
            except Unavailable as error:
                log.warning("outbox_unreadable", error=str(error))
            await wait(self.due)

    async def flush(self) -> int:
        """Deliver one batch; returns how many rows were due and delivered."""
        if not self._can_deliver():
            return 0
        rows = await self._rows("take", target=self._target, limit=_BATCH, hidden_s=_HIDDEN_S)
        delivered = await asyncio.gather(*(self._try(row) for row in rows))
        done = [row["id"] for row, ok in zip(rows, delivered, strict=True) if ok]
        failed = [row["id"] for row, ok in zip(rows, delivered, strict=True) if not ok]
        if done:
            crash.point("after_publish")
            await self._rows("published", ids=done)
            if self.on_delivered is not None:
                await self.on_delivered({row["job_id"] for row in rows})
        if failed:
            await self._rows("postpone", ids=failed)
        return len(done)

    async def _rows(self, query: str, **parameters: Any) -> list[DictRow]:
        async with database.connection(self._pool) as connection:
            cursor = await connection.execute(SQL[query], parameters)
            return await cursor.fetchall() if cursor.description else []

    async def _try(self, row: Any) -> bool:
        try:
            with tracing.span("deliver result", row["event"].get("traceparent"), target=self._target):
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._deliver(row["msg_id"], row["subject"], row["event"])
        except Exception as error:  # noqa: BLE001 - one that cannot be delivered must hold up no other
            log.warning("delivery_failed", target=self._target, msg_id=row["msg_id"], error=type(error).__name__)
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
