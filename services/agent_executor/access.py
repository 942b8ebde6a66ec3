"""Which scope each route needs, and the one decision over every request.

The decision runs before anything else of a route, on the route that the application matched. A route that is not in
`NEEDS` answers 403. How a credential is checked is an `Authenticator`'s concern; which status an error gets is `api`'s.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import Request

from .callers import ANONYMOUS, Authenticator, Caller, Holds
from .errors import Forbidden, Unauthenticated, Unavailable
from .loopback import is_loopback, named_host

OPEN = "open"
NEEDS: dict[str, tuple[str, ...]] = {
    "GET /health": (OPEN,),
    "GET /ready": (OPEN,),
    "GET /metrics": ("metrics:read",),
    "POST /": ("jobs:submit", "jobs:control"),
    "POST /v1/jobs": ("jobs:submit",),
    "GET /v1/jobs": ("jobs:read",),
    "GET /v1/jobs/{job_id:path}": ("jobs:read",),
    "GET /v1/jobs/{job_id:path}/events": ("jobs:read",),
    "POST /v1/jobs/{job_id:path}/cancel": ("jobs:control",),
    "POST /v1/jobs/{job_id:path}/redrive": ("jobs:control",),
    "POST /v1/jobs/{job_id:path}/resume": ("jobs:control",),
    "POST /v1/definitions/validate": ("definitions:validate",),
    "GET /v1/definitions/schema": ("definitions:validate",),
}
"""Any of the scopes opens the route; where there are several, the route asks for the one it turns out to need."""

MAX_CREDENTIAL_CHARS = 16 * 1024
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_OF_PROXIES = ("forwarded", "via", "x-real-ip")
_REALM = 'Bearer realm="agent-executor"'
_NONE = "a credential is required: Authorization: Bearer CREDENTIAL"
_BAD = "the credential is not valid"


async def authorize(request: Request) -> None:
    """Let the request go on, with `request.state.caller` and `request.state.holds` set, or raise.

    Raises:
        Unauthenticated: no credential, or one that is no good. Forbidden: the scope is missing. Unavailable.
    """
    route = f"{request.method} {request.scope['route'].path}"
    needed = NEEDS.get(route, ())
    if needed == (OPEN,) or (route == "GET /metrics" and request.app.state.settings.metrics_open):
        return
    try:
        request.state.caller, request.state.holds = await _admit(request)
        if not needed:
            raise Forbidden("this route is open to nobody")
        if not any(map(request.state.caller.may, needed)):
            raise _lacking(needed)
    except (Unauthenticated, Forbidden) as error:
        _count(error)
        raise


def demand(request: Request, scope: str) -> None:
    """Raise Forbidden unless the caller has `scope`: for a route whose body says what is asked."""
    if not request.state.caller.may(scope):
        error = _lacking((scope,))
        _count(error)
        raise error


def _count(error: Exception) -> None:
    from .metrics import access_refused  # not before /health answers

    access_refused.labels(type(error).__name__).inc()


async def _admit(request: Request) -> tuple[Caller, Holds]:
    settings = request.app.state.settings
    if settings.auth_mode == "none":
        if not settings.auth_allow_anonymous:
            _check_local(request)
        return ANONYMOUS, _always
    credential = _presented(request)
    service = request.app.state.service
    if service is None:
        raise Unavailable("the service is starting")
    authenticator: Authenticator = service.authenticator
    admitted = await authenticator.admit(credential)
    if admitted is None:
        raise Unauthenticated(_BAD, f'{_REALM}, error="invalid_token"')
    return admitted


def _presented(request: Request) -> str:
    """The credential; two of them are as good as none, since somebody before us may have looked at the other."""
    headers = request.headers.getlist("authorization")
    if not headers:
        raise Unauthenticated(_NONE, _REALM)
    found = _BEARER.fullmatch(headers[0].strip(" \t")) if len(headers) == 1 else None
    if found is None or len(found[1]) > MAX_CREDENTIAL_CHARS:
        raise Unauthenticated(_BAD, f'{_REALM}, error="invalid_token"')
    return found[1]


def _check_local(request: Request) -> None:
    """Only this machine, and none of the web pages that its browser shows: they can send to loopback, too. What a proxy
    on this machine hands on has come from somewhere else.
    """
    address = (request.scope.get("server") or ("",))[0]
    names = [named_host(f"//{request.headers.get('host', '')}"), *map(named_host, request.headers.getlist("origin"))]
    is_forwarded = any(name in _OF_PROXIES or name.startswith("x-forwarded-") for name in request.headers)
    if is_forwarded or not is_loopback(address) or not all(map(is_loopback, names)):
        raise Forbidden("without authentication only requests from this machine, to a name of it, are taken")


def _lacking(scopes: tuple[str, ...]) -> Forbidden:
    challenge = f'{_REALM}, error="insufficient_scope", scope="{" ".join(scopes)}"'
    return Forbidden(f"the credential lacks the scope {' or '.join(scopes)}", challenge)


def _always() -> bool:
    return True


def described(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with what each operation needs, and what it answers to others."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for route, needed in NEEDS.items():
        method, _, path = route.partition(" ")
        operation = document["paths"].get(path.replace(":path", ""), {}).get(method.lower())
        if operation is None or needed == (OPEN,):
            continue
        operation["security"] = [{"bearer": [scope]} for scope in needed]
        operation["responses"]["401"] = {"description": "No credential, or one that is no good", "content": error}
        operation["responses"]["403"] = {"description": f"Needs {' or '.join(needed)}", "content": error}
    return document
