"""A definition -> compiled LangGraph: a deep agent whose specialists are its subagents.

Owns how the parts are put together, and which graphs are kept: a job that asks for what another one asked for, with the
same secrets, gets the same graph. It is compiled without a checkpointer; `runner` binds one per job.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast
from weakref import WeakValueDictionary

from deepagents import SubAgent, create_deep_agent
from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT
from langchain.agents.middleware import AgentMiddleware
from langchain_core.tools import BaseTool
from langgraph.graph.state import CompiledStateGraph

from . import models
from .definition import OWN_FIELDS, Definition, Node
from .middleware import IdempotencyMiddleware, StateMiddleware, StorableMiddleware

DESCRIPTION_CHARS = 200
MOST_AGENTS = 300
"""Agents of all kept graphs. Each takes about a quarter of a megabyte, so that they stay below 100 MB together."""

_ASSEMBLING = threading.Lock()

Graph = CompiledStateGraph[Any, Any, Any, Any]
ToolSource = Callable[[], Awaitable[Mapping[str, BaseTool]]]


class Builder:
    """Builds graphs, and keeps those used last; one that would take more than half of the room is not kept."""

    def __init__(self, credentials_of: models.CredentialSource, *, most: int = MOST_AGENTS) -> None:
        """`most`: how many agents the kept graphs have together."""
        self._credentials_of = credentials_of
        self._most = most
        self._kept: OrderedDict[bytes, tuple[Graph, int]] = OrderedDict()
        self._loading = asyncio.Lock()
        self._building: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def build(self, definition: Definition, tools: ToolSource) -> Graph:
        """The graph of a definition, new or kept; for a new one `tools` is asked for the tools of its scripts.

        Providers' clients are imported, and the graph is compiled, in a thread.

        Raises:
            ModelUnavailable, InvalidInput: what the definition asks for cannot be had. What `tools` raises.
        """
        providers = sorted({node.config.model.provider for node in definition.nodes} & models.PROVIDERS.keys())
        credentials = {provider: dict(await self._credentials_of(provider)) for provider in providers}
        asked = definition.model_dump(exclude={"name", "version", "edges", "limits"})
        key = hashlib.sha256(repr((asked, credentials)).encode(errors="surrogatepass")).digest()
        for provider in providers:
            await self._load(provider)
        async with self._building.setdefault(key, asyncio.Lock()):
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            graph = await asyncio.to_thread(_assemble, definition, credentials, await tools())
            self._keep(key, graph, agents=len(definition.nodes) + 1)  # one more is general-purpose
        return graph

    def _keep(self, key: bytes, graph: Graph, agents: int) -> None:
        if agents * 2 > self._most:
            return
        self._kept[key] = graph, agents
        while sum(each for _, each in self._kept.values()) > self._most:
            self._kept.popitem(last=False)

    async def _load(self, provider: str) -> None:
        if models.is_loaded(provider):
            return
        async with self._loading:
            await asyncio.to_thread(models.load_client, provider)
            with _ASSEMBLING:
                models.load(provider)  # here, on the event loop: no agent runs meanwhile


def _assemble(
    definition: Definition, credentials: Mapping[str, models.Credentials], made: Mapping[str, BaseTool]
) -> Graph:
    with _ASSEMBLING:
        return _assembled(definition, credentials, made)


def _assembled(
    definition: Definition, credentials: Mapping[str, models.Credentials], made: Mapping[str, BaseTool]
) -> Graph:
    channels: set[str] = set()

    def parts(node: Node) -> dict[str, Any]:
        choice = node.config.model
        return {
            "model": models.create(choice, credentials.get(choice.provider, {})),
            "tools": [made[name] for name in node.config.tools],
            "middleware": _middleware(node, channels),
            **_approvals(node),
        }

    root = parts(definition.root)
    graph: Graph = create_deep_agent(
        **root,
        name=definition.root.config.name,
        system_prompt=definition.root.config.system_prompt or None,
        subagents=[
            *_general_purpose(definition, root, channels),
            *(_subagent(node, parts(node)) for node in definition.specialists),
        ],
    )
    channels |= graph.channels.keys() - definition.root.config.state_schema.keys()  # known once it is compiled
    return graph


def _approvals(node: Node) -> dict[str, Any]:
    """What deepagents is told of the tools to approve. A subagent that is told nothing takes the root's.

    Its middleware comes behind ours: an edited call keeps its key, and what it returns is looked at as any other.
    """
    asked = node.config.interrupt_on
    if asked is None:
        return {}
    told = {name: each is not None and each.model_dump(mode="json", exclude_none=True) for name, each in asked.items()}
    return {"interrupt_on": told}


def _subagent(node: Node, parts: dict[str, Any]) -> SubAgent:
    config = node.config
    description = config.description or config.system_prompt[:DESCRIPTION_CHARS] or config.name
    described = {"name": config.name, "description": description, "system_prompt": config.system_prompt}
    return cast(SubAgent, described | parts)


def _general_purpose(definition: Definition, root: dict[str, Any], channels: set[str]) -> list[SubAgent]:
    """deepagents' own extra subagent, made here to have our middleware; a specialist of that name replaces it."""
    name = GENERAL_PURPOSE_SUBAGENT["name"]
    if any(node.config.name == name for node in definition.specialists):
        return []
    own = {"middleware": _middleware(definition.root, channels)}
    return [cast(SubAgent, {**GENERAL_PURPOSE_SUBAGENT, **root, **own})]


def _middleware(node: Node, channels: set[str]) -> list[AgentMiddleware]:
    fields = {name: field for name, field in node.config.state_schema.items() if name not in OWN_FIELDS}
    return [StateMiddleware(node.config.name, fields, channels), IdempotencyMiddleware(), StorableMiddleware()]
