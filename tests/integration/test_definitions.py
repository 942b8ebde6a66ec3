"""Definitions as they are found in the wild, run by the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.definitions import agent, specialist, tool
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service

WRITER = """
from langchain.tools import ToolRuntime
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langgraph.types import Command

def _path(name):
    return f"/reports/{{name}}.md"

@tool
def not_the_one(x: str) -> str:
    "A further tool of the script."
    return x

@tool
def {name}(text: str, runtime: ToolRuntime = None) -> Command:
    "Write a report."
    path = _path("{name}")
    seen = sorted(runtime.state.get("files", {{}}))
    return Command(update={{
        "files": {{path: text}},
        "findings": [{{"by": "{name}", "seen": seen}}],
        "unheard_of": True,
    }})
"""
FINDINGS = {"findings": {"type": "list", "item_type": "dict", "reducer": "add_messages"}}
TOOLS = ("write_scope", "write_risks", "write_costs", "write_plan")


def writing(number: int, tools: list[str]) -> dict[str, Any]:
    calls = [{"name": name, "args": {"text": f"{name} by {number}"}} for name in tools]
    made = specialist(f"Writer {number}", [{"tool_calls": calls}, {"text": f"{number} wrote"}], tools)
    made["config"] |= {"state_schema": FINDINGS, "system_prompt": "Write reports. " * 50}
    del made["config"]["description"]
    return made


def states(service: Service, job_id: str) -> list[Any]:
    events = stored_events(service.environment["REDIS_URL"], job_id)
    return [each["data"] for each in events if each["event_type"] == "on_state_update"]


def test_five_specialists_with_four_tools_write_files_into_the_state(service: Service) -> None:
    """The first writes alone, the next three side by side, the last two files at once."""

    def ask(*numbers: int) -> dict[str, Any]:
        args = [{"subagent_type": f"Writer {number}", "description": "write"} for number in numbers]
        return {"tool_calls": [{"name": "task", "args": each} for each in args]}

    use = {
        1: ["write_scope"],
        2: ["write_risks"],
        3: ["write_costs"],
        4: ["write_plan"],
        5: ["write_scope", "write_plan"],
    }
    document = agent(
        [ask(1), ask(2, 3, 4), ask(5), {"text": "all is written"}],
        specialists=[writing(number, tools) for number, tools in use.items()],
    )
    del document["name"]
    document["nodes"][0]["config"]["state_schema"] = FINDINGS
    document["tool_definitions"] = [tool(name, WRITER.format(name=name)) for name in TOOLS]
    document["edges"] = [{"from": "Lead", "to": f"Writer {number}"} for number in use]
    done = service.run(document, "five")
    assert done["result"] == {"output": "all is written", "status": "completed"}, done["error"]
    state = states(service, "five")[-1]
    assert sorted(state["files"]) == [f"/reports/{name}.md" for name in sorted(TOOLS)]
    assert state["files"]["/reports/write_scope.md"]["content"] == "write_scope by 5"
    scope, four = "/reports/write_scope.md", sorted(f"/reports/{name}.md" for name in TOOLS)
    assert state["findings"][:1] == [{"by": "write_scope", "seen": []}]
    assert sorted(each["by"] for each in state["findings"][1:4]) == ["write_costs", "write_plan", "write_risks"]
    assert [each["seen"] for each in state["findings"][1:4]] == [[scope]] * 3
    assert state["findings"][4:] == [{"by": "write_scope", "seen": four}, {"by": "write_plan", "seen": four}]
    events = stored_events(service.environment["REDIS_URL"], "five")
    ended = [each["data"] for each in events if each["event_type"] == "on_tool_end"]
    assert {tuple(each["path"]) for each in ended if each["name"] in TOOLS} == {(f"Writer {number}",) for number in use}
    warnings = [each["data"] for each in events if each["event_type"] == "warning"]
    assert sorted(each["message"] for each in warnings) == [
        f"Writer {number} declares no state key 'unheard_of': what its tools write to it is dropped" for number in use
    ]


@pytest.mark.parametrize("name", ["greeter", "adder"])
def test_the_contracts_definitions_run_with_scripted_models(service: Service, name: str) -> None:
    document = json.loads((Path(__file__).parent / "contract" / f"{name}.json").read_text())
    ask = {"name": "task", "args": {"subagent_type": "Calculator", "description": "2+3?"}}
    replies = {
        "Lead": [{"tool_calls": [ask]}, {"text": "{last}"}] if name == "adder" else [{"text": "Hello!"}],
        "Calculator": [{"tool_calls": [{"name": "add_numbers", "args": {"a": 2, "b": 3}}]}, {"text": "{last}"}],
    }
    for node in document["nodes"]:
        node["config"]["model"] = {
            "provider": "Scripted",
            "model_name": "x",
            "replies": replies[node["config"]["name"]],
        }
        node["type"] = node["type"].upper()
    done = service.run(document, f"scripted-{name}")
    assert done["result"] == {"output": "5" if name == "adder" else "Hello!", "status": "completed"}
