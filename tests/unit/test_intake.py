"""intake: what becomes of a message: acked, buried, or put back; never lost."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from nats.errors import ConnectionClosedError
from structlog.testing import capture_logs

from agent_executor import intake, metrics, threads, validation
from agent_executor.audit import Refusal
from agent_executor.errors import Conflict, Finding, InvalidInput, NotFound, TooManyRequests, Unavailable
from agent_executor.intake import Intake
from agent_executor.job import Answer, Origin, Status, Submission
from agent_executor.ledger import Receipt
from tests.definitions import agent, answer, event

CANARY = "canary-4711"
LIMIT = 4096
GOOD = event(agent([{"text": "x"}]), job_id="job-1")


class FakeMessage:
    """Stands for a JetStream message; remembers what was done with it."""

    subject = "agent.execute.test"
    metadata = SimpleNamespace(sequence=SimpleNamespace(stream=7), timestamp=datetime(2026, 1, 2, tzinfo=UTC))

    def __init__(self, data: Any, failing: str = "") -> None:
        self.data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.done: list[str] = []
        self.on_nak: Callable[[FakeMessage], None] = lambda message: None
        self._failing = failing

    async def ack(self) -> None:
        self._do("ack")

    async def nak(self, delay: float) -> None:
        self._do("nak")

    async def term(self) -> None:
        self._do("term")

    def _do(self, word: str) -> None:
        if word == self._failing:
            raise ConnectionClosedError
        self.done.append(word)
        if word == "nak":
            self.on_nak(self)


class FakeBroker:
    """Stands for broker.Broker, its JetStream and its pull."""

    stream, client, is_over = "JOBS", None, True

    def __init__(self, *messages: FakeMessage) -> None:
        self.ready = asyncio.Event()
        self.js = self
        self.waiting = [*messages]
        self.dead: list[tuple[str, bytes, dict[str, str]]] = []
        self.failures: list[Exception] = []
        self.repaired = 0
        self.batches: list[int] = []
        self.idle = asyncio.Event()

    def pull(self) -> FakeBroker:
        return self

    async def fetch(self, batch: int, expiry_s: float) -> list[FakeMessage]:
        await asyncio.sleep(0)
        self.batches.append(batch)
        if self.failures:
            raise self.failures.pop(0)
        if not self.waiting:
            self.idle.set()
        batched, self.waiting = self.waiting[:batch], self.waiting[batch:]
        return batched

    def left(self) -> list[FakeMessage]:
        return []

    async def repair(self) -> None:
        self.repaired += 1

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.dead.append((subject, payload, headers))


class FakeLedger:
    """Stands for ledger.Ledger."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = [*failures]
        self.accepted: list[Submission] = []
        self.answered: list[Answer] = []
        self.announced: list[tuple[str, dict[str, Any]]] = []
        self.refused: list[Refusal] = []

    async def accept(self, submission: Submission, traceparent: str | None) -> Receipt:
        if self.failures:
            raise self.failures.pop(0)
        self.accepted.append(submission)
        return Receipt(submission.job_id, Status.QUEUED, is_new=True)

    async def resume(self, answer: Answer, prefix: str) -> Receipt:
        assert prefix == "data."
        if self.failures:
            raise self.failures.pop(0)
        self.answered.append(answer)
        return Receipt(answer.job_id, Status.QUEUED, is_new=True)

    async def announce_rejection(self, job_id: str, announced: dict[str, Any]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.announced.append((job_id, announced))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_RETRY_S", 0)
    monkeypatch.setattr(intake, "_PAUSE_S", 0.001)


def made(broker: FakeBroker, ledger: FakeLedger) -> Intake:
    refusals: Any = SimpleNamespace(add=ledger.refused.append)
    return Intake(broker, ledger, refusals, tenant="tenant-1", max_body_bytes=lambda: LIMIT)  # type: ignore[arg-type]


async def take(message: FakeMessage, *failures: Exception) -> tuple[FakeBroker, FakeLedger]:
    """Let the intake deal with one message, then drain it."""
    broker, ledger = FakeBroker(message), FakeLedger(*failures)
    await take_all(broker, ledger)
    return broker, ledger


async def take_all(broker: FakeBroker, ledger: FakeLedger) -> None:
    """Let the intake deal with what the broker has, then drain it."""
    broker.ready.set()
    part = made(broker, ledger)
    running = asyncio.create_task(part.run())
    async with asyncio.timeout(5):
        await broker.idle.wait()
        await part.drain()
        await running


async def test_an_accepted_job_is_acked_once_it_is_committed() -> None:
    message = FakeMessage(GOOD)
    broker, ledger = await take(message)
    assert [(each.job_id, each.tenant) for each in ledger.accepted] == [("job-1", "tenant-1")]
    assert message.done == ["ack"]
    assert broker.dead == []


async def test_many_messages_are_taken() -> None:
    messages = [FakeMessage({**GOOD, "id": str(number)}) for number in range(100)]
    broker, ledger = FakeBroker(*messages), FakeLedger()
    broker.ready.set()
    part = made(broker, ledger)
    running = asyncio.create_task(part.run())
    await broker.idle.wait()
    await part.drain()
    await running
    assert {each.event_id for each in ledger.accepted} == {str(number) for number in range(100)}
    assert all(message.done == ["ack"] for message in messages)


@pytest.mark.parametrize(
    ("data", "announced"),
    [
        (CANARY.encode(), False),
        (b"[]", False),
        (b'{"data": {"job_id": NaN}}', False),
        ({**GOOD, "data": {"trace_id": CANARY}}, False),
        ({**GOOD, "type": CANARY}, True),
        ({**GOOD, "data": {**GOOD["data"], "input_payload": CANARY}}, True),
        ({**GOOD, "data": {**GOOD["data"], "agent_definition": {"nodes": [CANARY]}}}, True),
    ],
)
async def test_what_can_never_be_a_job_is_buried_whole(data: Any, announced: bool) -> None:
    message = FakeMessage(data)
    broker, ledger = await take(message)
    [(subject, payload, headers)] = broker.dead
    assert (subject, payload) == ("agent.dead.invalid", message.data)
    assert headers["Agent-Subject"] == "agent.execute.test"
    assert headers["Agent-Error"]
    assert CANARY not in json.dumps(headers)
    assert message.done == ["term"]
    assert ledger.accepted == []
    assert [job_id for job_id, _ in ledger.announced] == (["job-1"] if announced else [])
    assert CANARY not in json.dumps(ledger.announced)


async def test_a_refused_job_is_announced_as_failed_with_the_reason() -> None:
    _, ledger = await take(FakeMessage({**GOOD, "specversion": "0.3"}))
    [(job_id, announced)] = ledger.announced
    assert job_id == announced["subject"] == "job-1"
    assert announced["type"] == "dev.my-platform.agent.failed"
    assert announced["data"]["error"] == {
        "message": 'invalid CloudEvent: specversion: must be "1.0"',
        "type": "InvalidInput",
        "stack_trace": "",
    }


async def test_a_conflict_is_buried_under_its_reason() -> None:
    message = FakeMessage(GOOD)
    broker, ledger = await take(message, Conflict("job job-1 exists with another definition or input"))
    assert [(subject, payload) for subject, payload, _ in broker.dead] == [("agent.dead.conflict", message.data)]
    assert message.done == ["term"]
    assert [job_id for job_id, _ in ledger.announced] == ["job-1"]  # the ledger announces it for no job that exists


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Conflict("job job-1 is completed; it waits for no answer"), "conflict"),
        (NotFound("no job job-1"), "not-found"),
        (InvalidInput("invalid answer", [Finding("data.value", "must be something else")]), "invalid"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_buried_and_announces_no_failure(
    failure: Exception, reason: str
) -> None:
    message = FakeMessage(answer("job-1", CANARY))
    broker, ledger = await take(message, failure)
    assert [(subject, payload) for subject, payload, _ in broker.dead] == [(f"agent.dead.{reason}", message.data)]
    assert message.done == ["term"]
    assert ledger.announced == []


async def test_an_answer_is_acked_once_it_is_committed() -> None:
    message = FakeMessage(answer("job-1", {"x": 1}, interrupt_id="i"))
    broker, ledger = await take(message)
    [found] = ledger.answered
    assert found == Answer("job-1", {"x": 1}, "i", "tests answer-1", tenant="tenant-1", origin=Origin("nats"))
    assert (message.done, broker.dead, ledger.accepted) == (["ack"], [], [])


async def test_a_large_message_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def check(*given: Any) -> validation.Report:
        names.append(threading.current_thread().name)
        return validation.Report(None, [], [])

    monkeypatch.setattr(validation, "check", check)
    await take(FakeMessage(GOOD))
    monkeypatch.setattr(threads, "_SMALL_BYTES", 100)
    await take(FakeMessage(GOOD))
    assert names[0] == "MainThread" != names[1]


async def test_a_bug_buries_its_message_and_holds_up_no_other() -> None:
    bad, good = FakeMessage(GOOD), FakeMessage({**GOOD, "id": "2"})
    broker, ledger = FakeBroker(bad, good), FakeLedger(RuntimeError("a bug"))
    await take_all(broker, ledger)
    assert [(subject, payload) for subject, payload, _ in broker.dead] == [("agent.dead.internal", bad.data)]
    assert (bad.done, good.done) == (["term"], ["ack"])
    assert [each.event_id for each in ledger.accepted] == ["2"]
    assert [event["data"]["error"]["type"] for _, event in ledger.announced] == ["InternalError"]


async def test_a_bug_in_announcing_a_refusal_keeps_it_from_nothing_else() -> None:
    message = FakeMessage({**GOOD, "type": "other"})
    broker, _ = await take(message, RuntimeError("a bug"))
    assert [subject for subject, _, _ in broker.dead] == ["agent.dead.invalid"]
    assert message.done == ["term"]


async def test_a_message_that_a_bug_keeps_from_being_buried_is_put_back() -> None:
    message, broker = FakeMessage(b"{}"), FakeBroker()
    broker.failures = [ValueError("a bug")]
    await made(broker, FakeLedger())._take(message)  # type: ignore[arg-type]
    assert message.done == ["nak"]


async def test_a_message_that_is_too_large_is_buried_unread() -> None:
    message = FakeMessage({**GOOD, "padding": "x" * LIMIT})
    broker, ledger = await take(message)
    assert [subject for subject, _, _ in broker.dead] == ["agent.dead.too-large"]
    assert message.done == ["term"]
    assert ledger.announced == []


async def test_headers_of_a_buried_message_are_one_short_line() -> None:
    message = FakeMessage({**GOOD, "data": {**GOOD["data"], "agent_definition": {"nodes": [{}] * 300}}})
    broker, _ = await take(message)
    [(_, _, headers)] = broker.dead
    assert len(headers["Agent-Error"]) <= 1000
    assert "\n" not in headers["Agent-Error"]


async def test_a_message_is_put_back_while_the_database_is_away() -> None:
    message = FakeMessage(GOOD)
    broker, ledger = await take(message, Unavailable("the database does not answer"))
    assert message.done == ["nak"]
    assert broker.dead == []
    assert ledger.accepted == []


async def test_a_message_that_cannot_be_buried_is_put_back() -> None:
    message, broker = FakeMessage(b"{}"), FakeBroker()
    broker.failures = [ConnectionClosedError()]
    await made(broker, FakeLedger())._take(message)  # type: ignore[arg-type]
    assert message.done == ["nak"]


async def test_a_message_whose_refusal_cannot_be_announced_is_put_back() -> None:
    message = FakeMessage({**GOOD, "type": "other"})
    await take(message, Unavailable("away"))
    assert message.done == ["nak"]


@pytest.mark.parametrize(("data", "failing"), [(GOOD, "ack"), (b"{}", "term")])
async def test_a_connection_lost_at_the_last_step_stops_nothing(data: Any, failing: str) -> None:
    message = FakeMessage(data, failing)
    await take(message)
    assert failing not in message.done


@pytest.mark.parametrize("failure", [ConnectionClosedError(), OSError()])
async def test_a_failed_fetch_is_tried_again_after_a_repair(failure: Exception) -> None:
    message = FakeMessage(GOOD)
    broker = FakeBroker(message)
    broker.failures = [failure]
    broker.ready.set()
    part = made(broker, FakeLedger())
    running = asyncio.create_task(part.run())
    await broker.idle.wait()
    await part.drain()
    await running
    assert message.done == ["ack"]
    assert broker.repaired == 1


async def drained(prepare: Callable[[FakeBroker], None]) -> None:
    broker = FakeBroker()
    prepare(broker)
    part = made(broker, FakeLedger())
    running = asyncio.create_task(part.run())
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(1):
            await part.drain()
    finally:
        running.cancel()


async def test_an_idle_intake_is_drained() -> None:
    await drained(lambda broker: broker.ready.set())


async def test_an_intake_that_never_got_a_connection_is_drained() -> None:
    """NATS away since the start must not keep the process from ending."""
    await drained(lambda broker: None)


async def test_draining_waits_until_what_was_fetched_is_dealt_with() -> None:
    gate, message = asyncio.Event(), FakeMessage(GOOD)

    class SlowLedger(FakeLedger):
        async def accept(self, submission: Submission, traceparent: str | None) -> Receipt:
            await gate.wait()
            return await super().accept(submission, traceparent)

    broker = FakeBroker(message)
    broker.ready.set()
    part = made(broker, SlowLedger())
    running = asyncio.create_task(part.run())
    while broker.waiting:  # noqa: ASYNC110 - a list has no event
        await asyncio.sleep(0)
    draining = asyncio.create_task(part.drain())
    await asyncio.sleep(0.01)
    assert not draining.done()
    gate.set()
    await draining
    await running
    assert message.done == ["ack"]


FULL = TooManyRequests("the tenant is at its limit L: 3", Finding("L", "at most 3"), 5)


async def test_over_a_limit_messages_wait_and_go_on_one_by_one() -> None:
    """Those that were fetched come again; then one is tried at a time, and twice as many after each success."""
    messages = [FakeMessage({**GOOD, "id": str(number)}) for number in range(100)]
    broker, ledger = FakeBroker(*messages), FakeLedger(*[FULL] * 34)

    def again(message: FakeMessage) -> None:
        broker.waiting.append(message)

    for message in messages:
        message.on_nak = again
    with capture_logs() as logs:
        await take_all(broker, ledger)
    assert {each.event_id for each in ledger.accepted} == {str(number) for number in range(100)}
    assert all(message.done[-1] == "ack" for message in messages)
    assert sum(message.done.count("nak") for message in messages) == 34
    assert broker.batches[:10] == [32, 1, 1, 1, 2, 4, 8, 16, 32, 32]
    assert broker.dead == []
    told = [each["event"] for each in logs if each["event"].startswith("intake_")]
    assert told == ["intake_paused", "intake_resumed"]
    assert metrics.intake_paused._value.get() == 0


async def test_a_pause_ends_when_the_process_goes_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_PAUSE_S", 3600)
    message = FakeMessage(GOOD)
    broker, ledger = FakeBroker(message), FakeLedger(FULL)
    broker.ready.set()
    part, put_back = made(broker, ledger), asyncio.Event()
    message.on_nak = lambda message: put_back.set()
    running = asyncio.create_task(part.run())
    async with asyncio.timeout(5):
        await put_back.wait()
        await part.drain()
        await running
    assert message.done == ["nak"]
