"""One claimed job, from its first step to its outcome.

Owns how a graph is started, resumed and read; knows nothing of queues. Everything it needs is given to it. A job with a
checkpoint goes on from there with no new input, or with the answers to what it asked; one whose graph had already
ended, or all of whose tasks wait for answers, runs no node.
"""

from __future__ import annotations

import copy
import threading
import traceback
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from langchain_core.messages import BaseMessage
from langgraph.errors import GraphDrained, GraphRecursionError, is_invalid_resume
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import RunControl
from langgraph.types import Command, Interrupt, PregelTask
from pydantic import ValidationError

from . import checkpoint_commits, checkpoints, graph, validation
from .bases import Bases
from .database import Pool
from .definition import Definition, GraphReference
from .errors import AgentExecutorError, InvalidInput, LeaseLost, NotDeployed, Stopped, Unavailable
from .events import RunEvents, content, error_object, to_json
from .graphs import Graphs
from .job import Outcome, Status, findings_of
from .ledger import FIRST, Claim
from .limits import Limits, Meter
from .models import CredentialSource
from .redaction import redact
from .retries import may_pass
from .sandbox.pool import Sandbox
from .state import readable
from .stream import Channel

_MODES: Any = ["values", "messages", "custom"]
_UNSEEN: Any = object()


@dataclass(frozen=True)
class _Run:
    claim: Claim
    channel: Channel
    control: RunControl
    meter: Meter


class Runner:
    """Runs jobs, any number at a time."""

    def __init__(
        self,
        pool: Pool,
        credentials_of: CredentialSource,
        sandbox: Sandbox,
        graphs: Graphs | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        *,
        error_detail: Literal["full", "message"] = "full",
    ) -> None:
        self._pool = pool
        self._savers = checkpoint_commits.savers_of(pool)
        self._bases = Bases()
        self._builder = graph.Builder(credentials_of)
        self._sandbox = sandbox
        self._graphs = graphs or Graphs()
        self._limits = limits
        self._error_detail = error_detail

    def control(self) -> RunControl:
        """With which one run can be asked to end at its next checkpoint."""
        return RunControl()

    async def run(self, claim: Claim, channel: Channel, control: RunControl) -> Outcome:
        """Run the job to its end; what goes wrong in it is an outcome too.

        Raises:
            Unavailable: a server this service needs is away; the job can go on later from its last checkpoint.
            Stopped: `control` asked for it; the same holds.
            LeaseLost: another worker has the job, or it has ended.
            NotDeployed: this process cannot run what another one accepted.
        """
        run = _Run(claim, channel, control, Meter(self._limits))
        run.meter.restore(claim.usage)
        try:
            outcome = await self._run(run)
        except (Unavailable, LeaseLost, Stopped, NotDeployed):
            raise
        except GraphDrained:
            raise Stopped(f"job {claim.job_id} stopped at a checkpoint") from None
        except Exception as error:  # noqa: BLE001 - the job's boundary
            outcome = Outcome(Status.FAILED, error=self._describe(error), may_pass=may_pass(error))
        finally:
            self._bases.forget((claim.job_id, claim.fence))
        return replace(outcome, usage=run.meter.usage())

    async def _run(self, run: _Run) -> Outcome:
        asked = self._read(run.claim.definition)
        if isinstance(asked, GraphReference):
            run.meter.limits = self._limits.lowered(asked.limits, asked.config.recursion_limit)
            config = _config(run, asked.config.for_langgraph())
            async with run.meter.deadline(), self._graphs.open(asked.graph, config) as compiled:
                return await self._execute(compiled, config, run)
        else:
            run.meter.limits = self._limits.lowered(asked.limits)
            output_limit = run.meter.limits.tool_output_bytes
            async with (
                run.meter.deadline(),
                self._sandbox.box(asked.tool_definitions, output_limit) as box,  # what ends the run ends its tools too
            ):
                compiled = await self._builder.build(asked, box.tools)
                return await self._execute(compiled, _config(run, {}), run, is_definition=True)

    def _read(self, document: Any) -> Definition | GraphReference:
        """The definition, which was valid where it was accepted."""
        try:
            return validation.read(document, graphs=self._graphs.names)
        except InvalidInput as error:
            raise NotDeployed(f"not with what is deployed here: {error}") from None

    async def _execute(self, compiled: Any, config: Any, run: _Run, *, is_definition: bool = False) -> Outcome:
        meter = run.meter
        bound = copy.copy(compiled)  # not its own `copy`, which forgets the classes that its state may hold
        saver = bound.checkpointer = self._saver(run)
        events = RunEvents(run.channel.emit, meter.at_state)
        config = {**config, "callbacks": [events, meter]}  # the meter may raise
        before = await bound.aget_state(config) if run.claim.fence > FIRST else None
        given: Any = None
        if before is None or before.created_at is None:
            given = _input(run) if is_definition else run.claim.input
            _tell_undeclared(run.claim.input, bound, run.channel)
        else:
            meter.restore(await saver.usage())
            known = run.claim.answers
            answers = Answers({each.id: known[each.id] for each in before.interrupts if each.id in known})
            if before.interrupts and not answers and _is_settled(before.tasks):
                return _interrupted(before.interrupts)  # the last process died before it could say so
            given = Command(resume=answers) if answers else None
        state = _UNSEEN
        items: AsyncIterator[Any] = bound.astream(
            given, config, stream_mode=_MODES, subgraphs=True, durability="sync", control=run.control
        )
        try:
            async for namespace, mode, payload in items:
                events.on_item(namespace, mode, payload)
                if mode == "values" and not namespace:
                    state = payload
        except GraphRecursionError as error:
            if f" {config['recursion_limit']} " not in str(error):  # a node's own, for a graph that it calls
                raise
            raise meter.limits.steps.exceeded() from None
        except ValidationError as error:
            if not is_invalid_resume(error) or not (left := (await bound.aget_state(config)).interrupts):
                raise
            complaint = "; ".join(str(finding) for finding in findings_of(error, "value"))
            run.channel.emit("warning", {"message": f"an answer was not taken: {complaint}", "about": "interrupt"})
            return _interrupted(left)
        if before is not None or saver.has_asked or state is _UNSEEN:  # what was asked before is not asked anew
            after = await bound.aget_state(config)
            if after.interrupts:
                return _interrupted(after.interrupts)
            state = after.values
        return Outcome(Status.COMPLETED, output(state))

    def _saver(self, run: _Run) -> checkpoints.Saver:
        job_id, fence = run.claim.job_id, run.claim.fence
        usage_at = run.meter.at_checkpoint
        shared: Any = {"group": self._savers, "bases": self._bases}
        return checkpoints.Saver(self._pool, job_id, fence, usage_at, **shared, is_new=fence == FIRST)

    def _describe(self, error: Exception) -> dict[str, str]:
        described = error_object(error)
        if self._error_detail == "full" and not isinstance(error, AgentExecutorError):
            described["stack_trace"] = "".join(traceback.format_exception(error))
        else:
            described["stack_trace"] = ""
        return {key: redact(to_json(value)) for key, value in described.items()}


