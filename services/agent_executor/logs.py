"""Logs: JSON lines on stdout, one event each, with `event`, `level`, `timestamp` and the ids bound by whoever runs.

Owns the format; LOG_LEVEL rules every logger of the process, the libraries' included. Python's warnings and the
exceptions that nobody caught are lines, too, so that no text leaves the process past the redaction.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
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
        _lost(record.name)


class _Pipe:
    """stdout as it was; that nobody reads it harms no job."""

    def __init__(self) -> None:
        self._stdout = sys.stdout

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stdout.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stdout.flush()


def _or_lost(processors: Sequence[Any]) -> Callable[..., Any]:
    """All of these; what cannot be made a line harms nobody."""

    def process(logger: Any, name: str, event: Any) -> Any:
        try:
            for processor in processors:
                event = processor(logger, name, event)
        except Exception:  # noqa: BLE001 - as the standard library has it
            _lost("agent_executor")
            raise structlog.DropEvent from None
        return event

    return process


def _lost(name: str) -> None:
    kind = sys.exc_info()[0]
    sys.stderr.write(f"a log line of {name} is lost: {kind.__name__ if kind else 'unknown'}\n")


def _safe(_logger: Any, _name: str, line: str | bytes) -> str:
    return redact_json(without_tokens(str(line)))


def configure(level: str) -> None:
    """Set up structlog and the standard library's logging alike. Unknown levels mean info."""
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str), _safe]
    structlog.configure(  # past the standard library, whose records take as long again
        processors=[*shared, _or_lost(rendering)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(_Pipe()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = _Output(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
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
