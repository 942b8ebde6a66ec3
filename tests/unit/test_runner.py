"""runner: a claimed job from its first step to its outcome, with checkpoints in memory."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypedDict, cast
from uuid import UUID

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import START, StateGraph
from langgraph.types import _interrupt_id

from agent_executor import checkpoints, database, strict_json
from agent_executor.errors import LeaseLost, NotDeployed, Stopped, Unavailable
from agent_executor.graphs import Graphs
from agent_executor.job import Status
from agent_executor.ledger import Claim
from agent_executor.limits import Limit, Limits
from agent_executor.runner import Answers, Runner, output
from agent_executor.sandbox.pool import Sandbox
from tests.definitions import INPUT, adder, agent, specialist, tool

POOL = database.pool("host=nowhere.invalid", 2)
ASKS_TWICE = """
import pathlib
from langchain_core.tools import tool
from langgraph.types import interrupt

@tool
def ask() -> str:
    "T."
    first = interrupt(1)
    if pathlib.Path({sign!r}).exists():
        raise ValueError("no luck")
    return f"{{first}} {{interrupt(2)}}"
"""
HEAD = "from langchain_core.tools import tool\n"


WITHOUT_A_KEY = agent([{"text": "x"}])
WITHOUT_A_KEY["nodes"][0]["config"]["model"] = {"provider": "openai", "model": "m"}
NEEDS_A_PACKAGE = agent([{"text": "x"}], tools=[tool("one", "1")])
NEEDS_A_PACKAGE["tool_definitions"][0]["runtime"]["dependencies"] = ["no-such-distribution"]


class Seen(TypedDict):
    seen: str


class Heard:
    """Stands for stream.Channel."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def emit(self, event_type: str, data: Any) -> None:
        self.events.append((event_type, strict_json.loads(strict_json.dumps(data))))

    def __getitem__(self, event_type: str) -> list[Any]:
        return [data for kind, data in self.events if kind == event_type]


class Memory(InMemorySaver):
    """Keeps what was used beside the checkpoints."""

    usage_at: Callable[[int], dict[str, float]]
    channels: set[str]
    used: dict[str, float] = {}  # noqa: RUF012 - replaced, never changed

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        self.used = self.usage_at(metadata["step"])
        return await super().aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self.channels.update(channel for channel, _ in writes)
        await super().aput_writes(config, writes, task_id, task_path)

    async def usage(self) -> dict[str, float]:
        return self.used

    @property
    def has_asked(self) -> bool:
        return "__interrupt__" in self.channels


FENCES = {"next": count(1)}
"""Every claim of a test has a fence of its own, as every claim of a job has."""


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> InMemorySaver:
    """Stands for PostgreSQL's checkpoints."""
    saver = Memory()
    FENCES["next"] = count(1)

    def made(
        pool: Any,
        job_id: str,
        fence: int,
        usage_at: Callable[[int], dict[str, float]],
        *,
        group: Any,
        bases: Any,
        is_new: bool,
    ) -> Memory:
        saver.usage_at, saver.channels = usage_at, set()
        return saver

    monkeypatch.setattr(checkpoints, "Saver", made)
    return saver


async def no_credentials(provider: str) -> Mapping[str, str]:
    return {}


def claim(definition: dict[str, Any], answers: dict[str, Any] | None = None) -> Claim:
    fence = next(FENCES["next"])
    return Claim("job-1", "trace-1", definition, INPUT, traceparent=None, attempt=1, fence=fence, answers=answers or {})


Run = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture
def runner(sandbox: Sandbox) -> Callable[..., Runner]:
    def make(max_steps: int = 100, **options: Any) -> Runner:
        limits = Limits(steps=Limit("MAX_STEPS", max_steps))
        return Runner(POOL, no_credentials, sandbox, limits=limits, **options)

    return make


