"""graph: a definition put together and run in memory, with scripted models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from langchain_core.tools import BaseTool

from agent_executor import graph, validation
from agent_executor.errors import InvalidInput, ModelUnavailable
from agent_executor.sandbox.pool import Sandbox
from tests.definitions import INPUT, adder, agent, specialist, tool

ASK_HELPER = {"tool_calls": [{"name": "task", "args": {"subagent_type": "Helper", "description": "x"}}]}
ODD = "'a' + chr(0) + 'b' + chr(0xD800)"
REPAIRED = "a\ufffdb\ufffd"


async def no_credentials(provider: str) -> Mapping[str, str]:
    return {}


async def no_tools() -> Mapping[str, BaseTool]:
    return {}


Run = Callable[[dict[str, Any]], Awaitable[tuple[dict[str, Any], list[dict[str, Any]]]]]


@pytest.fixture
def run(sandbox: Sandbox) -> Run:
    """Run a definition: the final state, and what was said in the custom stream."""

    async def run(document: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        parsed = validation.parse(document)
        state: dict[str, Any] = {}
        said: list[dict[str, Any]] = []
        async with sandbox.box(parsed.tool_definitions) as box:
            built = await graph.build(parsed, no_credentials, box.tools)
            items: Any = built.astream(INPUT, stream_mode=["values", "custom"], subgraphs=True)
            async for namespace, mode, payload in items:
                if mode == "custom":
                    said.append(payload)
                elif not namespace:
                    state = payload
        return state, said

    return run


def source(name: str, result: str) -> str:
    head = "from langchain_core.messages import ToolMessage\nfrom langgraph.types import Command\n"
    return f"from langchain_core.tools import tool\n{head}@tool\ndef {name}() -> str:\n    'T.'\n    return {result}\n"


async def test_the_built_in_tools_are_those_that_an_approval_may_name() -> None:
    built = await graph.build(validation.parse(agent([{"text": "x"}])), no_credentials, no_tools)
    node: Any = built.nodes["tools"].bound
    assert set(node.tools_by_name) == validation.BUILT_IN_TOOLS


async def test_the_root_delegates_and_the_specialist_uses_its_tool(run: Run) -> None:
    state, said = await run(adder())
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].content == "The Calculator says: 5"
    assert said == []


@pytest.mark.parametrize(
    ("config", "description"),
    [
        ({"description": "Adds"}, "Adds"),
        ({"description": "", "system_prompt": "p" * 300}, "p" * 200),
        ({"description": "", "system_prompt": ""}, "Helper"),
    ],
)
async def test_a_specialist_is_described_to_the_root(
    config: dict[str, str], description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = specialist("Helper", [{"text": "x"}])
    helper["config"].update(config)
    given: dict[str, Any] = {}
    monkeypatch.setattr(graph, "create_deep_agent", lambda **arguments: given.update(arguments))
    await graph.build(validation.parse(agent([{"text": "x"}], specialists=[helper])), no_credentials, no_tools)
    described = {each["name"]: each["description"] for each in given["subagents"]}
    assert described["Helper"] == description
    assert given["name"] == "Lead"


async def test_a_specialist_may_replace_the_general_purpose_subagent(run: Run) -> None:
    call = {"name": "task", "args": {"subagent_type": "general-purpose", "description": "x"}}
    helper = specialist("general-purpose", [{"text": "mine"}])
    state, _ = await run(agent([{"tool_calls": [call]}, {"text": "{last}"}], specialists=[helper]))
    assert state["messages"][-1].content == "mine"


async def test_what_the_root_model_returns_is_repaired_with_a_warning(run: Run) -> None:
    state, said = await run(agent([{"text": "a\0b\ud800"}]))
    assert state["messages"][-1].content == REPAIRED
    assert {each["event_type"] for each in said} == {"warning"}
    assert [each["data"]["about"] for each in said] == ["the model", "the model"]
    assert "NUL" in said[0]["data"]["message"]


async def test_what_a_tool_of_the_root_returns_is_repaired_with_a_warning(run: Run) -> None:
    odd = tool("odd", source("odd", ODD))
    state, said = await run(agent([{"tool_calls": [{"name": "odd"}]}, {"text": "{last}"}], tools=[odd]))
    assert state["messages"][-1].content == REPAIRED
    assert {each["data"]["about"] for each in said} == {"tool odd"}


async def test_what_a_specialists_tool_returns_is_repaired_with_a_warning(run: Run) -> None:
    helper = specialist("Helper", [{"tool_calls": [{"name": "odd"}]}, {"text": "{last}"}], ["odd"])
    document = agent([ASK_HELPER, {"text": "{last}"}], tools=[tool("odd", source("odd", ODD))], specialists=[helper])
    state, said = await run(document)
    assert state["messages"][-1].content == REPAIRED
    assert {each["data"]["about"] for each in said} == {"tool odd"}


async def test_what_a_tools_command_puts_into_the_state_is_repaired(run: Run) -> None:
    script = (
        "from typing import Annotated\nfrom langchain_core.messages import ToolMessage\n"
        "from langchain_core.tools import InjectedToolCallId, tool\nfrom langgraph.types import Command\n"
        "@tool\ndef odd(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:\n    'O.'\n"
        f"    message = ToolMessage({ODD}, tool_call_id=tool_call_id)\n"
        "    files = {'/a.txt': {'content': 'a' + chr(0), 'encoding': 'utf-8'}}\n"
        "    return Command(update={'messages': [message], 'files': files})\n"
    )
    document = agent([{"tool_calls": [{"name": "odd"}]}, {"text": "{last}"}], tools=[tool("odd", script)])
    state, said = await run(document)
    assert state["messages"][-1].content == REPAIRED
    assert state["files"]["/a.txt"]["content"] == "a\ufffd"
    assert {each["data"]["about"] for each in said} == {"tool odd"}


async def test_a_tools_integer_beyond_64_bits_is_repaired(run: Run) -> None:
    call = {"name": "big", "args": {}}
    document = agent([{"tool_calls": [call]}, {"text": "{last}"}], tools=[tool("big", source("big", "str(2**70)"))])
    state, said = await run(document)
    assert state["messages"][-1].content == str(2**70)
    assert said == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"model": {"provider": "openai", "model": "m"}}, ModelUnavailable),
        ({"model": {"provider": "scripted", "model": "m", "replies": []}}, InvalidInput),
    ],
)
async def test_a_model_that_cannot_be_had(change: dict[str, Any], kind: type[Exception]) -> None:
    document = agent([{"text": "x"}])
    document["nodes"][0]["config"].update(change)
    with pytest.raises(kind):
        await graph.build(validation.parse(document), no_credentials, no_tools)


async def test_credentials_are_asked_once_per_provider() -> None:
    asked: list[str] = []

    async def credentials_of(provider: str) -> Mapping[str, str]:
        asked.append(provider)
        return {}

    helpers = [specialist(name, [{"text": "x"}]) for name in ("A", "B")]
    await graph.build(validation.parse(agent([{"text": "x"}], specialists=helpers)), credentials_of, no_tools)
    assert asked == ["scripted"]
