"""OpenTelemetry traces: on where OTEL_EXPORTER_OTLP_ENDPOINT is set, otherwise off and free.

The SDK is imported only when it is on. A request's `traceparent` (W3C Trace Context) is the parent of everything its
job causes; when tracing is off it is handed on as it came. Of an exception only the type is told: its message
may hold an address with a password in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Span(Protocol):
    """The part of an OpenTelemetry span used here."""

    def end(self) -> None:
        """Close the span."""


class _NoSpan:
    def end(self) -> None:
        pass


NO_SPAN: Span = _NoSpan()
_tracer: Any = None
_provider: Any = None


def configure(endpoint: str | None) -> None:
    """Export spans by OTLP over HTTP to `endpoint`; the exporter's other OTEL_* variables apply. None: stay off."""
    global _tracer, _provider  # noqa: PLW0603
    if endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource({"service.name": "agent-executor"})  # OTEL_SERVICE_NAME wins over it
    _provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("agent_executor")


def shutdown() -> None:
    """Send what is still waiting. Blocks for some seconds at most."""
    if _provider is not None:
        _provider.shutdown()


@contextmanager
def span(name: str, traceparent: str | None, **attributes: str) -> Iterator[str | None]:
    """A span below `traceparent`, current while the block runs; yields the traceparent for what the block causes."""
    if _tracer is None:
        yield traceparent
        return
    from opentelemetry.propagate import extract, inject
    from opentelemetry.trace import StatusCode

    parent = extract({"traceparent": traceparent} if traceparent else {})
    quiet = {"record_exception": False, "set_status_on_exception": False}  # they send its message, and its traceback
    with _tracer.start_as_current_span(name, context=parent, attributes=attributes, **quiet) as current:
        carrier: dict[str, str] = {}
        inject(carrier)
        try:
            yield carrier.get("traceparent", traceparent)
        except Exception as error:
            current.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def start(name: str) -> Span:
    """A span below the current one; the caller ends it."""
    if _tracer is None:
        return NO_SPAN
    started: Span = _tracer.start_span(name)
    return started
