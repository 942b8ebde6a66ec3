"""Claims jobs, hands them to the runner, records what came of them.

Owns how many run at a time and what happens to them when the process goes down. Knows no graph and no broker; leases
are kept by `leases`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from . import crash, metrics, tracing
from .database import persistently, settled
from .errors import LeaseLost, NotDeployed, Stopped, Unavailable
from .job import Outcome, Status
from .leases import Leases
from .ledger import Claim, Ledger
from .notify import wait
from .stream import Channel, Publisher

_RETRY_S = 1.0
_TURNS = 5  # of the loop, in which the result goes out
_STOPPING_S = 5.0
_CLAIM_S = 2.0
_RECONNECT_S = 5.0  # what another process's pool may take to find that PostgreSQL is back
_ELSEWHERE_S = 5.0
_ROLLOUT_S = 600.0
_BUG = Outcome(
    Status.FAILED,
    error={"message": "an unexpected error; the service's log has it", "type": "InternalError", "stack_trace": ""},
    may_pass=True,
)

log = structlog.get_logger()


class Stoppable(Protocol):
    """A run that can be asked to end at its next checkpoint: langgraph's RunControl."""

    def request_drain(self, reason: str = "shutdown") -> None:
        """Ask."""


class Runs(Protocol):
    """What a worker needs of the runner."""

    def control(self) -> Stoppable:
        """For one run."""

    async def run(self, claim: Claim, channel: Channel, control: Any) -> Outcome:
        """Run the job to its end."""


@dataclass(eq=False)
class _Run:
    claim: Claim
    control: Stoppable
    started_at: float
    is_lost: bool = False
    is_settling: bool = False
    is_over: bool = False


