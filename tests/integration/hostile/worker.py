"""`python worker.py [MODE] [--allow] [NAME...]`: a worker whose tools are hostile; prints what came of each probe.

As JSON. A name may be a probe's body. A program, so that it can be run as another user and without rights. Beside every
probe a neighbour's job goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import probes  # type: ignore[import-not-found]  # a program has its own directory on its path
from langchain.tools import ToolRuntime

from agent_executor.definition import Runtime, ToolDefinition
from agent_executor.sandbox.options import Options
from agent_executor.sandbox.pool import Box, Sandbox

SCRIPT = """
from typing import Any
from langchain_core.tools import tool
@tool
def probe(body: str) -> Any:
    "Runs the body."
    space = {}
    exec(body, space)
    return space.get("result")
"""
DEFINITIONS = (ToolDefinition(name="probe", runtime=Runtime(script=SCRIPT)),)


async def call(box: Box, body: str) -> str:
    """What came of a call, in words."""
    found = (await box.tools())["probe"]
    config: Any = {"configurable": {}}
    runtime: Any = ToolRuntime(
        state={}, context=None, config=config, stream_writer=print, tool_call_id="call-1", store=None
    )
    arguments = {"body": body, "runtime": runtime}
    try:
        message = await found.ainvoke({"type": "tool_call", "name": "probe", "id": "call-1", "args": arguments})
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        kinds = tuple(each.__name__ for each in type(error).__mro__)
        return f"{type(error).__name__}: {str(error)[:500]} of {kinds}"
    return f"returned '{message.content}'"[:500]


def children(process: int) -> list[int]:
    """Its children now."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def resident_bytes() -> int:
    """Memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def main() -> None:
    """Try everything, and print."""
    mode: Any = sys.argv[1] if len(sys.argv) > 1 else "require"
    network: Any = "allow" if "--allow" in sys.argv else "none"
    wanted = [word for word in sys.argv[2:] if word not in ("--allow", "--none")] or [
        name for name, each in probes.PROBES.items() if mode == "require" or not each.wild
    ]
    with tempfile.NamedTemporaryFile("w", prefix="secret-") as secret:
        secret.write(probes.CANARY)
        secret.flush()
        Path(secret.name).chmod(0o644)
        sandbox = Sandbox(Options(mode=mode, network=network, **probes.OPTIONS))
        nursery = await sandbox.nursery()
        outcomes = {}
        async with sandbox.box(DEFINITIONS) as neighbour:
            home = (await call(neighbour, "import os; open('mine', 'w').write('x'); result = os.getcwd()"))[10:-1]
            await call(neighbour, "result = 'x' * 50_000")
            known = f"SECRET = {secret.name!r}\nNEIGHBOUR = {home!r}\nWORKER = {os.getpid()}\n"
            first_to_go = Path(f"/proc/{children(nursery.process_id)[0]}/oom_score_adj").read_text() == "1000\n"
            before = resident_bytes()
            for name in wanted:
                started = time.monotonic()
                async with sandbox.box(DEFINITIONS) as box:
                    body = probes.PROBES[name].body if name in probes.PROBES else name
                    outcome = await call(box, known + probes.PREAMBLE + body)
                    took = time.monotonic() - started
                left = len(children(nursery.process_id)) - 1
                beside = await call(neighbour, "result = sorted(__import__('os').listdir('.'))")
                found = {"outcome": outcome, "took": round(took, 2), "left": left, "neighbour": beside}
                grown = (resident_bytes() - before) // 2**20
                outcomes[name] = found | {"closed": round(time.monotonic() - started, 2), "grown_mib": grown}
        intact = Path(secret.name).read_text() == probes.CANARY
        everything = sorted(each.name for each in Path(nursery.directory).iterdir())
        await sandbox.close()
    gone = not Path(nursery.directory).exists()
    found = {"outcomes": outcomes, "intact": intact, "left_over": everything, "gone": gone, "first_to_go": first_to_go}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
