"""definition: what parses, what is refused, and that a refusal names the field and no value."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from agent_executor import definition
from agent_executor.errors import InvalidInput
from tests.definitions import adder, agent, specialist, tool

CANARY = "canary-4711"
# The two definitions of the contract, word for word.
GREETER = r"""
{"name":"greeter","version":"1","tool_definitions":[],
 "nodes":[{"id":"lead","type":"Orchestrator","config":{"name":"Lead","system_prompt":"Reply with one short greeting.","model":{"provider":"openai","model":"gpt-4.1-mini"},"tools":[]}}],
 "edges":[]}
"""  # noqa: E501
ADDER = r"""
{"name":"adder","version":"1",
 "tool_definitions":[{"name":"add_numbers","runtime":{"script":"from langchain_core.tools import tool\n\n@tool\ndef add_numbers(a: int, b: int) -> int:\n    \"\"\"Return a + b.\"\"\"\n    return a + b\n","dependencies":["langchain-core"]}}],
 "nodes":[
  {"id":"lead","type":"Orchestrator","config":{"name":"Lead","system_prompt":"Delegate sums with task(subagent_type='Calculator').","model":{"provider":"openai","model":"gpt-4.1-mini"},"tools":[]}},
  {"id":"calc","type":"Specialist","config":{"name":"Calculator","description":"Adds integers","system_prompt":"Use add_numbers; answer with the number.","model":{"provider":"anthropic","model":"claude-3-5-haiku-latest"},"tools":["add_numbers"]}}],
 "edges":[{"source":"lead","target":"calc","type":"specialists"}]}
