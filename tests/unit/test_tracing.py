"""tracing, switched off: free, and a request's traceparent is handed on. Switched on: tests/integration."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent_executor import tracing

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("traceparent", [TRACEPARENT, None])
def test_a_traceparent_is_handed_on_unchanged(traceparent: str | None) -> None:
    tracing.configure(None)
    with tracing.span("outer", traceparent, job_id="job-1") as inner, tracing.span("inner", inner) as innermost:
        assert innermost is traceparent


def test_spans_cost_nothing_and_can_be_ended() -> None:
    assert tracing.start("tool x") is tracing.NO_SPAN
    tracing.NO_SPAN.end()
    tracing.shutdown()


def test_an_exception_passes_through() -> None:
    with pytest.raises(LookupError), tracing.span("outer", TRACEPARENT):
        raise LookupError


def test_the_sdk_is_not_imported() -> None:
    code = "import sys, agent_executor.tracing as t; t.configure(None); sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
