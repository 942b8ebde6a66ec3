"""Which requests of HTTP the audit has, and what it says of their callers.

Every refusal for a credential or a limit is one, on any route, and every other one where something was to be changed.
An answer of 5xx is none: nobody decided anything. What is written is bounded, printable, and no credential, wherever
one was put.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request

from .errors import AgentExecutorError, Forbidden, TooManyRequests, Unauthenticated
from .job import MAX_ID_CHARS, Answer, Origin, Submission
from .redaction import redact, without_tokens

if TYPE_CHECKING:
    from .callers import Caller
    from .service import Service

CHANGES = {
    "POST /": "submit",
    "POST /v1/jobs": "submit",
    "POST /v1/jobs/{job_id:path}/cancel": "cancel",
    "POST /v1/jobs/{job_id:path}/redrive": "redrive",
    "POST /v1/jobs/{job_id:path}/resume": "resume",
}
"""What each route that changes something is called in the audit; every other one is a `read`."""

_MAX_ADDRESS_CHARS = 64


def origin(request: Request) -> Origin:
    """Who sends this request, and from which address."""
    caller: Caller | None = getattr(request.state, "caller", None)
    address = None if request.client is None else _text(request.client.host, _MAX_ADDRESS_CHARS)
    if caller is None:
        return Origin("http", address=address)
    return Origin("http", _text(caller.name, MAX_ID_CHARS), caller.key_id, address)


def note(request: Request, error: AgentExecutorError, status: int) -> None:
    """Have the audit tell of a request that was answered with `error`, if it is one that it has."""
    service: Service | None = request.app.state.service
    route = f"{request.method} {request.scope['route'].path}"
    tells_why = isinstance(error, Unauthenticated | Forbidden | TooManyRequests)
    if service is None or status >= 500 or not (tells_why or route in CHANGES):
        return
    from .audit import Refusal  # it is there when the service is, and too heavy before /health answers

    caller: Caller | None = getattr(request.state, "caller", None)
    detail = type(error).__name__ + (f": {error}" if tells_why else "")
    asked = getattr(request.state, "read", None)
    action = "resume" if isinstance(asked, Answer) else CHANGES.get(route, "read")
    if caller is None:
        service.refusals.add(Refusal(action, detail, origin(request)))
        return
    job_id = asked.job_id if isinstance(asked, Submission | Answer) else request.path_params.get("job_id")
    about = None if job_id is None else _text(job_id, MAX_ID_CHARS)
    service.refusals.add(Refusal(action, detail, origin(request), caller.tenant, about))


def _text(text: str, limit: int) -> str:
    """`text` as PostgreSQL and a terminal can take it."""
    cut = redact(without_tokens(text))[:limit]
    return "".join(char if char.isprintable() else "?" for char in cut)
