"""graphs: what a langgraph.json may name, and how it is opened."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from agent_executor import graphs, validation
from agent_executor.definition import Definition
from agent_executor.errors import GraphNotLoaded, InvalidInput
from agent_executor.graphs import Graphs
from tests.definitions import adder

EXAMPLE = Path(__file__).parents[2] / "examples/three_nodes/langgraph.json"
INPUT: Any = {"messages": [{"role": "user", "content": "how many words are these?"}]}
CODE = """
import contextlib
from typing import TypedDict
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph_sdk.runtime import ServerRuntime

class State(TypedDict, total=False):
    seen: str

said = []

def builder(word):
    made = StateGraph(State)
    made.add_node("only", lambda state: {"seen": word})
    made.add_edge(START, "only")
    return made

compiled = builder("compiled").compile()
plain = builder("builder")
def factory(): return builder("factory")
def with_config(config): return builder(config["configurable"]["word"]).compile()
async def later(): return builder("later")
def of_any_name(what): return with_config(what)
@contextlib.asynccontextmanager
async def with_runtime(what: ServerRuntime[int]): yield builder(what.access_context)
def with_hidden_type(what: "Optional[ServerRuntime]" = None, more: "Hidden" = 5): return builder(what.access_context)
def runtime_by_name(runtime): return builder(str(runtime.execution_runtime is runtime))
def with_both(run: ServerRuntime, asked: RunnableConfig):
    return builder(asked["configurable"]["word"] + " " + str(run.user is None))
def by_keyword(*, config=None, **more): return with_config(config)
def with_default(word="default", *rest, **more): return builder(word)
class Maker:
    def __call__(self): return builder("called")
maker = Maker()
def takes_too_much(config, other): return with_config(config)
def by_position(config, /): return with_config(config)
@contextlib.contextmanager
def around():
    yield builder("around")
    said.append("left")
@contextlib.asynccontextmanager
async def around_async(config):
    yield builder(config["configurable"]["word"])
    said.append("left")
@contextlib.contextmanager
def swallows():
    with contextlib.suppress(BaseException):
        yield builder("x")
@contextlib.asynccontextmanager
async def swallows_async():
    with contextlib.suppress(BaseException):
        yield builder("x")
@contextlib.contextmanager
def fails():
    try:
        yield builder("x")
    finally:
        raise RuntimeError("while leaving")
@contextlib.asynccontextmanager
async def fails_async():
    try:
        yield builder("x")
    finally:
        raise RuntimeError("while leaving")
