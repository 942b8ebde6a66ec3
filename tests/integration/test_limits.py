"""Limits of a job, from the environment, and what a job used before its worker died."""

from __future__ import annotations

import signal

from tests.definitions import agent, tool
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Starter

NOOP = tool("noop", "from langchain_core.tools import tool\n\n@tool\ndef noop() -> str:\n    'T.'\n    return 'x'\n")
CALLS = {"tool_calls": [{"name": "noop"}], "tokens": 10}


def test_the_environments_limits_hold_and_the_failure_names_them(start_service: Starter) -> None:
    service = start_service(MAX_MODEL_CALLS="3").ready()
    done = service.run(agent([CALLS] * 9, tools=[NOOP]), "calls")
    assert (done["status"], done["attempt"]) == ("failed", 1)
    error = {"type": "LimitExceeded", "message": "the job went beyond MAX_MODEL_CALLS (3)"}
    assert done["error"] == error | {"stack_trace": ""}
    events = stored_events(service.environment["REDIS_URL"], "calls")
    assert [each["data"] for each in events if each["event_type"] == "error"] == [error]
    other = start_service(JOB_TIMEOUT_S="1").ready()
    service.stop()
    done = other.run(agent([{"text": "x", "delay_ms": 60_000}]), "time")
    assert done["error"]["message"] == "the job went beyond JOB_TIMEOUT_S (1)"


def test_what_was_used_before_a_kill_counts_after_it(start_service: Starter, database: Database) -> None:
    first = start_service().ready()
    slow = {**CALLS, "delay_ms": 60_000}
    document = agent([CALLS, CALLS, slow], tools=[NOOP]) | {"limits": {"model_calls": 4}}
    first.submit(document, "killed")
    stored = "select max((metadata -> 'usage' ->> 'model_calls')::int) from checkpoints"
    first.until(lambda: rows(database, stored) == [(2,)], "two calls are not stored")
    first.stop(signal.SIGKILL)
    second = start_service(MAX_MODEL_CALLS="2").ready()
    done = second.ended("killed")
    assert done["error"]["message"] == "the job went beyond MAX_MODEL_CALLS (2)"
    assert rows(database, "select max((metadata -> 'usage' ->> 'tokens')::int) from checkpoints") == [(20,)]
