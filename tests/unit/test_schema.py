"""The published JSON Schema: it refuses nothing that the service takes, and what it can see of what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from agent_executor import validation
from agent_executor.definition import schema
from tests.unit.test_definition import ADDER, GREETER
from tests.unit.test_validation import FULL, places

VALIDATOR = Draft202012Validator(schema())
GRAPH = {
    "graph": "mine",
    "config": {"configurable": {"unit": "words"}, "recursion_limit": 5, "tags": ["a"], "metadata": {"b": 1}},
    "limits": {"steps": 5},
}
ODD: list[Any] = [None, True, 5, 1.5, "", "x", "5", [], [5], [None], {}, {"a": 1}]

Change = Callable[[dict[str, Any]], Any]


def model(**choice: Any) -> Change:
    return lambda document: document["nodes"][0]["config"].update(model=choice)


def taken(document: Any) -> bool:
    """Whether a submission would take it."""
    return validation.check(document, "", {"mine"}).errors == []


@pytest.mark.parametrize("document", [json.loads(GREETER), json.loads(ADDER), FULL, GRAPH, {"graph": "mine"}])
def test_what_is_valid(document: Any) -> None:
    assert taken(document)
    VALIDATOR.validate(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("edges"),
        lambda d: d.pop("name"),
        lambda d: d.pop("version"),
        lambda d: d.update(version=2),
        lambda d: (d.pop("tool_definitions"), d["nodes"][1]["config"].update(tools=[])),
        lambda d: d.update(edges=[{"from": "lead", "to": "nobody"}, 5]),
        lambda d: d.update(edges="odd"),
        lambda d: d["nodes"][0].update(type=" ORCHESTRATOR "),
        lambda d: d["nodes"][1].update(type="whatever"),
        lambda d: d["nodes"][1]["config"].update(name="My Helper "),
        lambda d: d["nodes"][1]["config"].pop("description"),
        lambda d: d["nodes"][1]["config"].pop("system_prompt"),
        lambda d: d["nodes"][0]["config"].pop("tools"),
        lambda d: d["nodes"][1]["config"].update(state_schema={"notes": {"type": "list", "reducer": "add_messages"}}),
        lambda d: d["nodes"][1]["config"].update(state_schema={"notes": {}}),
        lambda d: d["tool_definitions"][0]["runtime"].pop("dependencies"),
        lambda d: d.update(surplus={"a": [1]}),
        lambda d: d["nodes"][0]["config"].update(surplus=1),
        lambda d: d.update(graph={"layout": "tree"}),
        lambda d: d.update(graph="mine"),
        lambda d: d.update(limits={"steps": 1, "timeout_s": 0.5}),
        model(provider="openai", model_name="m"),
        model(provider="openai", model="m", model_name="m"),
        model(provider=" " * 70 + "OpenAI", model="m", temperature=0),
    ],
)
def test_what_definitions_in_the_wild_hold(change: Change) -> None:
    document = json.loads(ADDER)
    change(document)
    assert taken(document)
    VALIDATOR.validate(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("nodes"),
        lambda d: d.update(nodes=[]),
        lambda d: d.update(nodes=5),
        lambda d: d.update(nodes=[d["nodes"][0]] * 201),
        lambda d: d["nodes"][0].pop("id"),
        lambda d: d["nodes"][0]["config"].update(tools=["x"] * 101),
        lambda d: d["tool_definitions"][0]["runtime"].update(script=""),
        lambda d: d["nodes"][1]["config"].update(state_schema={"notes": {"type": "set"}}),
        lambda d: d.update(limits={"steps": "5"}),
        model(provider="openai"),
        model(model="m"),
        model(provider="openai", model=""),
        lambda d: (d.clear(), d.update(graph=5)),
        lambda d: (d.clear(), d.update(graph="mine", config={"recursion_limit": "5"})),
        lambda d: (d.clear(), d.update(graph="mine", config={"recursion_limit": True})),
        lambda d: (d.clear(), d.update(graph="mine", config={"callbacks": []})),
        lambda d: d.clear(),
    ],
)
def test_what_both_refuse(change: Change) -> None:
    document = json.loads(ADDER)
    change(document)
    assert not taken(document)
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("whole", [FULL, GRAPH], ids=["definition", "graph"])
def test_the_schema_refuses_nothing_that_is_taken(whole: dict[str, Any], odd: Any) -> None:
    for path in places(whole):
        document = copy.deepcopy(whole)
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = odd
        assert VALIDATOR.is_valid(document) or not taken(document), path
