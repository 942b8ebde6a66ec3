"""job: the CloudEvent that comes in, clause by clause, and the states."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from agent_executor import job
from agent_executor.errors import InvalidInput
from agent_executor.job import STRUCTURED, TERMINAL, TRANSITIONS, Answer, Status, Submission
from tests.definitions import DATA, INPUT, agent, answer, event

CANARY = "canary-4711"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
REQUEST: dict[str, Any] = event(agent([{"text": "hello"}]), job_id="job-1")


def changed(**attributes: Any) -> dict[str, Any]:
    return {**REQUEST, **attributes}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in REQUEST.items() if key != name}


def with_data(**fields: Any) -> dict[str, Any]:
    return {**REQUEST, "data": {**REQUEST["data"], **fields}}


def without_data(name: str) -> dict[str, Any]:
    return {**REQUEST, "data": {key: value for key, value in REQUEST["data"].items() if key != name}}


def complaints(call: Callable[[], Any]) -> list[str]:
    """Fields that a refusal names; the refusal repeats no value."""
    with pytest.raises(InvalidInput) as raised:
        call()
    assert CANARY not in str(raised.value)
    assert CANARY not in repr(raised.value.findings)
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return [finding.field for finding in raised.value.findings]


def submitted(request: dict[str, Any]) -> Submission:
    found = job.from_event(request)
    assert isinstance(found, Submission)
    return found


def test_a_valid_event_is_a_submission() -> None:
    assert submitted(changed(traceparent=TRACEPARENT, subject="s", time="2026-01-01T00:00:00Z")) == Submission(
        job_id="job-1",
        trace_id="trace-1",
        definition=agent([{"text": "hello"}]),
        input=INPUT,
        source="tests",
        event_id="event-job-1",
        traceparent=TRACEPARENT,
    )


@pytest.mark.parametrize("name", ["subject", "time", "traceparent", "datacontenttype", "comment"])
def test_other_attributes_are_optional(name: str) -> None:
    assert submitted(without(name)).job_id == "job-1"


def test_unknown_keys_are_ignored() -> None:
    request = {**with_data(priority=1), "myextension": {"a": 1}}
    assert submitted(request) == submitted(REQUEST)


@pytest.mark.parametrize("value", [None, 0, "x", [], {"a": 1}])
def test_an_answer_is_an_event_too(value: Any) -> None:
    event = answer("job-1", value, interrupt_id="i")
    assert job.from_event(event) == Answer("job-1", value, "i", "tests answer-1")
    assert job.from_event(answer(" job-1 ", value)) == Answer("job-1", value, None, "tests answer-1")
    headers = {f"ce-{name}": word for name, word in event.items() if name != "data"}
    assert job.from_http("application/json", headers, event["data"]) == job.from_event(event)
    plain = {"value": value, "interrupt_id": "i", "request_id": "r", "more": 1}
    assert job.answer_from_json("job-1", plain) == Answer("job-1", value, "i", "r")


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        ({"value": CANARY}, ["data.job_id"]),
        ({"job_id": "job-1"}, ["data.value"]),
        ({"job_id": [CANARY], "value": 1, "interrupt_id": [CANARY]}, ["data.job_id", "data.interrupt_id"]),
        ([CANARY], ["data"]),
    ],
)
def test_an_answers_refusal_names_the_field(data: Any, fields: list[str]) -> None:
    assert complaints(lambda: job.from_event({**answer("job-1", 1), "data": data})) == fields


def test_an_unknown_type_is_told_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"type: must be dev\.my-platform\.agent\.execute or .*\.agent\.resume"):
        job.from_event(changed(type=CANARY))


def test_strings_are_stripped() -> None:
    request = {**with_data(job_id=" job-2\n", trace_id="\tt "), "source": " s ", "id": " i "}
    submission = submitted(request)
    assert (submission.job_id, submission.trace_id) == ("job-2", "t")
    assert (submission.source, submission.event_id) == ("s", "i")


@pytest.mark.parametrize("name", ["specversion", "type", "source", "id"])
@pytest.mark.parametrize("value", [None, 1, 1.0, True, [CANARY], {CANARY: CANARY}])
def test_required_attributes_are_strings(name: str, value: Any) -> None:
    assert complaints(lambda: job.from_event(changed(**{name: value}))) == [name]


@pytest.mark.parametrize("name", ["specversion", "type", "source", "id"])
def test_required_attributes_are_there(name: str) -> None:
    assert complaints(lambda: job.from_event(without(name))) == [name]


@pytest.mark.parametrize("name", ["specversion", "type", "source", "id"])
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_required_attributes_are_not_blank(name: str, value: str) -> None:
    assert complaints(lambda: job.from_event(changed(**{name: value}))) == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", "1"),
        ("specversion", CANARY),
        ("type", "dev.my-platform.agent.completed"),
        ("type", "DEV.MY-PLATFORM.AGENT.EXECUTE"),
        ("type", CANARY),
        ("source", CANARY + "s" * 256),
        ("id", CANARY + "i" * 256),
        ("source", f"{CANARY}\r\nNats-Msg-Id: x"),
        ("id", f"{CANARY}\0"),
    ],
)
def test_required_attributes_have_the_right_value(name: str, value: str) -> None:
    assert complaints(lambda: job.from_event(changed(**{name: value}))) == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("subject", 1),
        ("time", 1),
        ("traceparent", 1),
        ("traceparent", ""),
        ("traceparent", CANARY),
        ("traceparent", TRACEPARENT.upper()),
        ("traceparent", TRACEPARENT + "\n"),
        ("traceparent", TRACEPARENT + "-" + CANARY),
        ("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01"),
        ("traceparent", f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01"),
    ],
)
def test_optional_attributes_are_right_where_they_are_given(name: str, value: Any) -> None:
    assert complaints(lambda: job.from_event(changed(**{name: value}))) == [name]


@pytest.mark.parametrize("name", ["trace_id", "job_id", "agent_definition", "input_payload"])
def test_data_fields_are_there(name: str) -> None:
    assert complaints(lambda: job.from_event(without_data(name))) == [f"data.{name}"]


@pytest.mark.parametrize("name", ["trace_id", "job_id"])
@pytest.mark.parametrize(
    "value", [None, 1, True, [CANARY], {CANARY: CANARY}, "", "  ", CANARY + "x" * 256, f"{CANARY}\nx"]
)
def test_ids_are_strings_neither_blank_nor_endless(name: str, value: Any) -> None:
    assert complaints(lambda: job.from_event(with_data(**{name: value}))) == [f"data.{name}"]


@pytest.mark.parametrize("name", ["agent_definition", "input_payload"])
@pytest.mark.parametrize("value", [None, 1, CANARY, [CANARY], [[CANARY, CANARY]], {}])
def test_definition_and_input_are_objects_with_members(name: str, value: Any) -> None:
    assert complaints(lambda: job.from_event(with_data(**{name: value}))) == [f"data.{name}"]


@pytest.mark.parametrize("data", [None, CANARY, [CANARY], 1])
def test_data_is_an_object(data: Any) -> None:
    assert complaints(lambda: job.from_event(changed(data=data))) == ["data"]


def test_data_is_there() -> None:
    assert complaints(lambda: job.from_event(without("data"))) == ["data"]


@pytest.mark.parametrize("body", [None, CANARY, [REQUEST], 1])
def test_an_event_is_an_object(body: Any) -> None:
    assert complaints(lambda: job.from_event(body)) == ["event"]


def test_everything_wrong_is_named_at_once() -> None:
    request = {"specversion": 1, "type": CANARY, "id": "", "data": {"job_id": CANARY, "trace_id": " "}}
    assert complaints(lambda: job.from_event(request)) == [
        *("specversion", "source", "id"),
        *("data.trace_id", "data.agent_definition", "data.input_payload"),
    ]


def test_http_structured_mode() -> None:
    assert job.from_http(STRUCTURED, {}, REQUEST) == submitted(REQUEST)


def binary(**attributes: str) -> dict[str, str]:
    headers = {f"ce-{name}": value for name, value in REQUEST.items() if name != "data"}
    return {**headers, **{f"ce-{name}": value for name, value in attributes.items()}, "host": CANARY}


def test_http_binary_mode() -> None:
    headers = binary(traceparent=TRACEPARENT)
    assert job.from_http("application/json", headers, DATA) == submitted(changed(traceparent=TRACEPARENT))


def test_http_binary_mode_decodes_header_values() -> None:
    """HTTP protocol binding 1.0.2, section 3.1.3.2: header values are percent-decoded."""
    submission = job.from_http("application/json", binary(source="/a%20b", id="Euro%20%E2%82%AC"), DATA)
    assert isinstance(submission, Submission)
    assert (submission.source, submission.event_id) == ("/a b", "Euro €")


def test_http_binary_mode_takes_data_from_the_body_only() -> None:
    assert complaints(lambda: job.from_http("application/json", binary(data=CANARY), [CANARY])) == ["data"]


@pytest.mark.parametrize("content_type", ["application/json", "", "application/cloudevents-batch+json", CANARY])
def test_http_needs_the_media_type_or_the_headers(content_type: str) -> None:
    assert complaints(lambda: job.from_http(content_type, {"ce-id": CANARY}, REQUEST)) == ["content-type"]


def test_plain_json() -> None:
    assert job.from_json(DATA) == Submission("job-1", "trace-1", DATA["agent_definition"], INPUT)


def test_plain_json_may_leave_out_the_ids() -> None:
    body = {"agent_definition": {"a": 1}, "input_payload": {"b": 2}}
    first, second = job.from_json(body), job.from_json(body)
    assert first.job_id != second.job_id
    assert first.trace_id != second.trace_id
    assert first.body_hash == second.body_hash


@pytest.mark.parametrize("name", ["agent_definition", "input_payload"])
def test_plain_json_needs_definition_and_input(name: str) -> None:
    assert complaints(lambda: job.from_json({key: value for key, value in DATA.items() if key != name})) == [name]


@pytest.mark.parametrize(
    ("body", "field"),
    [(CANARY, "body"), ([], "body"), ({**DATA, "job_id": None}, "job_id"), ({**DATA, "job_id": ""}, "job_id")],
)
def test_plain_json_is_validated_like_an_event(body: Any, field: str) -> None:
    assert complaints(lambda: job.from_json(body)) == [field]


def test_two_requests_are_the_same_whatever_the_order_of_keys() -> None:
    turned = json.loads(json.dumps(with_data(), sort_keys=True))
    assert submitted(turned).body_hash == submitted(REQUEST).body_hash


@pytest.mark.parametrize("name", ["agent_definition", "input_payload"])
def test_two_requests_differ_by_definition_and_by_input(name: str) -> None:
    assert submitted(with_data(**{name: {"other": 1}})).body_hash != submitted(REQUEST).body_hash


def test_two_requests_do_not_differ_by_ids() -> None:
    other = {**with_data(trace_id="other", job_id="other"), "source": "other", "id": "other"}
    assert submitted(other).body_hash == submitted(REQUEST).body_hash


@pytest.mark.parametrize("after", [Status.QUEUED, Status.RUNNING, Status.INTERRUPTED])
def test_every_unfinished_job_can_still_end(after: Status) -> None:
    reached = {after}
    for _ in Status:
        reached |= {each for state in reached for each in TRANSITIONS[state]}
    assert reached >= TERMINAL


def test_every_state_has_its_transitions_and_a_completed_job_stays_so() -> None:
    assert TRANSITIONS.keys() == set(Status)
    assert not TRANSITIONS[Status.COMPLETED]
    assert not TRANSITIONS[Status.CANCELLED]
    assert {status.value for status in Status} == {
        *("queued", "running", "interrupted", "completed", "failed", "cancelled")
    }
