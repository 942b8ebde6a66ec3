"""The jobs table, which is the queue: accept, claim, renew, release, finish.

Owns every state a job goes through and the SQL that moves it there (`ledger.sql`). A claim carries a fencing number
(Kleppmann, "How to do distributed locking"): who finishes or releases a job must still hold the number it was given.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg.rows import DictRow

from . import database, sql, strict_json
from .database import Pool
from .errors import Conflict, LeaseLost, NotFound
from .job import TERMINAL, Outcome, Status, Submission, outcome_event, outcome_id, outcome_subject

QUEUED_CHANNEL = "agent_executor_queued"
FINISHED_CHANNEL = "agent_executor_finished"


SQL = sql.load("ledger.sql")


@dataclass(frozen=True)
class Claim:
    """A job this worker may run, for as long as `fence` is the row's."""

    job_id: str
    trace_id: str
    definition: dict[str, Any]
    input: dict[str, Any]
    traceparent: str | None
    attempt: int
    fence: int


@dataclass(frozen=True)
class Receipt:
    """What became of a submission: `is_new`, or the job as it stands."""

    job_id: str
    status: Status
    is_new: bool


class Ledger:
    """The queries, as methods. Each raises Unavailable when PostgreSQL is away or has not been migrated."""

    def __init__(self, pool: Pool, *, sink: bool = False) -> None:
        """`sink`: outcomes go to K_SINK as well as to NATS."""
        self._pool = pool
        self._targets = ["nats", "sink"] if sink else ["nats"]
        self._suffixes = ["", ":sink"][: len(self._targets)]

    async def accept(self, submission: Submission, traceparent: str | None = None) -> Receipt:
        """Commit a job, or find that it is here already; its run continues `traceparent`.

        A request for a finished job has its outcome announced again; for a waiting or running one nothing changes.

        Raises:
            Conflict: the job id is taken by other content, or the event's source and id by another job.
        """
        body_hash = submission.body_hash
        row = {
            "job_id": submission.job_id,
            "trace_id": submission.trace_id,
            "source": submission.source,
            "event_id": submission.event_id,
            "body_hash": body_hash,
            "definition": strict_json.dumps(submission.definition).decode(),
            "input": strict_json.dumps(submission.input).decode(),
            "traceparent": traceparent,
        }
        async with database.connection(self._pool) as connection, connection.transaction():
            if await (await connection.execute(SQL["accept"], row)).fetchone():
                await connection.execute(SQL["wake_workers"])
                return Receipt(submission.job_id, Status.QUEUED, is_new=True)
            owners = await (await connection.execute(SQL["owner"], row)).fetchall()
            if not owners or any(owner["job_id"] != submission.job_id for owner in owners):
                raise Conflict("this event's source and id belong to another job")
            [owner] = owners
            if bytes(owner["body_hash"]) != body_hash:
                raise Conflict(f"job {submission.job_id} exists with another definition or input")
            status = Status(owner["status"])
            if status in TERMINAL:
                request = {"job_id": submission.job_id, "request_id": submission.event_id or uuid.uuid4().hex}
                await connection.execute(SQL["announce_again"], request)
            return Receipt(submission.job_id, status, is_new=False)

    async def claim(self, owner: str, slots: int, lease_s: float) -> list[Claim]:
        """Claim up to `slots` jobs for `owner`."""
        rows = await self._rows("claim", owner=owner, slots=slots, lease_s=lease_s)
        return [Claim(**row) for row in rows]

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> set[str]:
        """Renew the leases of `claims`; returns the ids of those that still hold."""
        held = {"job_ids": [claim.job_id for claim in claims], "fences": [claim.fence for claim in claims]}
        return {row["job_id"] for row in await self._rows("renew", lease_s=lease_s, **held)}

    async def release(self, claim: Claim) -> bool:
        """Give a job back unfinished; False when the lease was lost already."""
        return bool(await self._rows("release", job_id=claim.job_id, fence=claim.fence))

    async def finish(self, claim: Claim, outcome: Outcome, traceparent: str | None) -> None:
        """Record `outcome` and put its CloudEvent into the outbox, in one transaction.

        Raises:
            LeaseLost: another worker has claimed the job since.
        """
        event_id = outcome_id(claim.job_id, claim.fence)
        event = outcome_event(claim.job_id, event_id, outcome, datetime.now(UTC), traceparent)
        rows = await self._rows(
            "finish",
            job_id=claim.job_id,
            fence=claim.fence,
            status=outcome.status.value,
            result=None if outcome.status is not Status.COMPLETED else strict_json.dumps(outcome.result).decode(),
            error=None if outcome.error is None else strict_json.dumps(outcome.error).decode(),
            outcome_id=event_id,
            subject=f"agent.status.{outcome_subject(outcome.status)}",
            event=strict_json.dumps(event).decode(),
            targets=self._targets,
            suffixes=self._suffixes,
        )
        if not rows:
            raise LeaseLost(f"job {claim.job_id} is no longer held under fence {claim.fence}")

    async def announce_rejection(self, job_id: str, event: dict[str, Any]) -> None:
        """Announce that a request was refused, unless a job of that id exists: its outcome is its own."""
        await self._rows(
            "announce_rejection",
            job_id=job_id,
            outcome_id=event["id"],
            event=strict_json.dumps(event).decode(),
            targets=self._targets,
            suffixes=self._suffixes,
        )

    async def job(self, job_id: str) -> DictRow:
        """One job as its caller sees it. Raises NotFound."""
        rows = await self._rows("job", job_id=job_id)
        if not rows:
            raise NotFound(f"no job {job_id}")
        return rows[0]

    async def jobs(self, status: str | None, limit: int, before: tuple[datetime, str] | None) -> list[DictRow]:
        """A page of jobs, newest first, older than `before` (created_at, job_id)."""
        at, job_id = before if before is not None else (None, None)
        return await self._rows("jobs", status=status, limit=limit, before=at, before_id=job_id)

    async def outcome(self, job_id: str) -> dict[str, Any] | None:
        """The outgoing CloudEvent of a finished job, None before."""
        rows = await self._rows("outcome", job_id=job_id)
        return rows[0]["event"] if rows else None

    async def ping(self) -> bool:
        """True when PostgreSQL answers and has our tables; raises Unavailable otherwise."""
        await self._rows("ping")
        return True

    async def _rows(self, query: str, **parameters: Any) -> list[DictRow]:
        async with database.connection(self._pool) as connection:
            cursor = await connection.execute(SQL[query], parameters)
            return await cursor.fetchall() if cursor.description else []
