"""worker: how many jobs run, what becomes of them when the process ends, the lease is lost or the database is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from agent_executor import metrics, notify, worker
from agent_executor.errors import LeaseLost, NotDeployed, Stopped, Unavailable
from agent_executor.job import Outcome, Status
from agent_executor.ledger import Claim
from agent_executor.worker import Worker

DONE = Outcome(Status.COMPLETED, result="5")
ASKS = Outcome(Status.INTERRUPTED, interrupts=({"id": "i", "value": 1},))
FAILED = Outcome(Status.FAILED, error={"message": "no luck", "type": "ValueError", "stack_trace": "secret lines"})
BUSY = Outcome(Status.FAILED, error={"message": "busy", "type": "RateLimitError", "stack_trace": ""}, may_pass=True)


class FakeLedger:
    """Stands for ledger.Ledger: a queue in memory."""

    lease_s, max_attempts, counts_running = 9.0, 3, False

    def __init__(self, *job_ids: str, attempt: int = 1, age_s: float = 0) -> None:
        self.queue = [Claim(job_id, "trace-1", {}, {}, None, attempt, 1, age_s=age_s) for job_id in job_ids]
        self.retried: list[str] = []
        self.taken_over: list[bool] = []
        self.running: dict[str, Claim] = {}
        self.finished: dict[str, Outcome] = {}
        self.interrupted: list[str] = []
        self.becomes = Status.INTERRUPTED
        self.released: list[str] = []
        self.delays: list[float] = []
        self.failures: dict[str, list[Exception]] = {}
        self.asked: list[int] = []
        self.held: list[list[str]] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def claim(self, owner: str, slots: int, held: Collection[str], *, take_over: bool) -> list[Claim]:
        self._fail("claim")
        self.asked.append(slots)
        self.taken_over.append(take_over)
        self.held.append(sorted(held))
        await self.answers.wait()
        claims, self.queue = self.queue[:slots], self.queue[slots:]
        self.running |= {claim.job_id: claim for claim in claims}
        return claims

    async def release(self, claim: Claim, delay_s: float = 0) -> bool:
        self._fail("release")
        self.released.append(claim.job_id)
        self.delays.append(delay_s)
        return True

    async def retry(self, claim: Claim, outcome: Outcome) -> datetime | None:
        self._fail("retry")
        self.retried.append(claim.job_id)
        return datetime.now(UTC)

    async def finish(self, claim: Claim, outcome: Outcome, traceparent: str | None, event_count: int) -> None:
        self._fail("finish")
        self.finished[claim.job_id] = outcome

    async def interrupt(
        self, claim: Claim, asked: Any, traceparent: str | None, event_count: int, usage: Any
    ) -> Status:
        self._fail("interrupt")
        self.interrupted.append(claim.job_id)
        return self.becomes

    def _fail(self, what: str) -> None:
        if self.failures.get(what):
            raise self.failures[what].pop(0)


class FakeLeases:
    """Stands for leases.Leases: a lease is lost when a test says so."""

    def __init__(self) -> None:
        self.failed_at = -1000.0
        self.held: dict[str, Callable[[str], None]] = {}
        self.checked = 0

    def hold(self, claim: Claim, asked_at: float, on_lost: Callable[[str], None]) -> None:
        self.held[claim.job_id] = on_lost

    def drop(self, claim: Claim) -> None:
        self.held.pop(claim.job_id, None)

    def check(self) -> None:
        self.checked += 1


class FakeControl:
    """Stands for langgraph's RunControl."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def request_drain(self, reason: str = "shutdown") -> None:
        self.asked.set()


