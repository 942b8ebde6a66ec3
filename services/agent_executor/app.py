"""What uvicorn serves: `uvicorn --factory agent_executor.app:main`.

Owns the life of the process: `/health` answers first, then the heavy modules are imported in a thread, then the service
opens. SIGTERM drains before uvicorn hears of it, since uvicorn closes its listener at once and runs the lifespan's end
only after the last connection is gone.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from types import FrameType
from typing import Any

from .imports import UNUSED, defer, hidden, uncollected

with uncollected(), hidden("rich"):  # structlog would import it to colour what we write as JSON
    import structlog
    from fastapi import Depends, FastAPI

    from . import access, api, browsers, logs, redaction, tracing
    from .connections import Connection, Limits
    from .errors import GraphNotLoaded
    from .loopback import listens_on_loopback
    from .settings import Settings, SettingsError, load, words
    from .threads import DaemonThreads

_TURNS = 20
_NEEDLESS = ("rich", "opentelemetry.sdk.metrics")
"""What httpx would import for its command line, and redis for metrics of its own: a tenth of a start, 3 MB."""
_NOT_LOCAL = (
    "AUTH_MODE is none, and the server is not known to listen on loopback alone: use token or jwt, give uvicorn --host"
    " 127.0.0.1, or let everybody in with AUTH_ALLOW_ANONYMOUS=true"
)

log = structlog.get_logger()


def main() -> FastAPI:
    """The factory that uvicorn is given: reads the environment; exits with 64 (EX_USAGE) naming what is wrong."""
    redaction.remember_environment(os.environ)
    try:
        settings = load()
    except SettingsError as error:
        logs.configure("info")
        log.error("cannot_start", reason=str(error))
        raise SystemExit(64) from None
    logs.configure(settings.log_level)
    if settings.auth_mode == "none":
        _allow_anonymous(settings)
    return create(settings)


def _allow_anonymous(settings: Settings) -> None:
    """Say so where everybody may call, and end the process where nobody said that everybody may."""
    if settings.auth_allow_anonymous:
        log.warning("anonymous_allowed")
    elif not listens_on_loopback():
        log.error("cannot_start", reason=_NOT_LOCAL)
        raise SystemExit(64)


def create(settings: Settings) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(
        title="agent-executor",
        version=api.VERSION,
        lifespan=_lifespan,
        description="Runs AI-agent jobs and never loses one.",
        dependencies=[Depends(access.authorize)],
        openapi_url="/openapi.json" if settings.docs == "on" else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # they would lead to whatever host the request names
    )
    Connection.limits = Limits(
        connections=settings.max_connections,
        header_bytes=settings.max_header_bytes,
        header_s=settings.request_header_timeout_s,
        body_s=settings.request_body_timeout_s,
        stall_s=settings.response_stall_timeout_s,
    )
    app.state.settings = settings
    app.state.service = None
    app.state.draining = False
    api.install(app)
    browsers.install(app, words(settings.cors_allow_origins), docs=settings.docs == "on")
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    async with AsyncExitStack() as opened:
        opening = asyncio.create_task(_open(app, settings, opened))
        opening.add_done_callback(_end_unless_open)
        restore = _drain_on_signals(app, opening)
        try:
            yield
        finally:
            restore()
            opening.cancel()
            await asyncio.wait([opening])


async def _open(app: FastAPI, settings: Settings, opened: AsyncExitStack) -> None:
    for _ in range(_TURNS):  # uvicorn binds meanwhile: beside imports in a thread that takes several times as long
        await asyncio.sleep(0)
    module = await asyncio.to_thread(_heavy_imports)
    tracing.configure(settings.otel_exporter_otlp_endpoint)
    try:
        graphs = await asyncio.to_thread(module.load_graphs, settings.langgraph_config)
    except GraphNotLoaded as error:  # nothing is open yet that would have to be closed
        log.error("cannot_start", reason=str(error))
        os._exit(64)
    app.state.service = await module.open_service(settings, graphs, opened)


def _end_unless_open(opening: asyncio.Task[None]) -> None:
    """What nobody foresaw while the service was opened: a process that never serves would wait for ever."""
    if not opening.cancelled() and (error := opening.exception()) is not None:
        log.error("cannot_start", reason=f"{type(error).__name__}: {error}", exc_info=error)
        os._exit(1)


def _heavy_imports() -> Any:
    """Everything a job needs except the providers."""
    with uncollected(), hidden(*_NEEDLESS):
        defer(*UNUSED)
        return importlib.import_module("agent_executor.service")


def _drain_on_signals(app: FastAPI, opening: asyncio.Task[None]) -> Any:
    """Chain a handler before uvicorn's: drain first, pass the signal on then; a second signal is passed on at once."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    draining: set[asyncio.Task[None]] = set()

    def pass_on(number: int, frame: FrameType | None = None) -> None:
        handler = previous[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    async def drain(number: int) -> None:
        try:
            if app.state.service is None:
                opening.cancel()
            else:
                await app.state.service.drain()
        except Exception:
            log.exception("drain_failed")
        pass_on(number)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if app.state.draining:
            pass_on(number, frame)
            return
        app.state.draining = True
        # A context of its own: the handler runs in the middle of some task, and would log with that task's job id.
        loop.call_soon_threadsafe(lambda: draining.add(loop.create_task(drain(number))), context=Context())

    for number in previous:
        signal.signal(number, on_signal)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    return restore
