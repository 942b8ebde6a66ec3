"""LISTEN: what other processes, or other tasks of this one, did to the ledger.

Owns one connection of its own. Notifications make things fast, never right: whoever waits here also looks for itself
every `POLL_S`, since a notification sent while the connection was down is gone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import structlog

from . import tls
from .database import Dsn, current, severed_after
from .ledger import FINISHED_CHANNEL, QUEUED_CHANNEL

API_KEYS_CHANNEL = "agent_executor_api_keys"
POLL_S = 1.0
_PING_EVERY_S = 5.0
_PING_S = 2.0
_RECONNECT_S = 1.0

log = structlog.get_logger()


async def wait(event: asyncio.Event, timeout_s: float = POLL_S) -> None:
    """Wait until `event` is set, at most `timeout_s`; clear it."""
    try:
        async with asyncio.timeout(timeout_s):  # not wait_for: before Python 3.12 it can swallow a cancellation
            await event.wait()
    except TimeoutError:
        return
    finally:
        event.clear()


class Listener:
    """`queued` is set when a job waits; `finished(job_id)` gives an event that is set when that job ends, or may have.

    `on_finished` is called with the id of every job that ends, `on_api_keys` when an API key changed, and `on_gap` when
    notifications may have been missed.
    """

    def __init__(self, dsn: Dsn) -> None:
        self._dsn = dsn
        self.queued = asyncio.Event()
        self.on_finished: Callable[[str], None] = lambda job_id: None
        self.on_api_keys: Callable[[], None] = lambda: None
        self.on_gap: Callable[[], None] = lambda: None
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def finished(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when `job_id` reaches its outcome; enter before you look at the row."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def run(self) -> None:
        """Listen until cancelled, reconnecting as often as it takes."""
        while True:
            try:
                await self._listen()
            except psycopg.Error as error:
                tls.note("postgres", error)
                log.warning("listen_failed", error=type(error).__name__)
            self.queued.set()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen(self) -> None:
        async with await psycopg.AsyncConnection.connect(
            current(self._dsn), autocommit=True, connect_timeout=3
        ) as connection:
            await connection.execute(f"listen {QUEUED_CHANNEL}")
            await connection.execute(f"listen {FINISHED_CHANNEL}")
            await connection.execute(f"listen {API_KEYS_CHANNEL}")
            self._after_gap()
            while True:
                async for notification in connection.notifies(timeout=_PING_EVERY_S):
                    self._heard(notification)
                with severed_after(connection, _PING_S):  # silence is the rule here, so ask whether it is a cut
                    await connection.execute("")

    def _after_gap(self) -> None:
        """Have everybody look who waits."""
        self.queued.set()
        for events in self._waiting.values():
            for event in events:
                event.set()
        self.on_gap()

    def _heard(self, notification: psycopg.Notify) -> None:
        if notification.channel == QUEUED_CHANNEL:
            self.queued.set()
            return
        if notification.channel == API_KEYS_CHANNEL:
            self.on_api_keys()
            return
        for event in self._waiting.get(notification.payload, ()):
            event.set()
        self.on_finished(notification.payload)
