"""One claimed job, from its first step to its outcome.

Owns how a graph is started, resumed and read; knows nothing of queues. Everything it needs is given to it. A job with a
checkpoint goes on from there with no new input; one whose graph had already ended runs no node.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages import BaseMessage
from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.runtime import RunControl

from . import checkpoints, graph, validation
from .database import Pool
from .definition import Definition, GraphReference
from .errors import AgentExecutorError, InvalidInput, LeaseLost, NotDeployed, Stopped, Unavailable
from .events import RunEvents, content, error_object, to_json
from .graphs import Graphs
from .job import Outcome, Status
from .ledger import Claim
from .limits import Limits, Meter
from .models import CredentialSource
from .redaction import redact
from .retries import may_pass
from .sandbox.pool import Sandbox
from .stream import Channel

_MODES: Any = ["values", "messages", "custom"]


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
        try:
            return Outcome(Status.COMPLETED, result=await self._run(claim, channel, control))
        except (Unavailable, LeaseLost, Stopped, NotDeployed):
            raise
        except GraphDrained:
            raise Stopped(f"job {claim.job_id} stopped at a checkpoint") from None
        except Exception as error:  # noqa: BLE001 - the job's boundary
            return Outcome(Status.FAILED, error=self._describe(error), may_pass=may_pass(error))

    async def _run(self, claim: Claim, channel: Channel, control: RunControl) -> Any:
        asked = self._read(claim.definition)
        if isinstance(asked, GraphReference):
            run = _Run(claim, channel, control, Meter(self._limits.lowered(asked.limits, asked.config.recursion_limit)))
            config = _config(run, asked.config.for_langgraph())
            async with run.meter.deadline(), self._graphs.open(asked.graph, config) as compiled:
                return await self._execute(compiled, config, run)
        else:
            run = _Run(claim, channel, control, Meter(self._limits.lowered(asked.limits)))
            output_limit = run.meter.limits.tool_output_bytes
            async with (
                run.meter.deadline(),
                self._sandbox.box(asked.tool_definitions, output_limit) as box,  # what ends the run ends its tools too
            ):
                compiled = await self._builder.build(asked, box.tools)
                return await self._execute(compiled, _config(run, {}), run)

    def _read(self, document: Any) -> Definition | GraphReference:
        """The definition, which was valid where it was accepted."""
        try:
            return validation.read(document, graphs=self._graphs.names)
        except InvalidInput as error:
            raise NotDeployed(f"not with what is deployed here: {error}") from None

    async def _execute(self, compiled: Any, config: Any, run: _Run) -> Any:
        job_id, meter = run.claim.job_id, run.meter
        bound = copy.copy(compiled)  # not its own `copy`, which forgets the classes that its state may hold
        saver = bound.checkpointer = checkpoints.Saver(self._pool, job_id, run.claim.fence, meter.at_checkpoint)
        events = RunEvents(run.channel.emit, meter.at_state)
        config = {**config, "callbacks": [meter, events]}
        started = (await bound.aget_state(config)).created_at is not None
        if started:
            meter.restore(await saver.usage())
        else:
            _tell_undeclared(run.claim.input, bound, run.channel)
        given: Any = None if started else run.claim.input
        items: AsyncIterator[Any] = bound.astream(
            given, config, stream_mode=_MODES, subgraphs=True, durability="sync", control=run.control
        )
        try:
            async for namespace, mode, payload in items:
                events.on_item(namespace, mode, payload)
        except GraphRecursionError:
            raise meter.limits.steps.exceeded() from None
        return output((await bound.aget_state(config)).values)

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


def _tell_undeclared(given: Mapping[str, Any], graph: Any, channel: Channel) -> None:
    """Say which keys of the input the graph will not take."""
    if "__root__" not in graph.channels:
        for key in given.keys() - graph.channels.keys():
            message = f"the graph declares no state key {key!r:.100}: the input's value of it is dropped"
            channel.emit("warning", {"message": message, "about": key})


def output(state: Any) -> Any:
    """A finished graph's output: the last message's content, or the whole state where it holds no messages."""
    messages = state.get("messages") if isinstance(state, dict) else None
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    if isinstance(last, BaseMessage):
        return to_json(content(last))
    return to_json(last["content"] if isinstance(last, dict) and "content" in last else state)
