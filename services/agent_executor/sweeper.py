"""What nobody else looks after: jobs that lost all their workers, rows past their retention, and how much waits.

Owns the intervals. One runs in every process; what several do at once costs nothing, since each row is done by one.
Leases that ran out are claimed by `worker`, and results are delivered by `outbox`, each in its own rhythm.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from . import metrics
from .errors import Unavailable
from .ledger import Ended, Ledger

_LOOK_S = 2.0
_EXPIRE_EVERY_S = 600.0
_BATCH = 100

log = structlog.get_logger()


class Sweeper:
    """One per process."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        expire: Mapping[str, Callable[[int], Awaitable[int]]],
        is_blind: Callable[[], bool],
        on_ended: Callable[[Ended], None],
    ) -> None:
        """`expire`: by what it is, who deletes a batch of so many old rows of it, and says how many it was.

        `is_blind`: leases cannot be judged now; `on_ended` is called for each job that was failed.
        """
        self._ledger = ledger
        self._expiring = expire
        self._is_blind = is_blind
        self._on_ended = on_ended
        self._expire_at = time.monotonic() + random.uniform(0, _EXPIRE_EVERY_S / 10)  # noqa: S311 - spreads the work

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S * random.uniform(0.5, 1))  # noqa: S311 - so that processes take turns
            try:
                await self.sweep()
            except Unavailable as error:
                log.warning("sweep_failed", error=str(error))

    async def sweep(self) -> None:
        """Once."""
        if not self._is_blind():
            for ended in await self._ledger.fail_silent():
                about = {"job_id": ended.job_id, "trace_id": ended.trace_id, "tenant": ended.tenant}
                log.error("job_out_of_attempts", **about)
                metrics.jobs.labels(ended.outcome.status.value).inc()
                self._on_ended(ended)
        jobs, results = await self._ledger.waiting()
        metrics.jobs_waiting.set(jobs)
        metrics.results_waiting.set(results)
        if time.monotonic() >= self._expire_at:
            self._expire_at = time.monotonic() + _EXPIRE_EVERY_S
            await self._expire()

    async def _expire(self) -> None:
        for what, expire in self._expiring.items():
            total = 0
            while deleted := await expire(_BATCH):
                total += deleted
            if total:
                log.info("expired", what=what, rows=total)
