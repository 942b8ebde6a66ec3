"""validation: random definitions. Valid ones build, invalid ones are named, and none crashes."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_executor import graph, validation
from agent_executor.definition import Definition
from agent_executor.sandbox.nursery import Nursery
from agent_executor.sandbox.options import Options
from agent_executor.sandbox.pool import Sandbox
from tests.definitions import agent, specialist, tool

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
REPLIES = [{"text": "x"}]
FULL = agent(REPLIES, tools=[tool("one", "1")], specialists=[specialist("Helper", REPLIES, ["one"])])
"""Has every key that a definition may have."""
FULL["tool_definitions"][0]["runtime"]["dependencies"] = ["langchain-core"]
FULL["nodes"][1]["config"] |= {
    "state_schema": {"notes": {"type": "list", "item_type": "str", "reducer": "append"}},
    "system_prompt": "x",
    "interrupt_on": [],
}
FULL |= {"version": "1", "limits": {"steps": 5, "timeout_s": 1.5}, "edges": [{"source": "Lead", "target": "Helper"}]}


def interrupt_ons(tools: list[str]) -> st.SearchStrategy[Any]:
    decisions = st.lists(st.sampled_from(["approve", "edit", "reject", "respond"]), min_size=1)
    config = st.fixed_dictionaries({"allowed_decisions": decisions}, optional={"description": st.text(max_size=5)})
    names = st.sampled_from(tools)
    return st.none() | st.lists(names) | st.dictionaries(names, st.booleans() | config)


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """Definitions with names of all kinds, which are valid."""
    names = draw(st.lists(NAMES.filter(lambda name: name != "Lead"), unique=True, max_size=4))
    tools = draw(st.lists(st.sampled_from(["one", "two", "three"]), unique=True, max_size=3))
    source = "from langchain_core.tools import tool\n@tool\ndef {0}() -> str:\n    'T.'\n    return 'x'\n"
    helpers = [
        specialist(name, REPLIES, draw(st.lists(st.sampled_from(tools), unique=True)) if tools else ())
        for name in names
    ]
    document = agent(REPLIES, tools=[tool(name, source.format(name)) for name in tools], specialists=helpers)
    document["nodes"] = draw(st.permutations(document["nodes"]))
    document["nodes"][0]["type"] = (
        draw(st.sampled_from(["Orchestrator", "orchestrator", " ORCHESTRATOR "]))
        if (document["nodes"][0]["id"] == "Lead")
        else document["nodes"][0]["type"]
    )
    for node in document["nodes"]:
        if draw(st.booleans()):
            node["config"]["interrupt_on"] = draw(interrupt_ons([*tools, "task", "ls"]))
    if draw(st.booleans()):
        document["edges"] = draw(ANYTHING)
    return document


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A valid definition in which one value somewhere is replaced by anything, or is gone."""
    document = copy.deepcopy(draw(definitions()))
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return document
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if draw(st.booleans()):
            place[key] = draw(ANYTHING)
        else:
            del place[key]
        return document


async def _built(definition: Definition, nursery: Nursery) -> Any:
    sandbox = Sandbox(Options(mode="best-effort"), nursery)
    async with sandbox.box(definition.tool_definitions) as box:
        return await graph.Builder(_no_credentials).build(definition, box.tools)


async def _no_credentials(provider: str) -> Mapping[str, str]:
    return {}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(definitions())
def test_a_valid_definition_builds(nursery: Nursery, document: dict[str, Any]) -> None:
    assert validation.check(document).errors == []
    assert asyncio.run(_built(validation.parse(document), nursery))


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damaged() | ANYTHING)
def test_nothing_crashes_the_validation_and_what_passes_is_a_definition(document: Any) -> None:
    report = validation.check(document, "")
    assert (report.definition is None) == bool(report.errors)
    if isinstance(report.definition, Definition):
        assert report.definition.root.is_root
    assert all(finding.message for finding in (*report.errors, *report.warnings))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("odd", [None, True, 5, 1.5, "x", [], [5], [None], [[]], {}, {"a": 1}], ids=repr)
def test_no_value_crashes_the_validation_wherever_it_stands(odd: Any) -> None:
    for path in [*places(FULL), ("graph",)]:
        document = copy.deepcopy(FULL)
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = odd
        report = validation.check(document, "")
        assert (report.definition is None) == bool(report.errors), path


@pytest.mark.parametrize("name", ["langchain-core", "Langchain_Core", "langchain.core", "langchain-core>=1,<9", "json"])
def test_a_dependency_that_is_installed(name: str) -> None:
    document = agent([{"text": "x"}], tools=[tool("one", "1")])
    document["tool_definitions"][0]["runtime"]["dependencies"] = [name]
    assert validation.parse(document).tool_definitions[0].runtime.dependencies == (name,)


@pytest.mark.parametrize("name", ["no-such-distribution", "langchain-core2", "", ">=2", "../x"])
def test_a_dependency_that_is_not_installed_is_a_finding(name: str) -> None:
    document = agent([{"text": "x"}], tools=[tool("one", "1"), tool("two", "1")])
    document["tool_definitions"][1]["runtime"]["dependencies"] = ["langchain-core", name]
    found = validation.check(document).errors
    field = "agent_definition.tool_definitions[1].runtime.dependencies[1]"
    assert [str(each) for each in found] == [f"{field}: is not installed here"]