@pytest.fixture
def run(runner: Callable[..., Runner]) -> Run:
    """Run a definition to its outcome."""

    async def run(
        definition: dict[str, Any], heard: Heard | None = None, answers: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        channel: Any = heard or Heard()
        one = runner(**options)
        return await one.run(claim(definition, answers), channel, one.control())

    return run


async def test_a_job_completes_with_the_last_messages_content_and_says_what_it_does(run: Run) -> None:
    heard = Heard()
    outcome = await run(adder(), heard)
    assert (outcome.status, outcome.result, outcome.error) == (Status.COMPLETED, "The Calculator says: 5", None)
    tools = [(kind, data["name"], data["path"]) for kind, data in heard.events if "tool" in kind]
    assert tools == [
        ("on_tool_start", "task", []),
        ("on_tool_start", "add_numbers", ["Calculator"]),
        ("on_tool_end", "add_numbers", ["Calculator"]),
        ("on_tool_end", "task", []),
    ]
    spoken = "".join(each["content"] for each in heard["on_llm_stream"] if each["path"] == [])
    assert spoken == "Let me ask the Calculator.The Calculator says: 5"
    assert heard["on_state_update"][-1]["messages"][-1]["content"] == "The Calculator says: 5"
    assert not {"end", "error"} & {kind for kind, _ in heard.events}


async def test_a_job_that_was_cut_off_goes_on_from_its_checkpoint(run: Run) -> None:
    started = asyncio.Event()
    asked: list[str] = []
    source = HEAD + "calls = []\n@tool\ndef once() -> str:\n    'T.'\n    return 'first result'\n"
    slow = {"text": "got: {last}", "delay_ms": 60_000}
    quick = {"text": "got: {last}"}

    class Watching(Heard):
        def emit(self, event_type: str, data: Any) -> None:
            super().emit(event_type, data)
            if event_type == "on_state_update" and self[event_type][-1]["messages"][-1]["role"] == "tool":
                started.set()

    call = {"tool_calls": [{"name": "once"}]}
    running = asyncio.create_task(run(agent([call, slow], tools=[tool("once", source)]), Watching()))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    heard = Heard()
    outcome = await run(agent([call, quick], tools=[tool("once", source)]), heard)
    assert outcome.result == "got: first result"
    assert heard["on_tool_start"] == asked == []
    assert [each["role"] for each in heard["on_state_update"][-1]["messages"]] == [
        *("user", "assistant", "tool", "assistant")
    ]


async def test_a_job_that_had_already_ended_runs_no_node_again(run: Run) -> None:
    first = await run(agent([{"text": "once"}]))
    heard = Heard()
    again = await run(agent([{"text": "twice"}]), heard)
    assert first.result == again.result == "once"
    assert heard["on_llm_stream"] == []


async def test_an_exception_is_a_failed_outcome_with_its_trace(run: Run) -> None:
    boom = tool("boom", HEAD + "@tool\ndef boom() -> str:\n    'T.'\n    raise ValueError('no luck')\n")
    outcome = await run(agent([{"tool_calls": [{"name": "boom"}]}, {"text": "never"}], tools=[boom]))
    assert outcome.status is Status.FAILED
    assert (outcome.error["message"], outcome.error["type"]) == ("no luck", "ValueError")
    assert '"<tool boom>", line 5' in outcome.error["stack_trace"]


async def test_error_detail_message_leaves_the_trace_out(run: Run) -> None:
    outcome = await run(agent([{"error": "overloaded"}]), error_detail="message")
    assert outcome.error == {"message": "overloaded", "type": "ScriptedError", "stack_trace": ""}


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        (agent([{"text": "x"}], tools=[tool("one", "1/0")]), "ToolScriptError"),
        (WITHOUT_A_KEY, "ModelUnavailable"),
    ],
)
async def test_a_definition_that_cannot_be_built_fails_without_a_trace(
    run: Run, definition: dict[str, Any], kind: str
) -> None:
    outcome = await run(definition)
    assert (outcome.status, outcome.error["type"], outcome.error["stack_trace"]) == (Status.FAILED, kind, "")


