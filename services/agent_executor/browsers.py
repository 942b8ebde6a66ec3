"""What browsers are told of an answer, and the pages that show the API.

Owns the headers that protect who looks at an answer with a browser, which pages of other origins may call (CORS),
`/docs` and `/redoc`. The pages' scripts come from a public mirror of npm, each by the hash of its content: another
script under that name is not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_ALWAYS = [(name.lower().encode(), value.encode()) for name, value in ALWAYS.items()]
_TAKEN = ["Authorization", "Content-Type", "Last-Event-ID", "Prefer"]
_SHOWN = ["Location", "Retry-After"]

_SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/"
_SWAGGER_JS = "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"
_SWAGGER_CSS = "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"
_REDOC = "https://cdn.jsdelivr.net/npm/redoc@2.5.4/bundles/"
_REDOC_JS = "sha384-w447zOpYfw/1Tv/5AK9NfHTlQIqE3RVR6KY62jCyy9zNDgO64cMwGGP1Fj0zJVf5"
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", deepLinking: true})'
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>agent-executor</title>{head}</head><body>{body}</body></html>
"""
_PAGES = {
    "/docs": (
        f'<link rel="stylesheet" href="{_SWAGGER}swagger-ui.css" integrity="{_SWAGGER_CSS}" crossorigin="anonymous">',
        f'<div id="ui"></div><script src="{_SWAGGER}swagger-ui-bundle.js" integrity="{_SWAGGER_JS}"'
        f' crossorigin="anonymous"></script><script>{_START}</script>',
        _SWAGGER,
    ),
    "/redoc": (
        "",
        f'<redoc spec-url="openapi.json"></redoc><script src="{_REDOC}redoc.standalone.js" integrity="{_REDOC_JS}"'
        ' crossorigin="anonymous"></script>',
        _REDOC,
    ),
}


def install(app: FastAPI, origins: Sequence[str], *, docs: bool) -> None:
    """Add the headers to `app`; the pages, if `docs`; CORS for `origins`, if there are any."""
    app.add_middleware(_Always)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=_TAKEN,
            expose_headers=_SHOWN,
        )
    for path, (head, body, source) in _PAGES.items() if docs else ():
        _add_page(app, path, _PAGE.format(head=head, body=body), _policy(source))


def _add_page(app: FastAPI, path: str, page: str, policy: str) -> None:
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    app.add_route(path, show, methods=["GET"], include_in_schema=False)


def _policy(source: str) -> str:
    """https://www.w3.org/TR/CSP3/; both pages style their elements one by one, ReDoc searches in a worker."""
    start = base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src {source} 'sha256-{start}'; style-src {source} 'unsafe-inline';"
        " img-src 'self' data:; font-src data:; worker-src blob:; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    )


class _Always:
    """Puts `ALWAYS` into each answer that does not say otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                said = {name for name, _ in headers}
                message["headers"] = [*headers, *(each for each in _ALWAYS if each[0] not in said)]
            await send(message)

        await self._app(scope, receive, send_with if scope["type"] == "http" else send)
