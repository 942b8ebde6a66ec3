"""What goes out about a job: the CloudEvents of its outcome, of what it asks and of a refused request; the dead letter.

Owns their shapes and ids; `ledger` commits them to the outbox, `outbox` delivers them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from . import strict_json
from .job import EXECUTE, MAX_ID_CHARS, RESUME, TRACEPARENT, Outcome, Status

TYPE = "dev.my-platform.agent."
SOURCE = "agent-executor-service"
STATUS_SUBJECT = "agent.status."
DEAD_SUBJECT = "agent.dead."
INTERRUPTED = "interrupted"
OUT_OF_ATTEMPTS = "attempts"
ERROR_EXTENSION = "agenterror"
"""Attribute of a dead letter that says why it is one; NATS gets it as the header `Agent-Error`."""

_IDS = uuid.uuid5(uuid.NAMESPACE_DNS, "outcome.agent-executor-service")


@dataclass(frozen=True)
class Letter:
    """One row of the outbox: where an event goes, and the message id that tells a repeated delivery."""

    msg_id: str
    target: str
    subject: str
    event: dict[str, Any]


def letters(subject: str, event: dict[str, Any], *, sink: bool) -> list[Letter]:
    """`event` to NATS, and to K_SINK where there is one."""
    copies = [Letter(event["id"], "nats", subject, event)]
    return [*copies, Letter(f"{event['id']}:sink", "sink", subject, event)] if sink else copies


def columns(rows: Sequence[Letter]) -> dict[str, list[str]]:
    """The rows as arrays, as the queries take them."""
    return {
        "msg_ids": [row.msg_id for row in rows],
        "targets": [row.target for row in rows],
        "subjects": [row.subject for row in rows],
        "events": [strict_json.dumps(row.event).decode() for row in rows],
    }


def outcome_id(job_id: str, fence: int) -> str:
    """The CloudEvent id of one outcome of one job: the same however often it is published."""
    return str(uuid.uuid5(_IDS, f"{job_id}:{fence}"))


def outcome_event(job_id: str, event_id: str, outcome: Outcome, traceparent: str | None) -> dict[str, Any]:
    """The CloudEvent that announces `outcome`."""
    event = _event(TYPE + outcome_subject(outcome.status), SOURCE, event_id, job_id, traceparent)
    if outcome.status is Status.COMPLETED:
        event["data"] = {"job_id": job_id, "result": {"output": outcome.result, "status": "completed"}}
    else:
        event["data"] = {"job_id": job_id, "error": outcome.error}
    return event


def outcome_subject(status: Status) -> str:
    """The last word of the outgoing type and NATS subject; a cancelled job announces a failure of type Cancelled."""
    return "completed" if status is Status.COMPLETED else "failed"


def interrupted_event(
    job_id: str, fence: int, interrupts: Sequence[Mapping[str, Any]], traceparent: str | None
) -> dict[str, Any]:
    """The CloudEvent that announces what an interrupted job asks; its id is fixed for one claim of the job."""
    event_id = str(uuid.uuid5(_IDS, f"interrupted:{job_id}:{fence}"))
    event = _event(TYPE + INTERRUPTED, SOURCE, event_id, job_id, traceparent)
    return {**event, "data": {"job_id": job_id, "interrupts": [*interrupts]}}


def dead_letter(job: Any, event_id: str, error: Mapping[str, str]) -> Letter:
    """The request of a job (a Claim) that used up its attempts, as the event that asked for it, and why it died."""
    request = _event(EXECUTE, job.source or SOURCE, job.event_id or job.job_id, job.job_id, job.traceparent)
    request[ERROR_EXTENSION] = f"{error['type']}: {error['message']}"[:1000]
    request["data"] = {
        "trace_id": job.trace_id,
        "job_id": job.job_id,
        "agent_definition": job.definition,
        "input_payload": job.input,
    }
    return Letter(f"{event_id}:dead", "nats", DEAD_SUBJECT + OUT_OF_ATTEMPTS, request)


def refusal(event: Any, error: dict[str, str]) -> tuple[str, dict[str, Any]] | None:
    """The failed CloudEvent for an event that cannot become a job, with the job id it names; None if it names none, or
    answers a job: whether that exists or not, the answer asks for no outcome.

    Its id is fixed for one event, so that a repeated delivery can be told.
    """
    data = event.get("data") if isinstance(event, dict) and event.get("type") != RESUME else None
    job_id = data.get("job_id") if isinstance(data, dict) else None
    if not isinstance(job_id, str) or not (job_id := job_id.strip()) or len(job_id) > MAX_ID_CHARS:
        return None
    event_id = str(uuid.uuid5(_IDS, f"refused:{event.get('source')}:{event.get('id')}:{job_id}"))
    traceparent = event.get("traceparent")
    known = traceparent if isinstance(traceparent, str) and TRACEPARENT.fullmatch(traceparent) else None
    return job_id, outcome_event(job_id, event_id, Outcome(Status.FAILED, error=error), known)


def by_reference(event: dict[str, Any]) -> dict[str, Any]:
    """`event` without what makes it large: the job's URL stands in its place.

    `dataref` is CloudEvents' claim check (github.com/cloudevents/spec, extensions/dataref.md), relative to the service.
    """
    data, job_id = event["data"], event["subject"]
    short: dict[str, Any] = {"job_id": job_id}
    if "result" in data:
        short["result"] = {"output": None, "status": data["result"]["status"]}
    if "interrupts" in data:
        short["interrupts"] = [{"id": each["id"]} for each in data["interrupts"]]
    if "error" in data:
        short["error"] = {**data["error"], "message": data["error"]["message"][:1000], "stack_trace": ""}
    return {**event, "dataref": f"/v1/jobs/{quote(job_id, safe='')}", "data": short}


def _event(kind: str, source: str, event_id: str, job_id: str, traceparent: str | None) -> dict[str, Any]:
    event = {
        "specversion": "1.0",
        "type": kind,
        "source": source,
        "subject": job_id,
        "id": event_id,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
    }
    return event if traceparent is None else {**event, "traceparent": traceparent}
