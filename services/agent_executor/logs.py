"""Logs: JSON lines on stdout, one event each, with `event`, `level`, `timestamp` and the ids bound by whoever runs.

Owns the format; LOG_LEVEL rules every logger of the process, the libraries' included. Python's warnings and the
exceptions that nobody caught are lines, too, so that no text leaves the process past the redaction.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

import structlog

from .redaction import redact_json, without_tokens

# Below warning they print request addresses, whole events with what the caller sent, or tracebacks of no concern.
_QUIET = (
    *("anthropic", "asyncio", "deepagents", "httpcore", "httpcore2", "httpx", "httpx2"),
    *("hvac", "langsmith", "openai", "sse_starlette", "urllib3"),
)

log = structlog.get_logger()


class _Output(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:
        """The library's own would print to stderr what the line was to be made of."""
        kind = sys.exc_info()[0]
        sys.stderr.write(f"a log line of {record.name} is lost: {kind.__name__ if kind else 'unknown'}\n")


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
    handler = _Output(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
                lambda _logger, _name, line: redact_json(without_tokens(str(line))),
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
    # What no line of ours tells need not be found out for each (docs.python.org/3/howto/logging.html#optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.captureWarnings(True)
    sys.excepthook = lambda *raised: _uncaught(raised)
    threading.excepthook = lambda raised: _uncaught((raised.exc_type, raised.exc_value, raised.exc_traceback))


def _uncaught(raised: Any) -> None:
    if not issubclass(raised[0], SystemExit | KeyboardInterrupt):
        log.error("uncaught", exc_info=raised)
