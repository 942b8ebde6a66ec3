"""Deep agents a second: the service, from a CloudEvent to its result, beside a bare loop over the same graph.

As in throughput, but the graph is a deep agent with a specialist and a tool. The service runs the tool in its sandbox,
confined as far as this machine can, in a child process for each job; the loop calls it as a function.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

from agent_executor import migrate
from tests.bench import agent
from tests.bench.figures import Figure
from tests.bench.processes import PLAIN, services
from tests.bench.throughput import BARE, MIGRATIONS, QUICK_BARE, Case, Run, bare, quickly, rates, through_nats
from tier3.stack import Stack

RUNS, QUICK_RUNS = 3, 1
CASES = (Case(8, 1, 60, None), Case(64, 1, 120, None))


def measure(stack: Stack, *, quick: bool = False, cases: tuple[Case, ...] = CASES) -> list[Figure]:
    """Every figure of agents, in turns; quick with few in flight, once, beside one saver. None has a goal."""
    figures: list[Figure] = []
    asked = {"agent_definition": agent.definition(), "input_payload": agent.INPUT}
    loops = QUICK_BARE if quick else BARE
    for case in map(quickly, cases[:1]) if quick else cases:
        dsn = stack.postgres.create_database(f"bench_{uuid.uuid4().hex[:8]}")
        migrate.up(migrate.Settings(dsn, MIGRATIONS))
        with_schema = f"{dsn}?options=-csearch_path%3Dagent_executor"
        found: dict[str, list[Run]] = {name: [] for name in (*loops, "ours")}
        own = {"MAX_CONCURRENT_JOBS": str(case.in_flight), "TOOL_SANDBOX": "best-effort"}
        with services(stack, dsn, 1, PLAIN, **own) as processes:
            asyncio.run(through_nats(stack, replace(case, jobs=case.in_flight), processes, asked))
            for _ in range(QUICK_RUNS if quick else RUNS):
                for savers in loops:
                    found[savers].append(bare(with_schema, case, savers, "agent"))
                found["ours"].append(asyncio.run(through_nats(stack, case, processes, asked)))
        figures += rates(case, found, "deep agents a second")
    return figures
