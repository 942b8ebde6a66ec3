"""A graph from code, run as a job: the same ledger, checkpoints and events."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from agent_executor import database as connections
from agent_executor.job import from_json
from agent_executor.ledger import Ledger
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Starter

EXAMPLE = Path(__file__).parents[2] / "examples/three_nodes"
KILLS = """
import dataclasses, os, pathlib, signal
from typing import TypedDict
from langgraph.graph import START, StateGraph

@dataclasses.dataclass
class Step:
    name: str

class State(TypedDict, total=False):
    steps: list[Step]
    names: list[str]

def note(name):
    def node(state):
        with open({journal!r}, "a") as file:
            file.write(name + " ")
        sign = pathlib.Path({journal!r} + ".kill")
        if name == "b" and sign.exists():
            sign.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        steps = [*state.get("steps", []), Step(name)]
        return {{"steps": steps, "names": [step.name for step in steps]}}
    return node

graph = StateGraph(State)
for name in "abc":
    graph.add_node(name, note(name))
graph.add_edge(START, "a")
graph.add_edge("a", "b")
graph.add_edge("b", "c")
"""


def test_the_example_runs(start_service: Starter) -> None:
    service = start_service(LANGGRAPH_CONFIG=str(EXAMPLE / "langgraph.json")).ready()
    job = json.loads((EXAMPLE / "job.json").read_text())
    assert service.http.post("/v1/jobs", json=job).status_code == 202
    assert service.ended(job["job_id"])["result"]["output"] == "5 words in all"
    events = stored_events(service.environment["REDIS_URL"], job["job_id"])
    states = [each["data"] for each in events if each["event_type"] == "on_state_update"]
    assert [state.get("count") for state in states] == [None, None, 5, 5]
    assert events[-1]["event_type"] == "end"
    refused = service.submit({"graph": "unknown"}, "unknown")
    assert refused.status_code == 400
    assert "known are three-nodes" in refused.json()["error"]["message"]
    report = service.http.post("/v1/definitions/validate", json={"graph": "three-nodes"}).json()
    assert report == {"valid": True, "errors": [], "warnings": []}


def test_a_killed_job_of_such_a_graph_is_resumed_with_objects_of_its_own_classes(
    start_service: Starter, tmp_path: Path, database: Database
) -> None:
    journal = tmp_path / "journal"
    (tmp_path / "code.py").write_text(KILLS.format(journal=str(journal)))
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"abc": "./code.py:graph"}}))
    (tmp_path / "journal.kill").touch()
    settings = {"LANGGRAPH_CONFIG": str(tmp_path / "langgraph.json"), "LEASE_S": "3"}
    first = start_service(**settings).ready()
    first.submit({"graph": "abc"}, "abc")
    first.process.wait(30)
    done = start_service(**settings).ready().ended("abc")
    assert done["status"] == "completed", done["error"]
    assert done["result"]["output"]["names"] == ["a", "b", "c"]
    assert journal.read_text().split() == ["a", "b", "b", "c"]
    assert rows(database, "select attempt from jobs") == [(2,)]


def test_a_process_without_the_graph_leaves_the_job_to_one_that_has_it(
    start_service: Starter, database: Database
) -> None:
    old = start_service().ready()
    job = json.loads((EXAMPLE / "job.json").read_text())
    asyncio.run(_accept(database, job))
    old.until(lambda: "job_passed_on" in old.log.read_text(), "the job is not passed on")
    old.until(lambda: old.job(job["job_id"])["status"] == "queued", "the job is not given back")
    assert old.job(job["job_id"])["attempt"] == 0
    new = start_service(LANGGRAPH_CONFIG=str(EXAMPLE / "langgraph.json")).ready()
    assert new.ended(job["job_id"])["result"]["output"] == "5 words in all"


async def _accept(database: Database, body: dict[str, Any]) -> None:
    """As a process would that has the graph."""
    async with connections.pool(database.dsn, 4) as pool:
        await Ledger(pool).accept(from_json(body))


def test_a_service_whose_graphs_cannot_be_loaded_does_not_start(start_service: Starter, tmp_path: Path) -> None:
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"broken": "./nowhere.py:graph"}}))
    service = start_service(LANGGRAPH_CONFIG=str(tmp_path / "langgraph.json"))
    assert service.process.wait(30) == os.EX_USAGE
    last = json.loads(service.log.read_text().splitlines()[-1])
    assert (last["event"], "graph 'broken'" in last["reason"]) == ("cannot_start", True)
