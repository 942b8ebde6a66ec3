"""Claims jobs, keeps their leases, hands them to the runner, records what came of them.

Owns how many run at a time and what happens to them when the process goes down. Knows no graph and no broker.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Protocol

import structlog

from . import metrics, tracing
from .errors import LeaseLost, Unavailable
from .job import Outcome
from .ledger import Claim, Ledger
from .notify import wait
from .stream import Channel, Publisher

_RETRY_S = 1.0

log = structlog.get_logger()


class Runs(Protocol):
    """What a worker needs of the runner."""

    async def run(self, claim: Claim, channel: Channel) -> Outcome:
        """Run the job to its end."""


class Worker:
    """One per process."""

    def __init__(
        self,
        ledger: Ledger,
        runner: Runs,
        publisher: Publisher,
        *,
        queued: asyncio.Event,
        on_finished: Callable[[], None],
        slots: int,
        lease_s: float,
    ) -> None:
        """`queued` is set when a job may wait; `on_finished` is called when an outcome was recorded."""
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._ledger = ledger
        self._runner = runner
        self._publisher = publisher
        self._queued = queued
        self._on_finished = on_finished
        self._slots = slots
        self._lease_s = lease_s
        self._running: dict[asyncio.Task[None], Claim] = {}
        self._draining = False
        self._claiming = asyncio.Lock()

    async def run(self) -> None:
        """Claim and run jobs until drained or cancelled."""
        renewals = asyncio.create_task(self._renew(), name="leases")
        try:
            while not self._draining:
                async with self._claiming:
                    await self._claim()
                await wait(self._queued)
        finally:
            renewals.cancel()

    async def drain(self, grace_s: float) -> None:
        """Claim nothing more, let running jobs finish for `grace_s`, then give the rest back to the queue."""
        self._draining = True
        self._queued.set()
        async with self._claiming:  # a claim that is under way makes its jobs ours
            tasks = list(self._running)
        if not tasks:
            return
        _, unfinished = await asyncio.wait(tasks, timeout=grace_s)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)

    async def _claim(self) -> None:
        free = self._slots - len(self._running)
        if not free or self._draining:
            return
        try:
            claims = await self._ledger.claim(self.name, free, self._lease_s)
        except Unavailable as error:
            log.warning("claim_failed", error=str(error))
            return
        for claim in claims:
            task = asyncio.create_task(self._job(claim), name=f"job {claim.job_id}")
            self._running[task] = claim
            task.add_done_callback(self._forget)
        metrics.jobs_running.set(len(self._running))

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        metrics.jobs_running.set(len(self._running))
        self._queued.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("job_crashed", exc_info=task.exception())

    async def _job(self, claim: Claim) -> None:
        with (
            structlog.contextvars.bound_contextvars(job_id=claim.job_id, trace_id=claim.trace_id),
            tracing.span("run job", claim.traceparent, job_id=claim.job_id) as traceparent,
        ):
            started = time.monotonic()
            log.info("job_started", attempt=claim.attempt, fence=claim.fence)
            channel = self._publisher.channel(claim.job_id, claim.fence, claim.trace_id)
            try:
                outcome = await self._runner.run(claim, channel)
                await self._record(claim, outcome, traceparent)
            except LeaseLost as error:
                log.warning("lease_lost", error=str(error))
                return
            except Unavailable as error:  # a server that is away is no outcome: the job goes on when it is back
                log.warning("job_postponed", reason=str(error))
                await asyncio.sleep(_RETRY_S)
                await self._release(claim)
                return
            except asyncio.CancelledError:
                await self._release(claim)
                raise
            self._announce(channel, outcome)
            took = time.monotonic() - started
            metrics.jobs.labels(outcome.status.value).inc()
            metrics.job_duration.observe(took)
            log.info("job_finished", status=outcome.status.value, seconds=round(took, 3), **_error(outcome))

    async def _record(self, claim: Claim, outcome: Outcome, traceparent: str | None) -> None:
        """Commit the outcome, trying for as long as the database is away: the lease decides whether it still counts."""
        while True:
            try:
                await self._ledger.finish(claim, outcome, traceparent)
            except Unavailable as error:
                log.warning("finish_failed", error=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                self._on_finished()
                return

    def _announce(self, channel: Channel, outcome: Outcome) -> None:
        """After the commit, so that whoever reads `end` finds the outcome in the ledger."""
        if outcome.error is not None:
            channel.emit("error", {key: outcome.error[key] for key in ("message", "type")})
        channel.emit("end", {"status": outcome.status.value})

    async def _release(self, claim: Claim) -> None:
        try:
            if await self._ledger.release(claim):
                log.info("job_released")
        except Unavailable as error:  # its lease runs out, and somebody else takes it
            log.warning("release_failed", error=str(error))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            mine = list(self._running.items())
            try:
                held = await self._ledger.renew([claim for _, claim in mine], self._lease_s)
            except Unavailable as error:
                log.warning("renew_failed", error=str(error))
                continue
            for task, claim in mine:
                if claim.job_id not in held:
                    task.cancel()


def _error(outcome: Outcome) -> dict[str, str]:
    return {} if outcome.error is None else {"error": outcome.error["type"]}