@pytest.mark.parametrize("definition", [{"graph": "newer"}, NEEDS_A_PACKAGE, {"nodes": []}])
async def test_what_this_process_cannot_run_is_no_outcome(run: Run, definition: dict[str, Any]) -> None:
    with pytest.raises(NotDeployed, match="not with what is deployed here: invalid agent definition: "):
        await run(definition)


async def test_a_factory_is_given_the_config_of_its_run(run: Run) -> None:
    given: list[Any] = []

    def only(state: Seen, config: RunnableConfig) -> Seen:
        given.append(config)
        return {"seen": "x"}

    def factory(config: RunnableConfig) -> Any:
        given.append(copy.deepcopy(config))
        config["configurable"]["thread_id"] = "another"
        made = StateGraph(Seen)
        made.add_node("only", only)
        made.add_edge(START, "only")
        return made

    asked = {"graph": "mine", "config": {"configurable": {"unit": "words"}, "tags": ["t"], "recursion_limit": 7}}
    outcome = await run(asked, graphs=Graphs({"mine": factory}))
    assert outcome.status is Status.COMPLETED, outcome
    assert given[0] == {
        "configurable": {"unit": "words", "thread_id": "job-1"},
        "tags": ["t"],
        "recursion_limit": 7,
    }
    assert given[1]["configurable"]["thread_id"] == "job-1"
    assert given[1]["recursion_limit"] == 7


async def test_a_message_that_cannot_be_stored_is_repaired(run: Run) -> None:
    outcome = await run(agent([{"error": "a\0b\ud800"}]))
    assert outcome.error["message"] == "a\ufffdb\ufffd"
    assert "\0" not in outcome.error["stack_trace"]


async def test_a_script_that_exits_fails_its_job_only(run: Run) -> None:
    outcome = await run(agent([{"text": "x"}], tools=[tool("one", "raise SystemExit(3)")]))
    assert outcome.status is Status.FAILED


@pytest.mark.parametrize(
    ("state", "given"),
    [
        ({"messages": [AIMessage("a"), AIMessage("b")]}, "b"),
        ({"messages": [AIMessage([{"type": "text", "text": "b"}, {"type": "text", "text": "c"}])]}, "bc"),
        ({"messages": [AIMessage([{"type": "image", "url": "u"}])]}, [{"type": "image", "url": "u"}]),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "b"),
        ({"messages": [{"text": "b"}]}, {"messages": [{"text": "b"}]}),
        ({"messages": [("ai", "b")]}, {"messages": [["ai", "b"]]}),
        ({"messages": ["a", "b"]}, {"messages": ["a", "b"]}),
        ({"messages": "text"}, {"messages": "text"}),
        ({"messages": {"a": 1}}, {"messages": {"a": 1}}),
        ({"messages": []}, {"messages": []}),
        ({"total": 5}, {"total": 5}),
        ("text", "text"),
    ],
)
def test_the_output(state: Any, given: Any) -> None:
    assert output(state) == given


KEY = """
from langchain.tools import ToolRuntime
from langchain_core.tools import tool

@tool
def key(runtime: ToolRuntime = None) -> str:
    "T."
    return runtime.config["configurable"]["idempotency_key"]
"""


async def test_every_tool_call_has_an_idempotency_key_of_its_own(run: Run) -> None:
    heard = Heard()
    twice = {"tool_calls": [{"name": "key"}, {"name": "key"}]}
    await run(agent([twice, {"tool_calls": [{"name": "key"}]}, {"text": "x"}], tools=[tool("key", KEY)]), heard)
    keys = [data["result"] for data in heard["on_tool_end"]]
    assert len(set(keys)) == 3
    assert all(UUID(each) for each in keys)


