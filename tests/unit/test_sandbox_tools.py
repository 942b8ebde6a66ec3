"""sandbox: what tool scripts may make and return, how their tools look to a model, and what comes of errors."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain.tools import ToolRuntime
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from agent_executor.definition import Definition
from agent_executor.errors import ToolFailed, ToolScriptError, ToolTimeout
from agent_executor.retries import may_pass
from agent_executor.sandbox import scripts
from agent_executor.sandbox.nursery import Nursery
from agent_executor.sandbox.options import Options
from agent_executor.sandbox.pool import Sandbox
from agent_executor.sandbox.proxy import ToolRaised
from tests.definitions import adder, agent, tool

HEAD = """
import os, threading
from typing import Annotated, Any
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, ToolException, tool
from langgraph.types import Command, interrupt
"""


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    files: Annotated[dict[str, Any], operator.or_]
    notes: Annotated[list[Any], operator.add]
    count: int


Call = Callable[..., Awaitable[Any]]


@pytest.fixture
def state_after(sandbox: Sandbox) -> Call:
    """The state after a graph has called the tool `one` of a script; keyword arguments are in the state before."""

    async def call(source: str, arguments: dict[str, Any] | None = None, **state: Any) -> Any:
        parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", HEAD + source)]))
        async with sandbox.box(parsed.tool_definitions) as box:
            graph = _graph(await box.tools())
            asks = AIMessage("", tool_calls=[{"name": "one", "args": arguments or {}, "id": "call-1"}])
            given: Any = {**state, "messages": [*state.get("messages", []), asks]}
            config: Any = {"configurable": {"thread_id": "job-1", "api_key": "canary", "idempotency_key": "key-1"}}
            return await graph.ainvoke(given, config)

    return call


@pytest.fixture
def result(state_after: Call) -> Call:
    """The ToolMessage that came of it."""

    async def call(source: str, arguments: dict[str, Any] | None = None, **state: Any) -> Any:
        return (await state_after(source, arguments, **state))["messages"][-1]

    return call


def _graph(tools: dict[str, BaseTool], **options: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("tools", ToolNode([*tools.values()]))
    builder.add_edge(START, "tools")
    builder.add_edge("tools", END)
    return builder.compile(**options)


async def loaded(sandbox: Sandbox, name: str, source: str) -> BaseTool:
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool(name, HEAD + source)]))
    async with sandbox.box(parsed.tool_definitions) as box:
        return (await box.tools())[name]


async def test_the_example_adds(sandbox: Sandbox) -> None:
    async with sandbox.box(Definition.model_validate(adder()).tool_definitions) as box:
        tools = await box.tools()
        asks = AIMessage("", tool_calls=[{"name": "add_numbers", "args": {"a": 2, "b": 3}, "id": "call-1"}])
        state = await _graph(tools).ainvoke({"messages": [asks]})
    assert state["messages"][-1].content == "5"


async def test_a_script_may_hold_helpers_and_several_tools(result: Call) -> None:
    source = (
        "def double(x):\n    return 2 * x\n"
        "@tool\ndef other() -> int:\n    'O.'\n    return 1\n"
        "@tool\ndef one(x: int) -> int:\n    'Doubles.'\n    return double(x)\n"
    )
    assert (await result(source, {"x": 4})).content == "8"


async def test_a_tool_may_be_a_class_and_have_a_name_of_its_own(sandbox: Sandbox) -> None:
    source = (
        "class Mine(BaseTool):\n    name: str = 'my tool'\n    description: str = 'd'\n"
        "    def _run(self) -> str:\n        return 'ran'\n"
        "mine = Mine()\n"
    )
    found = await loaded(sandbox, "my tool", source)
    assert (found.name, found.description) == ("my tool", "d")


async def test_scripts_share_nothing_but_the_process(sandbox: Sandbox) -> None:
    sources = {name: f"word = {name!r}\n@tool\ndef {name}() -> str:\n    'W.'\n    return word\n" for name in "ab"}
    both = [tool(name, HEAD + source) for name, source in sources.items()]
    definitions = Definition.model_validate(agent([{"text": "x"}], tools=both)).tool_definitions
    async with sandbox.box(definitions) as box:
        asks = AIMessage("", tool_calls=[{"name": name, "args": {}, "id": name} for name in "ab"])
        state = await _graph(await box.tools()).ainvoke({"messages": [asks]})
    assert [each.content for each in state["messages"][1:]] == ["a", "b"]


ORDINARY = {
    "a model of arguments": (
        "from typing import List, Optional\nfrom pydantic import BaseModel, Field\n"
        "class In(BaseModel):\n    x: int\n"
        "class Arguments(BaseModel):\n    q: Optional[List[In]] = Field(None, description='Q.')\n"
        "@tool(args_schema=Arguments)\ndef one(q=None):\n    'T.'\n    return f'{q[0].x} {type(q[0]).__name__}'\n",
        {"q": [{"x": 1}]},
        "1 In",
    ),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n"
        "@tool\ndef one() -> str:\n    'T.'\n    return str(Point(1))\n",
        {},
        "Point(x=1)",
    ),
    "a dataclass with annotations that are text": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass\nclass Point:\n    n: ClassVar[int] = 0\n    x: int = 1\n"
        "one = __import__('langchain_core.tools').tools.tool('one', description='T.')(lambda: str(Point()))\n",
        {},
        "Point(x=1)",
    ),
    "a model that refers to itself": (
        "from pydantic import BaseModel\nclass In(BaseModel):\n    x: int\n    y: 'In | None' = None\n"
        "@tool\ndef one(q: In) -> str:\n    'T.'\n    return str(q.y)\n",
        {"q": {"x": 1, "y": {"x": 2}}},
        "x=2 y=None",
    ),
    "types of a function": (
        "from pydantic import BaseModel\ndef make():\n    class In(BaseModel):\n        x: int\n"
        "    @tool\n    def one(q: In) -> str:\n        'T.'\n        return str(q)\n    return one\none = make()\n",
        {"q": {"x": 1}},
        "x=1",
    ),
    "its source": (
        "import inspect\n@tool\ndef one() -> str:\n    'T.'\n    return inspect.getsource(one.func)[:24] + __file__\n",
        {},
        "@tool\ndef one() -> str:\n<tool one>",
    ),
    "a class that is pickled": (
        "import pickle\nclass A: pass\n"
        "@tool\ndef one() -> str:\n    'T.'\n    return type(pickle.loads(pickle.dumps(A()))).__name__\n",
        {},
        "A",
    ),
}


@pytest.mark.parametrize("name", ORDINARY)
async def test_a_script_is_an_ordinary_module(sandbox: Sandbox, name: str) -> None:
    source, arguments, content = ORDINARY[name]
    whole = source if "__future__" in source else HEAD + source
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", whole)]))
    async with sandbox.box(parsed.tool_definitions) as box:
        asks = AIMessage("", tool_calls=[{"name": "one", "args": arguments, "id": "call-1"}])
        state = await _graph(await box.tools()).ainvoke({"messages": [asks]})
    assert state["messages"][-1].content == content


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
        ("import sys\nsys.exit(3)\n", "SystemExit"),
    ],
)
async def test_a_script_without_its_tool_is_told_why(sandbox: Sandbox, source: str, words: str) -> None:
    with pytest.raises(ToolScriptError, match="the script of tool 'one'") as raised:
        await loaded(sandbox, "one", source)
    assert words in str(raised.value)


async def test_a_script_that_ends_its_process_is_named(sandbox: Sandbox) -> None:
    with pytest.raises(ToolFailed, match="the script of tool 'one' ended its process with status 3"):
        await loaded(sandbox, "one", "os._exit(3)")


SCHEMAS = [
    "@tool\ndef one(a: int, b: str = 'x', c: list[dict[str, float]] | None = None) -> str:\n    'Does it.'\n",
    "@tool(parse_docstring=True)\ndef one(a: int) -> str:\n  '''Does it.\n\n  Args:\n    a: a number\n  '''\n",
    "@tool\ndef one(a: int, runtime: ToolRuntime = None) -> str:\n    'Does it.'\n",
    "@tool\ndef one(state: Annotated[dict, InjectedState], a: int, i: Annotated[str, InjectedToolCallId]) -> str:\n"
    "    'D.'\n",
    "@tool\nasync def one(a: int) -> str:\n    'Does it.'\n",
    "class One(BaseTool):\n  name: str = 'one'\n  description: str = 'D.'\n"
    "  def _run(self, a: int) -> str:\n    'x'\none = One()\n",
    "from langchain_core.tools import StructuredTool\none = StructuredTool(name='one', description='D.', "
    "args_schema={'type': 'object', 'properties': {'a': {'type': 'integer'}}}, func=lambda a: 'x')\n",
    "from pydantic import BaseModel\nclass In(BaseModel):\n    x: int\nclass Out(BaseModel):\n    i: list[In]\n"
    "    j: In\n@tool\ndef one(a: Out, b: In | None = None) -> str:\n    'D.'\n",
    "from pydantic import BaseModel\nclass In(BaseModel):\n    x: int\n    y: 'list[In] | None' = None\n"
    "@tool\ndef one(a: In) -> str:\n    'D.'\n",
]


@pytest.mark.parametrize("source", SCHEMAS)
async def test_a_tool_looks_to_a_model_as_it_would_in_process(sandbox: Sandbox, source: str) -> None:
    found = convert_to_openai_tool(await loaded(sandbox, "one", source))
    assert found == convert_to_openai_tool(scripts.load("one", HEAD + source))
    assert not {"runtime", "state", "i"} & found["function"]["parameters"]["properties"].keys()


BOMB = (
    "from langchain_core.tools import StructuredTool\ndefs = {'a0': {'type': 'string'}}\nfor n in range(1, 40):\n"
    "    below = {'$ref': f'#/$defs/a{n - 1}'}\n"
    "    defs[f'a{n}'] = {'type': 'object', 'properties': {'x': below, 'y': below}}\n"
    "schema = {'type': 'object', 'properties': {'p': {'$ref': '#/$defs/a39'}}, '$defs': defs}\n"
    "one = StructuredTool(name='one', description='D.', args_schema=schema, func=lambda p: 'x')\n"
)


async def test_a_schema_that_grows_without_end_is_the_childs_own_problem(nursery: Nursery) -> None:
    sandbox = Sandbox(Options(mode="best-effort", timeout_s=0.5), nursery)
    with pytest.raises((ToolFailed, ToolTimeout), match="the script of tool 'one'"):
        await loaded(sandbox, "one", BOMB)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{'properties': {'p': {'$ref': '#/nowhere'}}}", "Reference '#/nowhere' not found"),
        ("{'properties': 1}", "properties that are none"),
        ("{'properties': {'p': {'enum': ['x' * 100] * 1000}}}", "of 65536"),
    ],
)
async def test_a_tool_whose_schema_is_none_is_told_so(sandbox: Sandbox, schema: str, words: str) -> None:
    source = (
        "from langchain_core.tools import StructuredTool\n"
        f"one = StructuredTool(name='one', description='D.', args_schema={schema}, func=lambda: 'x')\n"
    )
    with pytest.raises(ToolScriptError, match=words):
        await loaded(sandbox, "one", source)


@pytest.mark.parametrize(
    ("returned", "content"),
    [
        ("'text'", "text"),
        ("5", "5"),
        ("{'a': [1, None, 2.5], 'b': 'ä'}", '{"a": [1, null, 2.5], "b": "ä"}'),
        ("[{'type': 'text', 'text': 'block'}]", [{"type": "text", "text": "block"}]),
        ("object", "<class 'object'>"),
        ("'a' + chr(0) + chr(0xD800)", "a\0\ud800"),
        ("ToolMessage('own', tool_call_id='call-1')", "own"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_a_tool_returns(result: Call, kind: str, returned: str, content: Any) -> None:
    found = await result(f"@tool\n{kind} one() -> Any:\n    'T.'\n    return {returned}\n")
    assert (found.content, found.tool_call_id, found.status) == (content, "call-1", "success")


async def test_a_tool_may_return_an_artifact(result: Call) -> None:
    source = (
        "@tool(response_format='content_and_artifact')\ndef one() -> Any:\n    'T.'\n    return 'text', {'rows': [1]}\n"
    )
    found = await result(source)
    assert (found.content, found.artifact) == ("text", {"rows": [1]})


async def test_an_artifact_keeps_messages_documents_and_bytes(result: Call) -> None:
    source = (
        "from decimal import Decimal\nfrom uuid import UUID\nfrom langchain_core.documents import Document\n"
        "@tool(response_format='content_and_artifact')\ndef one() -> Any:\n    'T.'\n"
        "    return 'text', [HumanMessage('x'), Document('y'), b'z', UUID(int=1), Decimal('1.5'), {'$message': 1}]\n"
    )
    texts = ["00000000-0000-0000-0000-000000000001", "1.5"]
    expected = [HumanMessage("x"), Document("y"), b"z", *texts, {"$message": 1}]
    assert (await result(source)).artifact == expected


async def test_state_may_hold_what_looks_like_the_protocol(result: Call) -> None:
    source = (
        "@tool\ndef one(state: Annotated[dict, InjectedState]) -> str:\n    'T.'\n    return repr(state['files'])\n"
    )
    files = {"$message": "hello", "b": b"bytes"}
    assert (await result(source, files=files)).content == repr(files)
    assert (await result(source, files={"$message": "hello"})).content == repr({"$message": "hello"})


async def test_state_that_cannot_be_sent_fails_the_call_that_needs_it(result: Call) -> None:
    source = "@tool\ndef one(state: Annotated[dict, InjectedState]) -> str:\n    'T.'\n    return 'x'\n"
    with pytest.raises(ToolFailed, match=r"tool 'one' cannot be given .* the state: builtins.object has no JSON form"):
        await result(source, files={"a": object()})


async def test_an_artifact_without_a_json_form_is_refused(result: Call) -> None:
    source = "@tool(response_format='content_and_artifact')\ndef one() -> Any:\n    'T.'\n    return 'text', object()\n"
    with pytest.raises(ToolFailed, match=r"tool 'one': .*cannot leave the sandbox.*builtins.object has no JSON form"):
        await result(source)


async def test_an_artifact_whose_form_fails_is_refused(result: Call) -> None:
    source = (
        "class Odd:\n    def isoformat(self): return 1 / 0\n"
        "@tool(response_format='content_and_artifact')\ndef one() -> Any:\n    'T.'\n    return 'text', Odd()\n"
    )
    with pytest.raises(ToolFailed, match=r"tool 'one': .*cannot leave the sandbox: division by zero"):
        await result(source)


async def test_a_tool_may_update_the_state(state_after: Call) -> None:
    source = (
        "@tool\ndef one(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:\n    'T.'\n"
        "    done = ToolMessage('done', tool_call_id=tool_call_id)\n"
        "    files = {'/a': {'content': 'x'}}\n"
        "    return Command(update={'messages': [done], 'files': files, 'notes': [{'n': 1}], 'count': 7})\n"
    )
    state = await state_after(source, files={"/b": 1}, notes=["first"])
    assert state["messages"][-1].content == "done"
    assert state["messages"][-1].name == "one"
    assert (state["files"], state["notes"], state["count"]) == (
        {"/a": {"content": "x"}, "/b": 1},
        ["first", {"n": 1}],
        7,
    )


@pytest.mark.parametrize("command", ["Command(resume=1)", "Command(goto=__import__('langgraph').types.Send('x', {}))"])
async def test_a_command_can_do_no_more(result: Call, command: str) -> None:
    with pytest.raises(ToolRaised, match=r"update, goto \(names of nodes\) and graph"):
        await result(f"import langgraph.types\n@tool\ndef one() -> Any:\n    'T.'\n    return {command}\n")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("Command(update={'count': 1, 'notes': [2]})", ["Updated: count, notes."]),
        ("Command(update={'messages': [], 'count': 1})", ["Updated: count."]),
        ("Command(update={'messages': [HumanMessage('aside')], 'count': 1})", ["aside", "Updated: count."]),
        ("[Command(update={'count': 1}), Command(update={'notes': [2]})]", ["Updated: count, notes."]),
        ("Command(update={'messages': [{'role': 'tool', 'content': 'own', 'tool_call_id': 'call-1'}]})", ["own"]),
        ("[Command(update={'count': 1}), ToolMessage('own', tool_call_id='call-1')]", ["own"]),
        ("Command()", ["Done."]),
    ],
)
async def test_a_command_without_the_message_of_its_call_gets_one(
    state_after: Call, returned: str, said: list[str]
) -> None:
    state = await state_after(f"@tool\ndef one() -> Any:\n    'T.'\n    return {returned}\n")
    assert sorted(message.content for message in state["messages"][1:]) == sorted(said)
    answers = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    assert [message.tool_call_id for message in answers] == ["call-1"]


async def test_state_is_injected_with_its_messages(result: Call) -> None:
    source = (
        "@tool\ndef one(state: Annotated[dict, InjectedState], n: Annotated[int, InjectedState('count')]) -> str:\n"
        "    'T.'\n    said = state['messages'][0]\n"
        "    return f\"{type(said).__name__} {said.content} {n} {state['files']}\"\n"
    )
    found = await result(source, {"n": 99, "state": {}}, messages=[HumanMessage("hi")], count=7, files={"/a": 1})
    assert found.content == "HumanMessage hi 7 {'/a': 1}"


async def test_a_runtime_is_injected_without_secrets(result: Call) -> None:
    source = (
        "@tool\ndef one(runtime: ToolRuntime = None) -> dict:\n    'T.'\n"
        "    found = runtime.config['configurable']\n"
        "    return {'state': runtime.state['count'], 'call': runtime.tool_call_id, 'key': found['idempotency_key'],\n"
        "            'job': found['thread_id'], 'secret': 'canary' in repr(runtime),\n"
        "            'environment': os.environ['AGENT_EXECUTOR_IDEMPOTENCY_KEY'], 'got': os.environ.get('N', 'none')}\n"
    )
    found = await result(source, count=7)
    expected = {"state": 7, "call": "call-1", "key": "key-1", "job": "job-1", "secret": False}
    assert eval(found.content.replace("false", "False")) == expected | {"environment": "key-1", "got": "none"}


async def test_a_stream_writer_and_the_config_are_there(result: Call) -> None:
    source = (
        "from langchain_core.runnables import RunnableConfig\nfrom langgraph.config import get_stream_writer\n"
        "@tool\ndef one(config: RunnableConfig) -> str:\n    'T.'\n    get_stream_writer()({'a': 1})\n"
        "    return config['configurable']['thread_id']\n"
    )
    assert (await result(source)).content == "job-1"


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_exception_is_raised_by_name_with_its_place_in_the_script(result: Call, kind: str) -> None:
    with pytest.raises(ToolRaised, match="no luck") as raised:
        await result(f"@tool\n{kind} one() -> str:\n    'T.'\n    raise LookupError('no luck')\n")
    assert type(raised.value).__name__ == "LookupError"
    assert '"<tool one>", line 11, in one' in raised.value.__notes__[0]
    assert "raise LookupError('no luck')\n" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        ("ValueError('x')", False),
        ("ConnectionError('x')", True),
        ("TimeoutError('x')", True),
        ("ConnectionResetError('x')", True),
        ("type('Mine', (Exception,), {'status_code': 503})('x')", True),
        ("type('Mine', (Exception,), {'status_code': 400})('x')", False),
    ],
)
async def test_what_may_pass_is_tried_again_as_before(result: Call, error: str, passes: bool) -> None:
    with pytest.raises(ToolRaised) as raised:
        await result(f"@tool\ndef one() -> str:\n    'T.'\n    raise {error}\n")
    assert may_pass(raised.value) is passes


async def test_a_handled_tool_exception_goes_to_the_model(result: Call) -> None:
    source = "@tool\ndef one() -> str:\n    'T.'\n    raise ToolException('use 2')\n{}"
    found = await result(source.format("one.handle_tool_error = True\n"))
    assert (found.content, found.status) == ("use 2", "error")
    with pytest.raises(ToolRaised, match="use 2") as raised:
        await result(source.format(""))
    assert type(raised.value).__name__ == ToolException.__name__


async def test_arguments_that_do_not_fit_are_told_to_the_model(result: Call) -> None:
    found = await result("@tool\ndef one(a: int) -> int:\n    'T.'\n    return a\n", {"a": "no number"})
    assert found.status == "error"
    assert "a: Input should be a valid integer" in found.content


async def test_a_tool_that_exits_fails_its_call(result: Call) -> None:
    with pytest.raises(ToolRaised, match="SystemExit in a tool: 3"):
        await result("import sys\n@tool\ndef one() -> str:\n    'T.'\n    sys.exit(3)\n")


class Hurried(Options):
    """A second of CPU time for a whole run."""

    cpu_s = 1


async def test_a_tool_that_uses_up_its_cpu_time_is_told_so(nursery: Nursery) -> None:
    source = HEAD + "@tool\ndef one() -> str:\n    'T.'\n    while True: pass\n"
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", source)]))
    async with Sandbox(Hurried(mode="best-effort", timeout_s=20), nursery).box(parsed.tool_definitions) as box:
        asks = AIMessage("", tool_calls=[{"name": "one", "args": {}, "id": "call-1"}])
        graph = _graph(await box.tools())
        with pytest.raises(ToolFailed, match="tool 'one' used its process's 1 s of CPU time and was stopped"):
            await graph.ainvoke({"messages": [asks]})


async def test_print_goes_nowhere_and_blocks_nothing(result: Call) -> None:
    assert (
        await result("@tool\ndef one() -> str:\n    'T.'\n    print('x' * 10**7)\n    return 'ran'\n")
    ).content == "ran"


ASKING = (
    "@tool\n{kind} one(start: int) -> str:\n    'T.'\n    first = interrupt({{'ask': start}})\n"
    "    second = interrupt(f'{{first}}?')\n    return f'{{first}} {{second}}'\n"
)


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_tool_may_interrupt_and_is_answered_in_order(sandbox: Sandbox, kind: str) -> None:
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", HEAD + ASKING.format(kind=kind))]))
    config: Any = {"configurable": {"thread_id": "job-1"}}
    saver = InMemorySaver()
    given: Any = {"messages": [AIMessage("", tool_calls=[{"name": "one", "args": {"start": 1}, "id": "call-1"}])]}
    asked = []
    answers: list[Any] = [given, Command(resume="a"), Command(resume={"b": 1})]
    for answer in answers:
        async with sandbox.box(parsed.tool_definitions) as box:  # another process each time, as after a restart
            state = await _graph(await box.tools(), checkpointer=saver).ainvoke(answer, config)
            asked.append([each.value for each in state.get("__interrupt__", [])])
    assert asked == [[{"ask": 1}], ["a?"], []]
    assert state["messages"][-1].content == "a {'b': 1}"


ODD = "@tool\ndef one() -> str:\n    'T.'\n    return repr(interrupt({{'ask': {value}}}))\n"


@pytest.mark.parametrize(
    ("value", "asked", "repair"),
    [
        ("2**70", str(2**70), "an integer beyond 64 bits became a string"),
        ("'a\\ud800'", "a\ufffd", "lone surrogates were replaced"),
        ("'a\\0'", "a\ufffd", "NUL characters were replaced"),
        ("float('nan')", None, "a number that is not finite became null"),
    ],
)
async def test_what_a_tool_asks_is_repaired_and_that_is_told(
    sandbox: Sandbox, value: str, asked: Any, repair: str
) -> None:
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", HEAD + ODD.format(value=value))]))
    config: Any = {"configurable": {"thread_id": "job-1"}}
    given: Any = {"messages": [AIMessage("", tool_calls=[{"name": "one", "args": {}, "id": "call-1"}])]}
    told = []
    async with sandbox.box(parsed.tool_definitions) as box:
        graph = _graph(await box.tools(), checkpointer=InMemorySaver())
        async for item in graph.astream(given, config, stream_mode="custom"):
            told.append(item)
        state = await graph.aget_state(config)
    assert [each.value for each in state.interrupts] == [{"ask": asked}]
    message = f"what tool one asks was repaired: {repair}"
    assert told == [{"event_type": "warning", "data": {"message": message, "about": "tool one"}}]


LOCKED = (
    "import asyncio\nlock = asyncio.Lock()\n@tool\nasync def one(n: int) -> str:\n    'T.'\n"
    "    async with lock:\n        await asyncio.sleep(0.05)\n"
    "        there = await asyncio.to_thread(os.environ.get, 'AGENT_EXECUTOR_IDEMPOTENCY_KEY')\n"
    "    return f\"{n} {there == os.environ['AGENT_EXECUTOR_IDEMPOTENCY_KEY']} {there}\"\n"
)


async def side_by_side(sandbox: Sandbox, source: str, calls: int) -> list[str]:
    """What that many calls of the tool `one` return, each with the key of its number."""
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", HEAD + source)]))
    async with sandbox.box(parsed.tool_definitions) as box, asyncio.timeout(5):
        made = (await box.tools())["one"]

        async def call(n: int) -> str:
            config: Any = {"configurable": {"idempotency_key": f"key-{n}"}}
            given: Any = {"state": {}, "context": None, "config": config, "stream_writer": print, "store": None}
            arguments = {"n": n, "runtime": ToolRuntime(**given, tool_call_id=str(n))}
            found = await made.ainvoke({"type": "tool_call", "name": "one", "id": str(n), "args": arguments})
            return str(found.content)

        return await asyncio.gather(*map(call, range(calls)))


async def test_coroutines_of_one_step_share_what_belongs_to_a_loop(sandbox: Sandbox) -> None:
    assert await side_by_side(sandbox, LOCKED, 3) == [f"{n} True key-{n}" for n in range(3)]


POOLED = (
    "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\nmeet = threading.Barrier(CALLS)\n"
    "def key(_=None): return os.environ.get('AGENT_EXECUTOR_IDEMPOTENCY_KEY', 'none')\n"
    "def inner(found):\n    thread = threading.Thread(target=lambda: found.append(key()))\n"
    "    thread.start(); thread.join()\n    return found[0]\n"
    "@tool\ndef one(n: int) -> str:\n    'T.'\n    meet.wait(10)\n"
    "    found = [pool.submit(key).result(), *pool.map(key, [1]), inner([])]\n    meet.wait(10)\n"
    "    return ' '.join(found)\n"
)


@pytest.mark.parametrize(("calls", "in_a_thread"), [(1, "key-0"), (2, "none")])
async def test_threads_of_a_tool_have_its_key(sandbox: Sandbox, calls: int, in_a_thread: str) -> None:
    found = await side_by_side(sandbox, POOLED.replace("CALLS", str(calls)), calls)
    assert found == [f"key-{n} key-{n} {in_a_thread}" for n in range(calls)]


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_tool_may_run_coroutines_of_its_own(result: Call, kind: str) -> None:
    source = "    async def f():\n        await asyncio.sleep(0.01)\n        return 'ran'\n"
    run = "asyncio.run(f())" if kind == "def" else "await f()"
    found = await result(f"import asyncio\n@tool\n{kind} one() -> str:\n    'T.'\n{source}    return {run}\n")
    assert found.content == "ran"


@pytest.mark.parametrize("ends", ["raise SystemExit(3)", "asyncio.get_running_loop().stop()"])
async def test_the_loop_outlives_what_a_tool_does_to_it(sandbox: Sandbox, ends: str) -> None:
    source = (
        f"import asyncio\nasync def end():\n    {ends}\n"
        "@tool\nasync def one() -> str:\n    'T.'\n    task = asyncio.create_task(end())\n"
        "    await asyncio.sleep(0.01)\n    return str(task.done())\n"
    )
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", HEAD + source)]))
    asks = AIMessage("", tool_calls=[{"name": "one", "args": {}, "id": "call-1"}])
    async with sandbox.box(parsed.tool_definitions) as box, asyncio.timeout(5):
        graph = _graph(await box.tools())
        for _ in range(2):
            assert (await graph.ainvoke({"messages": [asks]}))["messages"][-1].content == "True"


async def test_calls_of_one_step_run_side_by_side_each_with_its_key(sandbox: Sandbox) -> None:
    source = (
        "meet = threading.Barrier(2)\n@tool\ndef one(n: int, i: Annotated[str, InjectedToolCallId]) -> str:\n    'T.'\n"
        "    meet.wait(10)\n    return i\n"
    )
    parsed = Definition.model_validate(agent([{"text": "x"}], tools=[tool("one", HEAD + source)]))
    async with sandbox.box(parsed.tool_definitions) as box:
        calls = [{"name": "one", "args": {"n": n}, "id": f"call-{n}"} for n in range(2)]
        state = await _graph(await box.tools()).ainvoke({"messages": [AIMessage("", tool_calls=calls)]})
    assert [each.content for each in state["messages"] if isinstance(each, ToolMessage)] == ["call-0", "call-1"]
