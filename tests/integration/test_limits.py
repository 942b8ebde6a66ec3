"""Limits of a job, from the environment, and what a job used before its worker died."""

from __future__ import annotations

import json
import signal
from pathlib import Path

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


ASKS = """
import time
from typing import TypedDict
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt

class State(TypedDict, total=False):
    said: list[str]

def ask(state):
    time.sleep(0.6)
    return {"said": [interrupt(number) for number in range(9)]}

graph = StateGraph(State)
graph.add_node("ask", ask)
graph.add_edge(START, "ask")
"""


def test_what_was_used_before_a_question_counts_after_it(
    start_service: Starter, database: Database, tmp_path: Path
) -> None:
    (tmp_path / "code.py").write_text(ASKS)
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"asks": "./code.py:graph"}}))
    service = start_service(LANGGRAPH_CONFIG=str(tmp_path / "langgraph.json"), JOB_TIMEOUT_S="2").ready()
    service.submit({"graph": "asks"}, "rounds", input_payload={"said": []})
    answered = 0
    while service.until(lambda: service.job("rounds")["status"] in ("interrupted", "failed"), "hangs") and (
        service.job("rounds")["status"] == "interrupted"
    ):
        assert service.resume("rounds", answered).status_code == 202
        answered += 1
    assert 1 < answered < 4
    done = service.ended("rounds")
    assert done["error"]["message"] == "the job went beyond JOB_TIMEOUT_S (2)"
    [(seconds,)] = rows(database, "select (usage ->> 'seconds')::float from jobs")
    assert seconds > 2


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
