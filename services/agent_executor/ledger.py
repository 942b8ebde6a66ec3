"""The jobs table, which is the queue: accept, claim, renew, release, retry, interrupt, resume, finish, cancel, redrive,
expire.

Owns every state a job goes through and the SQL that moves it there (`ledger.sql`), with the audit's row of it where
somebody asked for it, in one statement. A claim carries a fencing number
(Kleppmann, "How to do distributed locking"): who finishes or releases a job must still hold the number it was given.
Every method may be called again when its answer was lost; it then finds its work done.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from . import crash, database, interrupts, quotas, sql, strict_json
from .announcements import (
    INTERRUPTED,
    STATUS_SUBJECT,
    Letter,
    columns,
    dead_letter,
    interrupted_event,
    letters,
    outcome_event,
    outcome_id,
    outcome_subject,
)
from .arrays import Bigints, Blobs, Ints, Texts
from .database import Pool
from .errors import Cancelled, Conflict, LeaseLost, NotFound, TooManyRequests, Unavailable, WorkerLost
from .group_commit import GroupCommit
from .job import DEFAULT_TENANT, TERMINAL, TRANSITIONS, UNKNOWN, Answer, Origin, Outcome, Status, Submission
from .quotas import Allowance

QUEUED_CHANNEL = "agent_executor_queued"
FINISHED_CHANNEL = "agent_executor_finished"
_NOBODY = dict.fromkeys(vars(UNKNOWN))
_CANCELLABLE = [status.value for status in Status if Status.CANCELLED in TRANSITIONS[status]]

SQL = sql.load("ledger.sql")
FIRST = 1
"""The fence of a job's first claim: nobody can have saved a checkpoint, or announced anything, before."""
IN_HAND_S = 5
_ENDING = ("job_ids", "tenants", "fences", "statuses", "results", "errors", "usages", "outcome_ids", "event_counts")
_ARRAYS: dict[str, Callable[[Iterable[Any]], list[Any]]] = {"fences": Bigints, "event_counts": Ints}
_PAGES = {None: SQL["jobs"].format(of_status="")} | {
    status.value: SQL["jobs"].format(of_status=f"and status = '{status.value}'") for status in Status
}
_FINISH_ALONE = SQL["finish"].replace(" skip locked", "")


@dataclass(frozen=True)
class Claim:
    """A job this worker may run, for as long as `fence` is the row's.

    `answers`: all it was given, by interrupt id. `age_s`: since its first claim. `usage`: what earlier runs used.
    """

    job_id: str
    trace_id: str
    definition: dict[str, Any]
    input: dict[str, Any]
    traceparent: str | None
    attempt: int
    fence: int
    source: str | None = None
    event_id: str | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    age_s: float = 0
    tenant: str = DEFAULT_TENANT
    usage: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What became of a submission or an answer: `is_new`, or the job as it stands."""

    job_id: str
    status: Status
    is_new: bool


@dataclass(frozen=True)
class Ended:
    """A job that has ended or asks, and where its last events belong: under which fence, after how many others."""

    job_id: str
    trace_id: str
    fence: int
    outcome: Outcome
    event_count: int = 0
    tenant: str = DEFAULT_TENANT


class Starter(Protocol):
    """Who may run a job as soon as it has arrived: this process's worker."""

    name: str

    def reserve(self, job_ids: Collection[str]) -> int:
        """Keep slots free for these, and say how many; if any, claim none of them before `start`."""

    def start(self, claims: Sequence[Claim], asked_at: float, job_ids: Collection[str], reserved: int) -> None:
        """Run these of `job_ids`, claimed not before `asked_at` (time.monotonic), in the `reserved` slots."""


