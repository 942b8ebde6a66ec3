"""Logs: JSON lines on stdout, one event each, with `event`, `level`, `timestamp` and the ids bound by whoever runs.

Owns the format; LOG_LEVEL rules every logger of the process, the libraries' included.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from .redaction import redact

# Below warning they print request addresses, whole events with what the caller sent, or tracebacks of no concern.
_QUIET = (
    *("anthropic", "asyncio", "deepagents", "httpcore", "httpcore2", "httpx", "httpx2"),
    *("hvac", "langsmith", "openai", "sse_starlette", "urllib3"),
)


def configure(level: str) -> None:
    """Set up structlog and the standard library's logging alike. Unknown levels mean info."""
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
                lambda _logger, _name, line: redact(str(line)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        if logging.getLogger(name).handlers:  # none: --no-access-log took them away
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.NOTSET)  # uvicorn gave them levels of their own
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