class FakeRunner:
    """Stands for runner.Runner: a job runs until its gate opens."""

    def __init__(self, outcome: Outcome | Exception = DONE, *, stops: bool = False) -> None:
        self.stops = stops
        self.gates: dict[str, asyncio.Event] = {}
        self.outcome = outcome
        self.most_at_once = 0
        self.cancelled: list[str] = []
        self._now = 0

    def control(self) -> FakeControl:
        return FakeControl()

    async def run(self, claim: Claim, channel: Any, control: FakeControl) -> Outcome:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        gate = self.gates.setdefault(claim.job_id, asyncio.Event())
        try:
            if self.stops:
                await control.asked.wait()
                raise Stopped(claim.job_id)
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(claim.job_id)
            raise
        finally:
            self._now -= 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def open(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self.gates.setdefault(job_id, asyncio.Event()).set()


class FakePublisher:
    """Stands for stream.Publisher."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, Any]] = []

    def channel(self, thread_id: str, fence: int, trace_id: str) -> Any:
        publisher = self

        class Channel:
            count = 0

            def emit(self, event_type: str, data: Any) -> None:
                publisher.events.append((thread_id, event_type, data))

        return Channel()


class House:
    """A worker among its neighbours."""

    def __init__(self, ledger: FakeLedger, runner: FakeRunner, slots: int) -> None:
        self.ledger, self.runner, self.publisher, self.leases = ledger, runner, FakePublisher(), FakeLeases()
        self.queued = asyncio.Event()
        self.worker = Worker(
            ledger,  # type: ignore[arg-type]
            self.leases,  # type: ignore[arg-type]
            runner,
            self.publisher,  # type: ignore[arg-type]
            queued=self.queued,
            slots=slots,
        )


@asynccontextmanager
async def house(ledger: FakeLedger, runner: FakeRunner | None = None, *, slots: int = 8) -> AsyncIterator[House]:
    made = House(ledger, runner or FakeRunner(), slots)
    running = asyncio.create_task(made.worker.run())
    try:
        async with asyncio.timeout(5):
            yield made
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=0.5)


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - any condition
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RETRY_S", 0)


async def test_a_job_is_run_recorded_and_announced() -> None:
    async with house(FakeLedger("a")) as it:
        it.runner.open("a")
        await until(lambda: it.publisher.events)
        assert it.ledger.finished == {"a": DONE}
        assert it.publisher.events == [("a", "end", {"status": "completed"})]


async def test_a_failed_job_is_announced_with_its_error_but_not_its_trace() -> None:
    async with house(FakeLedger("a"), FakeRunner(FAILED)) as it:
        it.runner.open("a")
        await until(lambda: len(it.publisher.events) == 2)
        assert it.publisher.events == [
            ("a", "error", {"message": "no luck", "type": "ValueError"}),
            ("a", "end", {"status": "failed"}),
        ]


async def test_what_an_interrupted_job_asks_is_announced_once_the_database_has_it() -> None:
    ledger = FakeLedger("a")
    ledger.failures["interrupt"] = [Unavailable("away")]
    async with house(ledger, FakeRunner(ASKS)) as it:
        it.runner.open("a")
        await until(lambda: it.publisher.events)
        assert (ledger.interrupted, ledger.finished) == (["a"], {})
        assert it.publisher.events == [("a", "on_interrupt", {"id": "i", "value": 1})]


async def test_nothing_is_announced_where_the_answer_was_faster() -> None:
    ledger = FakeLedger("a")
    ledger.becomes = Status.QUEUED
    async with house(ledger, FakeRunner(ASKS)) as it:
        it.runner.open("a")
        await until(lambda: ledger.interrupted and not it.leases.held)
        assert it.publisher.events == []


async def test_what_is_not_deployed_here_is_left_to_another_process() -> None:
    async with house(FakeLedger("a", age_s=599), FakeRunner(NotDeployed("no graph"))) as it:
        it.runner.open("a")
        await until(lambda: it.ledger.released)
        assert (it.ledger.released, it.ledger.delays) == (["a"], [5.0])
        assert not it.ledger.finished
        assert not it.ledger.retried
        assert not it.publisher.events


async def test_what_no_process_had_for_long_uses_up_its_attempts() -> None:
    async with house(FakeLedger("a", age_s=600), FakeRunner(NotDeployed("no graph"))) as it:
        it.runner.open("a")
        await until(lambda: it.ledger.retried)
    async with house(FakeLedger("a", age_s=600, attempt=3), FakeRunner(NotDeployed("no graph"))) as it:
        it.runner.open("a")
        await until(lambda: it.ledger.finished)
        error = {"message": "no graph", "type": "NotDeployed", "stack_trace": ""}
        assert it.ledger.finished["a"] == Outcome(Status.FAILED, error=error, may_pass=True)


async def test_no_more_jobs_run_than_there_are_slots() -> None:
    ids = [str(number) for number in range(6)]
    async with house(FakeLedger(*ids), slots=3) as it:
        for started, job_id in zip([3, 4, 5, 6, 6, 6], ids, strict=True):
            await until(lambda started=started: len(it.runner.gates) == started)
            it.runner.open(job_id)
        await until(lambda: len(it.ledger.finished) == 6)
        assert it.runner.most_at_once == 3
        assert all(1 <= slots <= 3 for slots in it.ledger.asked)


async def test_a_job_that_ends_makes_room_for_the_next_at_once() -> None:
    async with house(FakeLedger("a", "b"), slots=1) as it:
        await until(lambda: "a" in it.ledger.running)
        it.runner.open("a")
        await until(lambda: "b" in it.ledger.running)
        assert it.ledger.asked == [1, 1]


async def test_being_told_of_a_job_claims_it() -> None:
    async with house(FakeLedger()) as it:
        await until(lambda: it.ledger.asked)
        it.ledger.queue = FakeLedger("late").queue
        it.queued.set()
        await until(lambda: "late" in it.ledger.running)


async def test_claiming_goes_on_when_the_database_is_back() -> None:
    ledger = FakeLedger("a")
    ledger.failures["claim"] = [Unavailable("away")]
    async with house(ledger) as it:
        await until(lambda: not ledger.failures["claim"])
        it.queued.set()
        await until(lambda: "a" in it.ledger.running)


async def test_an_outcome_is_kept_until_the_database_takes_it() -> None:
    ledger = FakeLedger("a")
    ledger.failures["finish"] = [Unavailable("away")] * 3
    async with house(ledger) as it:
        it.runner.open("a")
        await until(lambda: it.ledger.finished)
        await until(lambda: it.publisher.events)
        assert it.ledger.failures["finish"] == []


async def test_a_worker_that_lost_its_job_announces_nothing() -> None:
    ledger = FakeLedger("a")
    ledger.failures["finish"] = [LeaseLost("job a is no longer held")]
    async with house(ledger) as it:
        it.runner.open("a")
        await until(lambda: not it.ledger.failures["finish"])
        await it.worker.drain(5)
        assert it.publisher.events == []
        assert ledger.released == []


async def test_a_job_whose_lease_is_lost_is_cancelled_and_the_others_go_on() -> None:
    ledger = FakeLedger("lost", "mine")
    async with house(ledger) as it:
        await until(lambda: len(it.runner.gates) == 2)
        it.leases.held["lost"]("taken")
        await until(lambda: it.runner.cancelled)
        assert it.runner.cancelled == ["lost"]
        it.runner.open("mine")
        await until(lambda: it.publisher.events)
        assert it.ledger.finished == {"mine": DONE}
        assert {job_id for job_id, _, _ in it.publisher.events} == {"mine"}


async def test_a_lease_lost_while_the_outcome_is_recorded_is_left_to_the_fence() -> None:
    ledger = FakeLedger("a")
    ledger.failures["finish"] = [Unavailable("away")]
    async with house(ledger) as it:
        it.runner.open("a")
        await until(lambda: not ledger.failures["finish"])
        it.leases.held["a"]("not renewed")
        await until(lambda: it.publisher.events)
        assert it.ledger.finished == {"a": DONE}


async def test_a_job_that_is_cut_off_behind_its_outcome_is_announced_and_counted() -> None:
    ledger = FakeLedger("a")
    counted = metrics.jobs.labels("completed")._value.get
    before = counted()
    async with house(ledger) as it:
        it.runner.open("a")
        await until(lambda: ledger.finished)
        for task in list(it.worker._running):
            task.cancel()
        await until(lambda: not it.worker._running)
        assert it.publisher.events == [("a", "end", {"status": "completed"})]
        assert counted() == before + 1


async def test_leases_are_kept_while_a_job_runs_and_no_longer() -> None:
    async with house(FakeLedger("a")) as it:
        await until(lambda: it.runner.gates)
        assert set(it.leases.held) == {"a"}
        it.runner.open("a")
        await until(lambda: it.publisher.events)
        await until(lambda: not it.leases.held)


async def test_a_job_that_ended_elsewhere_has_its_lease_looked_at() -> None:
    async with house(FakeLedger("a")) as it:
        await until(lambda: it.runner.gates)
        it.worker.on_finished_somewhere("another")
        assert it.leases.checked == 0
        it.worker.on_finished_somewhere("a")
        assert it.leases.checked == 1


async def test_a_failure_that_may_pass_is_tried_again() -> None:
    ledger = FakeLedger("a")
    async with house(ledger, FakeRunner(BUSY)) as it:
        it.runner.open("a")
        await until(lambda: it.publisher.events)
        assert ledger.retried == ["a"]
        assert ledger.finished == {}
        [(_, kind, data)] = it.publisher.events
        assert (kind, data["about"]) == ("warning", "retry")
        assert data["message"] == "attempt 1 of 3 failed, and the job is tried again: busy"


async def test_the_last_attempt_fails_for_good() -> None:
    ledger = FakeLedger("a", attempt=3)
    async with house(ledger, FakeRunner(BUSY)) as it:
        it.runner.open("a")
        await until(lambda: it.publisher.events)
        assert ledger.finished == {"a": BUSY}
        assert ledger.retried == []


async def test_a_bug_counts_as_a_failure_that_may_pass() -> None:
    ledger = FakeLedger("a")
    async with house(ledger, FakeRunner(TypeError("a bug"))) as it:
        it.runner.open("a")
        await until(lambda: ledger.retried)
        assert it.ledger.finished == {}


async def test_after_an_outage_nothing_is_taken_over_for_a_while() -> None:
    ledger = FakeLedger()
    ledger.failures["claim"] = [Unavailable("away")]
    async with house(ledger) as it:
        await until(lambda: not ledger.failures["claim"])
        assert it.worker.is_blind
        it.queued.set()
        await until(lambda: ledger.taken_over)
        assert ledger.taken_over == [False]


async def test_otherwise_it_is() -> None:
    async with house(FakeLedger()) as it:
        await until(lambda: it.ledger.taken_over)
        assert it.ledger.taken_over == [True]


async def test_a_renewal_that_failed_is_an_outage_too() -> None:
    async with house(FakeLedger()) as it:
        assert not it.worker.is_blind
        it.leases.failed_at = time.monotonic()
        assert it.worker.is_blind


async def test_draining_asks_runs_to_stop_before_it_cuts_them_off() -> None:
    async with house(FakeLedger("long"), FakeRunner(stops=True)) as it:
        await until(lambda: it.runner.gates)
        await it.worker.drain(0.03)
        assert it.ledger.released == ["long"]
        assert it.runner.cancelled == []


async def test_draining_lets_running_jobs_finish() -> None:
    async with house(FakeLedger("a", "b"), slots=1) as it:
        await until(lambda: "a" in it.runner.gates)
        draining = asyncio.create_task(it.worker.drain(60))
        await asyncio.sleep(0)
        it.runner.open("a")
        await draining
        assert it.ledger.finished == {"a": DONE}
        assert it.ledger.released == []
        assert [claim.job_id for claim in it.ledger.queue] == ["b"]


async def test_draining_gives_back_what_does_not_finish_in_time() -> None:
    async with house(FakeLedger("slow", "quick")) as it:
        await until(lambda: len(it.runner.gates) == 2)
        it.runner.open("quick")
        await it.worker.drain(0.01)
        assert it.ledger.released == it.runner.cancelled == ["slow"]
        assert it.ledger.finished == {"quick": DONE}
        assert not [event for event in it.publisher.events if event[0] == "slow"]


async def test_draining_ends_although_a_job_cannot_be_given_back() -> None:
    ledger = FakeLedger("a")
    ledger.failures["release"] = [Unavailable("away")]
    async with house(ledger) as it:
        await until(lambda: "a" in it.runner.gates)
        await it.worker.drain(0)
        assert it.runner.cancelled == ["a"]


async def test_draining_with_nothing_to_do_ends_the_worker() -> None:
    made = House(FakeLedger(), FakeRunner(), 8)
    running = asyncio.create_task(made.worker.run())
    await until(lambda: made.ledger.asked)
    await made.worker.drain(60)
    async with asyncio.timeout(5):
        await running


async def test_a_job_claimed_while_draining_begins_is_drained_too() -> None:
    """The claim was under way when the signal came: its job is this worker's."""
    answer = asyncio.Event()

    class SlowLedger(FakeLedger):
        async def claim(self, owner: str, slots: int, held: Collection[str], *, take_over: bool) -> list[Claim]:
            claims = await super().claim(owner, slots, held, take_over=take_over)
            await answer.wait()
            return claims

    async with house(SlowLedger("a")) as it:
        await until(lambda: it.ledger.running)
        draining = asyncio.create_task(it.worker.drain(0.01))
        await asyncio.sleep(0)
        answer.set()
        await draining
        assert it.ledger.released == ["a"]


async def test_a_bug_in_a_job_costs_no_slot() -> None:
    ledger = FakeLedger("bad", "good")
    ledger.failures["finish"] = [TypeError("a bug")]
    async with house(ledger, slots=1) as it:
        it.runner.open("bad", "good")
        await until(lambda: "good" in it.ledger.finished)


def test_workers_have_different_names() -> None:
    names = {House(FakeLedger(), FakeRunner(), 1).worker.name for _ in range(3)}
    assert len(names) == 3


@pytest.fixture
def unpolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that looks only when told."""
    monkeypatch.setattr(worker, "wait", partial(notify.wait, timeout_s=3600))


def arriving(job_id: str) -> Claim:
    return Claim(job_id, "trace-1", {}, {}, None, 1, 1)


async def test_a_job_that_arrives_takes_a_slot_that_was_kept_for_it() -> None:
    ledger = FakeLedger("a", "b", "c")
    async with house(ledger, slots=3) as it:
        assert it.worker.reserve(["new", "other"]) == 2
        await until(lambda: ledger.asked)
        assert (ledger.asked, it.worker.reserve(["more"])) == ([1], 0)
        it.worker.start([arriving("new")], time.monotonic(), ["new", "other"], 2)
        await until(lambda: len(it.runner.gates) == 3)
        assert it.runner.gates.keys() == {"a", "new", "b"}  # what was kept for nobody went to the next in the queue


async def test_a_claim_leaves_alone_what_is_just_arriving() -> None:
    ledger = FakeLedger()
    async with house(ledger, slots=2) as it:
        assert it.worker.reserve(["new"]) == 1
        await until(lambda: ledger.held)
        it.worker.start([arriving("new")], time.monotonic(), ["new"], 1)
        await until(lambda: "new" in it.runner.gates)
        it.runner.open("new")
        await until(lambda: not it.leases.held)
        it.queued.set()
        await until(lambda: len(ledger.held) == 2)
        assert ledger.held == [["new"], []]


@pytest.mark.usefixtures("unpolled")
async def test_what_arrived_and_is_queued_is_looked_for_again_since_a_claim_left_it_alone() -> None:
    ledger = FakeLedger()
    async with house(ledger, slots=2) as it:
        assert it.worker.reserve(["new"]) == 1
        await until(lambda: ledger.held)
        it.worker.start([], time.monotonic(), ["new"], 1)
        async with asyncio.timeout(10):
            await until(lambda: ledger.held == [["new"], []])


async def test_nothing_is_kept_for_arrivals_while_a_claim_asks_for_all_slots() -> None:
    ledger = FakeLedger("a")
    ledger.answers.clear()
    async with house(ledger, slots=1) as it:
        await until(lambda: ledger.asked)
        assert it.worker.reserve(["new"]) == 0
        ledger.answers.set()
        await until(lambda: "a" in it.runner.gates)
        it.runner.open("a")
        await until(lambda: not it.leases.held)
        await asyncio.sleep(0.01)
        assert it.worker.reserve(["new"]) == 1


async def test_one_that_arrives_while_the_process_goes_down_is_waited_for_and_given_back() -> None:
    ledger = FakeLedger()
    async with house(ledger) as it:
        await until(lambda: ledger.asked)
        assert it.worker.reserve(["late"]) == 1
        drained = asyncio.create_task(it.worker.drain(1))
        await asyncio.sleep(0.01)
        assert (it.worker.reserve(["later"]), drained.done()) == (0, False)
        it.worker.start([arriving("late")], time.monotonic(), ["late"], 1)
        await until(lambda: "late" in it.runner.gates)
        it.runner.open("late")
        await drained
        assert ledger.finished == {"late": DONE}
        it.worker.start([arriving("too late")], time.monotonic(), ["too late"], 0)
        await until(lambda: ledger.released)
        assert ledger.released == ["too late"]


async def test_who_found_no_more_than_it_could_run_looks_again_only_when_told() -> None:
    ledger = FakeLedger("a", "b")
    async with house(ledger, slots=2) as it:
        it.runner.open("a", "b")
        await until(lambda: ledger.finished.keys() == {"a", "b"} and not it.leases.held)
        await until(lambda: len(ledger.asked) == 2)  # it was full, so that there might have been more
        ledger.queue = [Claim("c", "trace-1", {}, {}, None, 1, 1)]
        it.queued.set()
        it.runner.open("c")
        await until(lambda: "c" in ledger.finished and not it.leases.held)
        await asyncio.sleep(0.01)
        assert ledger.asked == [2, 2, 2]


@pytest.mark.usefixtures("unpolled")
async def test_who_counts_running_jobs_looks_again_when_one_has_ended() -> None:
    ledger = FakeLedger("a")
    ledger.counts_running = True
    async with house(ledger, slots=2) as it:
        await until(lambda: "a" in it.runner.gates)
        ledger.queue = [arriving("b")]  # its tenant may run one at a time
        it.runner.open("a", "b")
        async with asyncio.timeout(10):
            await until(lambda: "b" in ledger.finished)


@pytest.mark.usefixtures("unpolled")
@pytest.mark.parametrize("outcome", [ASKS, Unavailable("Vault does not answer")])
async def test_who_put_a_job_back_looks_again(outcome: Outcome | Exception) -> None:
    ledger = FakeLedger("a")
    ledger.becomes = Status.QUEUED
    async with house(ledger, FakeRunner(outcome), slots=2) as it:
        await until(lambda: "a" in it.runner.gates)
        ledger.queue = [arriving("a")]
        it.runner.open("a")
        async with asyncio.timeout(10):
            await until(lambda: len(ledger.asked) == 2)