class Courier(Protocol):
    """Who delivers what is committed for a target, at once: this process's outbox."""

    def may_take(self) -> bool:
        """Whether it would deliver one at once."""

    def take(self, letter: Letter) -> None:
        """Deliver it, within `IN_HAND_S`."""

    def look(self) -> None:
        """Deliver what is due."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """A row of `accept`: two that are alike are two requests."""

    row: Mapping[str, Any]
    submission: Submission

    def size(self) -> int:
        """About how many bytes are sent."""
        return len(self.row["definition"]) + len(self.row["input"])

    def first_claim(self) -> Claim:
        """What `claim` would have given."""
        submission = self.submission
        return Claim(
            submission.job_id,
            submission.trace_id,
            submission.definition,
            submission.input,
            self.row["traceparent"],
            attempt=1,
            fence=FIRST,
            source=submission.source,
            event_id=submission.event_id,
            tenant=submission.tenant,
        )


@dataclass(frozen=True, eq=False)
class _Ending:
    """What came of a claim, as a row of `_ENDING`, and the letters that announce it, as arrays.

    `in_hand_s`: until when they are not due.
    """

    row: tuple[Any, ...]
    letters: Mapping[str, list[str]]
    in_hand_s: int

    @classmethod
    def of(
        cls,
        claim: Claim,
        event_id: str,
        outcome: Outcome,
        event_count: int,
        announced: Sequence[Letter],
        *,
        in_hand: bool,
    ) -> _Ending:
        """As JSON, so that what is none shows here, and harms no neighbour."""
        result = strict_json.dumps(outcome.result).decode() if outcome.status is Status.COMPLETED else None
        said = (outcome.status.value, result, _json(outcome.error), _json(outcome.usage))
        row = (claim.job_id, claim.tenant, claim.fence, *said, event_id, event_count)
        return cls(row, columns(announced), IN_HAND_S if in_hand else 0)

    def size(self) -> int:
        """About how many bytes are sent."""
        return sum(map(len, self.letters["events"])) + len(self.row[4] or "")


class Ledger:
    """The queries, as methods. Each raises Unavailable when PostgreSQL is away or has not been migrated.

    What serves a caller is told its tenant; to it the jobs of other tenants are not there.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        lease_s: float = 9,
        max_attempts: int = 3,
        sink: bool = False,
        allowance: Allowance = quotas.UNLIMITED,
    ) -> None:
        """`sink`: outcomes go to K_SINK as well as to NATS. `allowance`: of each tenant that has none of its own."""
        self.lease_s = lease_s
        self.max_attempts = max_attempts
        self._pool = pool
        self._sink = sink
        self._acceptances = GroupCommit(pool, self._accept_all)
        self._endings = GroupCommit(pool, _finish)
        self._allowance = allowance
        self.starter: Starter | None = None
        self.couriers: Mapping[str, Courier] = {}
        self.counts_running = False
        """Whether a tenant had a limit of running jobs at the last claim: one that ends may let another start."""
        self._at_limit: dict[str, asyncio.Lock] = {}
        """Tenants whose last submit was refused for a limit: they come one at a time, and in nobody's way."""

    async def accept(self, submission: Submission, traceparent: str | None = None) -> Receipt:
        """Commit a job, or find that it is here already; its run continues `traceparent`.

        A request for a finished job has its outcome announced again; for a waiting or running one nothing changes.

        Raises:
            Conflict: the job id is taken by other content or another tenant, which look the same, or the event's source
                and id by another job of the tenant.
            TooManyRequests: it is new, and the tenant has as many queued jobs, or submits of this minute, as it may.
        """
        row = {
            "job_id": submission.job_id,
            "tenant": submission.tenant,
            "trace_id": submission.trace_id,
            "source": submission.source,
            "event_id": submission.event_id,
            "body_hash": submission.body_hash,
            "definition": strict_json.dumps(submission.definition).decode(),
            "input": strict_json.dumps(submission.input).decode(),
            "traceparent": traceparent,
            **vars(submission.origin),
        }
        if submission.tenant not in self._at_limit:
            asked = _Asked(row, submission)
            if await self._acceptances.commit(asked, asked, asked.size()):
                return Receipt(submission.job_id, Status.QUEUED, is_new=True)
        async with self._at_limit.get(submission.tenant, nullcontext()):
            async with database.connection(self._pool) as connection:
                try:
                    receipt = await self._accept_otherwise(connection, submission, row)
                except TooManyRequests:
                    self._at_limit.setdefault(submission.tenant, asyncio.Lock())
                    raise
            if receipt.is_new:
                self._at_limit.pop(submission.tenant, None)
            return receipt

    async def _accept_all(
        self, connection: AsyncConnection[DictRow], asked: Sequence[_Asked], alone: bool
    ) -> Mapping[Hashable, bool]:
        """In one statement, since other submits of the tenants wait for it: a process that is frozen holds nobody up.

        Of several with one job id the first is taken; the others come alone, and find it. As many are started here as
        there are slots for; one whose claim we never hear of is found by our next one.
        """
        first = {each.row["job_id"]: each for each in reversed(asked)}
        rows = [each.row for each in first.values()]
        reserved = self.starter.reserve(first.keys()) if self.starter is not None else 0
        started: list[Claim] = []
        asked_at = time.monotonic()
        try:
            accepted = await self._insert(connection, rows, reserved)
            started = [first[row["job_id"]].first_claim() for row in accepted if row["is_started"]]
        finally:
            if self.starter is not None:
                self.starter.start(started, asked_at, first.keys(), reserved)
        return {first[row["job_id"]]: True for row in accepted}

    async def _insert(
        self, connection: AsyncConnection[DictRow], rows: Sequence[Mapping[str, Any]], slots: int
    ) -> list[DictRow]:
        parameters: dict[str, Any] = {
            name: (Blobs if name == "body_hash" else Texts)(row[name] for row in rows) for name in rows[0]
        }
        owner = self.starter.name if self.starter is not None else None
        parameters |= {"owner": owner, "slots": slots, "lease_s": self.lease_s, **self._allowance.parameters()}
        cursor = await connection.execute(SQL["accept"], parameters, binary=True)
        return await cursor.fetchall()

    async def _accept_otherwise(
        self, connection: AsyncConnection[DictRow], submission: Submission, row: dict[str, Any]
    ) -> Receipt:
        """A submission that could not be simply taken: it is here already, or has to wait its turn.

        It is never started here, since that would be before the commit, and under a lease as old as the transaction.
        """
        async with connection.transaction():
            owners = await (await connection.execute(SQL["owner"], row)).fetchall()
            if not owners:
                await quotas.make_room(connection, submission.tenant, self._allowance)
                if await self._insert(connection, [row], 0):
                    return Receipt(submission.job_id, Status.QUEUED, is_new=True)
                owners = await (await connection.execute(SQL["owner"], row)).fetchall()
            if not owners:  # what kept it out is gone: a limit was changed, or another job was deleted
                raise Unavailable("what the job depends on changed meanwhile; it is worth sending again")
            if any(owner["job_id"] != submission.job_id for owner in owners):
                raise Conflict("this event's source and id belong to another job")
            [owner] = owners
            if not owner["is_same"]:
                raise Conflict(f"job {submission.job_id} exists with another definition or input")
            status = Status(owner["status"])
            if status in TERMINAL:
                request_id = submission.event_id or uuid.uuid4().hex
                await connection.execute(SQL["announce_again"], row | {"request_id": request_id})
            return Receipt(submission.job_id, status, is_new=False)

    async def claim(self, owner: str, slots: int, held: Collection[str] = (), *, take_over: bool = True) -> list[Claim]:
        """Claim up to `slots` jobs for `owner`, who knows of `held`.

        Args:
            take_over: also jobs of other owners whose lease ran out. Not right after an outage of PostgreSQL, when
                nobody could renew.
        """
        asked = {
            "owner": owner,
            "slots": slots,
            "held": list(held),
            "lease_s": self.lease_s,
            "max_attempts": self.max_attempts,
            "take_over": take_over,
            **self._allowance.parameters(),
        }
        async with database.connection(self._pool) as connection:
            async with connection.pipeline():  # one transaction, which ends without us: a turn is never kept
                turn = await connection.execute(SQL["claim_in_turn"], asked)
                cursor = await connection.execute(SQL["claim"], asked)
            self.counts_running = turn.rowcount > 0
            return [Claim(**row) for row in await cursor.fetchall()]

    async def release(self, claim: Claim, delay_s: float = 0) -> bool:
        """Give a job back unfinished, counting no attempt; False when the lease was lost already."""
        return bool(await self._rows("release", job_id=claim.job_id, fence=claim.fence, delay_s=delay_s))

    async def retry(self, claim: Claim, outcome: Outcome) -> datetime | None:
        """Put a job back after a failure that may pass; returns when it is due, None when the lease was lost."""
        error = strict_json.dumps(outcome.error).decode()
        usage = _json(outcome.usage)
        rows = await self._rows("retry", job_id=claim.job_id, fence=claim.fence, error=error, usage=usage)
        return rows[0]["due_at"] if rows else None

    async def finish(self, claim: Claim, outcome: Outcome, traceparent: str | None, event_count: int = 0) -> None:
        """Record `outcome` and put what announces it into the outbox, in one transaction.

        `event_count` events of this claim were sent before: who finds that the last ones were not sends them.

        A failure that might have passed means that the last attempt is used up: the request becomes a dead letter too.

        Raises:
            LeaseLost: another worker has claimed the job since.
        """
        event_id = outcome_id(claim.job_id, claim.fence)
        announced = self._letters(claim.job_id, event_id, outcome, traceparent)
        if outcome.may_pass and outcome.error is not None:
            announced.append(dead_letter(claim, event_id, outcome.error))
        in_hand = claim.fence == FIRST and self._are_taken(announced)
        crash.point("before_commit")
        ending = _Ending.of(claim, event_id, outcome, event_count, announced, in_hand=in_hand)
        if not await self._endings.commit((event_id, claim.tenant), ending, ending.size()):
            raise LeaseLost(f"job {claim.job_id} is no longer held under fence {claim.fence}")
        crash.point("after_commit")
        self._send(announced, in_hand=in_hand)

    def _send(self, announced: Sequence[Letter], *, in_hand: bool) -> None:
        """Have what was committed delivered."""
        for letter in announced:
            courier = self.couriers.get(letter.target)
            if courier is not None and in_hand:
                courier.take(letter)
            elif courier is not None:
                courier.look()

    def _are_taken(self, announced: Sequence[Letter]) -> bool:
        """Whether these may be delivered without a look at the outbox: each the only one of its job and target."""
        targets = [letter.target for letter in announced]
        may_take = all(target in self.couriers and self.couriers[target].may_take() for target in targets)
        return may_take and len(set(targets)) == len(targets)

    async def interrupt(
        self,
        claim: Claim,
        asked: Sequence[dict[str, Any]],
        traceparent: str | None,
        event_count: int = 0,
        usage: Mapping[str, float] | None = None,
    ) -> Status:
        """Record that a job waits for answers to `asked`, and put what announces it into the outbox; both or neither.

        An answer to one of them may have come while the job ran: then it is queued, and nothing is announced. One that
        the claim had was not taken, and is forgotten. `usage` is what the job has used. Returns the job's status.

        Raises:
            LeaseLost: another worker has claimed the job since.
        """
        while True:  # until no answer comes between the look and the act
            row = await self._asked(claim.job_id, claim.tenant)
            if row["fence"] != claim.fence or row["status"] in TERMINAL:
                raise LeaseLost(f"job {claim.job_id} is no longer held under fence {claim.fence}")
            if row["status"] != Status.RUNNING:  # it was done, and the answer to that was lost
                return Status(row["status"])
            new = {answer["interrupt_id"] for answer in row["answers"]} - claim.answers.keys()
            status = Status.QUEUED if any(each["id"] in new for each in asked) else Status.INTERRUPTED
            event = interrupted_event(claim.job_id, claim.fence, asked, traceparent)
            announced = letters(STATUS_SUBJECT + INTERRUPTED, event, sink=self._sink)
            crash.point("before_interrupt")
            done = await self._rows(
                "interrupt",
                job_id=claim.job_id,
                fence=claim.fence,
                answer_count=row["answer_count"],
                status=status.value,
                interrupts=strict_json.dumps(list(asked)).decode(),
                event_count=event_count,
                usage=_json(usage),
                dropped=[each["id"] for each in asked if each["id"] in claim.answers],
                **columns(announced if status is Status.INTERRUPTED else ()),
            )
            if done:
                crash.point("after_interrupt")
                if status is Status.INTERRUPTED:
                    self._send(announced, in_hand=False)
                return status

    async def resume(self, answer: Answer, prefix: str = "") -> Receipt:
        """Store an answer; a job that waits for one is queued, and goes on with it. The same again changes nothing.

        Where several answers are asked for, the first has the job go on, and the others are used as they come.

        Args:
            prefix: where the answer's fields stand in what the caller sent, e.g. `data.`.

        Raises:
            NotFound: no such job.
            Conflict: the job asks nothing, or not this, or was answered otherwise.
            InvalidInput: it does not say which of several interrupts it answers, or it does not decide an approval.
        """
        while True:  # until nobody changes the job between the look and the act
            row = await self._asked(answer.job_id, answer.tenant)
            if _is_repeated(answer, row["answers"]):
                return Receipt(answer.job_id, Status(row["status"]), is_new=False)
            question = _question(answer, row, prefix)
            value = interrupts.accepted(question["value"], answer.value, prefix)
            done = await self._rows(
                "resume",
                job_id=answer.job_id,
                tenant=answer.tenant,
                fence=row["fence"],
                status=row["status"],
                answer_count=row["answer_count"],
                interrupt_id=question["id"],
                value=strict_json.dumps(value).decode(),
                request_id=answer.request_id,
                **vars(answer.origin),
            )
            if done:
                crash.point("after_resume")
                return Receipt(answer.job_id, Status(done[0]["status"]), is_new=True)

    async def fail_silent(self) -> list[Ended]:
        """Fail the jobs whose workers fell silent in every attempt they had; the requests become dead letters."""
        ended = []
        for row in await self._rows("silent_for_good", max_attempts=self.max_attempts, lease_s=self.lease_s):
            claim = Claim(**row)
            error = WorkerLost(f"the worker of job {claim.job_id} fell silent in each of {claim.attempt} attempts")
            outcome = _failed(error)
            event_id = outcome_id(claim.job_id, claim.fence + 1)
            announced = self._letters(claim.job_id, event_id, outcome, claim.traceparent)
            announced.append(dead_letter(claim, event_id, outcome.error or {}))
            held = (claim.job_id, claim.tenant, claim.fence)
            if await self._end(*held, outcome, announced, out_of=[Status.RUNNING], if_silent=True):
                ended.append(Ended(claim.job_id, claim.trace_id, claim.fence + 1, outcome, tenant=claim.tenant))
        return ended

    async def cancel(self, job_id: str, tenant: str, origin: Origin = UNKNOWN) -> Ended | None:
        """End a job, wherever it is; None when it is cancelled already.

        Its fence is raised, so that a worker that still runs it can record nothing more.

        Raises:
            NotFound: no such job.
            Conflict: it has ended otherwise.
        """
        while True:  # until nobody claims or releases it between the look and the act
            row = await self.job(job_id, tenant)
            if row["status"] == Status.CANCELLED:
                return None
            if row["status"] not in _CANCELLABLE:
                raise Conflict(f"job {job_id} is {row['status']} and cannot be cancelled")
            outcome = Outcome(Status.CANCELLED, error=_failed(Cancelled(f"job {job_id} was cancelled")).error)
            event_id = outcome_id(job_id, row["fence"] + 1)
            announced = self._letters(job_id, event_id, outcome, row["traceparent"])
            seen = (job_id, tenant, row["fence"])
            if await self._end(*seen, outcome, announced, out_of=_CANCELLABLE, origin=origin):
                return Ended(job_id, row["trace_id"], row["fence"] + 1, outcome, tenant=tenant)

    async def redrive(self, job_id: str, tenant: str, origin: Origin = UNKNOWN) -> None:
        """Run a failed job again, from its last checkpoint and with all its attempts before it.

        Raises:
            NotFound: no such job.
            Conflict: it has not failed.
            TooManyRequests: the tenant has as many queued jobs as it may.
        """
        async with database.connection(self._pool) as connection, connection.transaction():
            redriven = await connection.execute(SQL["redrive"], {"job_id": job_id, "tenant": tenant, **vars(origin)})
            if await redriven.fetchone():
                await quotas.check_room(connection, tenant, self._allowance)
                return
        status = (await self.job(job_id, tenant))["status"]
        raise Conflict(f"job {job_id} is {status}; only a failed job can be redriven")

    async def announce_rejection(self, job_id: str, event: dict[str, Any]) -> None:
        """Announce that a request was refused, unless a job of that id exists, whosever: its outcome is its own."""
        announced = letters(f"{STATUS_SUBJECT}failed", event, sink=self._sink)
        await self._rows("announce_rejection", job_id=job_id, **columns(announced))

    async def job(self, job_id: str, tenant: str) -> DictRow:
        """One job's row, without its definition and input; `interrupts` are those that wait for an answer, or None.

        Raises NotFound.
        """
        rows = await self._rows("job", job_id=job_id, tenant=tenant)
        if not rows:
            raise NotFound(f"no job {job_id}")
        [row] = rows
        return {**row, "interrupts": interrupts.unanswered(row["interrupts"], row["answered"]) or None}

    async def jobs(
        self, tenant: str, status: str | None, limit: int, before: tuple[datetime, str] | None
    ) -> list[DictRow]:
        """A page of a tenant's jobs, newest first, older than `before` (created_at, job_id)."""
        at, job_id = before if before is not None else (None, None)
        page = {"tenant": tenant, "limit": limit, "before": at, "before_id": job_id}
        async with database.connection(self._pool) as connection:
            return await (await connection.execute(_PAGES[status], page)).fetchall()

    async def outcome(self, job_id: str, tenant: str) -> dict[str, Any] | None:
        """The outgoing CloudEvent of a finished job, None before."""
        rows = await self._rows("outcome", job_id=job_id, tenant=tenant)
        return rows[0]["event"] if rows else None

    async def endings(self, job_ids: Collection[str]) -> list[Ended]:
        """Those of these jobs that have ended, or wait for an answer."""
        return [
            Ended(row["job_id"], row["trace_id"], row["fence"], _outcome(row), row["event_count"])
            for row in await self._rows("endings", job_ids=list(job_ids))
        ]

    async def waiting(self) -> tuple[int, int]:
        """How many jobs are due, and how many results are not delivered."""
        [row] = await self._rows("waiting")
        return row["jobs"], row["results"]

    async def expire(self, days: int, limit: int) -> int:
        """Delete one batch of what ended more than `days` ago; returns how many jobs and refusals it was."""
        async with database.connection(self._pool, limit_s=60) as connection:
            jobs = await connection.execute(SQL["expire_jobs"], {"days": days, "limit": limit})
            rest = await connection.execute(SQL["expire_outbox"], {"days": days, "limit": limit})
            return jobs.rowcount + rest.rowcount

    async def ping(self) -> bool:
        """True when PostgreSQL answers and has our tables; raises Unavailable otherwise."""
        await self._rows("ping")
        return True

    async def _asked(self, job_id: str, tenant: str) -> DictRow:
        rows = await self._rows("answers", job_id=job_id, tenant=tenant)
        if not rows:
            raise NotFound(f"no job {job_id}")
        return rows[0]

    def _letters(self, job_id: str, event_id: str, outcome: Outcome, traceparent: str | None) -> list[Letter]:
        event = outcome_event(job_id, event_id, outcome, traceparent)
        return letters(STATUS_SUBJECT + outcome_subject(outcome.status), event, sink=self._sink)

    async def _end(
        self,
        job_id: str,
        tenant: str,
        fence: int,
        outcome: Outcome,
        announced: Sequence[Letter],
        *,
        out_of: Sequence[str],
        if_silent: bool = False,
        origin: Origin | None = None,
    ) -> bool:
        rows = await self._rows(
            "end",
            job_id=job_id,
            tenant=tenant,
            fence=fence,
            out_of=list(out_of),
            if_silent=if_silent,
            status=outcome.status.value,
            error=_json(outcome.error),
            outcome_id=outcome_id(job_id, fence + 1),
            **(_NOBODY if origin is None else vars(origin)),
            **columns(announced),
        )
        return bool(rows)

    async def _rows(self, query: str, **parameters: Any) -> list[DictRow]:
        async with database.connection(self._pool) as connection:
            cursor = await connection.execute(SQL[query], parameters)
            return await cursor.fetchall() if cursor.description else []


