"""Bodies of HTTP requests and answers, as the OpenAPI shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from .job import (
    EXECUTE,
    MAX_ID_CHARS,
    RESUME,
    TRACEPARENT,
    AnswerRequest,
    JobRequest,
    PlainAnswerRequest,
    Status,
)

_MODEL = {"provider": "scripted", "model": "greeter", "replies": [{"text": "Hello!"}]}
_ROOT = {"id": "lead", "type": "Orchestrator", "config": {"name": "Lead", "model": _MODEL}}
_GREETER = {
    "agent_definition": {"nodes": [_ROOT]},
    "input_payload": {"messages": [{"role": "user", "content": "Hello?"}]},
}

JOB: dict[str, Any] = {
    **JobRequest.model_json_schema(),
    "description": "A job. `job_id` and `trace_id` are made where they are left out.",
    "required": ["agent_definition", "input_payload"],
    "examples": [_GREETER],
}
ANSWER = {**PlainAnswerRequest.model_json_schema(), "examples": [{"value": {"decisions": [{"type": "approve"}]}}]}
EVENT_DATA = {"anyOf": [JobRequest.model_json_schema(), AnswerRequest.model_json_schema()]}
_ID = {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS}
_OPTIONAL = {"type": ["string", "null"]}
EVENT = {
    "type": "object",
    "description": "A CloudEvent 1.0; extensions are ignored.",
    "required": ["specversion", "type", "source", "id", "data"],
    "properties": {
        "specversion": {"const": "1.0"},
        "type": {"enum": [EXECUTE, RESUME]},
        "source": _ID,
        "id": _ID,
        "subject": _OPTIONAL,
        "time": _OPTIONAL,
        "traceparent": {**_OPTIONAL, "pattern": f"^{TRACEPARENT.pattern}$"},
        "data": EVENT_DATA,
    },
    "examples": [
        {
            "specversion": "1.0",
            "type": EXECUTE,
            "source": "example",
            "id": "1",
            "data": {"job_id": "greeter-1", "trace_id": "trace-1", **_GREETER},
        }
    ],
}
SERVER_SENT_EVENT = {
    "type": "object",
    "description": "Every event of the stream. `data` is JSON.",
    "required": ["event", "data"],
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}


class Health(BaseModel):
    """The process serves."""

    status: Literal["healthy"]


class Services(BaseModel):
    """Which services answered when they were asked."""

    postgres: bool
    dragonfly: bool
    nats: bool
    vault: bool


class Ready(BaseModel):
    """Whether the process may get work."""

    status: Literal["ready", "not_ready"]
    services: Services


class Accepted(BaseModel):
    """The job is committed; `status` is another than queued where it was here before."""

    job_id: str
    status: Status


class Result(BaseModel):
    """What a completed job gave: its last message's content."""

    output: Any
    status: Literal["completed"]


class JobError(BaseModel):
    """Why a job failed."""

    message: str
    type: str
    stack_trace: str = ""


class JobView(BaseModel):
    """A job as its caller sees it."""

    job_id: str
    trace_id: str
    status: Status
    attempt: int
    created_at: datetime
    due_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    result: Result | None = None
    error: JobError | None = None
    interrupts: list[dict[str, Any]] | None = Field(
        None, description="what waits for an answer: id, value and perhaps response_schema"
    )


class JobPage(BaseModel):
    """A page of jobs; `next_cursor` is None on the last one."""

    jobs: list[JobView]
    next_cursor: str | None


class OutgoingEvent(BaseModel):
    """The CloudEvent that announces an outcome."""

    specversion: Literal["1.0"]
    type: str
    source: str
    subject: str
    id: str
    time: datetime
    datacontenttype: str
    traceparent: str | None = None
    data: dict[str, Any]


class FieldError(BaseModel):
    """One thing wrong with the request."""

    field: str
    message: str


class Validation(BaseModel):
    """What is wrong with a definition, and what is only odd."""

    valid: bool
    errors: list[FieldError]
    warnings: list[FieldError]


class ErrorDetail(BaseModel):
    """What is wrong, in one line, and field by field where the request is at fault."""

    type: str
    message: str
    fields: list[FieldError] = Field(default_factory=list)


class ErrorBody(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail
