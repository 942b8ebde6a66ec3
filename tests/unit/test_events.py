"""events: what a run tells the world, as real JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.errors import GraphInterrupt
from langgraph.types import Command, Interrupt
from pydantic import BaseModel

from agent_executor import redaction, strict_json
from agent_executor.events import RunEvents, error_object, message_object, to_json


@dataclasses.dataclass
class Point:
    x: Any


class Model(BaseModel):
    x: Any


class Colour(Enum):
    RED = "red"


class Opaque:
    """What has no JSON form; its repr would give its address away."""


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, 2.5, None, True]}, {"a": [1, 2.5, None, True]}),
        ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
        ((1, 2), [1, 2]),
        ({7}, [7]),
        (Point({"a": 1}), {"x": {"a": 1}}),
        (Model(x=[Point(1)]), {"x": [{"x": 1}]}),
        (Pair(1, 2), [1, 2]),
        (Colour.RED, "red"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (b"\xff", "/w=="),
        (float("nan"), None),
        (2**64, str(2**64)),
        ("a\0\ud800", "a\ufffd\ufffd"),
        (Opaque(), {"type": "tests.unit.test_events.Opaque"}),
        (Opaque, {"type": "builtins.type"}),
    ],
)
def test_whatever_a_state_holds_becomes_json(value: Any, shown: Any) -> None:
    assert to_json(value) == shown
    assert to_json({"in": [value]}) == {"in": [shown]}


@pytest.mark.parametrize(
    "wrap", [Point, lambda x: Model(x=x), lambda x: {x}, lambda x: Pair(x, x), lambda x: {"a": (x,)}]
)
@pytest.mark.parametrize("odd", [2**70, "\ud800", Decimal("1.5"), Colour.RED])
def test_no_value_in_a_container_stops_a_run(wrap: Any, odd: Any) -> None:
    text = json.dumps(to_json(wrap(odd)))
    assert "<" not in text


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (HumanMessage("2+3?", id="m1"), {"role": "user", "content": "2+3?", "id": "m1"}),
        (AIMessage("5", name="Lead"), {"role": "assistant", "content": "5", "name": "Lead"}),
        (SystemMessage("Be kind."), {"role": "system", "content": "Be kind."}),
        (HumanMessage(""), {"role": "user", "content": ""}),
        (HumanMessage([{"type": "text", "text": "x"}]), {"role": "user", "content": [{"type": "text", "text": "x"}]}),
        (
            ToolMessage("5", tool_call_id="c", name="add"),
            {"role": "tool", "content": "5", "tool_call_id": "c", "name": "add", "status": "success"},
        ),
        (
            AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "c"}]),
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"name": "add", "args": {"a": 1}, "id": "c", "type": "tool_call"}],
            },
        ),
    ],
)
def test_messages_are_message_objects(message: BaseMessage, shown: dict[str, Any]) -> None:
    assert message_object(message) == shown
    assert to_json({"messages": [message]}) == {"messages": [shown]}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no luck"), "no luck"),
        (ValueError(""), "ValueError without a message"),
        (ValueError(" \n"), "ValueError without a message"),
    ],
)
def test_an_errors_message_is_never_blank(error: Exception, message: str) -> None:
    assert error_object(error) == {"message": message, "type": "ValueError"}


class Heard:
    """Where events go."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.run = RunEvents(self.emit)

    def emit(self, event_type: str, data: Any) -> None:
        self.events.append((event_type, json.loads(strict_json.dumps(data))))


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_the_roots_state_is_an_event_and_a_subagents_is_none(heard: Heard) -> None:
    heard.run.on_item((), "values", {"messages": [HumanMessage("x")], "files": {}})
    heard.run.on_item(("tools:1",), "values", {"messages": []})
    assert heard.events == [("on_state_update", {"messages": [{"role": "user", "content": "x"}], "files": {}})]


def test_a_secret_in_a_state_or_a_token_is_not_sent(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_known", "_forms"):
        monkeypatch.setattr(redaction, name, type(getattr(redaction, name))())
    redaction.remember('a "long" secret, 4711')
    heard.run.on_item((), "values", {"note": 'ä: a "long" secret, 4711!'})
    heard.run.on_item((), "messages", (AIMessageChunk(content='a "long" secret, 4711', id="m"), {}))
    assert heard.events[0] == ("on_state_update", {"note": "ä: [redacted]!"})
    assert heard.events[1][1]["content"] == "[redacted]"


async def test_what_is_asked_is_no_state_and_no_tools_end(heard: Heard) -> None:
    heard.run.on_item((), "values", {"files": {}, "__interrupt__": (Interrupt(1),)})
    heard.run.on_item((), "values", {"__interrupt__": (Interrupt(1),)})
    run_id = uuid4()
    await heard.run.on_tool_start({"name": "ask"}, "", run_id=run_id)
    await heard.run.on_tool_error(GraphInterrupt((Interrupt(1),)), run_id=run_id)
    assert [kind for kind, _ in heard.events] == ["on_tool_start"]


def test_tokens(heard: Heard) -> None:
    metadata = {"langgraph_node": "model", "langgraph_checkpoint_ns": "model:1"}
    heard.run.on_item((), "messages", (AIMessageChunk(content="Hel", id="m"), metadata))
    assert heard.events == [
        ("on_llm_stream", {"message_id": "m", "node": "model", "path": [], "content": "Hel"}),
    ]


def test_chunks_of_tool_calls_are_tokens_too(heard: Heard) -> None:
    chunks: Any = [{"name": "add", "args": "", "id": "c", "index": 0}]
    heard.run.on_item((), "messages", (AIMessageChunk(content="", tool_call_chunks=chunks), {}))
    [(event_type, data)] = heard.events
    assert event_type == "on_llm_stream"
    assert data["tool_call_chunks"][0]["name"] == "add"


@pytest.mark.parametrize(
    "message", [AIMessageChunk(content=""), AIMessage("whole"), ToolMessage("5", tool_call_id="c")]
)
def test_what_is_no_token_is_no_event(heard: Heard, message: BaseMessage) -> None:
    heard.run.on_item((), "messages", (message, {}))
    assert heard.events == []


@pytest.mark.parametrize("payload", ["x", None, {}, {"event_type": "end", "data": {}}, {"event_type": "error"}])
def test_a_graph_can_send_warnings_and_nothing_else(heard: Heard, payload: Any) -> None:
    heard.run.on_item((), "custom", payload)
    assert heard.events == []
    heard.run.on_item((), "custom", {"event_type": "warning", "data": {"message": "m"}})
    assert heard.events == [("warning", {"message": "m"})]


def test_a_state_that_cannot_be_shown_costs_its_event_and_not_the_run(heard: Heard) -> None:
    endless: list[Any] = []
    endless.append(endless)
    heard.run.on_item((), "values", {"messages": endless})
    [(event_type, data)] = heard.events
    assert (event_type, data["about"]) == ("warning", "on_state_update")
    assert "RecursionError" in data["message"]


async def begin(heard: Heard, name: str = "add", ns: str = "tools:1", **inputs: Any) -> UUID:
    run_id = uuid4()
    metadata = {"langgraph_checkpoint_ns": ns}
    await heard.run.on_tool_start({"name": name}, "", run_id=run_id, metadata=metadata, inputs=inputs, tool_call_id="c")
    return run_id


async def test_a_tools_start_and_end(heard: Heard) -> None:
    run_id = await begin(heard, a=1, runtime=Opaque(), state={"big": 1})
    await heard.run.on_tool_end(ToolMessage("5", tool_call_id="c"), run_id=run_id)
    call = {"name": "add", "call_id": "c", "path": []}
    assert heard.events == [
        ("on_tool_start", {**call, "arguments": {"a": 1}}),
        ("on_tool_end", {**call, "result": "5"}),
    ]


@pytest.mark.parametrize(
    ("output", "result"),
    [
        (5, 5),
        (None, None),
        (Command(update={"messages": [HumanMessage("x"), ToolMessage("done", tool_call_id="c")]}), "done"),
        (Command(update={"todos": []}), None),
    ],
)
async def test_a_tools_result(heard: Heard, output: Any, result: Any) -> None:
    await heard.run.on_tool_end(output, run_id=await begin(heard))
    assert heard.events[-1][1]["result"] == result


async def test_an_error_handed_to_the_model_is_the_tools_error(heard: Heard) -> None:
    message = ToolMessage("no such file", tool_call_id="c", status="error")
    await heard.run.on_tool_end(message, run_id=await begin(heard))
    assert heard.events[-1][1]["error"] == {"message": "no such file", "type": "ToolError"}


async def test_an_error_that_ends_the_run_is_the_tools_error(heard: Heard) -> None:
    await heard.run.on_tool_error(ValueError("no luck"), run_id=await begin(heard))
    assert heard.events[-1] == (
        "on_tool_end",
        {"name": "add", "call_id": "c", "path": [], "error": {"message": "no luck", "type": "ValueError"}},
    )


async def test_the_path_names_the_subagents_around_a_token(heard: Heard) -> None:
    await begin(heard, "task", ns="tools:1", subagent_type="Outer", description="x")
    await begin(heard, "task", ns="tools:1|tools:2", subagent_type="Inner", description="x")
    for namespace in ("model:0", "tools:1|model:1", "tools:1|tools:2|model:2"):
        metadata = {"langgraph_checkpoint_ns": namespace}
        heard.run.on_item((), "messages", (AIMessageChunk(content="x"), metadata))
    assert [data["path"] for kind, data in heard.events if kind == "on_llm_stream"] == [
        [],
        ["Outer"],
        ["Outer", "Inner"],
    ]
