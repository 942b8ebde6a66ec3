"""What every agent of a definition has around its models and tools.

Owns the idempotency key of a call, and what may enter a state: repaired where it could not be stored, without the keys
that nothing declares. What was changed is said in a `warning` event.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, cast

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.config import get_stream_writer
from langgraph.errors import ParentCommand
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from . import state
from .definition import StateField
from .redaction import LONG, redact_value
from .strict_json import scrub

_CALLS = uuid.uuid5(uuid.NAMESPACE_DNS, "tool-call.agent-executor-service")

Result = ToolMessage | Command[Any]
Handler = Callable[[ToolCallRequest], Awaitable[Result]]


class IdempotencyMiddleware(AgentMiddleware):
    """Gives each tool call a key that is the same when the call is repeated after a crash.

    A tool that has a `runtime: ToolRuntime` finds it as `runtime.config["configurable"]["idempotency_key"]`. It is made
    of the job, the place of the call in the graph (the same for a step that starts from the same checkpoint) and the id
    that the model gave the call.
    """

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Handler) -> Result:
        """Add the key to the runtime that the tool is given."""
        config = request.runtime.config
        place = config.get("configurable", {})
        words = (place.get("thread_id"), place.get("checkpoint_ns"), request.tool_call["id"])
        key = str(uuid.uuid5(_CALLS, ":".join(map(str, words))))
        keyed: Any = {**config, "configurable": {**place, "idempotency_key": key}}
        return await handler(dataclasses.replace(request, runtime=dataclasses.replace(request.runtime, config=keyed)))


class StateMiddleware(AgentMiddleware):
    """Adds a node's fields to its agent's state, and lets nothing else in than what the agent's state has.

    What a specialist hands back through `task` is reduced to what it added to the fields that both have, and to files
    that it changed.
    """

    def __init__(self, agent: str, fields: Mapping[str, StateField], others: Collection[str]) -> None:
        """`others`: the keys that the state has besides; they may be filled in once the graph is there."""
        super().__init__()
        self._agent = agent
        self.state_schema = state.schema(fields)
        self._fields = fields
        self._others = others

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Handler) -> Result:
        """Sort out the update of a tool's command; of several results make one, since deepagents takes no list."""
        is_task = request.tool_call["name"] == "task"
        try:
            result: Any = await handler(request)
        except ParentCommand as sent:  # by a tool of a specialist, to this agent
            sent.args = (cast(Command[Any], self._sorted(sent.args[0], request, is_task=False)),)
            raise
        if isinstance(result, list):
            if leaving := [each for each in result if _leaves(each)]:
                return cast(Result, leaving[0])  # alone, as langgraph has it
            return self._joined([self._sorted(each, request, is_task=is_task) for each in result])
        return result if _leaves(result) else self._sorted(result, request, is_task=is_task)

    def _sorted(self, result: Result, request: ToolCallRequest, *, is_task: bool) -> Result:
        if not isinstance(result, Command) or not isinstance(result.update, dict):
            return result
        update = {}
        for key, value in result.update.items():
            if key in self._fields:
                field = self._fields[key]
                update[key] = state.added(field, request.state.get(key), value) if is_task else value
                if not is_task:
                    _check_type(key, field, value)
            elif key == "files":
                before = request.state.get(key) or {}
                update[key] = state.changed(before, value) if is_task else state.readable(value, self._drop_file)
            elif key in self._others:
                update[key] = value
            elif not is_task:  # a specialist's own fields are nobody's mistake
                warn(
                    f"{self._agent} declares no state key {key!r:.100}: what its tools write to it is dropped", str(key)
                )
        return dataclasses.replace(result, update=update)

    def _drop_file(self, why: str) -> None:
        warn(f"what a tool of {self._agent} wrote to files is dropped: {why}", "files")

    def _joined(self, results: Sequence[Result]) -> Command[Any]:
        """As if one were written after the other."""
        commands = [each if isinstance(each, Command) else Command(update={"messages": [each]}) for each in results]
        update: dict[str, Any] = {}
        for key, value in ((key, value) for each in commands for key, value in (each.update or {}).items()):
            field = self._fields.get(key)
            if key == "messages" or (field is not None and field.reducer is not None):
                update[key] = state.append(update.get(key), value)
            elif key == "files":
                update[key] = update.get(key, {}) | value
            else:
                update[key] = value
        goto = [name for each in commands for name in _listed(each.goto)]
        return Command(update=update, goto=goto)


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

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Handler) -> Result:
        """Scrub the tool's messages, and everything its commands put into the state."""
        who = f"tool {request.tool_call['name']}"
        result: Any = await handler(request)
        if isinstance(result, list):
            return cast(Result, [_storable_result(each, who) for each in result])
        return _storable_result(result, who)


def warn(message: str, about: str) -> None:
    """Have the run say this in a `warning` event."""
    get_stream_writer()({"event_type": "warning", "data": {"message": message, "about": about}})


def _check_type(key: str, field: StateField, value: Any) -> None:
    expected = state.TYPES[field.type]
    if field.reducer is None and expected is not Any and not isinstance(value, expected | None):
        warn(f"a tool wrote a {type(value).__name__} to the state key {key!r}, which is declared as {field.type}", key)


def _leaves(result: Any) -> bool:
    """Whether it is for another agent than the one whose tool returned it."""
    return isinstance(result, Command) and result.graph is not None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _storable_result(result: Result, who: str) -> Result:
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
    return scrub(value, lambda what: _repaired(who, what))


def _storable(message: Any, who: str) -> Any:
    repairs: list[str] = []
    fields = {name: getattr(message, name) for name in type(message).model_fields}
    clean = {name: scrub(redact_value(value, LONG), repairs.append) for name, value in fields.items()}
    changed = {name: value for name, value in clean.items() if value is not fields[name]}
    for what in dict.fromkeys(repairs):
        _repaired(who, what)
    return message.model_copy(update=changed) if changed else message


def _repaired(who: str, what: str) -> None:
    warn(f"what {who} returned was repaired: {what}", who)
