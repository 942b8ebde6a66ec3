"""Who was refused: rows in PostgreSQL and log lines, few of them however many requests there are.

Owns the writing of refusals, and the end of every row of table `audit`. What was done stands there, too, written by the
statement that does it (`ledger.sql`, `api_key_command.sql`), so that neither can be without the other. Which requests
count as refused is decided in `refusals`.

Anybody can have himself refused, as often as he likes. So refusals are counted in memory, and those that are alike are
told at most twice a minute: the first at once, the rest of that minute by their number. There is room for so many
different ones, with less of it for callers that nobody knows, who therefore cannot hide what known ones do. What finds
no room is told of by its number alone.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import structlog

from . import metrics, sql
from .database import Pool, connection
from .errors import Unavailable
from .job import Origin
from .notify import wait

WINDOW_S = 60.0
OF_CALLERS = 100
OF_STRANGERS = 50
_PAUSE_S = 1.0
_MAX_UNWRITTEN = 1000

SQL = sql.load("audit.sql")

log = structlog.get_logger()


@dataclass(frozen=True)
class Refusal:
    """What somebody was not allowed, or could not have; the same again is an equal one."""

    action: str
    detail: str
    origin: Origin
    tenant: str | None = None
    job_id: str | None = None

    @property
    def is_strangers(self) -> bool:
        """Whether nobody knows whose it is."""
        return self.origin.actor is None


def _rest(refusal: Refusal) -> Refusal:
    """What is told in place of a refusal that found no room."""
    whose = "strangers" if refusal.is_strangers else "callers"
    return Refusal("any", f"more of {whose} than are told apart", Origin(refusal.origin.via))


class Window:
    """The refusals of a minute, counted by what they are."""

    def __init__(self) -> None:
        self._untold: dict[Refusal, int] = {}
        self._told: set[Refusal] = set()
        self._taken = {True: 0, False: 0}

    def add(self, refusal: Refusal) -> None:
        """One more."""
        placed = self._placed(refusal)
        self._untold[placed] = self._untold.get(placed, 0) + 1

    def due(self, *, is_over: bool) -> list[tuple[Refusal, int]]:
        """What is to be told now, and how often it was: what is new, or everything when the minute is over."""
        found = [(each, count) for each, count in self._untold.items() if is_over or each not in self._told]
        for each, _ in found:
            del self._untold[each]
            self._told.add(each)
        if is_over:
            self._told.clear()
            self._taken = {True: 0, False: 0}
        return found

    def _placed(self, refusal: Refusal) -> Refusal:
        if refusal in self._untold or refusal in self._told:
            return refusal
        taken, room = self._taken[refusal.is_strangers], OF_STRANGERS if refusal.is_strangers else OF_CALLERS
        if refusal.job_id is not None and taken >= room // 2:  # ids are the easiest to vary
            return self._placed(replace(refusal, job_id=None))
        if taken >= room:
            metrics.audit_overflow.inc()
            return _rest(refusal)
        self._taken[refusal.is_strangers] += 1
        return refusal


class Refusals:
    """One per process. `run` has to run beside."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._window = Window()
        self._over_at = time.monotonic() + WINDOW_S
        self._unwritten: list[tuple[float, Refusal, int]] = []
        self._due = asyncio.Event()
        self._writing = asyncio.Lock()

    def add(self, refusal: Refusal) -> None:
        """Have it told soon. Asks no database."""
        self._window.add(refusal)
        self._due.set()

    async def run(self) -> None:
        """Tell what is due, until cancelled."""
        while True:
            await wait(self._due, max(0.0, self._over_at - time.monotonic()))
            await asyncio.sleep(_PAUSE_S)  # more may come
            self._due.clear()
            is_over = time.monotonic() >= self._over_at
            if is_over:
                self._over_at = time.monotonic() + WINDOW_S
            await self._tell(is_over=is_over)

    async def flush(self) -> None:
        """Tell everything now."""
        await self._tell(is_over=True)

    async def _tell(self, *, is_over: bool) -> None:
        for refusal, count in self._window.due(is_over=is_over):
            if refusal.origin.via != "nats":  # `message_refused` says it
                job = {} if refusal.job_id is None else {"job_id": refusal.job_id}
                whose = {} if refusal.tenant is None else {"tenant": refusal.tenant}
                about = {"action": refusal.action, "detail": refusal.detail, "count": count}
                log.info("request_refused", **about, **refusal.origin.known, **whose, **job)
            self._unwritten.append((time.monotonic(), refusal, count))
        if excess := self._unwritten[:-_MAX_UNWRITTEN]:
            metrics.audit_overflow.inc(sum(count for _, _, count in excess))
            del self._unwritten[:-_MAX_UNWRITTEN]
        async with self._writing:
            if self._unwritten:
                told, self._unwritten = self._unwritten, []
                await self._write(told)

    async def _write(self, told: list[tuple[float, Refusal, int]]) -> None:
        """Once, or kept for the next time."""
        now = time.monotonic()
        origins = [refusal.origin for _, refusal, _ in told]
        columns = {
            "ages_s": [now - at for at, _, _ in told],
            "actions": [refusal.action for _, refusal, _ in told],
            "actors": [origin.actor for origin in origins],
            "key_ids": [origin.key_id for origin in origins],
            "tenants": [refusal.tenant for _, refusal, _ in told],
            "job_ids": [refusal.job_id for _, refusal, _ in told],
            "addresses": [origin.address for origin in origins],
            "vias": [origin.via for origin in origins],
            "details": [refusal.detail for _, refusal, _ in told],
            "counts": [count for _, _, count in told],
        }
        try:
            async with connection(self._pool) as taken:
                await taken.execute(SQL["refused"], columns)
        except Unavailable as error:
            log.warning("audit_delayed", waiting=len(told), reason=str(error))
            self._unwritten = told + self._unwritten


async def expire(pool: Pool, days: int, limit: int) -> int:
    """Delete one batch of what was written more than `days` ago; returns how many rows it was."""
    async with connection(pool, limit_s=60) as taken:
        return (await taken.execute(SQL["expire"], {"days": days, "limit": limit})).rowcount
