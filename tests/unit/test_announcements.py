"""announcements: what goes out about a job, and under which id."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from agent_executor import announcements, job
from agent_executor.announcements import by_reference, dead_letter, outcome_event, outcome_id, refusal
from agent_executor.job import Outcome, Status, Submission
from agent_executor.ledger import Claim
from tests.definitions import INPUT, agent, answer, event

CANARY = "canary-4711"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
DEFINITION = agent([{"text": "hello"}])
REQUEST: dict[str, Any] = event(DEFINITION, job_id="job-1")


def changed(**attributes: Any) -> dict[str, Any]:
    return {**REQUEST, **attributes}


def with_data(**fields: Any) -> dict[str, Any]:
    return {**REQUEST, "data": {**REQUEST["data"], **fields}}


def test_an_outcome_id_is_fixed_for_one_job_and_fence() -> None:
    assert outcome_id("job-1", 1) == outcome_id("job-1", 1)
    ids = [outcome_id(name, fence) for name in ("job-1", "job-2") for fence in (1, 2)]
    assert all(a != b for a, b in pairwise(sorted(ids)))


def test_the_event_of_a_completed_job() -> None:
    outcome = Outcome(Status.COMPLETED, result="5")
    announced = outcome_event("job-1", "id-1", outcome, TRACEPARENT)
    assert datetime.fromisoformat(announced.pop("time")).tzinfo is UTC
    assert announced == {
        "specversion": "1.0",
        "type": "dev.my-platform.agent.completed",
        "source": "agent-executor-service",
        "subject": "job-1",
        "id": "id-1",
        "datacontenttype": "application/json",
        "traceparent": TRACEPARENT,
        "data": {"job_id": "job-1", "result": {"output": "5", "status": "completed"}},
    }


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_the_event_of_any_other_end(status: Status) -> None:
    error = {"message": "no luck", "type": "ValueError", "stack_trace": ""}
    announced = outcome_event("job-1", "id-1", Outcome(status, error=error), None)
    assert announced["type"] == "dev.my-platform.agent.failed"
    assert announced["data"] == {"job_id": "job-1", "error": error}
    assert "traceparent" not in announced


ERROR = {"message": "bad", "type": "InvalidInput", "stack_trace": ""}


def test_a_refused_event_that_names_a_job_is_announced_under_a_fixed_id() -> None:
    request = {**with_data(job_id=" job-1 "), "traceparent": TRACEPARENT}
    refused = refusal(request, ERROR)
    assert refused is not None
    job_id, announced = refused
    assert job_id == announced["subject"] == "job-1"
    assert announced["data"] == {"job_id": "job-1", "error": ERROR}
    assert announced["traceparent"] == TRACEPARENT
    again = refusal(request, ERROR)
    assert again is not None
    assert again[1]["id"] == announced["id"]


def test_another_refused_event_has_another_id() -> None:
    first, second = (refusal(changed(id=name), ERROR) for name in ("a", "b"))
    assert first is not None
    assert second is not None
    assert first[1]["id"] != second[1]["id"]


@pytest.mark.parametrize("job_id", [None, 1, "", " ", ["a"], "x" * 257])
def test_a_refused_event_that_names_no_job_is_not_announced(job_id: Any) -> None:
    assert refusal(with_data(job_id=job_id), ERROR) is None


@pytest.mark.parametrize("request_", [None, 1, "x", [], {}, {"data": None}, {"data": "x"}, {"data": {}}])
def test_what_is_no_event_is_not_announced(request_: Any) -> None:
    assert refusal(request_, ERROR) is None


@pytest.mark.parametrize("traceparent", [1, CANARY, "", TRACEPARENT + "\r\nX: y"])
def test_a_bad_traceparent_is_not_handed_on(traceparent: Any) -> None:
    refused = refusal(changed(traceparent=traceparent), ERROR)
    assert refused is not None
    assert "traceparent" not in refused[1]


def test_a_dead_letter_is_the_request_and_says_why() -> None:
    """Sent again, it would ask for the same job."""
    claim = Claim("job-1", "trace-1", DEFINITION, INPUT, TRACEPARENT, 3, 7, "tests", "event-job-1")
    letter = dead_letter(claim, "id-1", {"type": "WorkerLost", "message": "fell silent", "stack_trace": "lines"})
    assert (letter.msg_id, letter.target, letter.subject) == ("id-1:dead", "nats", "agent.dead.attempts")
    assert letter.event["agenterror"] == "WorkerLost: fell silent"
    again, asked = job.from_event(letter.event), job.from_event(REQUEST)
    assert isinstance(again, Submission)
    assert isinstance(asked, Submission)
    assert (again.job_id, again.trace_id, again.source, again.event_id) == ("job-1", "trace-1", "tests", "event-job-1")
    assert again.body_hash == asked.body_hash
    assert again.traceparent == TRACEPARENT


def test_a_dead_letter_of_a_plain_json_job_is_an_event_too() -> None:
    claim = Claim("job-1", "trace-1", DEFINITION, INPUT, None, 3, 7)
    assert job.from_event(dead_letter(claim, "id-1", {"type": "T", "message": "m"}).event).job_id == "job-1"


def test_what_is_too_large_goes_by_reference() -> None:
    whole = outcome_event("a/b", "id-1", Outcome(Status.COMPLETED, result="x" * 5000), TRACEPARENT)
    short = by_reference(whole)
    assert short == whole | {
        "dataref": "/v1/jobs/a%2Fb",
        "data": {"job_id": "a/b", "result": {"output": None, "status": "completed"}},
    }


def test_a_large_error_goes_by_reference_with_its_type_and_beginning() -> None:
    error = {"message": "m" * 5000, "type": "ValueError", "stack_trace": "s" * 5000}
    short = by_reference(outcome_event("j", "id-1", Outcome(Status.FAILED, error=error), None))
    assert short["data"]["error"] == {"message": "m" * 1000, "type": "ValueError", "stack_trace": ""}


def test_a_large_dead_letter_goes_by_reference() -> None:
    letter = dead_letter(
        Claim("j", "t", DEFINITION, {"x": "y" * 5000}, None, 3, 7), "id-1", {"type": "T", "message": "m"}
    )
    assert by_reference(letter.event)["data"] == {"job_id": "j"}


def test_what_an_interrupted_job_asks_is_announced_under_one_id_for_one_claim() -> None:
    asked = [{"id": "i", "value": "x" * 5000}]
    event = announcements.interrupted_event("a/b", 3, asked, TRACEPARENT)
    assert (event["type"], event["subject"]) == ("dev.my-platform.agent.interrupted", "a/b")
    assert event["data"] == {"job_id": "a/b", "interrupts": asked}
    assert event["traceparent"] == TRACEPARENT
    ids = {announcements.interrupted_event(job_id, fence, [], None)["id"] for job_id in "ab" for fence in (1, 2)}
    assert len(ids | {outcome_id("a", 1)}) == 5
    assert announcements.interrupted_event("a/b", 3, [], None)["id"] == event["id"]
    short = by_reference(event)
    assert (short["dataref"], short["data"]) == ("/v1/jobs/a%2Fb", {"job_id": "a/b", "interrupts": [{"id": "i"}]})


def test_an_answer_that_is_refused_announces_nothing() -> None:
    assert refusal(answer("job-1", 1), ERROR) is None


def test_rows_for_the_outbox() -> None:
    one = announcements.letters("agent.status.failed", {"id": "i"}, sink=False)
    two = announcements.letters("agent.status.failed", {"id": "i"}, sink=True)
    assert [(each.msg_id, each.target) for each in one] == [("i", "nats")]
    assert announcements.columns(two) == {
        "msg_ids": ["i", "i:sink"],
        "targets": ["nats", "sink"],
        "subjects": ["agent.status.failed"] * 2,
        "events": ['{"id":"i"}'] * 2,
    }
