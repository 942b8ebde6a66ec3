"""definition and validation: what parses, what is refused or odd, and that no finding repeats a value."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from agent_executor import validation
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
        validation.parse(document)
    assert CANARY not in str(raised.value)
    assert CANARY not in repr(raised.value.findings)
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return [finding.field for finding in raised.value.findings]


def test_the_greeter_parses() -> None:
    parsed = validation.parse(json.loads(GREETER))
    assert parsed.root.config.name == "Lead"
    assert parsed.root.config.system_prompt == "Reply with one short greeting."
    assert (parsed.root.config.model.provider, parsed.root.config.model.model) == ("openai", "gpt-4.1-mini")
    assert parsed.specialists == ()


def test_the_adder_parses() -> None:
    parsed = validation.parse(json.loads(ADDER))
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
    assert validation.parse(document).root.config.name == "Lead"


def test_nodes_need_neither_prompt_nor_description_nor_tools() -> None:
    config = {"name": "Lead", "model": {"provider": "openai", "model": "m"}}
    parsed = validation.parse({"nodes": [{"id": "a", "type": "orchestrator", "config": config}]})
    assert (parsed.root.config.system_prompt, parsed.root.config.tools) == ("", ())


@pytest.mark.parametrize(
    "edges", [[{"source": "lead", "target": "nobody"}], [{"from": "lead", "to": "lead"}], "odd", None]
)
def test_edges_only_inform(edges: Any) -> None:
    assert validation.parse({**json.loads(GREETER), "edges": edges})


@pytest.mark.parametrize("kind", ["orchestrator", "ORCHESTRATOR", " Orchestrator "])
def test_the_root_is_the_orchestrator_however_it_is_written(kind: str) -> None:
    document = agent([{"text": "x"}], specialists=[specialist("Helper", [{"text": "x"}])])
    document["nodes"][0]["type"] = kind
    assert validation.parse(document).root.id == "Lead"


@pytest.mark.parametrize("kind", ["Specialist", "agent", "whatever"])
def test_every_other_type_is_a_specialist(kind: str) -> None:
    document = agent([{"text": "x"}], specialists=[specialist("Helper", [{"text": "x"}])])
    document["nodes"][1]["type"] = kind
    assert [node.id for node in validation.parse(document).specialists] == ["Helper"]


def test_names_are_used_as_they_are() -> None:
    document = agent([{"text": "x"}], specialists=[specialist(" My Helper ", [{"text": "x"}])])
    assert validation.parse(document).specialists[0].config.name == " My Helper "


def test_model_name_is_a_synonym_and_further_keys_are_options() -> None:
    document = json.loads(GREETER)
    document["nodes"][0]["config"]["model"] = {"provider": " OpenAI ", "model_name": "m", "temperature": 0}
    choice = validation.parse(document).root.config.model
    assert (choice.provider, choice.model, choice.options) == ("openai", "m", {"temperature": 0})


def test_the_same_name_under_both_keys_is_one() -> None:
    document = json.loads(GREETER)
    document["nodes"][0]["config"]["model"]["model_name"] = "gpt-4.1-mini"
    choice = validation.parse(document).root.config.model
    assert (choice.model, choice.options) == ("gpt-4.1-mini", {})


def test_unknown_keys_are_ignored() -> None:
    document = json.loads(ADDER)
    for part in (document, *document["nodes"], document["nodes"][0]["config"], document["tool_definitions"][0]):
        part["surplus"] = {"a": [1]}
    assert validation.parse(document) == validation.parse(json.loads(ADDER))


def lead(key: str, value: Any) -> Change:
    return lambda document: document["nodes"][0]["config"].update({key: value})


def test_an_unchanged_copy_is_what_the_refusals_below_start_from() -> None:
    assert validation.parse(copy.deepcopy(DOCUMENT))


DOCUMENT = agent(
    [{"text": "x"}],
    tools=[tool("one", "1"), tool("two", "2")],
    specialists=[specialist("Helper", [{"text": "x"}], ["one"])],
)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda d: d.pop("nodes"), ["nodes"]),
        (lambda d: d.update(nodes=[]), ["nodes"]),
        (lambda d: d.update(nodes=CANARY), ["nodes"]),
        (lambda d: d.update(nodes=4711), ["nodes"]),
        (lambda d: d.update(nodes=[CANARY]), ["nodes[0]"]),
        (lambda d: d.update(tool_definitions=CANARY), ["tool_definitions"]),
        (lambda d: d.update(tool_definitions=None), ["tool_definitions"]),
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
        (
            lambda d: d["tool_definitions"][0].pop("name"),
            ["tool_definitions[0].name", "nodes[0].config.tools[0]", "nodes[1].config.tools[0]"],
        ),
        (
            lambda d: (
                d["tool_definitions"].append(tool("write_file", "1")),
                d["tool_definitions"].append(tool("task", "1")),
            ),
            ["tool_definitions[2].name", "tool_definitions[3].name"],
        ),
        (lambda d: d["tool_definitions"][0].pop("runtime"), ["tool_definitions[0].runtime"]),
        (lambda d: d["tool_definitions"][0].update(runtime={}), ["tool_definitions[0].runtime.script"]),
        (lambda d: d["tool_definitions"][0].update(runtime={"script": ""}), ["tool_definitions[0].runtime.script"]),
        (lead("name", ""), ["nodes[0].config.name"]),
        (lead("name", CANARY + "x" * 256), ["nodes[0].config.name"]),
        (lead("system_prompt", [CANARY]), ["nodes[0].config.system_prompt"]),
        (lead("model", CANARY), ["nodes[0].config.model"]),
        (lead("model", {"model": CANARY}), ["nodes[0].config.model.provider"]),
        (lead("model", {"provider": "openai", "model": None, "model_name": CANARY}), ["nodes[0].config.model.model"]),
        (lead("model", {"provider": " ", "model": CANARY}), ["nodes[0].config.model.provider"]),
        (
            lead("model", {"provider": CANARY}),
            ["nodes[0].config.model.model", "nodes[0].config.model.provider"],
        ),
        (
            lead("model", {"provider": "openai", "model": "a", "model_name": CANARY}),
            ["nodes[0].config.model.model_name"],
        ),
        (
            lead(
                "model",
                {"provider": "OpenAI", "model": "a", "temperature": 0, "temprature": CANARY, "base_url": CANARY},
            ),
            ["nodes[0].config.model.temprature", "nodes[0].config.model.base_url"],
        ),
        (lead("model", {"provider": "scripted", "model": "a"}), ["nodes[0].config.model.replies"]),
        (lead("model", {"provider": "scripted", "model": "a", "replies": []}), ["nodes[0].config.model.replies"]),
        (
            lead("model", {"provider": "scripted", "model": "a", "replies": [{}, {"text": [CANARY]}], "name": CANARY}),
            ["nodes[0].config.model.name", "nodes[0].config.model.replies[1].text"],
        ),
        (
            lead("model", {"provider": "scripted", "model": "a", "replies": [{"txt": CANARY, "txu": 1}]}),
            ["nodes[0].config.model.replies[0].txt", "nodes[0].config.model.replies[0].txu"],
        ),
        (
            lead("model", {"provider": "scripted", "model": "a", "replies": [{}, {f"k{n}": CANARY for n in range(9)}]}),
            ["nodes[0].config.model.replies[1]"],
        ),
        (
            lead(
                "model",
                {"provider": "scripted", "model": "a", "replies": [{"tool_calls": [{"name": "a", "b": 1, "c": 2}]}]},
            ),
            ["nodes[0].config.model.replies[0].tool_calls[0]"],
        ),
        (
            lead("model", {"provider": "scripted", "model": "a", "replies": [{"tool_calls": [{"args": {}}] * 9}] * 9}),
            ["nodes[0].config.model.replies[0].tool_calls[0].name"],
        ),
        (lead("tools", CANARY), ["nodes[0].config.tools"]),
        (lead("tools", ["one", CANARY]), ["nodes[0].config.tools[1]"]),
        (lead("interrupt_on", CANARY), ["nodes[0].config.interrupt_on"]),
        (lead("interrupt_on", [[CANARY]]), ["nodes[0].config.interrupt_on"]),
        (lead("interrupt_on", ["one", CANARY]), ["nodes[0].config.interrupt_on[1]"]),
        (lead("interrupt_on", {"nothing": True}), ["nodes[0].config.interrupt_on.nothing"]),
        (lead("interrupt_on", {"nothing": False}), ["nodes[0].config.interrupt_on.nothing"]),
        (lead("interrupt_on", {"one": None}), ["nodes[0].config.interrupt_on"]),
        (lead("interrupt_on", {"one": CANARY}), ["nodes[0].config.interrupt_on.one"]),
        (lead("interrupt_on", {"one": {}}), ["nodes[0].config.interrupt_on.one.allowed_decisions"]),
        (
            lead("interrupt_on", {"one": {"allowed_decisions": []}}),
            ["nodes[0].config.interrupt_on.one.allowed_decisions"],
        ),
        (
            lead("interrupt_on", {"one": {"allowed_decisions": ["approve", CANARY], "description": [CANARY]}}),
            [
                "nodes[0].config.interrupt_on.one.allowed_decisions[1]",
                "nodes[0].config.interrupt_on.one.description",
            ],
        ),
        (lead("state_schema", {"notes": {"reducer": CANARY}}), ["nodes[0].config.state_schema.notes.reducer"]),
        (
            lead("state_schema", {"notes": {"type": "str", "reducer": "append"}}),
            ["nodes[0].config.state_schema.notes.reducer"],
        ),
        (lead("state_schema", {"two words": {}}), ["nodes[0].config.state_schema.two words"]),
        (lead("state_schema", {"tools": {}}), ["nodes[0].config.state_schema.tools"]),
        (lambda d: d.update(limits={"steps": 0}), ["limits.steps"]),
        (lambda d: d.update(limits={"tokens": "9", "timeout_s": -1}), ["limits.tokens", "limits.timeout_s"]),
        (
            lead("state_schema", {"notes": {"type": CANARY}}),
            ["nodes[0].config.state_schema.notes.type"],
        ),
        (lambda d: d["nodes"].extend([d["nodes"][1]] * 199), ["nodes"]),
        (lambda d: d.update(nodes=[CANARY] * 201), ["nodes"]),
        (lambda d: d.update(tool_definitions=[tool(f"t{n}", "1") for n in range(101)]), ["tool_definitions"]),
        (lambda d: d.update(tool_definitions=[CANARY] * 101), ["tool_definitions"]),
        (
            lambda d: d["tool_definitions"][1]["runtime"].update(dependencies=[CANARY] * 101),
            ["tool_definitions[1].runtime.dependencies"],
        ),
        (lead("tools", [CANARY] * 101), ["nodes[0].config.tools"]),
        (lead("state_schema", {f"f{n}": CANARY for n in range(101)}), ["nodes[0].config.state_schema"]),
        (lambda d: (d["nodes"].append(CANARY), d["nodes"][1].update(type="Orchestrator")), ["nodes[2]", "nodes"]),
        (lambda d: (d["nodes"].append(CANARY), d["nodes"][0].update(type="x")), ["nodes[2]"]),
        (
            lambda d: d["tool_definitions"][0]["runtime"].update(script="ä" * (128 * 1024 + 1)),
            ["tool_definitions[0].runtime.script"],
        ),
    ],
)
def test_a_refusal_names_the_field(change: Change, fields: list[str]) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    found = complaints(document)
    assert found == [f"agent_definition.{field}" for field in fields]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda d: d.update(nodes=5), "nodes: must be a list"),
        (lambda d: d.update(nodes=[]), "nodes: exactly one node must be of type orchestrator, found 0"),
        (lambda d: d.update(nodes=[5] * 201), "nodes: must have at most 200 items, has 201"),
        (lambda d: d["nodes"].append(5), "nodes[2]: must be an object"),
        (lead("state_schema", []), "nodes[0].config.state_schema: must be an object"),
        (lead("tools", "x"), "nodes[0].config.tools: must be a list"),
        (lead("name", ""), "nodes[0].config.name: String should have at least 1 character"),
        (
            lambda d: d["tool_definitions"][0]["runtime"].update(script="x" * 300_000),
            "tool_definitions[0].runtime.script: must be at most 262144 bytes",
        ),
    ],
)
def test_a_finding_speaks_of_json(change: Change, finding: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    assert finding in [str(each) for each in validation.check(document, "").errors]


def test_of_many_findings_the_first_are_listed() -> None:
    document = {**DOCUMENT, "nodes": [{}] * 200, **{f"surplus{number}": 1 for number in range(300)}}
    report = validation.check(document)
    assert len(report.errors) == len(report.warnings) == 101
    assert str(report.errors[-1]) == "agent_definition: and 500 more"
    assert str(report.warnings[-1]) == "agent_definition: and 400 more"
    with pytest.raises(InvalidInput) as raised:
        validation.read(document)
    assert len(raised.value.findings) == 101
    assert len(str(raised.value)) < 1000
    assert str(raised.value).endswith("; and more")


def test_paths_are_short_however_long_keys_are() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["nodes"][0]["config"]["state_schema"] = {"k" * 100_000: {"type": "q"}}
    document["s" * 100_000] = 1
    report = validation.check(document, "")
    assert all(len(finding.field) < 100 for finding in (*report.errors, *report.warnings))


@pytest.mark.parametrize("document", [None, CANARY, [CANARY], 1])
def test_a_definition_is_an_object(document: Any) -> None:
    assert complaints(document) == ["agent_definition"]


def test_everything_wrong_is_named_at_once() -> None:
    document = agent([{"text": "x"}], specialists=[specialist("Lead", [{"text": "x"}], ["nowhere"])])
    assert complaints(document) == [
        "agent_definition.nodes[1].id",
        "agent_definition.nodes[1].config.name",
        "agent_definition.nodes[1].config.tools[0]",
    ]


def test_paths_start_where_the_definition_was_found() -> None:
    with pytest.raises(InvalidInput, match=r"^invalid agent definition: data\.agent_definition\.nodes: "):
        validation.parse({}, "data.agent_definition")


def warned(document: Any) -> list[str]:
    report = validation.check(document, "")
    assert report.errors == []
    assert CANARY not in "".join(finding.message for finding in report.warnings)
    return [finding.field for finding in report.warnings]


def test_the_definitions_of_the_contract_are_not_odd() -> None:
    assert warned(json.loads(GREETER)) == warned(json.loads(ADDER)) == []


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda d: d.update(surplus=CANARY), ["surplus"]),
        (lambda d: d["nodes"][1].update(surplus=1), ["nodes[1].surplus"]),
        (lambda d: d["nodes"][1]["config"].update(surplus=1), ["nodes[1].config.surplus"]),
        (lambda d: d["tool_definitions"][0].update(surplus=1), ["tool_definitions[0].surplus"]),
        (lambda d: d["tool_definitions"][0]["runtime"].update(surplus=1), ["tool_definitions[0].runtime.surplus"]),
        (lambda d: d["nodes"][0]["config"].update(system_prompt=" "), ["nodes[0].config.system_prompt"]),
        (lambda d: d["nodes"][0]["config"].pop("system_prompt"), ["nodes[0].config.system_prompt"]),
        (lambda d: d.update(limits={"surplus": 1}), ["limits.surplus"]),
        (lead("state_schema", {"files": {"type": "dict"}}), ["nodes[0].config.state_schema.files"]),
        (lambda d: d.update(edges=CANARY), ["edges"]),
        (lambda d: d["edges"][0].update(target=CANARY), ["edges[0].target"]),
        (lambda d: d["edges"][0].pop("source"), ["edges[0].source"]),
        (lambda d: d["edges"][0].update(weight=1), ["edges[0].weight"]),
        (lambda d: d.update(edges=[{"from": "lead", "to": "calc"}]), []),
        (lambda d: d.update(edges=[{"from": "lead", "to": CANARY}]), ["edges[0].to"]),
        (lambda d: d.update(edges=[{"from": CANARY, "to": "calc"}]), ["edges[0].from"]),
        (lambda d: d.update(edges=[CANARY, {"from": "lead", "to": "calc"}]), ["edges[0]"]),
        (lambda d: d.update(edges=d["edges"] * 1001), ["edges"]),
        (lambda d: d.update(edges=[*d["edges"] * 1000, CANARY]), ["edges"]),
        (lambda d: d.update(edges=[{"from": "lead", "to": "lead"}]), ["edges"]),
        (lambda d: d["edges"].append({"source": "calc", "target": "lead"}), ["edges"]),
    ],
)
def test_what_is_only_odd_is_a_warning(change: Change, fields: list[str]) -> None:
    document = json.loads(ADDER)
    change(document)
    assert warned(document) == fields


def test_mistakes_in_one_place_hide_none_in_another() -> None:
    document = json.loads(ADDER)
    del document["nodes"][0]["config"]["model"]
    document["nodes"][1]["config"]["tools"] = ["nowhere"]
    document["edges"][0]["target"] = "nowhere"
    report = validation.check(document, "")
    assert [finding.field for finding in report.errors] == ["nodes[0].config.model", "nodes[1].config.tools[0]"]
    assert [finding.field for finding in report.warnings] == ["edges[0].target"]


def test_the_known_providers_are_those_that_can_be_built() -> None:
    from agent_executor.models import PROVIDERS

    assert set(PROVIDERS) == validation.PROVIDERS