async def test_a_run_that_is_asked_to_stop_ends_at_a_checkpoint_and_goes_on_from_there(
    runner: Callable[..., Runner], memory: InMemorySaver
) -> None:
    """Also in the middle of a specialist."""
    one = runner()

    class Stopping(Heard):
        def emit(self, event_type: str, data: Any) -> None:
            super().emit(event_type, data)
            if event_type == "on_tool_start" and self[event_type][-1]["name"] == "add_numbers":
                control.request_drain()

    control, heard = one.control(), Stopping()
    with pytest.raises(Stopped):
        await one.run(claim(adder()), heard, control)  # type: ignore[arg-type]
    again = Heard()
    outcome = await one.run(claim(adder()), again, one.control())  # type: ignore[arg-type]
    assert (outcome.status, outcome.result) == (Status.COMPLETED, "The Calculator says: 5")
    tools = [each["name"] for each in (*heard["on_tool_start"], *again["on_tool_start"])]
    assert tools.count("add_numbers") == 1, "a finished step was run again"


@pytest.mark.parametrize("error", [Unavailable("away"), LeaseLost("gone")])
async def test_what_is_no_outcome_is_raised(run: Run, memory: InMemorySaver, error: Exception) -> None:
    async def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    memory.aput = fail  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        await run(adder())


# --- limits ----------------------------------------------------------------------------------------------------------

NOOP = tool("noop", HEAD + "@tool\ndef noop() -> str:\n    'T.'\n    return 'x'\n")
CALLS_NOOP = {"tool_calls": [{"name": "noop"}]}
ASKS = {"tool_calls": [{"name": "task", "args": {"subagent_type": "Helper", "description": "x"}}]}
LARGE = tool("large", HEAD + "@tool\ndef large() -> str:\n    'T.'\n    return 'x' * 5000\n")
SLEEPS = tool("sleeps", HEAD + "import time\n@tool\ndef sleeps() -> str:\n    'T.'\n    time.sleep(60)\n")


def in_circles(replies: int = 40) -> dict[str, Any]:
    return agent([CALLS_NOOP] * replies, tools=[NOOP])


def helper_in_circles() -> dict[str, Any]:
    document = agent([ASKS, {"text": "x"}], specialists=[specialist("Helper", [CALLS_NOOP] * 40, ["noop"])])
    return document | {"tool_definitions": [NOOP]}


@pytest.mark.parametrize(
    ("definition", "limits", "message"),
    [
        (in_circles(), {"steps": 10}, "the job went beyond limits.steps (10)"),
        (helper_in_circles(), {"steps": 10}, "the job went beyond limits.steps (10)"),
        (in_circles(), {"model_calls": 3}, "the job went beyond limits.model_calls (3)"),
        (helper_in_circles(), {"model_calls": 3}, "the job went beyond limits.model_calls (3)"),
        (
            agent([CALLS_NOOP | {"tokens": 60}] * 9, tools=[NOOP]),
            {"tokens": 100},
            "the job went beyond limits.tokens (100)",
        ),
        (agent([{"text": "x", "delay_ms": 60_000}]), {"timeout_s": 0.3}, "the job went beyond limits.timeout_s (0.3)"),
        (
            agent([{"tool_calls": [{"name": "sleeps"}]}], tools=[SLEEPS]),
            {"timeout_s": 0.5},
            "the job went beyond limits.timeout_s (0.5)",
        ),
        (
            agent([{"tool_calls": [{"name": "large"}]}, {"text": "x"}], tools=[LARGE]),
            {"tool_output_bytes": 1024},
            "tool 'large' returned more than limits.tool_output_bytes (1024)",
        ),
        (
            agent([{"tool_calls": [{"name": "large"}]}, {"text": "x"}], tools=[LARGE]),
            {"state_bytes": 4000},
            "the state went beyond limits.state_bytes (4000)",
        ),
        (in_circles(200), {}, "the job went beyond MAX_STEPS (100)"),
        (in_circles(200), {"steps": 1000}, "the job went beyond MAX_STEPS (100)"),
    ],
)
async def test_a_job_that_goes_beyond_a_limit_fails_and_is_told_which(
    run: Run, definition: dict[str, Any], limits: dict[str, Any], message: str
) -> None:
    outcome = await run(definition | {"limits": limits})
    assert outcome.status is Status.FAILED
    assert (outcome.error["type"], outcome.error["message"]) == ("LimitExceeded", message)
    assert not outcome.may_pass