"""  # noqa: E501

Change = Callable[[dict[str, Any]], Any]


def complaints(document: Any) -> list[str]:
    """Fields that a refusal names; the refusal repeats no value."""
    with pytest.raises(InvalidInput) as raised:
        definition.parse(document)
    assert CANARY not in str(raised.value)
    assert CANARY not in repr(raised.value.findings)
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return [finding.field for finding in raised.value.findings]


def test_the_greeter_parses() -> None:
    parsed = definition.parse(json.loads(GREETER))
    assert parsed.root.config.name == "Lead"
    assert parsed.root.config.system_prompt == "Reply with one short greeting."
    assert (parsed.root.config.model.provider, parsed.root.config.model.model) == ("openai", "gpt-4.1-mini")
    assert parsed.specialists == ()


def test_the_adder_parses() -> None:
    parsed = definition.parse(json.loads(ADDER))
    [calculator] = parsed.specialists
    [add] = parsed.tool_definitions
    assert calculator.config.name == "Calculator"
    assert calculator.config.description == "Adds integers"
    assert calculator.config.tools == ("add_numbers",)
    assert calculator.config.model.provider == "anthropic"
    assert add.runtime.dependencies == ("langchain-core",)
    assert "return a + b" in add.runtime.script


def test_the_example_is_the_adder_of_the_contract_with_scripted_models() -> None:
    wanted, example = json.loads(ADDER), adder()
    for document in (wanted, example):
        for node in document["nodes"]:
            del node["config"]["model"]
    assert example == wanted


@pytest.mark.parametrize("name", ["edges", "name", "version", "tool_definitions"])
def test_what_definitions_in_the_wild_leave_out_is_optional(name: str) -> None:
    document = json.loads(GREETER)
    del document[name]
    assert definition.parse(document).root.config.name == "Lead"


def test_nodes_need_neither_prompt_nor_description_nor_tools() -> None:
    config = {"name": "Lead", "model": {"provider": "openai", "model": "m"}}
    parsed = definition.parse({"nodes": [{"id": "a", "type": "orchestrator", "config": config}]})
    assert (parsed.root.config.system_prompt, parsed.root.config.tools) == ("", ())


@pytest.mark.parametrize(
    "edges", [[{"source": "lead", "target": "nobody"}], [{"from": "lead", "to": "lead"}], "odd", None]
)
def test_edges_only_inform(edges: Any) -> None:
    assert definition.parse({**json.loads(GREETER), "edges": edges})


@pytest.mark.parametrize("kind", ["orchestrator", "ORCHESTRATOR", " Orchestrator "])
def test_the_root_is_the_orchestrator_however_it_is_written(kind: str) -> None:
    document = agent([{"text": "x"}], specialists=[specialist("Helper", [])])
    document["nodes"][0]["type"] = kind
    assert definition.parse(document).root.id == "Lead"


@pytest.mark.parametrize("kind", ["Specialist", "agent", "whatever"])
def test_every_other_type_is_a_specialist(kind: str) -> None:
    document = agent([{"text": "x"}], specialists=[specialist("Helper", [])])
    document["nodes"][1]["type"] = kind
    assert [node.id for node in definition.parse(document).specialists] == ["Helper"]


def test_names_are_used_as_they_are() -> None:
    document = agent([{"text": "x"}], specialists=[specialist(" My Helper ", [])])
    assert definition.parse(document).specialists[0].config.name == " My Helper "


def test_model_name_is_a_synonym_and_further_keys_are_options() -> None:
    document = json.loads(GREETER)
    document["nodes"][0]["config"]["model"] = {"provider": " OpenAI ", "model_name": "m", "temperature": 0}
    choice = definition.parse(document).root.config.model
    assert (choice.provider, choice.model, choice.options) == ("openai", "m", {"temperature": 0})


def test_unknown_keys_are_ignored() -> None:
    document = json.loads(ADDER)
    for part in (document, *document["nodes"], document["nodes"][0]["config"], document["tool_definitions"][0]):
        part["surplus"] = {"a": [1]}
    assert definition.parse(document) == definition.parse(json.loads(ADDER))


def lead(key: str, value: Any) -> Change:
    return lambda document: document["nodes"][0]["config"].update({key: value})


def test_an_unchanged_copy_is_what_the_refusals_below_start_from() -> None:
    assert definition.parse(copy.deepcopy(DOCUMENT))


DOCUMENT = agent(
    [{"text": "x"}], tools=[tool("one", "1"), tool("two", "2")], specialists=[specialist("Helper", [], ["one"])]
)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda d: d.pop("nodes"), ["nodes"]),
        (lambda d: d.update(nodes=[]), ["nodes"]),
        (lambda d: d.update(nodes=CANARY), ["nodes"]),
        (lambda d: d.update(nodes=[CANARY]), ["nodes[0]"]),
        (lambda d: d.update(tool_definitions=CANARY), ["tool_definitions"]),
        (lambda d: d.update(tool_definitions=[CANARY]), ["tool_definitions[0]"]),
        (lambda d: d.update(name=[CANARY]), ["name"]),
        (lambda d: d["nodes"][1].pop("id"), ["nodes[1].id"]),
        (lambda d: d["nodes"][1].update(id=""), ["nodes[1].id"]),
        (lambda d: d["nodes"][1].pop("type"), ["nodes[1].type"]),
        (lambda d: d["nodes"][1].pop("config"), ["nodes[1].config"]),
        (lambda d: d["nodes"][1].update(id="Lead"), ["nodes[1].id"]),
        (lambda d: d["nodes"][0].update(type=CANARY), ["nodes"]),
        (lambda d: d["nodes"][1].update(type="Orchestrator"), ["nodes"]),
        (lambda d: d["nodes"][1]["config"].update(name="Lead"), ["nodes[1].config.name"]),
        (
            lambda d: d["tool_definitions"][1].update(name="one"),
            ["tool_definitions[1].name", "nodes[0].config.tools[1]"],
        ),
        (lambda d: d["tool_definitions"][0].pop("name"), ["tool_definitions[0].name"]),
        (lambda d: d["tool_definitions"][0].pop("runtime"), ["tool_definitions[0].runtime"]),
        (lambda d: d["tool_definitions"][0].update(runtime={}), ["tool_definitions[0].runtime.script"]),
        (lambda d: d["tool_definitions"][0].update(runtime={"script": ""}), ["tool_definitions[0].runtime.script"]),
        (lead("name", ""), ["nodes[0].config.name"]),
        (lead("name", CANARY + "x" * 256), ["nodes[0].config.name"]),
        (lead("system_prompt", [CANARY]), ["nodes[0].config.system_prompt"]),
        (lead("model", CANARY), ["nodes[0].config.model"]),
        (lead("model", {"model": CANARY}), ["nodes[0].config.model.provider"]),
        (lead("model", {"provider": " ", "model": CANARY}), ["nodes[0].config.model.provider"]),
        (lead("model", {"provider": CANARY}), ["nodes[0].config.model.model"]),
        (lead("tools", CANARY), ["nodes[0].config.tools"]),
        (lead("tools", ["one", CANARY]), ["nodes[0].config.tools[1]"]),
        (lead("interrupt_on", [CANARY]), ["nodes[0].config.interrupt_on"]),
        (lead("interrupt_on", {CANARY: True}), ["nodes[0].config.interrupt_on"]),
        (lead("state_schema", {"notes": {"type": "list"}}), ["nodes[0].config.state_schema"]),
        (lead("state_schema", {"notes": {"type": CANARY}}), ["nodes[0].config.state_schema.notes.type"]),
    ],
)
def test_a_refusal_names_the_field(change: Change, fields: list[str]) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    assert complaints(document) == [f"agent_definition.{field}" for field in fields]


@pytest.mark.parametrize("document", [None, CANARY, [CANARY], 1])
def test_a_definition_is_an_object(document: Any) -> None:
    assert complaints(document) == ["agent_definition"]


def test_everything_wrong_is_named_at_once() -> None:
    document = agent([{"text": "x"}], specialists=[specialist("Lead", [], ["nowhere"])])
    assert complaints(document) == [
        "agent_definition.nodes[1].id",
        "agent_definition.nodes[1].config.name",
        "agent_definition.nodes[1].config.tools[0]",
    ]


def test_paths_start_where_the_definition_was_found() -> None:
    with pytest.raises(InvalidInput, match=r"^invalid agent definition: data\.agent_definition\.nodes: "):
        definition.parse({}, "data.agent_definition")
