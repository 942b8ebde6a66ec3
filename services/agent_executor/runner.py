"""One claimed job, from its first step to its outcome.

Owns how a graph is started, resumed and read; knows nothing of queues. Everything it needs is given to it. A job with a
checkpoint goes on from there with no new input; one whose graph had already ended runs no node.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from . import checkpoints, graph, validation
from .database import Pool
from .definition import GraphReference
from .errors import AgentExecutorError, LeaseLost, Stopped, Unavailable
from .events import RunEvents, content, error_object, to_json
from .graphs import Graphs
from .job import Outcome, Status
from .ledger import Claim
from .models import CredentialSource
from .redaction import redact
from .retries import may_pass
from .sandbox.pool import Sandbox
from .stream import Channel

_MODES: Any = ["values", "messages", "custom"]


class Runner:
    """Runs jobs, any number at a time."""

    def __init__(
        self,
        pool: Pool,
        credentials_of: CredentialSource,
        sandbox: Sandbox,
        graphs: Graphs | None = None,
        *,
        max_steps: int,
        error_detail: Literal["full", "message"] = "full",
    ) -> None:
        self._pool = pool
        self._credentials_of = credentials_of
        self._sandbox = sandbox
        self._graphs = graphs or Graphs()
        self._max_steps = max_steps
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
            return Outcome(Status.COMPLETED, result=await self._run(claim, channel, control))
        except (Unavailable, LeaseLost, Stopped):
            raise
        except GraphDrained:
            raise Stopped(f"job {claim.job_id} stopped at a checkpoint") from None
        except Exception as error:  # noqa: BLE001 - the job's boundary
            return Outcome(Status.FAILED, error=self._describe(error), may_pass=may_pass(error))

    async def _run(self, claim: Claim, channel: Channel, control: RunControl) -> Any:
        asked = validation.read(claim.definition, graphs=self._graphs.names)
        if isinstance(asked, GraphReference):
            async with self._graphs.open(asked) as compiled:
                return await self._execute(compiled, asked.config.for_langgraph(), claim, channel, control)
        async with self._sandbox.box(asked.tool_definitions) as box:  # whatever ends the run ends its tools with it
            compiled = await graph.build(asked, self._credentials_of, box.tools)
            return await self._execute(compiled, {}, claim, channel, control)

    async def _execute(
        self, compiled: Any, asked: Mapping[str, Any], claim: Claim, channel: Channel, control: RunControl
    ) -> Any:
        bound = copy.copy(compiled)  # not its own `copy`, which forgets the classes that its state may hold
        bound.checkpointer = checkpoints.Saver(self._pool, claim.job_id, claim.fence)
        events = RunEvents(channel.emit)
        config: Any = {
            **asked,
            "configurable": {**asked.get("configurable", {}), "thread_id": claim.job_id},
            "recursion_limit": min(self._max_steps, asked.get("recursion_limit", self._max_steps)),
            "callbacks": [events],
        }
        started = (await bound.aget_state(config)).created_at is not None
        given: Any = None if started else claim.input
        items: AsyncIterator[Any] = bound.astream(
            given, config, stream_mode=_MODES, subgraphs=True, durability="sync", control=control
        )
        async for namespace, mode, payload in items:
            events.on_item(namespace, mode, payload)
        return output((await bound.aget_state(config)).values)

    def _describe(self, error: Exception) -> dict[str, str]:
        described = error_object(error)
        if self._error_detail == "full" and not isinstance(error, AgentExecutorError):
            described["stack_trace"] = "".join(traceback.format_exception(error))
        else:
            described["stack_trace"] = ""
        return {key: redact(to_json(value)) for key, value in described.items()}


def output(state: Any) -> Any:
    """A finished graph's output: the last message's content, or the whole state where it holds no messages."""
    messages = state.get("messages") if isinstance(state, dict) else None
    return to_json(content(messages[-1]) if messages else state)