async def test_a_limit_that_a_node_sets_for_its_own_graph_is_none_of_the_jobs(run: Run) -> None:
    circle = StateGraph(Seen)
    circle.add_node("again", lambda state: {"seen": "x"})
    circle.add_edge(START, "again")
    circle.add_edge("again", "again")
    endless = circle.compile()
    made = StateGraph(Seen)
    made.add_node("node", lambda state: endless.invoke(state, {"recursion_limit": 5}))
    made.add_edge(START, "node")
    outcome = await run({"graph": "mine"}, graphs=Graphs({"mine": made}))
    assert outcome.error["type"] == "GraphRecursionError"
    assert outcome.error["message"].startswith("Recursion limit of 5 reached")
    assert "in <lambda>" in outcome.error["stack_trace"]


@pytest.mark.parametrize("limits", [{"steps": 12}, {"model_calls": 2}, {"tokens": 60}, {"timeout_s": 60}])
async def test_a_job_may_use_all_that_it_has(run: Run, limits: dict[str, Any]) -> None:
    replies = [{**CALLS_NOOP, "tokens": 30}, {"text": "done", "tokens": 30}]
    outcome = await run(agent(replies, tools=[NOOP]) | {"limits": limits})
    assert outcome.result == "done"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"model_calls": 3}, "the job went beyond limits.model_calls (3)"),
        ({"timeout_s": 0.4}, "the job went beyond limits.timeout_s (0.4)"),
    ],
)
@pytest.mark.parametrize("is_bound", [False, True])
async def test_a_node_in_a_thread_ends_at_a_limit_too(
    run: Run, limits: dict[str, Any], message: str, is_bound: bool
) -> None:
    calls: list[float] = []
    over = threading.Event()
    model = FakeListChatModel(responses=["x"])

    def node(state: Seen, config: RunnableConfig) -> Seen:
        try:
            for _ in range(40):
                model.invoke("x", config) if is_bound else model.invoke("x")
                calls.append(time.monotonic())
                time.sleep(0.1)
        finally:
            over.set()
        return {"seen": "x"}

    made = StateGraph(Seen)
    made.add_node("node", node)
    made.add_edge(START, "node")
    outcome = await run({"graph": "mine", "limits": limits}, graphs=Graphs({"mine": made}))
    assert (outcome.error["type"], outcome.error["message"]) == ("LimitExceeded", message)
    assert await asyncio.to_thread(over.wait, 2), "the thread runs on"
    assert len(calls) <= 6


async def test_what_a_job_used_before_it_was_cut_off_counts(run: Run) -> None:
    """Two calls are made and the third is cut off; with what was used, three are one too many."""

    class Watching(Heard):
        def emit(self, event_type: str, data: Any) -> None:
            super().emit(event_type, data)
            if event_type != "on_state_update":
                return
            if sum(each["role"] == "tool" for each in self[event_type][-1]["messages"]) == 2:
                done.set()

    done = asyncio.Event()
    slow = {"text": "x", "delay_ms": 60_000}
    first = agent([CALLS_NOOP, CALLS_NOOP, slow], tools=[NOOP])
    running = asyncio.create_task(run(first, Watching()))
    await done.wait()
    running.cancel()
    await asyncio.wait([running])
    outcome = await run(in_circles(3) | {"limits": {"model_calls": 2}})
    assert outcome.error["message"] == "the job went beyond limits.model_calls (2)"


async def test_a_timeout_of_the_jobs_own_is_not_taken_for_the_jobs(run: Run) -> None:
    raises = tool("raises", HEAD + "@tool\ndef raises() -> str:\n    'T.'\n    raise TimeoutError('own')\n")
    outcome = await run(agent([{"tool_calls": [{"name": "raises"}]}], tools=[raises]))
    assert (outcome.error["type"], outcome.error["message"]) == ("TimeoutError", "own")


async def test_a_key_of_the_input_that_nothing_declares_is_told_of(runner: Callable[..., Runner]) -> None:
    heard: Any = Heard()
    one = runner()
    asked = dataclasses.replace(claim(agent([{"text": "x"}])), input=INPUT | {"colour": "red", "files": {}})
    assert (await one.run(asked, heard, one.control())).result == "x"
    [warning] = heard["warning"]
    assert warning["about"] == "colour"