def no_graph(): return 5
number = 5
"""


def write(place: Path, entries: Any, code: str = CODE) -> str:
    (place / "code_of_graphs.py").write_text(code)
    file = place / "langgraph.json"
    file.write_text(json.dumps({"dependencies": ["."], "graphs": entries}))
    return str(file)


async def seen(found: Graphs, name: str = "mine", **configurable: Any) -> str:
    async with found.open(name, {"configurable": configurable}) as opened:
        state: dict[str, str] = await opened.ainvoke({})
        return state["seen"]


@pytest.mark.parametrize(
    ("attribute", "word"),
    [
        ("compiled", "compiled"),
        ("plain", "builder"),
        ("factory", "factory"),
        ("with_config", "mine"),
        ("later", "later"),
        ("around", "around"),
        ("around_async", "mine"),
        ("of_any_name", "mine"),
        ("with_runtime", "threads.create_run"),
        ("with_hidden_type", "threads.create_run"),
        ("runtime_by_name", "True"),
        ("with_both", "mine True"),
        ("by_keyword", "mine"),
        ("with_default", "default"),
        ("maker", "called"),
    ],
)
async def test_every_shape_that_langgraphs_server_takes(tmp_path: Path, attribute: str, word: str) -> None:
    found = graphs.load(write(tmp_path, {"mine": f"./code_of_graphs.py:{attribute}"}))
    assert found.names == {"mine"}
    assert await seen(found, word="mine") == word
    assert await seen(found, word="mine") == word


@pytest.mark.parametrize("attribute", ["swallows", "swallows_async", "fails", "fails_async"])
@pytest.mark.parametrize("error", [ValueError("a node failed"), asyncio.CancelledError()], ids=repr)
async def test_how_a_run_ended_stands_whatever_a_context_manager_makes_of_it(
    tmp_path: Path, attribute: str, error: BaseException
) -> None:
    found = graphs.load(write(tmp_path, {"mine": f"./code_of_graphs.py:{attribute}"}))
    with pytest.raises(type(error)) as raised:
        async with found.open("mine", {}):
            raise error
    assert raised.value is error


@pytest.mark.parametrize("attribute", ["fails", "fails_async"])
async def test_a_context_manager_that_fails_alone_fails_its_job(tmp_path: Path, attribute: str) -> None:
    found = graphs.load(write(tmp_path, {"mine": f"./code_of_graphs.py:{attribute}"}))
    with pytest.raises(RuntimeError, match="while leaving"):
        await seen(found)


async def test_an_entry_may_be_an_object_and_name_a_module(tmp_path: Path) -> None:
    (tmp_path / "module_of_graphs.py").write_text(CODE)
    found = graphs.load(write(tmp_path, {"mine": {"path": "module_of_graphs:factory", "description": "x"}}))
    assert await seen(found) == "factory"


def test_no_file_has_no_graphs() -> None:
    assert graphs.load(None).names == frozenset()


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("./nowhere.py:graph", "graph 'mine'"),
        ("./code_of_graphs.py:nothing", "AttributeError"),
        ("no_such_module_anywhere:graph", "ModuleNotFoundError"),
        ("./code_of_graphs.py:number", "neither a graph nor a function"),
        ("./code_of_graphs.py:takes_too_much", "graph 'mine': its factory takes config, other, and"),
        ("./code_of_graphs.py:by_position", "graph 'mine': its factory takes config, and"),
        ("nonsense", "graph 'mine'"),
        (5, "graph 'mine'"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, entry: Any, complaint: str) -> None:
    with pytest.raises(GraphNotLoaded, match=complaint):
        graphs.load(write(tmp_path, {"mine": entry}))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"graphs": 5}', '{"graphs": [["a", "b"]]}', '{"graphs":' + "[" * 100_000]
)
def test_a_file_without_graphs_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "langgraph.json"
    file.write_text(text)
    with pytest.raises(GraphNotLoaded, match=r"langgraph\.json"):
        graphs.load(str(file))


@pytest.mark.parametrize("dependencies", [None, 5, [5], ".", ["a\0b"], {}], ids=repr)
def test_dependencies_that_are_no_list_of_places_are_named(tmp_path: Path, dependencies: Any) -> None:
    file = tmp_path / "langgraph.json"
    file.write_text(json.dumps({"dependencies": dependencies, "graphs": {}}))
    with pytest.raises(GraphNotLoaded, match="dependencies"):
        graphs.load(str(file))


@pytest.mark.parametrize("line", ["raise SystemExit(3)", "import sys; sys.exit()", "1/0", "def ("])
def test_a_module_that_fails_is_named_and_ends_nothing(tmp_path: Path, line: str) -> None:
    (tmp_path / "failing.py").write_text(line)
    for _ in range(2):
        with pytest.raises(GraphNotLoaded, match="graph 'mine'"):
            graphs.load(write(tmp_path, {"mine": "./failing.py:compiled"}))


def test_a_file_beside_the_graphs_hides_no_package(tmp_path: Path) -> None:
    (tmp_path / "langchain_openai.py").write_text("raise RuntimeError('not this one')")
    graphs.load(write(tmp_path, {"mine": "./code_of_graphs.py:compiled"}))
    found = importlib.util.find_spec("langchain_openai")
    assert found is not None
    assert found.origin is not None
    assert not Path(found.origin).is_relative_to(tmp_path)


async def test_a_factory_that_makes_no_graph_fails_its_job(tmp_path: Path) -> None:
    found = graphs.load(write(tmp_path, {"mine": "./code_of_graphs.py:no_graph"}))
    with pytest.raises(GraphNotLoaded, match="int"):
        await seen(found)


async def test_the_example() -> None:
    found = graphs.load(str(EXAMPLE))
    async with found.open("three-nodes", {}) as opened:
        state = await opened.ainvoke(INPUT)
    assert state["messages"][-1].content == "5 words"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"agent_definition\.graph: names no graph .*; known are a, b"):
        validation.read({"graph": "c"}, graphs={"b", "a"})
    with pytest.raises(InvalidInput, match="known are none"):
        validation.read({"graph": "c"})


@pytest.mark.parametrize("key", ["thread_id", "checkpoint_id", "checkpoint_ns", "__pregel_runtime"])
def test_what_the_service_sets_cannot_be_given(key: str) -> None:
    document = {"graph": "a", "config": {"configurable": {key: "x"}}}
    report = validation.check(document, "", {"a"})
    assert [finding.field for finding in report.errors] == ["config.configurable"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"tags": [5] * 101}, "config.tags"),
        ({str(number): 1 for number in range(101)}, "config"),
        ({"recursion_limit": "5"}, "config.recursion_limit"),
        ({"recursion_limit": True}, "config.recursion_limit"),
        ({"recursion_limit": 0}, "config.recursion_limit"),
        ({"callbacks": []}, "config.callbacks"),
        ([], "config"),
    ],
)
def test_a_config_is_checked(config: Any, field: str) -> None:
    report = validation.check({"graph": "a", "config": config}, "", {"a"})
    assert [finding.field for finding in report.errors] == [field]


def test_a_graph_beside_nodes_is_a_name_or_a_key_of_somebody_elses() -> None:
    drawn = {**adder(), "graph": {"layout": "tree"}}
    report = validation.check(drawn, "", {"a"})
    assert isinstance(report.definition, Definition)
    assert [finding.field for finding in report.warnings] == ["graph"]


def test_what_is_odd_about_a_reference_is_a_warning() -> None:
    report = validation.check({"graph": "a", "nodes": []}, "", {"a"})
    assert report.errors == []
    assert [finding.field for finding in report.warnings] == ["nodes"]
