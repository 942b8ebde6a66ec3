"""A tool called in its sandbox beside the same function called in process, and a job's first child.

The sandbox confines as far as this machine can: the figures are of what `missing` leaves.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from langchain.tools import ToolRuntime
from langchain_core.tools import BaseTool

from agent_executor.definition import Definition
from agent_executor.sandbox import scripts
from agent_executor.sandbox.options import Options
from agent_executor.sandbox.pool import Sandbox
from tests.bench.figures import Figure, side_by_side, timed
from tests.definitions import adder

CALLS, RUNS, STARTS = 20, 15, 20
QUICK_RUNS, QUICK_STARTS = 3, 5
MOST_OVER_MS, COLD_MS = 5, 400


def measure(*, quick: bool = False) -> list[Figure]:
    """Every figure of the sandbox."""
    return asyncio.run(_measure(*((QUICK_RUNS, QUICK_STARTS) if quick else (RUNS, STARTS))))


async def _measure(runs: int, starts: int) -> list[Figure]:
    definitions = Definition.model_validate(adder()).tool_definitions
    sandbox = Sandbox(Options(mode="best-effort"))
    await sandbox.open()
    here = scripts.load("add_numbers", definitions[0].runtime.script)
    async with sandbox.box(definitions) as box:
        confined = (await box.tools())["add_numbers"]
        found = await asyncio.to_thread(_calls, here, confined, asyncio.get_running_loop(), runs)
    cold = [await _cold(sandbox, definitions) for _ in range(starts)]
    await sandbox.close()
    over_ms = statistics.median(found["confined"]) - statistics.median(found["here"])
    goal = f"{over_ms:.2f} ms more, at most {MOST_OVER_MS}"
    return [
        Figure("one call of a tool, in process", found["here"]),
        Figure("one call of a tool, in its sandbox", found["confined"], goal, over_ms <= MOST_OVER_MS),
        Figure(
            "a job's child, forked, confined, loaded", cold, f"at most {COLD_MS}", statistics.median(cold) <= COLD_MS
        ),
    ]


def _calls(here: BaseTool, confined: BaseTool, loop: asyncio.AbstractEventLoop, runs: int) -> dict[str, list[float]]:
    def many(tool: BaseTool) -> float:
        async def calls() -> None:
            for _ in range(CALLS):
                await tool.ainvoke(_call(with_runtime=tool is confined))

        return timed(lambda: asyncio.run_coroutine_threadsafe(calls(), loop).result()) / CALLS

    return side_by_side({"here": lambda: many(here), "confined": lambda: many(confined)}, runs)


def _call(*, with_runtime: bool) -> Any:
    arguments: dict[str, Any] = {"a": 2, "b": 3}
    if with_runtime:
        given: Any = {"state": {}, "context": None, "config": {"configurable": {"idempotency_key": "key"}}}
        runtime: Any = ToolRuntime(**given, stream_writer=print, tool_call_id="call-1", store=None)
        arguments["runtime"] = runtime
    return {"type": "tool_call", "name": "add_numbers", "id": "call-1", "args": arguments}


async def _cold(sandbox: Sandbox, definitions: Any) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with sandbox.box(definitions) as box:
        await box.tools()
        return (loop.time() - started) * 1000
