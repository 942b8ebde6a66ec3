"""A job: the CloudEvents that ask for it and answer it, its states, and its outcome. What goes out is `announcements`'.

Owns the shapes at the edge (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md and its HTTP binding);
knows nothing of where jobs are kept or how they run. The thread id of a job is its job id, everywhere.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from . import strict_json
from .errors import Finding, InvalidInput

EXECUTE = "dev.my-platform.agent.execute"
RESUME = "dev.my-platform.agent.resume"
STRUCTURED = "application/cloudevents+json"

TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Status(StrEnum):
    """States of a job. `TRANSITIONS` says which may follow which."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
# The database has the same in trigger jobs_transition, which refuses every other step. Running to queued: given back,
# or to be tried again; running to running: taken over; interrupted to queued: resumed; failed to queued: redriven.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.RUNNING, Status.INTERRUPTED, *TERMINAL}),
    Status.INTERRUPTED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset(),
}

MAX_ID_CHARS = 256
DEFAULT_TENANT = "default"
M = TypeVar("M", bound=BaseModel)
Look = Callable[[Any, str], list[Finding]]
"""Says what is wrong with a definition that was found at a path."""


def _one_line(text: str) -> str:
    if not text.isprintable():  # ids become message headers, where a line break would start another header
        raise ValueError("must hold no control characters")
    return text


Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_ID_CHARS), AfterValidator(_one_line)
]
Members = Annotated[dict[str, Any], Field(min_length=1)]


class JobRequest(BaseModel):
    """The `data` of an execute event."""

    model_config = ConfigDict(frozen=True, strict=True)

    trace_id: Text
    job_id: Text
    agent_definition: Members
    input_payload: Members


class AnswerRequest(BaseModel):
    """The `data` of a resume event."""

    model_config = ConfigDict(frozen=True, strict=True)

    job_id: Text
    value: Any
    interrupt_id: Text | None = None


class PlainAnswerRequest(BaseModel):
    """An answer as plain JSON; the job's id stands in the URL."""

    model_config = ConfigDict(frozen=True, strict=True)

    value: Any
    interrupt_id: Text | None = None
    request_id: Text | None = None


class _Attributes(BaseModel):
    """The CloudEvents context attributes this service looks at; extensions it does not know are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    specversion: str
    type: str
    source: Text
    id: Text
    subject: str | None = None
    time: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class Origin:
    """Who asks for something, and from where, as the audit has it: by `http`, `nats` or a `command`.

    `actor` is the caller's name, None where nobody knows it, and `key_id` the id of its API key.
    """

    via: str
    actor: str | None = None
    key_id: str | None = None
    address: str | None = None

    @property
    def known(self) -> dict[str, str]:
        """What is known of it, for a log line."""
        return {name: value for name, value in vars(self).items() if value is not None}


UNKNOWN = Origin("unknown")


@dataclass(frozen=True)
class Submission:
    """A valid request for a job, from whichever way in. `source` and `event_id` are None for plain JSON.

    `tenant` comes from the credential it was sent with, and `origin` from the connection, too; nothing in the request
    names them.
    """

    job_id: str
    trace_id: str
    definition: dict[str, Any]
    input: dict[str, Any]
    source: str | None = None
    event_id: str | None = None
    traceparent: str | None = None
    tenant: str = DEFAULT_TENANT
    origin: Origin = UNKNOWN

    @property
    def body_hash(self) -> bytes:
        """sha256 of definition and input in canonical JSON; two requests with the same hash ask for the same run."""
        body = {"agent_definition": self.definition, "input_payload": self.input}
        return hashlib.sha256(strict_json.canonical(body)).digest()


@dataclass(frozen=True)
class Answer:
    """A valid answer to what an interrupted job asks, from whichever way in.

    `interrupt_id` may be None where one interrupt is pending. `request_id` tells a repeated answer. `tenant` is whose
    jobs it may answer, and comes from the credential. `origin` is as in a `Submission`.
    """

    job_id: str
    value: Any
    interrupt_id: str | None = None
    request_id: str | None = None
    traceparent: str | None = None
    tenant: str = DEFAULT_TENANT
    origin: Origin = UNKNOWN


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `result` where it completed, `error` where it did not; `may_pass`: another try may succeed.

    `interrupts` is what it asks where it was interrupted: objects of id, value and perhaps response_schema. `usage` is
    what the job has used until then, where that is known.
    """

    status: Status
    result: Any = None
    error: dict[str, str] | None = None
    may_pass: bool = False
    interrupts: tuple[dict[str, Any], ...] = ()
    usage: Mapping[str, float] | None = field(default=None, compare=False)


def _no_look(definition: Any, path: str) -> list[Finding]:
    return []