class Worker:
    """One per process."""

    def __init__(
        self,
        ledger: Ledger,
        leases: Leases,
        runner: Runs,
        publisher: Publisher,
        *,
        queued: asyncio.Event,
        slots: int,
    ) -> None:
        """`queued` is set when a job may wait."""
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._ledger = ledger
        self._leases = leases
        self._runner = runner
        self._publisher = publisher
        self._queued = queued
        self._slots = slots
        self._running: dict[asyncio.Task[None], _Run] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self._draining = False
        self._is_drained = False
        self._claiming = asyncio.Lock()
        self._may_be_more = False
        self._reserved = 0
        self._arriving: Counter[str] = Counter()
        self._unreserved = asyncio.Event()
        self._unreserved.set()
        self._blind_until = 0.0
        self._sight_s = ledger.lease_s / 2 + _RECONNECT_S

    async def run(self) -> None:
        """Claim and run jobs until drained or cancelled."""
        while not self._draining:
            async with self._claiming:
                await self._claim()
            await wait(self._queued)

    async def drain(self, grace_s: float) -> None:
        """Claim nothing more, let running jobs finish for `grace_s`, then give the rest back to the queue.

        For the last third of the grace (5 s at most) they are asked to end at their next checkpoint, so that no step is
        cut off that could end.
        """
        self._draining = True
        self._queued.set()
        with suppress(TimeoutError):  # a claim that is under way makes its jobs ours; without PostgreSQL it takes long
            async with asyncio.timeout(_CLAIM_S), self._claiming:
                await self._unreserved.wait()
        self._is_drained = True
        tasks = list(self._running)
        if not tasks:
            return
        stopping_s = min(_STOPPING_S, grace_s / 3)
        _, unfinished = await asyncio.wait(tasks, timeout=grace_s - stopping_s)
        for task in unfinished:
            self._running[task].control.request_drain()
        if unfinished:
            _, unfinished = await asyncio.wait(unfinished, timeout=stopping_s)
        for task in unfinished:
            task.cancel()
        await settled(unfinished)

    def on_finished_somewhere(self, job_id: str) -> None:
        """A job has ended, perhaps one that runs here and was cancelled elsewhere."""
        if any(run.claim.job_id == job_id and not run.is_settling for run in self._running.values()):
            self._leases.check()

    @property
    def is_blind(self) -> bool:
        """Whether PostgreSQL was away a moment ago: a lease that ran out then does not tell that its owner is gone."""
        return time.monotonic() < max(self._blind_until, self._leases.failed_at + self._sight_s)

    def reserve(self, job_ids: Collection[str]) -> int:
        """Keep slots free for jobs that arrive, and say how many. A claim that is under way asks for all."""
        may_take = not self._draining and not self._claiming.locked()
        taken = max(0, min(len(job_ids), self._free)) if may_take else 0
        if taken:
            self._reserved += taken
            self._arriving.update(job_ids)
            self._unreserved.clear()
        return taken

    def start(self, claims: Sequence[Claim], asked_at: float, job_ids: Collection[str], reserved: int) -> None:
        """Run jobs that were claimed as they arrived, soon: who has waited for their arrival tells of it first."""
        asyncio.get_running_loop().call_soon(self._start_reserved, claims, asked_at, job_ids, reserved)

    @property
    def _free(self) -> int:
        return self._slots - len(self._running) - self._reserved

    def _start_reserved(
        self, claims: Sequence[Claim], asked_at: float, job_ids: Collection[str], reserved: int
    ) -> None:
        self._start_all(claims, asked_at)
        if reserved:
            self._reserved -= reserved
            self._arriving -= Counter(job_ids)
            if len(claims) < len(job_ids):  # the others may be queued, and no claim was to take them meanwhile
                self._may_be_more = True
        if not self._reserved:
            self._unreserved.set()
        if self._may_be_more and self._free > 0:
            self._queued.set()

    async def _claim(self) -> None:
        free = self._free
        self._may_be_more = free <= 0
        if free <= 0 or self._draining:
            return
        asked_at = time.monotonic()
        held = [*(run.claim.job_id for run in self._running.values()), *self._arriving]
        try:
            claims = await self._ledger.claim(self.name, free, held, take_over=not self.is_blind)
        except Unavailable as error:
            # When it is back, others need the time of a renewal before their leases tell whether they are alive.
            self._blind_until = time.monotonic() + self._sight_s
            log.warning("claim_failed", error=str(error))
            return
        self._may_be_more = len(claims) == free or self._ledger.counts_running
        self._start_all(claims, asked_at)

    def _start_all(self, claims: Sequence[Claim], asked_at: float) -> None:
        for claim in claims:
            if self._is_drained:
                task = asyncio.create_task(self._release(claim))
                self._releasing.add(task)
                task.add_done_callback(self._releasing.discard)
            else:
                self._start(claim, asked_at)
        metrics.jobs_running.set(len(self._running))

    def _start(self, claim: Claim, asked_at: float) -> None:
        run = _Run(claim, self._runner.control(), asked_at)
        task = asyncio.create_task(self._job(run), name=f"job {claim.job_id}")
        self._running[task] = run
        task.add_done_callback(self._forget)
        loop = asyncio.get_running_loop()

        def on_lost(reason: str) -> None:
            loop.call_soon_threadsafe(self._lose, task, run, reason)

        self._leases.hold(claim, asked_at, on_lost)
        crash.point("after_claim")

    def _lose(self, task: asyncio.Task[None], run: _Run, reason: str) -> None:
        """Stop a run whose lease is lost. One that is being recorded learns from the fence what that came to."""
        if run.is_settling or task.done():
            return
        metrics.leases_lost.inc()
        claim = run.claim
        log.warning("lease_lost", job_id=claim.job_id, tenant=claim.tenant, fence=claim.fence, reason=reason)
        run.is_lost = True
        task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        run = self._running.pop(task)
        self._leases.drop(run.claim)
        metrics.jobs_running.set(len(self._running))
        if self._may_be_more or not run.is_over:  # one that went back was not for us while it was here
            self._queued.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("job_left", exc_info=task.exception())

    async def _job(self, run: _Run) -> None:
        claim = run.claim
        with (
            structlog.contextvars.bound_contextvars(job_id=claim.job_id, trace_id=claim.trace_id, tenant=claim.tenant),
            tracing.span("run job", claim.traceparent, job_id=claim.job_id) as traceparent,
        ):
            log.info("job_started", attempt=claim.attempt, fence=claim.fence)
            channel = self._publisher.channel(claim.job_id, claim.fence, claim.trace_id)
            try:
                try:
                    outcome = await self._runner.run(claim, channel, run.control)
                    crash.point("after_run")
                    await self._settle(run, outcome, channel, traceparent)
                except NotDeployed as error:
                    if claim.age_s < _ROLLOUT_S:
                        raise
                    await self._settle(run, _undeployed(error), channel, traceparent)
                except (LeaseLost, Stopped, Unavailable):
                    raise
                except Exception:
                    log.exception("job_crashed")
                    await self._settle(run, _BUG, channel, traceparent)
            except LeaseLost as error:
                log.warning("job_dropped", reason=str(error))
            except Stopped:
                await self._release(claim)
            except NotDeployed as error:  # as while a deployment rolls out: a process that has it takes the job
                log.warning("job_passed_on", reason=str(error))
                await self._release(claim, _ELSEWHERE_S)
            except Unavailable as error:  # a server that is away is no outcome: the job goes on when it is back
                log.warning("job_postponed", reason=str(error))
                await self._release(claim, _RETRY_S)
            except asyncio.CancelledError:
                await self._release(claim)
                if not run.is_lost:
                    raise

    async def _settle(self, run: _Run, outcome: Outcome, channel: Channel, traceparent: str | None) -> None:
        """Record what came of a run: another try, what it asks, or the outcome."""
        claim, run.is_settling = run.claim, True
        if outcome.may_pass and claim.attempt < self._ledger.max_attempts:
            await self._retry(claim, outcome, channel)
            return
        if outcome.status is Status.INTERRUPTED:
            await self._interrupt(claim, outcome, channel, traceparent)
            return
        await persistently(lambda: self._ledger.finish(claim, outcome, traceparent, channel.count))
        run.is_over = True
        took = time.monotonic() - run.started_at
        try:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        finally:
            announce(channel, outcome)
            metrics.jobs.labels(outcome.status.value).inc()
            metrics.job_duration.observe(took)
            log.info("job_finished", status=outcome.status.value, seconds=round(took, 3), **_error(outcome))

    async def _interrupt(self, claim: Claim, outcome: Outcome, channel: Channel, traceparent: str | None) -> None:
        count, asked, usage = channel.count, outcome.interrupts, outcome.usage
        status = await persistently(lambda: self._ledger.interrupt(claim, asked, traceparent, count, usage))
        if status is not Status.INTERRUPTED:  # an answer was faster
            return
        announce(channel, outcome)
        metrics.jobs.labels(status.value).inc()
        log.info("job_interrupted", interrupts=[each["id"] for each in outcome.interrupts])

    async def _retry(self, claim: Claim, outcome: Outcome, channel: Channel) -> None:
        due_at = await persistently(lambda: self._ledger.retry(claim, outcome))
        if due_at is None:
            raise LeaseLost(f"job {claim.job_id} is no longer held under fence {claim.fence}")
        metrics.jobs_retried.inc()
        log.warning("job_retried", attempt=claim.attempt, due_at=due_at.isoformat(), **_error(outcome))
        attempts = f"attempt {claim.attempt} of {self._ledger.max_attempts}"
        message = f"{attempts} failed, and the job is tried again: {(outcome.error or {}).get('message')}"
        channel.emit("warning", {"message": message, "about": "retry"})

    async def _release(self, claim: Claim, delay_s: float = 0) -> None:
        self._leases.drop(claim)
        try:
            if await self._ledger.release(claim, delay_s):
                log.info("job_released")
        except Unavailable as error:  # our next claim finds it, or its lease runs out and somebody else takes it
            log.warning("release_failed", error=str(error))


def _undeployed(error: NotDeployed) -> Outcome:
    """No process had it for so long that its deployment must be meant so; its last attempts may still find one."""
    described = {"message": str(error), "type": type(error).__name__, "stack_trace": ""}
    return Outcome(Status.FAILED, error=described, may_pass=True)


def announce(channel: Channel, outcome: Outcome) -> None:
    """The last events of a job, after the commit, so that whoever reads `end` finds the outcome in the ledger.

    Of an interrupted one they are the last until it is answered.
    """
    if outcome.status is Status.INTERRUPTED:
        for interrupt in outcome.interrupts:
            channel.emit("on_interrupt", interrupt)
        return
    if outcome.error is not None:
        channel.emit("error", {key: outcome.error[key] for key in ("message", "type")})
    channel.emit("end", {"status": outcome.status.value})


def _error(outcome: Outcome) -> dict[str, str]:
    return {} if outcome.error is None else {"error": outcome.error["type"]}
