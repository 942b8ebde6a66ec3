"""What the suite sends: definitions whose models are `scripted`, so that no provider is asked, and CloudEvents."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

SOURCE = "agent-executor-e2e"
EXECUTE, RESUME = "dev.my-platform.agent.execute", "dev.my-platform.agent.resume"
ADD = """
from langchain_core.tools import tool

@tool
def add_numbers(a: int, b: int) -> int:
    \"\"\"Return a + b.\"\"\"
    return a + b
"""
PAY = """
from langchain_core.tools import tool

@tool
def pay(to: str, amount: int) -> str:
    \"\"\"Pay somebody.\"\"\"
    return f"paid {amount} to {to}"
"""
FAIL = """
from langchain_core.tools import tool

@tool
def fail() -> str:
    \"\"\"Fail.\"\"\"
    raise ValueError("no luck")
"""
LOOK = """
import os
from langchain_core.tools import tool

@tool
def look() -> str:
    \"\"\"Tell the environment.\"\"\"
    return repr(dict(os.environ))
"""


def new_id() -> str:
    """An id that no other run has."""
    return f"e2e-{uuid.uuid4()}"


def adder() -> dict[str, Any]:
    """An orchestrator that hands a sum to its specialist, which has a tool; it ends with "The Calculator says: 5"."""
    task = {"name": "task", "args": {"subagent_type": "Calculator", "description": "2+3?"}}
    lead = _node("Lead", "Orchestrator", [{"text": "I will ask.", "tool_calls": [task]}, {"text": _SAYS}])
    sums: list[dict[str, Any]] = [
        {"tool_calls": [{"name": "add_numbers", "args": {"a": 2, "b": 3}}]},
        {"text": "{last}"},
    ]
    calculator = _node("Calculator", "Specialist", sums, ["add_numbers"])
    return {"name": "e2e", "tool_definitions": [_tool("add_numbers", ADD)], "nodes": [lead, calculator]}


def payer() -> dict[str, Any]:
    """Asks before it pays 50 to Ann, and ends with what the tool returned."""
    return _alone(
        "pay", PAY, {"to": "Ann", "amount": 50}, interrupt_on={"pay": {"allowed_decisions": ["approve", "reject"]}}
    )


def failing() -> dict[str, Any]:
    """Calls a tool that raises ValueError("no luck")."""
    return _alone("fail", FAIL, {})


def looking() -> dict[str, Any]:
    """Ends with the environment that its tool saw."""
    return _alone("look", LOOK, {})


def echo(delay_ms: int = 0) -> dict[str, Any]:
    """Ends with what it was asked."""
    return {"name": "e2e", "nodes": [_node("Lead", "Orchestrator", [{"text": "{last}", "delay_ms": delay_ms}])]}


def job(definition: dict[str, Any], job_id: str, text: str = "2+3?") -> dict[str, Any]:
    """The data of an event that asks for a job, which is also a body of POST /v1/jobs."""
    payload = {"messages": [{"role": "user", "content": text}]}
    return {"job_id": job_id, "trace_id": job_id, "agent_definition": definition, "input_payload": payload}


def event(data: dict[str, Any], kind: str = EXECUTE) -> dict[str, Any]:
    """A CloudEvent about it, with an id of its own."""
    return {"specversion": "1.0", "type": kind, "source": SOURCE, "id": new_id(), "data": data}


_SAYS = "The Calculator says: {last}"


def _alone(tool: str, script: str, arguments: dict[str, Any], **config: Any) -> dict[str, Any]:
    """Calls its one tool, and says what that returned."""
    replies: list[dict[str, Any]] = [{"tool_calls": [{"name": tool, "args": arguments}]}, {"text": "{last}"}]
    node = _node("Lead", "Orchestrator", replies, [tool], **config)
    return {"name": "e2e", "tool_definitions": [_tool(tool, script)], "nodes": [node]}


def _tool(name: str, script: str) -> dict[str, Any]:
    return {"name": name, "runtime": {"script": script, "dependencies": ["langchain-core"]}}


def _node(
    name: str, kind: str, replies: Sequence[dict[str, Any]], tools: Sequence[str] = (), **config: Any
) -> dict[str, Any]:
    model = {"provider": "scripted", "model": name, "replies": [*replies]}
    said = {"name": name, "description": f"{name} of a test", "system_prompt": "Do as you are told."}
    return {"id": name, "type": kind, "config": {**said, "model": model, "tools": [*tools], **config}}
