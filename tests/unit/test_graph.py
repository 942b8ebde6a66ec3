"""graph: a definition put together and run in memory, with scripted models."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from deepagents import create_deep_agent
from deepagents.middleware import MemoryMiddleware, SkillsMiddleware
from deepagents.middleware._state import private_state_field_names
from deepagents.middleware.subagents import _EXCLUDED_STATE_KEYS
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ShellToolMiddleware,
    ToolCallLimitMiddleware,
)
from langchain_core.tools import BaseTool

from agent_executor import graph, validation
from agent_executor.definition import BUILT_IN_TOOLS, OWN_FIELDS
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
            built = await graph.Builder(no_credentials).build(parsed, box.tools)
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
    monkeypatch.setattr(graph, "create_deep_agent", lambda **asked: given.update(asked) or create_deep_agent(**asked))
    await graph.Builder(no_credentials).build(validation.parse(agent([{"text": "x"}], specialists=[helper])), no_tools)
    described = {each["name"]: each["description"] for each in given["subagents"]}
    assert described["Helper"] == description
    assert given["name"] == "Lead"


async def test_the_tools_that_agents_have_already_are_known() -> None:
    document = agent([{"text": "x"}], specialists=[specialist("Helper", [{"text": "x"}])])
    built = await graph.Builder(no_credentials).build(validation.parse(document), no_tools)
    assert set(built.nodes["tools"].bound.tools_by_name) == BUILT_IN_TOOLS  # type: ignore[attr-defined]


async def test_state_fields_that_agents_have_already_are_known() -> None:
    """Those of their graph, of middleware that a next version may add, and what deepagents passes to no specialist."""
    document = agent([{"text": "x"}], specialists=[specialist("Helper", [{"text": "x"}])], interrupt_on=["ls"])
    built = await graph.Builder(no_credentials).build(validation.parse(document), no_tools)
    more = (HumanInTheLoopMiddleware, ModelCallLimitMiddleware, ToolCallLimitMiddleware, ShellToolMiddleware)
    private = private_state_field_names(*(each.state_schema for each in (*more, MemoryMiddleware, SkillsMiddleware)))
    names = {*built.channels, *_EXCLUDED_STATE_KEYS, *private} - OWN_FIELDS
    document["nodes"][0]["config"]["state_schema"] = {name: {} for name in names}
    assert "hitl_edited_tool_calls" in names
    refused = {finding.field.rpartition("state_schema.")[2] for finding in validation.check(document).errors}
    assert refused == names


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


async def test_each_of_several_results_of_a_tool_counts(run: Run) -> None:
    first = f"{{'nowhere': 1, 'verdict': 'bad', 'findings': [1], 'files': {{'/a': {ODD}}}}}"
    second = "{'verdict': 'good', 'findings': [2], 'files': {'/b': 'b'}}"
    answer = f"ToolMessage({ODD}, tool_call_id='call_Lead_0_0')"
    several = tool("several", source("several", f"[{answer}, Command(update={first}), Command(update={second})]"))
    document = agent([{"tool_calls": [{"name": "several"}]}, {"text": "{last}"}], tools=[several])
    document["nodes"][0]["config"]["state_schema"] = APPENDED | {"verdict": {"type": "str"}}
    state, said = await run(document)
    assert state["messages"][-1].content == REPAIRED
    assert (state["verdict"], state["findings"]) == ("good", [1, 2])
    assert files(state) == {"/a": REPAIRED, "/b": "b"}
    assert {each["data"]["about"] for each in said} == {"tool several", "nowhere"}


@pytest.mark.parametrize("results", ["[Command(update={}), Command()]", "[ToolMessage('x', tool_call_id=CALL)]"])
async def test_several_results_may_say_little(run: Run, results: str) -> None:
    several = tool("several", source("several", results.replace("CALL", "'call_Lead_0_0'")))
    state, said = await run(agent([{"tool_calls": [{"name": "several"}]}, {"text": "end"}], tools=[several]))
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert said == []


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
        await graph.Builder(no_credentials).build(validation.parse(document), no_tools)


async def test_credentials_are_asked_once_per_provider() -> None:
    asked: list[str] = []

    async def credentials_of(provider: str) -> Mapping[str, str]:
        asked.append(provider)
        return {}

    helpers = [specialist(name, [{"text": "x"}]) for name in ("A", "B")]
    parsed = validation.parse(agent([{"text": "x"}], specialists=helpers))
    await graph.Builder(credentials_of).build(parsed, no_tools)
    assert asked == ["scripted"]


# --- state -----------------------------------------------------------------------------------------------------------


def writes(name: str, update: str) -> dict[str, Any]:
    """A tool that returns a command with this update, and no message of its own."""
    return tool(name, source(name, f"Command(update={update})"))


def scripted_specialist(name: str, *, calls: str, state_schema: dict[str, Any]) -> dict[str, Any]:
    made = specialist(name, [{"tool_calls": [{"name": calls}]}, {"text": f"{name} is done"}], [calls])
    made["config"]["state_schema"] = state_schema
    return made


def asks(*names: str) -> dict[str, Any]:
    """A reply that calls these specialists side by side."""
    return {"tool_calls": [{"name": "task", "args": {"subagent_type": name, "description": "x"}} for name in names]}


APPENDED = {"findings": {"type": "list", "item_type": "dict", "reducer": "append"}}


async def test_what_specialists_append_reaches_the_parents_field_once(run: Run) -> None:
    """One after the other and side by side: each begins with what is there, and hands back the whole list."""
    tools = [writes(f"write_{number}", f"{{'findings': [{{'n': {number}}}]}}") for number in (1, 2, 3)]
    helpers = [scripted_specialist(f"H{n}", calls=f"write_{n}", state_schema=APPENDED) for n in (1, 2, 3)]
    document = agent([asks("H1"), asks("H2", "H3"), {"text": "done"}], specialists=helpers)
    document["tool_definitions"] = tools
    document["nodes"][0]["config"]["state_schema"] = APPENDED
    state, said = await run(document)
    assert state["findings"] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert said == []


async def test_a_specialists_field_that_the_parent_has_not_stays_with_it(run: Run) -> None:
    helper = scripted_specialist("Helper", calls="write", state_schema=APPENDED)
    document = agent([ASK_HELPER, {"text": "{last}"}], specialists=[helper])
    document["tool_definitions"] = [writes("write", "{'findings': [1]}")]
    state, said = await run(document)
    assert "findings" not in state
    assert (state["messages"][-1].content, said) == ("Helper is done", [])


async def test_side_by_side_the_last_value_counts_where_there_is_no_reducer(run: Run) -> None:
    schema = {"verdict": {"type": "str"}}
    helpers = [scripted_specialist(name, calls="write", state_schema=schema) for name in ("A", "B")]
    document = agent([asks("A", "B"), {"text": "done"}], specialists=helpers)
    document["tool_definitions"] = [writes("write", "{'verdict': 'good'}")]
    document["nodes"][0]["config"]["state_schema"] = schema
    state, _ = await run(document)
    assert state["verdict"] == "good"


@pytest.mark.parametrize(
    ("field", "first", "second", "found"),
    [
        ({"type": "int"}, "1", "2", 2),
        ({"type": "str"}, "'a'", "'b'", "b"),
        ({"type": "dict"}, "{'a': 1}", "{'b': 2}", {"b": 2}),
        ({"type": "any"}, "1", "[2]", [2]),
        ({"type": "list"}, "[1]", "[2]", [2]),
        ({"type": "list", "reducer": "append"}, "[1]", "[1, 2]", [1, 1, 2]),
        ({"type": "list", "reducer": "append"}, "'one'", "'two'", ["one", "two"]),
        (
            {"type": "list", "item_type": "dict", "reducer": "add_messages"},
            "[{'n': 1}]",
            "[{'n': 2}]",
            [{"n": 1}, {"n": 2}],
        ),
        ({"type": "list", "item_type": "str", "reducer": "add_messages"}, "['a']", "['b']", ["a", "b"]),
        ({"type": "list", "reducer": "add_messages"}, "[{'n': 1}]", "['b']", [{"n": 1}, "b"]),
    ],
)
async def test_a_field_has_its_type_and_reducer(
    run: Run, field: dict[str, Any], first: str, second: str, found: Any
) -> None:
    tools = [writes("one", f"{{'field': {first}}}"), writes("two", f"{{'field': {second}}}")]
    document = agent([{"tool_calls": [{"name": "one"}]}, {"tool_calls": [{"name": "two"}]}, {"text": "x"}], tools=tools)
    document["nodes"][0]["config"]["state_schema"] = {"field": field}
    state, said = await run(document)
    assert state["field"] == found
    assert said == []


async def test_messages_in_a_field_are_added_by_their_ids(run: Run) -> None:
    head = "[ToolMessage('{}', tool_call_id='x', id='one')]"
    tools = [writes(name, f"{{'log': {head.format(name)}}}") for name in ("old", "new")]
    document = agent([{"tool_calls": [{"name": "old"}]}, {"tool_calls": [{"name": "new"}]}, {"text": "x"}], tools=tools)
    document["nodes"][0]["config"]["state_schema"] = {"log": {"type": "list", "reducer": "add_messages"}}
    state, _ = await run(document)
    assert [message.content for message in state["log"]] == ["new"]


async def test_append_does_not_look_at_ids(run: Run) -> None:
    one = "{'log': [ToolMessage('x', tool_call_id='x', id='one')]}"
    call = {"name": "one"}
    document = agent([{"tool_calls": [call]}, {"tool_calls": [call]}, {"text": "x"}], tools=[writes("one", one)])
    document["nodes"][0]["config"]["state_schema"] = {"log": {"type": "list", "reducer": "append"}}
    state, _ = await run(document)
    assert len(state["log"]) == 2


async def test_a_tool_reads_its_agents_fields_from_the_first_call_on(run: Run) -> None:
    reads = (
        "from typing import Annotated\n"
        "from langchain.tools import InjectedState\nfrom langchain_core.tools import tool\n"
        "@tool\ndef reads(notes: Annotated[list, InjectedState('notes')]) -> str:\n    'T.'\n    return repr(notes)\n"
    )
    document = agent([{"tool_calls": [{"name": "reads"}]}, {"text": "{last}"}], tools=[tool("reads", reads)])
    document["nodes"][0]["config"]["state_schema"] = {"notes": {"type": "list"}}
    state, _ = await run(document)
    assert state["messages"][-1].content == "[]"


async def test_a_key_that_nothing_declares_is_dropped_with_a_warning_that_names_it(run: Run) -> None:
    stray = writes("stray", "{'nowhere': 1, 'files': {'/a': 'text'}}")
    state, said = await run(agent([{"tool_calls": [{"name": "stray"}]}, {"text": "{last}"}], tools=[stray]))
    assert "nowhere" not in state
    assert state["files"]["/a"]["content"] == "text"
    assert state["messages"][-1].content == "Updated: nowhere, files."
    [warning] = [each["data"] for each in said]
    assert warning["about"] == "nowhere"
    assert "Lead declares no state key 'nowhere'" in warning["message"]


async def test_a_value_of_another_type_is_kept_with_a_warning(run: Run) -> None:
    document = agent([{"tool_calls": [{"name": "odd"}]}, {"text": "x"}], tools=[writes("odd", "{'count': 'three'}")])
    document["nodes"][0]["config"]["state_schema"] = {"count": {"type": "int"}}
    state, said = await run(document)
    assert state["count"] == "three"
    assert [each["data"]["about"] for each in said] == ["count"]


async def test_a_file_that_a_tool_writes_as_text_can_be_read_by_the_agent(run: Run) -> None:
    reads = {"tool_calls": [{"name": "read_file", "args": {"file_path": "/a"}}]}
    document = agent(
        [{"tool_calls": [{"name": "save"}]}, reads, {"text": "{last}"}],
        tools=[writes("save", "{'files': {'/a': 'kept'}}")],
    )
    state, _ = await run(document)
    assert "kept" in state["messages"][-1].content


@pytest.mark.parametrize(
    "odd",
    ["{'/y': 5}", "{'/y': ['a']}", "{'/y': {}}", "{'/y': {'content': 5}}", "['a']", "None", "'abc'"],
)
async def test_what_is_no_file_is_dropped_with_a_warning(run: Run, odd: str) -> None:
    tools = [writes("save", "{'files': {'/a': 'kept', '/gone': 'x'}}"), writes("odd", f"{{'files': {odd}}}")]
    tools.append(writes("delete_one", "{'files': {'/gone': None}}"))
    looks = [{"name": "ls", "args": {"path": "/"}}, {"name": "grep", "args": {"pattern": "kept"}}]
    calls = [[{"name": each["name"]}] for each in tools]
    document = agent([*({"tool_calls": each} for each in [*calls, looks]), {"text": "{last}"}], tools=tools)
    state, said = await run(document)
    assert files(state) == {"/a": "kept"}
    assert "/a" in state["messages"][-1].content
    [warning] = [each["data"] for each in said]
    assert warning["about"] == "files"
    assert "Lead" in warning["message"]


@pytest.mark.parametrize("result", ["{}", "[Command(), {}]"])
async def test_what_a_specialists_tool_writes_to_its_parent_is_looked_at_too(run: Run, result: str) -> None:
    update = "{'findings': [1], 'nowhere': 1, 'files': {'/a': 'kept', '/b': 5}}"
    up = tool("up", source("up", result.format(f"Command(graph=Command.PARENT, update={update})")))
    helper = specialist("Helper", [{"tool_calls": [{"name": "up"}]}, {"text": "x"}], ["up"])
    reads = {"tool_calls": [{"name": "read_file", "args": {"file_path": "/a"}}]}
    document = agent([ASK_HELPER, reads, {"text": "{last}"}], specialists=[helper])
    document["tool_definitions"] = [up]
    document["nodes"][0]["config"]["state_schema"] = APPENDED
    state, said = await run(document)
    assert (state["findings"], files(state)) == ([1], {"/a": "kept"})
    assert "kept" in state["messages"][-1].content
    assert [each["data"]["about"] for each in said] == ["nowhere", "files"]


def files(state: dict[str, Any]) -> dict[str, str]:
    return {path: file["content"] for path, file in state["files"].items()}


SAVES_TWO = writes("save", "{'files': {'/x': 'old', '/y': 'old'}}")
EDITS = {"name": "edit_file", "args": {"file_path": "/x", "old_string": "old", "new_string": "new"}}
ADDS = {"name": "write_file", "args": {"file_path": "/b", "content": "b"}}
DELETES = {"name": "delete", "args": {"file_path": "/y"}}


@pytest.mark.parametrize("order", [("A", "B", "C"), ("C", "B", "A")])
async def test_specialists_side_by_side_undo_nothing_that_others_do_to_files(run: Run, order: tuple[str, ...]) -> None:
    calls = {"A": EDITS, "B": ADDS, "C": DELETES}
    helpers = [specialist(name, [{"tool_calls": [call]}, {"text": "x"}]) for name, call in calls.items()]
    replies = [{"tool_calls": [{"name": "save"}]}, asks(*order), {"text": "done"}]
    state, said = await run(agent(replies, tools=[SAVES_TWO], specialists=helpers))
    assert files(state) == {"/x": "new", "/b": "b"}
    assert said == []


# --- kept graphs -----------------------------------------------------------------------------------------------------


async def test_a_graph_is_built_once_for_a_definition_and_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["first key"]

    async def credentials_of(provider: str) -> Mapping[str, str]:
        return {"api_key": keys[-1]}

    def asked(prompt: str, **more: Any) -> Any:
        document = agent([{"text": "x"}], specialists=[specialist("H", [{"text": "x"}])]) | more
        document["nodes"][1]["config"]["model"] = {"provider": "openai", "model": "gpt-4.1-mini"}
        document["nodes"][0]["config"]["system_prompt"] = prompt
        return validation.parse(document)

    builder = graph.Builder(credentials_of, most=6)
    one, two = await builder.build(asked("one"), no_tools), await builder.build(asked("two"), no_tools)
    assert two is not one
    assert await builder.build(asked("one", version="2", limits={"steps": 9}), no_tools) is one
    keys.append("second key")
    assert await builder.build(asked("one"), no_tools) is not one
    keys.pop()
    assert await builder.build(asked("one"), no_tools) is one
    assert await builder.build(asked("two"), no_tools) is not two, "of three, the one used longest ago was dropped"


def with_helpers(prompt: str, helpers: int) -> Any:
    document = agent([{"text": prompt}], specialists=[specialist(f"H{n}", [{"text": "x"}]) for n in range(helpers)])
    return validation.parse(document)


@pytest.mark.parametrize(("most", "kept"), [(9, [True, True, True]), (8, [False, True, True])])
async def test_graphs_are_kept_that_have_few_agents_together(most: int, kept: list[bool]) -> None:
    """Each has three: a helper, the root and general-purpose."""
    builder = graph.Builder(no_credentials, most=most)
    parsed = [with_helpers(prompt, 1) for prompt in ("one", "two", "three")]
    first = [await builder.build(each, no_tools) for each in parsed]
    again = [await builder.build(each, no_tools) for each in reversed(parsed)]
    assert [one is other for one, other in zip(first, reversed(again), strict=True)] == kept


async def test_a_graph_that_would_take_more_than_half_of_the_room_is_not_kept() -> None:
    builder = graph.Builder(no_credentials, most=9)
    small, large = with_helpers("small", 2), with_helpers("large", 3)
    first = [await builder.build(each, no_tools) for each in (small, large)]
    again = [await builder.build(each, no_tools) for each in (small, large)]
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, False]


async def test_jobs_that_ask_for_the_same_at_once_share_one_graph() -> None:
    builder = graph.Builder(no_credentials)
    parsed = validation.parse(agent([{"text": "x"}]))
    built = await asyncio.gather(*(builder.build(parsed, no_tools) for _ in range(5)))
    assert len(set(map(id, built))) == 1


async def test_a_kept_graph_calls_the_tools_of_the_job_that_runs_it(sandbox: Sandbox) -> None:
    counts = tool("count", source("count", "str(calls.append(1) or len(calls))").replace("@tool", "calls = []\n@tool"))
    parsed = validation.parse(agent([{"tool_calls": [{"name": "count"}]}, {"text": "{last}"}], tools=[counts]))
    builder = graph.Builder(no_credentials)
    for _ in range(2):
        async with sandbox.box(parsed.tool_definitions) as box:
            state = await (await builder.build(parsed, box.tools)).ainvoke(INPUT)
        assert state["messages"][-1].content == "1"


LOADING = """
import asyncio, sys, threading
from agent_executor import graph, validation

class Watching:
    seen = {}
    def find_spec(self, name, path=None, target=None):
        self.seen.setdefault(name, threading.current_thread().name)

async def credentials_of(provider):
    return {"api_key": "key-of-a-test"}

async def no_tools():
    return {}

model = {"provider": "anthropic", "model": "claude-3-5-haiku-latest"}
node = {"id": "lead", "type": "orchestrator", "config": {"name": "Lead", "system_prompt": "x", "model": model}}
sys.meta_path.insert(0, Watching())
assert "anthropic" not in sys.modules
asyncio.run(graph.Builder(credentials_of).build(validation.parse({"nodes": [node]}), no_tools))
print(Watching.seen["anthropic"], Watching.seen["langchain_anthropic.chat_models"])
"""


def test_a_providers_package_is_imported_where_no_agent_looks_at_it_meanwhile() -> None:
    """Its client, which takes seconds, in a thread."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True)
    client, package = done.stdout.split()
    assert client.startswith("asyncio_")
    assert package == "MainThread"
