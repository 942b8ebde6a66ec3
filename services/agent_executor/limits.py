"""What one job may use, and what it has used.

Owns counting, also across a job's attempts: what was used stands in the metadata of its checkpoints and, once a run has
ended, in its row of the ledger. Going beyond a limit raises LimitExceeded, which ends the run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from . import definition
from .errors import LimitExceeded, Stopped


@dataclass(frozen=True)
class Limit:
    """A limit, and the name of what set it: a variable, or a key of the definition."""

    name: str
    value: float

    def exceeded(self, who: str = "the job") -> LimitExceeded:
        """The error that says so."""
        return LimitExceeded(f"{who} went beyond {self.name} ({self.value:.15g})")


@dataclass(frozen=True)
class Limits:
    """All limits of a job. `steps` are those of one agent: of the root, or of one call of a specialist."""

    steps: Limit = Limit("MAX_STEPS", 100)
    model_calls: Limit = Limit("MAX_MODEL_CALLS", 500)
    tokens: Limit = Limit("MAX_TOKENS", 5_000_000)
    timeout_s: Limit = Limit("JOB_TIMEOUT_S", 3600)
    tool_output_bytes: Limit = Limit("TOOL_OUTPUT_BYTES", 2**20)
    state_bytes: Limit = Limit("MAX_STATE_BYTES", 64 * 2**20)

    def lowered(self, asked: definition.Limits, recursion_limit: int | None = None) -> Limits:
        """With what a definition asks for, where that is lower."""
        wanted = {f"limits.{name}": (name, getattr(asked, name)) for name in (field.name for field in fields(self))}
        wanted["config.recursion_limit"] = ("steps", recursion_limit)
        found = self
        for said, (name, value) in wanted.items():
            if value is not None and value < getattr(found, name).value:
                found = replace(found, **{name: Limit(said, value)})
        return found


class Meter(BaseCallbackHandler):
    """Counts for one run: told by LangChain of calls, by the runner of states, by the saver of checkpoints.

    LangChain calls it where the call is made: on the run's loop, or in the thread of a node that is no coroutine. No
    thread can be ended from outside, so there it raises, and the node with it. Its methods are no coroutines, because
    LangChain logs what those raise in a thread, and goes on.
    """

    run_inline = True
    raise_error = True
    ignore_chain = ignore_retriever = True  # asked for every node, before it would be told

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._model_calls = 0
        self._tokens = 0
        self._seconds = 0.0
        self._since = time.monotonic()
        self._timeout: asyncio.Timeout | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_over = False
        self._exceeded: LimitExceeded | None = None

    def restore(self, used: Mapping[str, float]) -> None:
        """Go on from what earlier attempts used, as `usage` has told it; of several accounts the larger counts."""
        self._model_calls = max(self._model_calls, int(used.get("model_calls", 0)))
        self._tokens = max(self._tokens, int(used.get("tokens", 0)))
        self._seconds = max(self._seconds, float(used.get("seconds", 0)))
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left_s())

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """End the block when the job's time is up, or a callback has found that a limit is exceeded."""
        self._loop = asyncio.get_running_loop()
        timeout = self._timeout = asyncio.timeout(self._left_s())
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            self._exceeded = self._exceeded or self.limits.timeout_s.exceeded()
            raise self._exceeded from None
        finally:
            self._timeout = None
            self._is_over = True
        if self._exceeded is not None:
            raise self._exceeded

    def at_checkpoint(self, step: int) -> dict[str, float]:
        """What was used up to a checkpoint, for its metadata; `step` counts its agent's."""
        if step > self.limits.steps.value:
            raise self.limits.steps.exceeded()
        return self.usage()

    def usage(self) -> dict[str, float]:
        """What the job has used so far, in all its attempts."""
        return {"model_calls": self._model_calls, "tokens": self._tokens, "seconds": round(self._used_s(), 3)}

    def at_state(self, size: int) -> None:
        """A state has this many bytes, as JSON."""
        if size > self.limits.state_bytes.value:
            raise self.limits.state_bytes.exceeded("the state")

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        """Count a call; one too many is cut off as it begins."""
        self._check()
        self._model_calls += 1
        if self._model_calls > self.limits.model_calls.value:
            self._end(self.limits.model_calls.exceeded())

    on_llm_start = on_chat_model_start

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Count the tokens that the provider says it took."""
        for choices in response.generations:
            for choice in choices:
                message = choice.message if isinstance(choice, ChatGeneration) else None
                if isinstance(message, AIMessage) and message.usage_metadata:
                    self._tokens += message.usage_metadata["total_tokens"]
        if self._tokens > self.limits.tokens.value:
            self._end(self.limits.tokens.exceeded())

    def on_tool_start(self, *_: Any, **__: Any) -> None:
        """A tool begins only while the run goes on."""
        self._check()

    def on_tool_end(self, output: Any, **_: Any) -> None:
        """Look at what a tool hands to the model; a script's whole result is limited where it leaves its process."""
        if isinstance(output, ToolMessage) and isinstance(output.content, str):
            size = len(output.content.encode(errors="replace"))
            if size > self.limits.tool_output_bytes.value:
                self._end(self.limits.tool_output_bytes.exceeded(f"tool {output.name!r}"))

    def _check(self) -> None:
        """End a thread whose run has ended already."""
        if (self._exceeded or self._is_over) and not self._is_on_loop():
            raise self._exceeded or Stopped("the run of this node has ended")

    def _end(self, error: LimitExceeded) -> None:
        """Cut the run off; on its loop an exception would leave LangChain's other callbacks unfinished."""
        self._exceeded = self._exceeded or error
        if self._is_on_loop():
            self._cut_off()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._cut_off)
            raise self._exceeded

    def _cut_off(self) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)

    def _is_on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _used_s(self) -> float:
        return self._seconds + time.monotonic() - self._since

    def _left_s(self) -> float:
        return self.limits.timeout_s.value - self._used_s()
