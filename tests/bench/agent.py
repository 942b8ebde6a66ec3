"""The deep agent that every contender of the benchmark of agents runs: a lead, its specialist, and a tool of that one.

The example's, with scripted models that wait for nothing. A run asks models four times and calls two tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.tools import BaseTool

from agent_executor import graph as graphs
from agent_executor import validation
from agent_executor.sandbox import scripts
from tests import definitions

INPUT = definitions.INPUT
ANSWER = "The Calculator says: 5"


def definition() -> dict[str, Any]:
    """What a job asks for."""
    document = definitions.adder()
    for node in document["nodes"]:
        for reply in node["config"]["model"]["replies"]:
            reply.pop("token_delay_ms", None)
    return document


async def graph() -> graphs.Graph:
    """The graph that the service makes of it, but for its tool, which runs in this process."""
    parsed: Any = validation.parse(definition())

    async def tools() -> Mapping[str, BaseTool]:
        return {each.name: scripts.load(each.name, each.runtime.script) for each in parsed.tool_definitions}

    return await graphs.Builder(_no_credentials).build(parsed, tools)


async def _no_credentials(provider: str) -> Mapping[str, str]:
    return {}