def _config(run: _Run, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The RunnableConfig of a run, with what a job asks for; but for the callbacks, which are no factory's concern."""
    configurable = {**asked.get("configurable", {}), "thread_id": run.claim.job_id}
    return {**asked, "configurable": configurable, "recursion_limit": int(run.meter.limits.steps.value)}


def _input(run: _Run) -> Mapping[str, Any]:
    """What a definition's graph begins with: its `files` as its agents' tools read them."""
    given = run.claim.input
    if "files" not in given:
        return given

    def drop(why: str) -> None:
        run.channel.emit("warning", {"message": f"something of the input's files is dropped: {why}", "about": "files"})

    return given | {"files": readable(given["files"], drop)}


def _tell_undeclared(given: Mapping[str, Any], graph: Any, channel: Channel) -> None:
    """Say which keys of the input the graph does not take; an entrypoint takes all, and a state without fields too."""
    if not isinstance(graph, CompiledStateGraph):
        return
    declared = graph.builder.schemas[graph.builder.input_schema].keys()
    for key in given.keys() - declared if "__root__" not in declared else ():
        message = f"the graph declares no state key {key!r:.100}: the input's value of it is dropped"
        channel.emit("warning", {"message": message, "about": key})


class Answers(dict[str, Any]):
    """A resume map that answers a task's next question, and no other.

    langgraph looks a task's next interrupt up, and where it is not found the task's first one, whose answer it then
    takes for the next: older versions had one id for both. A task that was killed behind its first answer, or failed
    there, would get it a second time (langgraph/pregel/_algo.py, `_scratchpad`).
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__(answers)
        self._looking = threading.local()  # a graph may be run by a thread of its own

    def __contains__(self, key: object) -> bool:
        """Whether there is an answer to `key`; not if it is asked for because the key before it was not found."""
        is_second_look = getattr(self._looking, "is_second", False)
        found = super().__contains__(key) and not is_second_look
        self._looking.is_second = not found and not is_second_look
        return found


def _is_settled(tasks: Iterable[PregelTask]) -> bool:
    """Whether each task of the step has asked or finished; others were cut off or failed, and have to start again."""
    return all(task.interrupts or task.result is not None for task in tasks)


def _interrupted(found: Iterable[Interrupt]) -> Outcome:
    """An outcome that says what is asked, as JSON."""
    asked = []
    for each in found:
        shown = {"id": each.id, "value": to_json(each.value)}
        if each.response_schema is not None:
            shown["response_schema"] = to_json(each.response_schema)
        asked.append(shown)
    return Outcome(Status.INTERRUPTED, interrupts=tuple(asked))


def output(state: Any) -> Any:
    """A finished graph's output: the last message's content, or the whole state where it holds no messages."""
    messages = state.get("messages") if isinstance(state, dict) else None
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    if isinstance(last, BaseMessage):
        return to_json(content(last))
    return to_json(last["content"] if isinstance(last, dict) and "content" in last else state)
