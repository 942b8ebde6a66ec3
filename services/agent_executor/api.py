"""HTTP: CloudEvents and plain JSON in, jobs and event streams out, and what a platform asks of a process.

Owns status codes, headers and error bodies. Everything else is asked of the service, which may not be there yet: the
routes then answer 503.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from sse_starlette.sse import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from . import access, browsers, job, refusals, strict_json, tracing
from .api_models import (
    ANSWER,
    EVENT,
    EVENT_DATA,
    JOB,
    SERVER_SENT_EVENT,
    Accepted,
    ErrorBody,
    FieldError,
    Health,
    JobPage,
    JobView,
    OutgoingEvent,
    Ready,
    Validation,
)
from .errors import (
    AgentExecutorError,
    Conflict,
    Finding,
    Forbidden,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from .health import Phase
from .job import Answer, Status, Submission
from .threads import by_size

if TYPE_CHECKING:
    from .ledger import Receipt
    from .service import Service
    from .validation import Report

VERSION = version("agent-executor")
MAX_WAIT_S = 600.0
_WAIT = re.compile(r"(?:^|[,;\s])wait=\"?([0-9]+(?:\.[0-9]+)?)\"?", re.IGNORECASE)
_STATUS = {
    InvalidInput: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    PayloadTooLarge: 413,
    TooManyRequests: 429,
    Unavailable: 503,
}

T = TypeVar("T")

probes = APIRouter()
"""What is asked first. FastAPI prepares the routes of a router when it looks there for the first time."""
router = APIRouter()
log = structlog.get_logger()


def install(app: FastAPI) -> None:
    """Add routes and error answers to `app`."""
    app.include_router(probes)
    app.include_router(router)
    app.add_exception_handler(AgentExecutorError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameters)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    described = app.openapi
    app.openapi = lambda: access.described(_without_422(described()))  # type: ignore[method-assign]


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI describes an answer that `_on_bad_parameters` turns into a 400."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorBody} for code in codes}


def _body(schema: Mapping[str, Any], **others: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAPI for a body that this module reads itself, so that it can be refused before it is read whole.

    Of JSON; `others` are the schemas of other media types.
    """
    content = {media_type: {"schema": each} for media_type, each in {"application/json": schema, **others}.items()}
    return {"requestBody": {"required": True, "content": content}}


@probes.get("/health")
async def health() -> Health:
    """The process serves. Never waits for anything."""
    return Health(status="healthy")


