"""Random sequences of what may happen to jobs, against the real SQL and beside a model of what must come of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent_executor import database as connections
from agent_executor import job
from agent_executor.announcements import outcome_id
from agent_executor.errors import Conflict, LeaseLost, NotFound
from agent_executor.job import TERMINAL, Outcome, Status
from agent_executor.leases import SQL
from agent_executor.ledger import Claim, Ledger
from agent_executor.outbox import Outbox
from tests.definitions import DATA
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.postgres import Database

T = TypeVar("T")
LEASE_S = 1.0
MAX_ATTEMPTS = 2
OWNERS = st.sampled_from(["w1", "w2", "w3"])
TENANTS = st.sampled_from(["north", "south"])
JOB_IDS = st.sampled_from(["a", "b"])
ERROR = {"message": "no luck", "type": "ValueError", "stack_trace": ""}
DONE = Outcome(Status.COMPLETED, result="5")
BUSY = Outcome(Status.FAILED, error=ERROR, may_pass=True)


@dataclass
class Model:
    """What we believe of one job. The tenant and the text are those of the first request for it."""

    tenant: str
    text: str
    status: str = "queued"
    attempt: int = 0
    fence: int = 0
    owner: str | None = None
    is_silent: bool = False
    outcomes: list[str] = field(default_factory=list)

    def end(self, status: str, job_id: str, fence: int) -> None:
        self.status, self.owner, self.is_silent = status, None, False
        self.outcomes.append(outcome_id(job_id, fence))

    def wait(self) -> None:
        self.status, self.owner, self.is_silent = "queued", None, False


class Starter:
    """A worker with a free slot."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started: list[Claim] = []

    def reserve(self, job_ids: Collection[str]) -> int:
        return len(job_ids)

    def start(self, claims: Sequence[Claim], asked_at: float, job_ids: Collection[str], reserved: int) -> None:
        self.started += claims


