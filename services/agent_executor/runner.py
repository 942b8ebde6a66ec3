"""One claimed job, from its first step to its outcome.

Owns how a graph is started, resumed and read; knows nothing of queues. Everything it needs is given to it. A job with a
checkpoint goes on from there with no new input, or with the answers to what it asked; one whose graph had already
ended, or that waits for an answer, runs no node.
"""

from __future__ import annotations

import copy
import threading
import traceback
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langgraph.errors import GraphDrained, GraphRecursionError, is_invalid_resume
from langgraph.runtime import RunControl
from langgraph.types import Command, Interrupt
from pydantic import ValidationError

from . import checkpoints, graph, validation
from .database import Pool
from .definition import GraphReference
from .errors import AgentExecutorError, LeaseLost, Stopped, Unavailable
from .events import RunEvents, content, error_object, to_json
from .graphs import Graphs
from .job import Outcome, Status, findings_of
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
        """
        try:
            return await self._run(claim, channel, control)
        except (Unavailable, LeaseLost, Stopped):
            raise
        except GraphDrained:
            raise Stopped(f"job {claim.job_id} stopped at a checkpoint") from None
        except Exception as error:  # noqa: BLE001 - the job's boundary
            return Outcome(Status.FAILED, error=self._describe(error), may_pass=may_pass(error))

    async def _run(self, claim: Claim, channel: Channel, control: RunControl) -> Outcome:
        asked = validation.read(claim.definition, graphs=self._graphs.names)
        if isinstance(asked, GraphReference):
            run = _Run(claim, channel, control, Meter(self._limits.lowered(asked.limits, asked.config.recursion_limit)))
            async with run.meter.deadline(), self._graphs.open(asked) as compiled:
                return await self._execute(compiled, asked.config.for_langgraph(), run)
        run = _Run(claim, channel, control, Meter(self._limits.lowered(asked.limits)))
        output_limit = run.meter.limits.tool_output_bytes
        async with (
            run.meter.deadline(),
            self._sandbox.box(asked.tool_definitions, output_limit) as box,  # whatever ends the run ends its tools too
        ):
            compiled = await self._builder.build(asked, box.tools)
            return await self._execute(compiled, {}, run)

    async def _execute(self, compiled: Any, asked: Mapping[str, Any], run: _Run) -> Outcome:
        job_id, meter = run.claim.job_id, run.meter
        bound = copy.copy(compiled)  # not its own `copy`, which forgets the classes that its state may hold
        saver = bound.checkpointer = checkpoints.Saver(self._pool, job_id, run.claim.fence, meter.at_checkpoint)
        events = RunEvents(run.channel.emit, meter.at_state)
        config: Any = {
            **asked,
            "configurable": {**asked.get("configurable", {}), "thread_id": job_id},
            "recursion_limit": int(meter.limits.steps.value),
            "callbacks": [meter, events],
        }
        before = await bound.aget_state(config)
        known = run.claim.answers
        answers = Answers({each.id: known[each.id] for each in before.interrupts if each.id in known})
        if before.interrupts and not answers:  # it asks, and the last process died before it could say so
            return _interrupted(before.interrupts)
        given: Any = Command(resume=answers) if answers else None
        if before.created_at is None:
            given = run.claim.input
            _tell_undeclared(run.claim.input, bound, run.channel)
        else:
            meter.restore(await saver.usage())
        items: AsyncIterator[Any] = bound.astream(
            given, config, stream_mode=_MODES, subgraphs=True, durability="sync", control=run.control
        )
        try:
            async for namespace, mode, payload in items:
                events.on_item(namespace, mode, payload)
        except GraphRecursionError:
            raise meter.limits.steps.exceeded() from None
        except ValidationError as error:
            if not is_invalid_resume(error) or not (left := (await bound.aget_state(config)).interrupts):
                raise
            complaint = "; ".join(str(finding) for finding in findings_of(error, "value"))
            run.channel.emit("warning", {"message": f"an answer was not taken: {complaint}", "about": "interrupt"})
            return _interrupted(left)
        after = await bound.aget_state(config)
        return _interrupted(after.interrupts) if after.interrupts else Outcome(Status.COMPLETED, output(after.values))

    def _describe(self, error: Exception) -> dict[str, str]:
        described = error_object(error)
        if self._error_detail == "full" and not isinstance(error, AgentExecutorError):
            described["stack_trace"] = "".join(traceback.format_exception(error))
        else:
            described["stack_trace"] = ""
        return {key: redact(to_json(value)) for key, value in described.items()}


def _tell_undeclared(given: Mapping[str, Any], graph: Any, channel: Channel) -> None:
    """Say which keys of the input the graph will not take."""
    if "__root__" not in graph.channels:
        for key in given.keys() - graph.channels.keys():
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
    return to_json(content(messages[-1]) if messages else state)
