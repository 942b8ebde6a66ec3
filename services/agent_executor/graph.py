"""A definition -> compiled LangGraph: a deep agent whose specialists are its subagents.

Owns how the parts are put together, and the middleware that keeps what models and tools return storable. The graph is
compiled without a checkpointer; `runner` binds one per job.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from deepagents import SubAgent, create_deep_agent
from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.config import get_stream_writer
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from . import models
from .definition import Definition, Node
from .strict_json import scrub

DESCRIPTION_CHARS = 200
_CALLS = uuid.uuid5(uuid.NAMESPACE_DNS, "tool-call.agent-executor-service")

Graph = CompiledStateGraph[Any, Any, Any, Any]


async def build(
    definition: Definition,
    credentials_of: models.CredentialSource,
    tools: Callable[[], Awaitable[Mapping[str, BaseTool]]],
) -> Graph:
    """Build the graph with what `tools` makes of the definition's scripts; providers are imported in a thread.

    Raises:
        ModelUnavailable, InvalidInput: what the definition asks for cannot be had. What `tools` raises.
    """
    providers = {node.config.model.provider for node in definition.nodes}
    credentials = {provider: await credentials_of(provider) for provider in providers if provider in models.PROVIDERS}
    return await asyncio.to_thread(_assemble, definition, credentials, await tools())


def _assemble(
    definition: Definition, credentials: Mapping[str, models.Credentials], made: Mapping[str, BaseTool]
) -> Graph:
    def parts(node: Node) -> dict[str, Any]:
        choice = node.config.model
        return {
            "model": models.create(choice, credentials.get(choice.provider, {})),
            "tools": [made[name] for name in node.config.tools],
            "middleware": _middleware(),
            **_approvals(node),
        }

    root = parts(definition.root)
    graph: Graph = create_deep_agent(
        **root,
        name=definition.root.config.name,
        system_prompt=definition.root.config.system_prompt or None,
        subagents=[
            *_general_purpose(definition, root),
            *(_subagent(node, parts(node)) for node in definition.specialists),
        ],
    )
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


def _general_purpose(definition: Definition, root: dict[str, Any]) -> list[SubAgent]:
    """deepagents' own extra subagent, made here to have our middleware; a specialist of that name replaces it."""
    name = GENERAL_PURPOSE_SUBAGENT["name"]
    if any(node.config.name == name for node in definition.specialists):
        return []
    return [cast(SubAgent, {**GENERAL_PURPOSE_SUBAGENT, **root, "middleware": _middleware()})]


def _middleware() -> list[AgentMiddleware]:
    return [IdempotencyMiddleware(), StorableMiddleware()]


class IdempotencyMiddleware(AgentMiddleware):
    """Gives each tool call a key that is the same when the call is repeated after a crash.

    A tool that has a `runtime: ToolRuntime` finds it as `runtime.config["configurable"]["idempotency_key"]`. It is made
    of the job, the place of the call in the graph (the same for a step that starts from the same checkpoint) and the id
    that the model gave the call.
    """

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Add the key to the runtime that the tool is given."""
        config = request.runtime.config
        place = config.get("configurable", {})
        words = (place.get("thread_id"), place.get("checkpoint_ns"), request.tool_call["id"])
        key = str(uuid.uuid5(_CALLS, ":".join(map(str, words))))
        keyed: Any = {**config, "configurable": {**place, "idempotency_key": key}}
        return await handler(dataclasses.replace(request, runtime=dataclasses.replace(request.runtime, config=keyed)))


class StorableMiddleware(AgentMiddleware):
    """Repairs what a model or a tool returned before it enters the state, and says so in a `warning` event.

    A NUL, a lone surrogate or an integer beyond 64 bits in the state fails the checkpoint's write, and with it the run.
    """

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Scrub the model's messages."""
        response = await handler(request)
        response.result = [_storable(message, "the model") for message in response.result]
        return response

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Scrub the tool's message, or everything its command puts into the state."""
        result = await handler(request)
        who = f"tool {request.tool_call['name']}"
        if isinstance(result, ToolMessage):
            return cast(ToolMessage, _storable(result, who))
        if isinstance(result.update, list | tuple):
            result = dataclasses.replace(result, update=dict(result.update))
        if isinstance(result.update, dict):
            update = {key: _storable_value(value, who) for key, value in result.update.items()}
            return dataclasses.replace(result, update=update)
        return result


def _storable_value(value: Any, who: str) -> Any:
    if isinstance(value, BaseMessage):
        return _storable(value, who)
    if isinstance(value, list) and any(isinstance(item, BaseMessage) for item in value):
        return [_storable_value(item, who) for item in value]
    return scrub(value, lambda what: _warn(who, what))


def _storable(message: Any, who: str) -> Any:
    repairs: list[str] = []
    fields = {name: getattr(message, name) for name in type(message).model_fields}
    changed = {name: new for name, old in fields.items() if (new := scrub(old, repairs.append)) is not old}
    for what in dict.fromkeys(repairs):
        _warn(who, what)
    return message.model_copy(update=changed) if changed else message


def _warn(who: str, what: str) -> None:
    get_stream_writer()(
        {"event_type": "warning", "data": {"message": f"what {who} returned was repaired: {what}", "about": who}}
    )