@probes.get("/ready", responses={200: {"model": Ready}, 503: {"model": Ready}})
async def ready(request: Request) -> Response:
    """Whether this process may get work, and which services answer.

    503 while starting or draining, or without PostgreSQL.
    """
    service: Service | None = request.app.state.service
    if service is None:
        services = dict.fromkeys(("postgres", "dragonfly", "nats", "vault"), False)
    else:
        services = await service.services()
    serving = service is not None and service.phase is Phase.SERVING and not request.app.state.draining
    is_ready = serving and services["postgres"]
    body = {"status": "ready" if is_ready else "not_ready", "services": services}
    return JSONResponse(body, status_code=200 if is_ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> Response:
    """Prometheus metrics."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    from .metrics import registry

    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@router.post(
    "/",
    status_code=202,
    responses={
        200: {"content": {job.STRUCTURED: {"schema": OutgoingEvent.model_json_schema()}}},
        202: {"model": Accepted},
        **_errors(400, 404, 413, 429, 503),
    },
    openapi_extra=_body(EVENT_DATA, **{job.STRUCTURED: EVENT}),
)
async def receive_event(
    request: Request, wait: Annotated[float | None, Query(ge=0, le=MAX_WAIT_S, description="seconds")] = None
) -> Response:
    """Take a CloudEvent (structured or binary) of type `dev.my-platform.agent.execute` or
    `dev.my-platform.agent.resume`.

    202 once the job, or the answer to an interrupted one, is committed. With `Prefer: wait=SECONDS` or
    `?wait=SECONDS`, and done in time: 200 with the outgoing CloudEvent. A conflict is 400 here, because Knative retries
    a 409.
    """
    from . import validation  # not before /health answers

    service = _service(request)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    look = validation.look(service.graphs.names)
    read = await _read(request, lambda body: job.from_http(content_type, request.headers, body, look))
    access.demand(request, "jobs:control" if isinstance(read, Answer) else "jobs:submit")
    asked = replace(read, tenant=_tenant(request), origin=refusals.origin(request))
    wait_s = wait if wait is not None else _preferred_wait(request.headers.getlist("prefer"))
    try:
        if not wait_s:
            return _accepted(await _take(service, asked, "data."))
        return await _take_and_wait(service, asked, wait_s)
    except Conflict as error:
        return _error_response(request, error, 400)


@router.post(
    "/v1/jobs",
    status_code=202,
    responses={202: {"model": Accepted}, **_errors(400, 409, 413, 429, 503)},
    openapi_extra=_body(JOB),
)
async def submit_job(request: Request) -> Response:
    """Take a job as plain JSON: `agent_definition` and `input_payload`; `job_id` and `trace_id` may be left out."""
    from . import validation

    service = _service(request)
    look = validation.look(service.graphs.names)
    submission = await _read(request, lambda body: job.from_json(body, look))
    asked = replace(submission, tenant=_tenant(request), origin=refusals.origin(request))
    return _accepted(await _accept(service, asked))


@router.get("/v1/jobs", responses=_errors(400, 503))
async def list_jobs(
    request: Request,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=2000, description="`next_cursor` of the page before")] = None,
) -> JobPage:
    """Jobs of the caller's tenant, newest first, without their results."""
    service = _service(request)
    wanted = status.value if status else None
    rows = await service.ledger.jobs(_tenant(request), wanted, limit + 1, _decode_cursor(cursor))
    page = rows[:limit]
    more = _encode_cursor(page[-1]["created_at"], page[-1]["job_id"]) if len(rows) > limit else None
    return JobPage(jobs=[JobView(**row) for row in page], next_cursor=more)


# `:path`, because a job id may hold slashes; the longer routes therefore come first.
@router.post(
    "/v1/jobs/{job_id:path}/cancel",
    responses=_errors(404, 409, 503),
)
async def cancel_job(request: Request, job_id: str) -> Accepted:
    """End a job that has not ended, wherever it runs. Its outcome is a failure of type `Cancelled`.

    200 also for a job that was cancelled before.
    """
    service = _service(request)
    tenant, origin = _tenant(request), refusals.origin(request)
    ended = await service.ledger.cancel(_known_id(job_id), tenant, origin)
    if ended is not None:
        service.on_ended(ended)
        log.info("job_cancelled", job_id=job_id, trace_id=ended.trace_id, tenant=tenant, **origin.known)
    return Accepted(job_id=job_id, status=Status.CANCELLED)


@router.post(
    "/v1/jobs/{job_id:path}/redrive",
    status_code=202,
    responses=_errors(404, 409, 429, 503),
)
async def redrive_job(request: Request, job_id: str) -> Accepted:
    """Run a failed job again, from its last checkpoint and with all its attempts before it. Its events begin anew."""
    service = _service(request)
    tenant, origin = _tenant(request), refusals.origin(request)
    await service.ledger.redrive(_known_id(job_id), tenant, origin)
    log.info("job_redriven", job_id=job_id, tenant=tenant, **origin.known)
    await service.forget_events(job_id, tenant)
    return Accepted(job_id=job_id, status=Status.QUEUED)


@router.post(
    "/v1/jobs/{job_id:path}/resume",
    status_code=202,
    responses=_errors(400, 404, 409, 413, 503),
    openapi_extra=_body(ANSWER),
)
async def resume_job(request: Request, job_id: str) -> Accepted:
    """Answer an interrupted job: `value`, and `interrupt_id` where several are pending. It goes on at once.

    The same answer again changes nothing; `request_id` tells one where there is no `interrupt_id`.
    """
    service = _service(request)
    known = _known_id(job_id)
    answer = await _read(request, lambda body: job.answer_from_json(known, body))
    asked = replace(answer, tenant=_tenant(request), origin=refusals.origin(request))
    receipt = await _resume(service, asked, "")
    return Accepted(job_id=job_id, status=receipt.status)


@router.get(
    "/v1/jobs/{job_id:path}/events",
    responses={
        200: {"content": {"text/event-stream": {"schema": SERVER_SENT_EVENT}}},
        204: {"description": "Nothing comes after that event"},
        **_errors(400, 404, 429, 503),
    },
    response_class=EventSourceResponse,
)
async def follow_events(request: Request, job_id: str) -> Response:
    """The job's events as Server-Sent Events, from the beginning or after `Last-Event-ID`, until its `end`.

    204 for a reader that has seen the `end`: it tells a browser's EventSource to come back no more.
    """
    from .event_stream import Stream, first_position, follow, is_over

    service = _service(request)
    position = first_position(request.headers.get("last-event-id"))
    tenant = _tenant(request)
    await service.ledger.job(_known_id(job_id), tenant)
    if await is_over(service, job_id, position):
        return Response(status_code=204)
    holds = request.state.holds
    return Stream(follow(service, job_id, tenant, position, holds), await service.places.take(tenant))


@router.get("/v1/jobs/{job_id:path}", responses=_errors(404, 503))
async def get_job(request: Request, job_id: str) -> JobView:
    """One job: status, times, and its result or error."""
    row = await _service(request).ledger.job(_known_id(job_id), _tenant(request))
    if row["status"] == Status.COMPLETED:
        row["result"] = {"output": row["result"], "status": "completed"}
    return JobView(**row)


@router.post("/v1/definitions/validate", responses=_errors(400, 413, 503), openapi_extra=_body({}))
async def validate_definition(request: Request) -> Validation:
    """Look at an agent definition (the body) as a submission would: everything that is wrong or odd, all at once.

    Nothing is built and no script is run, so it does not show whether a provider has a key or a script works.
    """
    from . import validation

    service: Service | None = request.app.state.service
    graphs = service.graphs.names if service else ()

    def look(document: Any) -> Report:
        if validation.names_graph(document):
            _service(request)  # which graphs there are shows when it has loaded them
        return validation.check(document, "", graphs)

    report = await _read(request, look)
    return Validation(
        valid=not report.errors, errors=_field_errors(report.errors), warnings=_field_errors(report.warnings)
    )


@router.get("/v1/definitions/schema")
async def definition_schema() -> dict[str, Any]:
    """The JSON Schema of agent definitions. The rules between their parts are not in it: validate knows them."""
    from .definition import schema

    return schema()


def _field_errors(findings: Iterable[Finding]) -> list[FieldError]:
    return [FieldError(field=finding.field, message=finding.message) for finding in findings]


def _service(request: Request) -> Service:
    service: Service | None = request.app.state.service
    if service is None:
        raise Unavailable("the service is starting")
    return service


def _tenant(request: Request) -> str:
    """Whose jobs the caller submits and sees: what its credential says, and nothing in the request itself."""
    return str(request.state.caller.tenant)


async def _read(request: Request, read: Callable[[Any], T]) -> T:
    """What `read` makes of the request's body, parsed strictly; refused as soon as it is seen to be too large."""
    service: Service | None = request.app.state.service
    limit: int = (
        request.app.state.settings.max_body_bytes if service is None else service.places.body_limit(_tenant(request))
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    body = b"".join(chunks)
    request.state.read = await by_size(size, lambda: read(strict_json.loads(body)))
    return request.state.read  # type: ignore[no-any-return]


def _too_large(limit: int) -> PayloadTooLarge:
    from .quotas import too_large

    return too_large(limit)


async def _take(service: Service, asked: Submission | Answer, prefix: str) -> Receipt:
    if isinstance(asked, Answer):
        return await _resume(service, asked, prefix)
    return await _accept(service, asked)


async def _resume(service: Service, answer: Answer, prefix: str) -> Receipt:
    with tracing.span("resume job", answer.traceparent, job_id=answer.job_id):
        receipt = await service.ledger.resume(answer, prefix)
    whose = {"tenant": answer.tenant, **answer.origin.known}
    log.info("job_resumed", job_id=answer.job_id, new=receipt.is_new, **whose)
    return receipt


async def _accept(service: Service, submission: Submission) -> Receipt:
    with tracing.span("accept job", submission.traceparent, job_id=submission.job_id) as traceparent:
        receipt = await service.ledger.accept(submission, traceparent)
    whose = {"tenant": submission.tenant, **submission.origin.known}
    log.info("job_accepted", job_id=receipt.job_id, trace_id=submission.trace_id, new=receipt.is_new, **whose)
    return receipt


async def _take_and_wait(service: Service, asked: Submission | Answer, wait_s: float) -> Response:
    from .notify import wait

    deadline = asyncio.get_running_loop().time() + wait_s
    with service.listener.finished(asked.job_id) as finished:
        receipt = await _take(service, asked, "data.")
        while True:
            event = await service.ledger.outcome(asked.job_id, asked.tenant)
            if event is not None:
                return Response(strict_json.dumps(event), media_type=job.STRUCTURED)
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or service.phase is Phase.DRAINED:
                return _accepted(receipt)
            await wait(finished, min(left, 1.0))


def _accepted(receipt: Receipt) -> Response:
    body = {"job_id": receipt.job_id, "status": receipt.status.value}
    return JSONResponse(body, status_code=202, headers={"Location": f"/v1/jobs/{_quoted(receipt.job_id)}"})


def _quoted(job_id: str) -> str:
    from urllib.parse import quote

    return quote(job_id, safe="")


def _preferred_wait(preferences: list[str]) -> float | None:
    """RFC 7240, section 4.3. A preference that cannot be understood is ignored, as it says."""
    found = _WAIT.search(", ".join(preferences))
    return min(float(found[1]), MAX_WAIT_S) if found else None


def _known_id(job_id: str) -> str:
    if "\0" in job_id or len(job_id) > job.MAX_ID_CHARS or not job_id.isprintable():
        raise NotFound("no job of that id")
    return job_id


def _encode_cursor(created_at: datetime, job_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {job_id}".encode()).decode()


def _decode_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    try:
        created_at, _, job_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition(" ")
        return datetime.fromisoformat(created_at), _known_id(job_id)
    except (ValueError, binascii.Error, NotFound):
        raise InvalidInput("invalid query", [Finding("cursor", "must be the next_cursor of a page")]) from None


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AgentExecutorError)
    return _error_response(request, error, _STATUS.get(type(error), 500))


def _error_response(request: Request, error: AgentExecutorError, status: int) -> Response:
    refusals.note(request, error, status)
    fields = [{"field": finding.field, "message": finding.message} for finding in error.findings]
    challenge = error.challenge if isinstance(error, Unauthenticated | Forbidden) else None
    headers = {"WWW-Authenticate": challenge} if challenge else {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return _error(status, type(error).__name__, str(error), fields, headers)


async def _on_bad_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    findings = [Finding(".".join(str(part) for part in each["loc"][1:]), each["msg"]) for each in error.errors()]
    return _error_response(request, InvalidInput("invalid query", findings), 400)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers
    if error.status_code == 405 and (methods := _methods(request.scope.get("route"))):
        headers = {"Allow": ", ".join(methods)}
    return _error(error.status_code, "HttpError", str(error.detail), [], headers)


def _methods(route: object) -> list[str]:
    """What may be done at the route's path; the framework names the methods of that one route alone."""
    path = getattr(route, "path", None)
    routes = [each for each in (*probes.routes, *router.routes) if isinstance(each, APIRoute) and each.path == path]
    return sorted({method for each in routes for method in each.methods or ()})


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Nobody hears this: the client has gone, or took too long."""
    return Response(status_code=400)


async def _on_bug(request: Request, error: Exception) -> Response:
    said = "an unexpected error; the service's log has it"
    return _error(500, "InternalError", said, [], browsers.ALWAYS)  # answered outside of what adds them elsewhere


def _error(
    status: int, kind: str, message: str, fields: list[dict[str, str]], headers: Mapping[str, str] | None = None
) -> Response:
    more = {"Retry-After": "1"} if status == 503 else {}
    body = {"error": {"type": kind, "message": message, "fields": fields}}
    return JSONResponse(body, status_code=status, headers={**(headers or {}), **more})
