"""tools: what a script makes, what it is told when it makes none, and where it runs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.tools import BaseTool

from agent_executor import tools
from agent_executor.definition import Definition
from agent_executor.errors import ToolScriptError
from tests.definitions import adder, agent, tool

HEAD = "import threading\nfrom langchain_core.tools import tool, BaseTool\n"


def made(name: str, source: str) -> BaseTool:
    definition = Definition.model_validate(agent([{"text": "x"}], tools=[tool(name, HEAD + source)]))
    return tools.load(definition.tool_definitions)[name]


def test_the_example_adds() -> None:
    add = tools.load(Definition.model_validate(adder()).tool_definitions)["add_numbers"]
    assert add.invoke({"a": 2, "b": 3}) == 5
    assert set(add.args) == {"a", "b"}


def test_a_script_may_hold_helpers_and_several_tools() -> None:
    source = (
        "def double(x):\n    return 2 * x\n"
        "@tool\ndef other() -> int:\n    'O.'\n    return 1\n"
        "@tool\ndef one(x: int) -> int:\n    'Doubles.'\n    return double(x)\n"
    )
    assert made("one", source).invoke({"x": 4}) == 8


def test_a_tool_may_be_a_class_and_have_a_name_of_its_own() -> None:
    source = (
        "class Mine(BaseTool):\n    name: str = 'my tool'\n    description: str = 'd'\n"
        "    def _run(self) -> str:\n        return 'ran'\n"
        "mine = Mine()\n"
    )
    assert made("my tool", source).invoke({}) == "ran"


def test_scripts_share_nothing() -> None:
    sources = [f"word = {name!r}\n@tool\ndef {name}() -> str:\n    'W.'\n    return word\n" for name in ("a", "b")]
    both = [tool(name, HEAD + source) for name, source in zip("ab", sources, strict=True)]
    loaded = tools.load(Definition.model_validate(agent([{"text": "x"}], tools=both)).tool_definitions)
    assert [loaded[name].invoke({}) for name in "ab"] == ["a", "b"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def one(:", "SyntaxError"),
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("a = 1", "makes no tool of that name; it makes: none"),
        ("@tool\ndef two() -> int:\n    'T.'\n    return 2\n", "it makes: two"),
        ("def one() -> int:\n    'No tool.'\n    return 1\n", "it makes: none"),
        ("a = '\0'", "null bytes"),
    ],
)
def test_a_script_without_its_tool_is_told_why(source: str, words: str) -> None:
    with pytest.raises(ToolScriptError, match="the script of tool 'one'") as raised:
        made("one", source)
    assert words in str(raised.value)


def test_a_script_that_exits_does_not_end_the_service() -> None:
    with pytest.raises(ToolScriptError, match="SystemExit"):
        made("one", "import sys\nsys.exit(3)\n")


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_tool_never_runs_in_the_thread_of_the_event_loop(kind: str) -> None:
    one = made("one", f"@tool\n{kind} one() -> int:\n    'T.'\n    return threading.get_ident()\n")
    assert await one.ainvoke({}) != threading.get_ident()


async def test_a_class_of_the_scripts_own_leaves_the_event_loop_too() -> None:
    one = made(
        "one",
        "from langchain_core.tools import BaseTool\n"
        "class One(BaseTool):\n"
        "    name: str = 'one'\n"
        "    description: str = 'T.'\n"
        "    def _run(self, x: int = 0) -> int:\n"
        "        return -1\n"
        "    async def _arun(self, x: int = 0) -> str:\n"
        "        return f'{x} {threading.get_ident()}'\n"
        "one = One()\n",
    )
    x, thread = (await one.ainvoke({"x": 5})).split()
    assert x == "5"
    assert int(thread) != threading.get_ident()


async def test_an_async_tool_may_await() -> None:
    one = made(
        "one",
        "import asyncio\n@tool\nasync def one() -> str:\n    'T.'\n    await asyncio.sleep(0)\n    return 'ran'\n",
    )
    assert await one.ainvoke({}) == "ran"


async def test_an_async_tool_that_fails_raises_its_own_error() -> None:
    one = made("one", "@tool\nasync def one() -> str:\n    'T.'\n    raise LookupError('no luck')\n")
    with pytest.raises(LookupError, match="no luck"):
        await one.ainvoke({})


async def test_a_blocking_tool_leaves_the_loop_free() -> None:
    gate: Any = threading.Event()
    one = made("one", "gates = []\n@tool\nasync def one() -> bool:\n    'T.'\n    return gates[0].wait(10)\n")
    namespace: Any = one.func.__wrapped__.__globals__  # type: ignore[attr-defined]
    namespace["gates"].append(gate)
    running = asyncio.create_task(one.ainvoke({}))
    await asyncio.sleep(0.01)
    assert not running.done()
    gate.set()
    assert await running is True
