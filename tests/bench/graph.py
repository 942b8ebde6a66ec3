"""The adder's graph: built, built without what this service adds, and taken from those that are kept."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping
from typing import Any

from deepagents import create_deep_agent
from langchain_core.tools import BaseTool

from agent_executor import models, validation
from agent_executor.definition import Node
from agent_executor.graph import Builder
from agent_executor.sandbox import scripts
from tests.bench.figures import Figure, side_by_side, timed
from tests.definitions import adder

RUNS, QUICK_RUNS, KEPT = 30, 5, 100
MOST_MS = 50


def measure(*, quick: bool = False) -> list[Figure]:
    """Every figure of building; the first build is left out, since it imports what the others then have."""
    definition = validation.parse(adder())
    made = {each.name: scripts.load(each.name, each.runtime.script) for each in definition.tool_definitions}

    async def tools() -> Mapping[str, BaseTool]:
        return made

    def bare_agent(node: Node) -> dict[str, Any]:
        own = [made[name] for name in node.config.tools]
        return {"model": models.create(node.config.model, {}), "tools": own, "system_prompt": node.config.system_prompt}

    def bare() -> None:
        [calculator] = definition.specialists
        about: Any = {"name": calculator.config.name, "description": calculator.config.description}
        create_deep_agent(**bare_agent(definition.root), subagents=[about | bare_agent(calculator)])

    def built() -> None:
        asyncio.run(Builder(_no_credentials).build(definition, tools))

    async def many(builder: Builder) -> None:
        for _ in range(KEPT):
            await builder.build(definition, tools)

    builder = Builder(_no_credentials)
    found = side_by_side(
        {
            "bare": lambda: timed(bare),
            "built": lambda: timed(built),
            "kept": lambda: timed(lambda: asyncio.run(many(builder))) / KEPT,
        },
        QUICK_RUNS if quick else RUNS,
    )
    median = statistics.median(found["built"])
    return [
        Figure("deepagents alone builds the adder", found["bare"]),
        Figure("the adder is built", found["built"], f"at most {MOST_MS}", median <= MOST_MS),
        Figure("the adder is taken from what is kept", found["kept"]),
    ]


async def _no_credentials(provider: str) -> Mapping[str, str]:
    return {}