async def _finish(
    connection: AsyncConnection[DictRow], endings: Sequence[_Ending], alone: bool
) -> Mapping[Hashable, bool]:
    """Record outcomes; returns the ids of those that are."""
    rows = zip(*(each.row for each in endings), strict=True)
    parameters: dict[str, list[Any]] = {
        name: _ARRAYS.get(name, Texts)(column) for name, column in zip(_ENDING, rows, strict=True)
    }
    for name in columns(()):
        parameters[name] = Texts(value for each in endings for value in each.letters[name])
    parameters["in_hand_s"] = Ints(each.in_hand_s for each in endings for _ in each.letters["msg_ids"])
    parameters["letters_of"] = Texts(each.row[0] for each in endings for _ in each.letters["msg_ids"])
    cursor = await connection.execute(_FINISH_ALONE if alone else SQL["finish"], parameters, binary=True)
    return {(row["outcome_id"], row["tenant"]): True for row in await cursor.fetchall()}


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else strict_json.dumps(value).decode()


def _outcome(row: DictRow) -> Outcome:
    return Outcome(Status(row["status"]), error=row["error"], interrupts=tuple(row["interrupts"] or ()))


def _is_repeated(answer: Answer, stored: Sequence[dict[str, Any]]) -> bool:
    """Whether this very answer is stored, as its request or its interrupt tells. Raises Conflict if another one is."""
    for each in stored:
        by_request = answer.request_id is not None and answer.request_id == each["request_id"]
        if by_request or answer.interrupt_id == each["interrupt_id"]:
            if interrupts.is_same(each["value"], answer.value):
                return True
            what = "this request has given" if by_request else "this interrupt has got"
            raise Conflict(f"job {answer.job_id}: {what} another answer already")
    return False


def _question(answer: Answer, row: DictRow, prefix: str) -> interrupts.Interrupt:
    """The pending interrupt that is answered."""
    pending = interrupts.unanswered(row["interrupts"], [each["interrupt_id"] for each in row["answers"]])
    if not pending:
        raise Conflict(f"job {answer.job_id} is {row['status']}; it waits for no answer")
    interrupt_id = interrupts.chosen(pending, answer.interrupt_id, prefix)
    for each in pending:
        if each["id"] == interrupt_id:
            return each
    raise Conflict(f"job {answer.job_id} is {row['status']}; it waits for no answer to this interrupt")


def _failed(error: Exception) -> Outcome:
    described = {"message": str(error), "type": type(error).__name__, "stack_trace": ""}
    return Outcome(Status.FAILED, error=described)