class LedgerMachine(RuleBasedStateMachine):
    """Three workers, two jobs. No claim is forgotten: whoever lost one may still act on it, as a zombie would."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    pool: ClassVar[connections.Pool]
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self._sql("delete from jobs")
        self._sql("delete from outbox")
        self.ledger = Ledger(self.pool, lease_s=LEASE_S, max_attempts=MAX_ATTEMPTS)
        self.outbox = Outbox(self.pool, "nats", self._deliver)
        self.jobs: dict[str, Model] = {}
        self.held: dict[str, dict[str, int]] = {name: {} for name in ("w1", "w2", "w3")}
        self.published: list[str] = []
        self.losing = False

    def _do(self, what: Awaitable[T]) -> T:
        return self.loop.run_until_complete(what)

    def _sql(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        async def execute() -> list[dict[str, Any]]:
            async with self.pool.connection() as connection:
                cursor = await connection.execute(query.encode(), parameters or None)
                return await cursor.fetchall() if cursor.description else []

        return self._do(execute())

    async def _deliver(self, msg_id: str, subject: str, event: dict[str, Any]) -> None:
        self.published.append(msg_id)
        if self.losing:
            raise TimeoutError

    @rule(
        target=claims,
        job_id=JOB_IDS,
        tenant=TENANTS,
        text=st.sampled_from(["2+3?", "4+5?"]),
        owner=st.none() | OWNERS,
        answer_lost=st.booleans(),
    )
    def submit(self, job_id: str, tenant: str, text: str, owner: str | None, answer_lost: bool) -> Any:
        """`owner`: where it arrives, if a slot is free there."""
        is_first = not self._sql("select 1 from jobs where status = 'queued' and due_at <= now()")
        self.ledger.starter = starter = None if owner is None else Starter(owner)
        body = DATA | {"job_id": job_id, "input_payload": {"messages": [{"role": "user", "content": text}]}}
        is_new = job_id not in self.jobs
        first = self.jobs.setdefault(job_id, Model(tenant, text))
        try:
            receipt = self._do(self.ledger.accept(replace(job.from_json(body), tenant=tenant)))
        except Conflict:
            assert (first.tenant, first.text) != (tenant, text)
            return multiple()
        assert (first.tenant, first.text) == (tenant, text)
        assert receipt.is_new == is_new
        assert receipt.status == first.status
        if starter is None or owner is None or not is_new or not is_first:
            assert starter is None or not starter.started
            return multiple()
        [claim] = starter.started
        assert (claim.job_id, claim.attempt, claim.fence, claim.tenant) == (job_id, 1, 1, tenant)
        first.status, first.owner, first.attempt, first.fence = "running", owner, 1, 1
        if answer_lost:
            return multiple()
        self.held[owner][job_id] = 1
        return claim

    @precondition(lambda self: self._any("queued", "running"))
    @rule(
        target=claims,
        owner=OWNERS,
        slots=st.integers(1, 2),
        take_over=st.booleans(),
        answer_lost=st.booleans(),
        still_stopping=st.booleans(),
    )
    def claim(self, owner: str, slots: int, take_over: bool, answer_lost: bool, still_stopping: bool) -> Any:
        """`still_stopping`: runs that the owner has lost have not ended yet, so it still holds their jobs."""
        self._sql("update jobs set due_at = created_at where status = 'queued'")
        if not still_stopping:
            self._forget_what_is_lost(owner)
        given = self._do(self.ledger.claim(owner, slots, self.held[owner], take_over=take_over))
        assert len(given) <= slots
        eligible = {name for name, model in self.jobs.items() if self._may_claim(name, model, owner, take_over)}
        assert {claim.job_id for claim in given} <= eligible
        assert len(given) == min(slots, len(eligible))
        for claim in given:
            model = self.jobs[claim.job_id]
            counted = model.status == "queued" or model.owner != owner
            model.attempt, model.fence = model.attempt + counted, model.fence + 1
            model.status, model.owner, model.is_silent = "running", owner, False
            assert (claim.attempt, claim.fence, claim.tenant) == (model.attempt, model.fence, model.tenant)
            if not answer_lost:
                self.held[owner][claim.job_id] = claim.fence
        return multiple() if answer_lost else multiple(*given)

    def _forget_what_is_lost(self, owner: str) -> None:
        held = self.held[owner]
        for name, fence in list(held.items()):
            model = self.jobs[name]
            if (model.status, model.owner, model.fence) != ("running", owner, fence):
                del held[name]

    def _may_claim(self, name: str, model: Model, owner: str, take_over: bool) -> bool:
        if model.status == "queued":
            return name not in self.held[owner]
        if model.status != "running":
            return False
        if model.owner == owner:
            return name not in self.held[owner]
        return take_over and model.is_silent and model.attempt < MAX_ATTEMPTS

    def _any(self, *statuses: str) -> bool:
        return any(model.status in statuses for model in self.jobs.values())

    @precondition(lambda self: self._any("running"))
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """The worker of a job falls silent."""
        job_id = data.draw(st.sampled_from([name for name, model in self.jobs.items() if model.status == "running"]))
        self._sql("update jobs set lease_until = now() - interval '1 ms' where job_id = %(id)s", id=job_id)
        self.jobs[job_id].is_silent = True

    @precondition(lambda self: self._any("running"))
    @rule(owner=OWNERS)
    def crash(self, owner: str) -> None:
        """A worker dies: nobody of its name remembers anything, and its leases run out."""
        dead = "update jobs set lease_owner = 'dead', lease_until = now() - interval '1 ms'"
        self._sql(f"{dead} where lease_owner = %(owner)s", owner=owner)
        self.held[owner].clear()
        for model in self.jobs.values():
            if model.owner == owner:
                model.owner, model.is_silent = "dead", True

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        with_lease = self._sql(SQL["renew"], job_ids=[claim.job_id], fences=[claim.fence], lease_s=600)
        model = self.jobs[claim.job_id]
        assert bool(with_lease) == (model.status == "running" and model.fence == claim.fence)
        if with_lease:
            model.is_silent = False

    def _holds(self, claim: Claim) -> bool:
        model = self.jobs[claim.job_id]
        return model.status == "running" and model.fence == claim.fence

    @rule(claim=claims, outcome=st.sampled_from([DONE, BUSY]), times=st.integers(1, 2))
    def finish(self, claim: Claim, outcome: Outcome, times: int) -> None:
        model = self.jobs[claim.job_id]
        holds, event_id = self._holds(claim), outcome_id(claim.job_id, claim.fence)
        is_recorded = (
            bool(model.outcomes) and model.outcomes[-1] == event_id and model.status in ("completed", "failed")
        )
        for _ in range(times):
            if holds or is_recorded:
                self._do(self.ledger.finish(claim, outcome, None))
            else:
                with pytest.raises(LeaseLost):
                    self._do(self.ledger.finish(claim, outcome, None))
        if holds:
            model.end(outcome.status.value, claim.job_id, claim.fence)

    @rule(claim=claims)
    def retry(self, claim: Claim) -> None:
        holds = self._holds(claim)
        assert (self._do(self.ledger.retry(claim, BUSY)) is not None) == holds
        if holds:
            self.jobs[claim.job_id].wait()

    @rule(claim=consumes(claims), times=st.integers(1, 2))
    def release(self, claim: Claim, times: int) -> None:
        holds = self._holds(claim)
        given_back = [self._do(self.ledger.release(claim)) for _ in range(times)]
        assert given_back == [holds, False][:times]
        if holds:
            self.jobs[claim.job_id].wait()
            self.jobs[claim.job_id].attempt -= 1

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), tenant=TENANTS)
    def cancel(self, data: st.DataObject, tenant: str) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        model = self.jobs[job_id]
        if model.tenant != tenant:
            with pytest.raises(NotFound):
                self._do(self.ledger.cancel(job_id, tenant))
            return
        if model.status in ("completed", "failed"):
            with pytest.raises(Conflict):
                self._do(self.ledger.cancel(job_id, tenant))
            return
        ended = self._do(self.ledger.cancel(job_id, tenant))
        assert (ended is None) == (model.status == "cancelled")
        if ended is not None:
            model.fence += 1
            model.end("cancelled", job_id, model.fence)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), tenant=TENANTS)
    def redrive(self, data: st.DataObject, tenant: str) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        model = self.jobs[job_id]
        if model.tenant != tenant:
            with pytest.raises(NotFound):
                self._do(self.ledger.redrive(job_id, tenant))
            return
        if model.status != "failed":
            with pytest.raises(Conflict):
                self._do(self.ledger.redrive(job_id, tenant))
            return
        self._do(self.ledger.redrive(job_id, tenant))
        model.wait()
        model.attempt = 0

    @rule()
    def fail_silent(self) -> None:
        lost = {
            name
            for name, model in self.jobs.items()
            if model.status == "running" and model.is_silent and model.attempt >= MAX_ATTEMPTS
        }
        assert {ended.job_id for ended in self._do(self.ledger.fail_silent())} == lost
        for name in lost:
            self.jobs[name].fence += 1
            self.jobs[name].end("failed", name, self.jobs[name].fence)

    @rule(losing=st.booleans())
    def publish(self, losing: bool) -> None:
        """Deliver what is due; when answers are lost it is delivered again later, under the same id."""
        self.losing = losing
        self._do(self.outbox.flush())
        self._sql("update outbox set due_at = now() where published_at is null")

    @invariant()
    def the_rows_are_as_we_believe(self) -> None:
        found = self._sql("select job_id, status, attempt, fence, outcome_id from jobs")
        assert {row["job_id"]: (row["status"], row["attempt"], row["fence"]) for row in found} == {
            name: (model.status, model.attempt, model.fence) for name, model in self.jobs.items()
        }
        for row in found:
            has_ended = row["status"] in TERMINAL
            assert row["outcome_id"] == (self.jobs[row["job_id"]].outcomes[-1] if has_ended else None)

    @invariant()
    def every_outcome_is_announced_under_one_id(self) -> None:
        letters = self._sql("select msg_id, published_at is not null as is_done from outbox")
        found = {row["msg_id"]: row["is_done"] for row in letters}
        outcomes = [event_id for model in self.jobs.values() for event_id in model.outcomes]
        assert sorted(name for name in found if ":" not in name) == sorted(outcomes)
        assert {name for name, is_done in found.items() if is_done} <= set(self.published) <= set(found)


@pytest.fixture
def machine(database: Database) -> Iterator[type[LedgerMachine]]:
    uptime = "select now() - pg_postmaster_start_time() > make_interval(secs => %s)"
    until(lambda: rows(database, uptime, LEASE_S) == [(True,)], "the server does not grow older")
    LedgerMachine.loop = asyncio.new_event_loop()
    LedgerMachine.pool = connections.pool(database.dsn, 4)
    LedgerMachine.loop.run_until_complete(LedgerMachine.pool.open())
    yield LedgerMachine
    LedgerMachine.loop.run_until_complete(LedgerMachine.pool.close())
    LedgerMachine.loop.close()


def test_whatever_happens_the_ledger_keeps_its_promise(
    machine: type[LedgerMachine], request: pytest.FixtureRequest
) -> None:
    """The same sequences each time, unless a soak is asked for: then others, and ten times as many."""
    soaks = bool(request.config.getoption("--soak"))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=2000 if soaks else 200,
            stateful_step_count=50,
            deadline=None,
            derandomize=not soaks,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