class Inner(Seen):
    inner: str


@entrypoint()
async def takes_anything(given: dict[str, Any]) -> list[str]:
    return sorted(given)


@pytest.mark.parametrize(
    ("made", "undeclared"),
    [
        (takes_anything, set()),
        (StateGraph(cast(Any, dict)), set()),
        (StateGraph(Seen), {"colour", "inner", "messages"}),
        (StateGraph(Inner), {"colour", "messages"}),
        (StateGraph(Inner, input_schema=Seen), {"colour", "inner", "messages"}),
    ],
    ids=["entrypoint", "dict", "fields", "more fields", "fields of the input"],
)
async def test_of_a_graph_from_code_only_what_it_does_not_take_is_told(
    runner: Callable[..., Runner], made: Any, undeclared: set[str]
) -> None:
    if isinstance(made, StateGraph):
        made = made.add_node("one", lambda state: state).add_edge(START, "one")
    heard: Any = Heard()
    one = runner(graphs=Graphs({"code": made}))
    given = INPUT | {"colour": "red", "seen": "x", "inner": "y"}
    asked = dataclasses.replace(claim({"graph": "code"}), input=given)
    assert (await one.run(asked, heard, one.control())).error is None
    assert {each["about"] for each in heard["warning"]} == undeclared


@pytest.mark.parametrize(
    ("files", "found", "warned"),
    [
        ({"/a": "text of a"}, "text of a", 0),
        ({"/a": {"content": "text of a"}}, "text of a", 0),
        ({"/a": 5, "/b": "text of b"}, "not found", 1),
        (None, "not found", 1),
        ("text", "not found", 1),
    ],
)
async def test_files_of_the_input_may_be_texts(
    runner: Callable[..., Runner], files: Any, found: str, warned: int
) -> None:
    heard: Any = Heard()
    one = runner()
    reads = {"tool_calls": [{"name": "read_file", "args": {"file_path": "/a"}}]}
    asked = dataclasses.replace(claim(agent([reads, {"text": "{last}"}])), input=INPUT | {"files": files})
    outcome = await one.run(asked, heard, one.control())
    assert outcome.error is None
    assert found in outcome.result
    assert [each["about"] for each in heard["warning"]] == ["files"] * warned


async def test_files_of_the_input_are_looked_at_once(runner: Callable[..., Runner]) -> None:
    """At the start, and not when the job goes on."""
    one, heard = runner(), Heard()
    asks = "from langgraph.types import interrupt\n@tool\ndef ask() -> str:\n    'T.'\n    return interrupt(1)\n"
    ask = tool("ask", HEAD + asks)
    definition = agent([{"tool_calls": [{"name": "ask"}]}, {"text": "{last}"}], tools=[ask])
    asked = dataclasses.replace(claim(definition), input=INPUT | {"files": {"/a": 5}})
    channel: Any = heard
    interrupted = await one.run(asked, channel, one.control())
    answers = {interrupted.interrupts[0]["id"]: "yes"}
    assert (await one.run(dataclasses.replace(asked, answers=answers, fence=2), channel, one.control())).result == "yes"
    assert len(heard["warning"]) == 1


async def test_a_warning_is_given_once(run: Run) -> None:
    body = "@tool\ndef stray():\n    'T.'\n    return Command(update={'nowhere': 1})\n"
    stray = tool("stray", HEAD + "from langgraph.types import Command\n" + body)
    call = {"name": "stray"}
    heard = Heard()
    await run(agent([{"tool_calls": [call, call]}, {"tool_calls": [call]}, {"text": "x"}], tools=[stray]), heard)
    assert [each["about"] for each in heard["warning"]] == ["nowhere"]


