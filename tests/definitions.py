"""Agent definitions and events for tests. Their models are `scripted`: what a model says stands in the definition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_executor.job import EXECUTE, RESUME

EXAMPLES = Path(__file__).parents[1] / "examples"
INPUT: dict[str, Any] = {"messages": [{"role": "user", "content": "2+3?"}]}

Replies = Sequence[dict[str, Any]]


def agent(
    replies: Replies, *, tools: Sequence[dict[str, Any]] = (), specialists: Sequence[dict[str, Any]] = (), **config: Any
) -> dict[str, Any]:
    """A definition whose root says `replies`, has every one of `tools`, and further keys in its config."""
    root = _node("Lead", "Orchestrator", replies, [each["name"] for each in tools], config)
    return {"name": "test", "tool_definitions": [*tools], "nodes": [root, *specialists]}


def specialist(name: str, replies: Replies, tools: Sequence[str] = (), **config: Any) -> dict[str, Any]:
    """A subagent of that name, with these tools."""
    return _node(name, "Specialist", replies, tools, config)


def tool(name: str, source: str) -> dict[str, Any]:
    """A tool made by `source`."""
    return {"name": name, "runtime": {"script": source}}


def adder() -> dict[str, Any]:
    """The two agents of examples/adder.json; it answers "The Calculator says: 5"."""
    definition: dict[str, Any] = json.loads((EXAMPLES / "adder.json").read_text())["agent_definition"]
    return definition


def event(definition: dict[str, Any], *, job_id: str = "job-1", **attributes: Any) -> dict[str, Any]:
    """The CloudEvent that asks for `definition` to be run, its id made from `job_id`; `attributes` are set in it."""
    data = {"trace_id": "trace-1", "job_id": job_id, "agent_definition": definition, "input_payload": INPUT}
    required = {"specversion": "1.0", "type": EXECUTE, "source": "tests", "id": f"event-{job_id}"}
    return {**required, "data": data, **attributes}


def answer(job_id: str, value: Any, *, event_id: str = "answer-1", interrupt_id: str | None = None) -> dict[str, Any]:
    """The CloudEvent that answers an interrupted job."""
    data = {"job_id": job_id, "value": value} | ({} if interrupt_id is None else {"interrupt_id": interrupt_id})
    return {"specversion": "1.0", "type": RESUME, "source": "tests", "id": event_id, "data": data}


def _node(name: str, kind: str, replies: Replies, tools: Sequence[str], more: dict[str, Any]) -> dict[str, Any]:
    model = {"provider": "scripted", "model": name, "replies": [*replies]}
    config = {"name": name, "description": f"{name} of a test", "model": model, "tools": [*tools], **more}
    return {"id": name, "type": kind, "config": config}


DATA: dict[str, Any] = event(agent([{"text": "hello"}]))["data"]
"""The `data` of a valid event, which is also a valid body of `POST /v1/jobs`. Copy it before you change it."""