def from_event(event: Any, look: Look = _no_look) -> Submission | Answer:
    """Validate a structured CloudEvent, whole: one that asks for a job, or one that answers an interrupted job.

    `look` is asked about the definition in it.

    Raises:
        InvalidInput: naming every attribute and field that is wrong.
    """
    if not isinstance(event, dict):
        raise InvalidInput("invalid CloudEvent", [Finding("event", "must be a JSON object")])
    findings: list[Finding] = []
    attributes = _validated(_Attributes, event, "", findings)
    if attributes is not None:
        findings += _fixed_attributes(attributes)
    kind: type[JobRequest | AnswerRequest] = AnswerRequest if event.get("type") == RESUME else JobRequest
    request = _validated(kind, event.get("data"), "data", findings)
    wrong = _looked_at(event.get("data"), "data.", look) if kind is JobRequest else []
    if findings or wrong or attributes is None or request is None:
        raise InvalidInput("invalid CloudEvent" if findings else "invalid agent definition", [*findings, *wrong])
    if isinstance(request, AnswerRequest):
        request_id = f"{attributes.source} {attributes.id}"
        return Answer(request.job_id, request.value, request.interrupt_id, request_id, attributes.traceparent)
    return Submission(
        job_id=request.job_id,
        trace_id=request.trace_id,
        definition=request.agent_definition,
        input=request.input_payload,
        source=attributes.source,
        event_id=attributes.id,
        traceparent=attributes.traceparent,
    )


def from_http(content_type: str, headers: Mapping[str, str], body: Any, look: Look = _no_look) -> Submission | Answer:
    """Validate a CloudEvent of the HTTP binding: structured, or binary (`ce-*` headers around the data).

    Args:
        content_type: the request's media type, without parameters.
        headers: the request's headers, names in lower case.
        body: the parsed JSON body.
        look: is asked about the definition in it.
    """
    if content_type == STRUCTURED:
        return from_event(body, look)
    if "ce-specversion" not in headers:
        wanted = f"must be {STRUCTURED}, or the event's attributes must come as ce-* headers"
        raise InvalidInput("invalid CloudEvent", [Finding("content-type", wanted)])
    attributes = {name.removeprefix("ce-"): unquote(value) for name, value in headers.items() if name.startswith("ce-")}
    return from_event({**attributes, "data": body}, look)


def from_json(body: Any, look: Look = _no_look) -> Submission:
    """Validate a plain JSON submission; `job_id` and `trace_id` are made when they are left out.

    `look` is asked about the definition in it.
    """
    if not isinstance(body, dict):
        raise InvalidInput("invalid job", [Finding("body", "must be a JSON object")])
    made = {"job_id": str(uuid.uuid4()), "trace_id": uuid.uuid4().hex}
    findings: list[Finding] = []
    request = _validated(JobRequest, made | body, "", findings)
    wrong = _looked_at(body, "", look)
    if wrong or request is None:
        raise InvalidInput("invalid job" if findings else "invalid agent definition", [*findings, *wrong])
    return Submission(request.job_id, request.trace_id, request.agent_definition, request.input_payload)


def answer_from_json(job_id: str, body: Any) -> Answer:
    """Validate a plain JSON answer to a job."""
    findings: list[Finding] = []
    request = _validated(PlainAnswerRequest, body, "", findings)
    if request is None:
        raise InvalidInput("invalid answer", findings)
    return Answer(job_id, request.value, request.interrupt_id, request.request_id)


def _looked_at(data: Any, prefix: str, look: Look) -> list[Finding]:
    """What `look` finds; a definition that is no object, or empty, has a finding already."""
    definition = data.get("agent_definition") if isinstance(data, dict) else None
    return look(definition, f"{prefix}agent_definition") if definition and isinstance(definition, dict) else []


def _fixed_attributes(attributes: _Attributes) -> list[Finding]:
    findings = []
    if attributes.specversion != "1.0":
        findings.append(Finding("specversion", 'must be "1.0"'))
    if attributes.type not in (EXECUTE, RESUME):
        findings.append(Finding("type", f"must be {EXECUTE} or {RESUME}"))
    if attributes.traceparent is not None and not TRACEPARENT.fullmatch(attributes.traceparent):
        findings.append(Finding("traceparent", "must be a W3C Trace Context traceparent"))
    return findings


def _validated(model: type[M], value: Any, prefix: str, findings: list[Finding]) -> M | None:
    """`value` as `model`, or None with what is wrong added to `findings`."""
    if not isinstance(value, dict):
        findings.append(Finding(prefix or "body", "must be a JSON object"))
        return None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        findings += findings_of(error, prefix)
        return None


def findings_of(error: ValidationError, prefix: str = "") -> list[Finding]:
    """pydantic's errors as findings, without the values they complain of."""
    return [
        Finding(_path(prefix, detail["loc"]), _in_words_of_json(detail))
        for detail in error.errors(include_input=False, include_url=False)
    ]


def _in_words_of_json(detail: ErrorDetails) -> str:
    """pydantic's message, where it does not speak of Python's types."""
    kind = detail["type"]
    if kind in ("tuple_type", "list_type"):
        return "must be a list"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "must be an object"
    if kind == "too_short":
        return "must not be empty"  # nothing here has to have two
    return detail["msg"].removeprefix("Value error, ")


def _path(prefix: str, location: tuple[int | str, ...]) -> str:
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part:.64}" if path else f"{part:.64}"
    return path