def asking(sign: Path, *, by_specialist: bool) -> dict[str, Any]:
    """An agent that asks twice, and fails between the two while `sign` is there."""
    ask = tool("ask", ASKS_TWICE.format(sign=str(sign)))
    replies: list[dict[str, Any]] = [{"tool_calls": [{"name": "ask"}]}, {"text": "{last}"}]
    if not by_specialist:
        return agent(replies, tools=[ask])
    task = {"name": "task", "args": {"subagent_type": "Helper", "description": "x"}}
    return agent(
        [{"tool_calls": [task]}, {"text": "{last}"}], tools=[ask], specialists=[specialist("Helper", replies, ["ask"])]
    )


BY_WHOM = pytest.mark.parametrize("by_specialist", [False, True], ids=["root", "specialist"])


@BY_WHOM
async def test_a_job_that_asks_is_interrupted_and_goes_on_with_the_answers(
    run: Run, tmp_path: Path, by_specialist: bool
) -> None:
    definition = asking(tmp_path / "sign", by_specialist=by_specialist)
    heard = Heard()
    outcome = await run(definition, heard)
    assert outcome.status is Status.INTERRUPTED
    [first] = outcome.interrupts
    assert first["value"] == 1
    assert heard["on_tool_end"] == []
    assert all("__interrupt__" not in state for state in heard["on_state_update"])
    again = Heard()
    assert await run(definition, again) == outcome  # as after a crash: no node runs
    assert again.events == []
    [second] = (await run(definition, answers={first["id"]: None})).interrupts
    assert second["value"] == 2
    assert second["id"] != first["id"]
    assert (await run(definition, answers={first["id"]: None})).interrupts == (second,)
    done = await run(definition, answers={first["id"]: None, second["id"]: "b"})
    assert (done.status, done.result) == (Status.COMPLETED, "None b")


@BY_WHOM
async def test_an_answer_is_given_once_though_its_call_failed_behind_it(
    run: Run, tmp_path: Path, by_specialist: bool
) -> None:
    """Redriven, the call goes on behind its first question, and its second is not answered by the same words."""
    sign = tmp_path / "sign"
    sign.touch()
    definition = asking(sign, by_specialist=by_specialist)
    [first] = (await run(definition)).interrupts
    answers = {first["id"]: "a"}
    assert (await run(definition, answers=answers)).status is Status.FAILED
    sign.unlink()
    outcome = await run(definition, answers=answers)
    assert outcome.status is Status.INTERRUPTED, outcome
    [second] = outcome.interrupts
    assert second["value"] == 2
    assert (await run(definition, answers={**answers, second["id"]: "b"})).result == "a b"


async def test_an_answer_is_given_once_though_only_a_specialist_saw_it_used(
    run: Run, tmp_path: Path, memory: InMemorySaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the write of a specialist's checkpoint and that of the root's."""
    definition = asking(tmp_path / "sign", by_specialist=True)
    [first] = (await run(definition)).interrupts
    original = memory.aput_writes

    async def without_the_roots(config: Any, *writes: Any) -> None:
        if config["configurable"]["checkpoint_ns"]:
            await original(config, *writes)

    with monkeypatch.context() as patched:
        patched.setattr(memory, "aput_writes", without_the_roots)
        assert (await run(definition, answers={first["id"]: "a"})).interrupts == (first,)  # what the root knows
    outcome = await run(definition, answers={first["id"]: "a"})
    assert [each["value"] for each in outcome.interrupts] == [2]
    assert (await run(definition, answers={first["id"]: "a", outcome.interrupts[0]["id"]: "b"})).result == "a b"


def test_an_answer_is_found_as_the_next_and_never_as_the_first() -> None:
    """As langgraph looks: for the next id of each task, and where there is none for its first."""
    first, third = _interrupt_id("ns", 0), _interrupt_id("ns", 2)
    answers = Answers({first: "a", third: "c"})
    for _ in range(2):
        assert first in answers
        assert _interrupt_id("other", 0) not in answers
        assert _interrupt_id("other", 0) not in answers
        assert _interrupt_id("ns", 1) not in answers
        assert first not in answers
        assert third in answers
    assert (answers[first], len(answers), bool(Answers({}))) == ("a", 2, False)
