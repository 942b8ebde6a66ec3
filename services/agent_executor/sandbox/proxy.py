"""A child's tools as the graph sees them: langchain tools that know what to ask a child, and nothing of a script.

They belong to no job: a graph with them can be kept, and finds the box of the job that runs it in `current`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from langchain.tools import ToolRuntime
from langchain_core.messages import RemoveMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.config import get_stream_writer
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, interrupt

from ..errors import ToolFailed, ToolScriptError
from ..strict_json import scrub
from .process import Ask

_CONFIGURABLE = ("thread_id", "checkpoint_ns", "checkpoint_id", "idempotency_key")  # the rest may hold secrets

_SCHEMA_BYTES, _SCHEMA_LEVELS = 2**16, 50


class ToolRaised(Exception):
    """An exception of a tool, raised again on this side, by a subclass that is called like the tool's own class."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class Calls(Protocol):
    """What a proxy needs of a box."""

    async def call(self, tool: str, request: Mapping[str, Any], answer: Ask) -> dict[str, Any]:
        """Have the job's child call a tool."""


current: ContextVar[Calls] = ContextVar("box")


def tool(spec: Mapping[str, Any]) -> BaseTool:
    """The tool that a child has described; its description is somebody else's words, checked here.

    Raises:
        ToolScriptError: they describe no tool.
    """
    name, fields = spec.get("name"), spec.get("state")
    texts = isinstance(name, str) and isinstance(spec.get("description"), str)
    if not (texts and isinstance(spec.get("schema"), dict) and (fields is None or isinstance(fields, list))):
        raise ToolScriptError("a script describes no tool")
    _check(str(name), spec["schema"])

    async def call(runtime: ToolRuntime, **arguments: Any) -> Any:
        request = {
            "tool": name,
            "arguments": arguments,
            "call_id": runtime.tool_call_id,
            "key": _configurable(runtime).get("idempotency_key", ""),
            "configurable": _configurable(runtime),
            "state": _state(runtime.state, fields),
        }
        reply = await current.get().call(str(name), request, partial(_interrupt, str(name)))
        return _answered(_result(str(name), reply), str(name), runtime.tool_call_id)

    made = StructuredTool(
        name=name,
        description=spec["description"],
        args_schema={"properties": {}, **spec["schema"]},
        coroutine=call,
        return_direct=spec.get("return_direct") is True,
    )
    try:
        convert_to_openai_tool(made)
    except Exception as error:  # noqa: BLE001 - whatever LangChain makes of an odd one, it makes of it here
        raise ToolScriptError(f"the arguments of tool {name!r} have no JSON schema: {error!r}"[:1000]) from None
    return made


def _check(name: str, schema: Mapping[str, Any]) -> None:
    """That others can walk through the schema, on the service's event loop, in no time."""
    properties = schema.get("properties", {})
    if not (isinstance(properties, dict) and all(isinstance(each, dict | bool) for each in properties.values())):
        raise ToolScriptError(f"the JSON schema of the arguments of tool {name!r} has properties that are none")
    size = len(json.dumps(schema))
    if size > _SCHEMA_BYTES:
        raise ToolScriptError(f"the arguments of tool {name!r} have a JSON schema of {size} bytes, of {_SCHEMA_BYTES}")
    level: list[Any] = [schema]
    for _ in range(_SCHEMA_LEVELS):
        if any(isinstance(each, dict) and "$ref" in each for each in level):
            raise ToolScriptError(f"the JSON schema of the arguments of tool {name!r} has a $ref")
        below = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for values in below for each in values]
    if level:
        raise ToolScriptError(
            f"the JSON schema of the arguments of tool {name!r} has more than {_SCHEMA_LEVELS} levels"
        )


def _configurable(runtime: ToolRuntime) -> dict[str, Any]:
    found = runtime.config.get("configurable", {})
    return {name: found[name] for name in _CONFIGURABLE if name in found}


def _state(state: Any, fields: list[str] | None) -> Any:
    if fields is None or not isinstance(state, dict):
        return state
    return {name: state[name] for name in fields if name in state}


def _interrupt(name: str, value: Any, schema: Any) -> Any:
    """Ask what the tool asks, repaired where it could not be stored; that is told, since people see it."""
    repairs: list[str] = []
    asked = scrub(value, repairs.append)
    expected = scrub(schema, repairs.append) if isinstance(schema, dict) else None
    for what in dict.fromkeys(repairs):
        warning = {"message": f"what tool {name} asks was repaired: {what}", "about": f"tool {name}"}
        get_stream_writer()({"event_type": "warning", "data": warning})
    return interrupt(asked, response_schema=expected)


def _result(name: str, reply: Mapping[str, Any]) -> Any:
    if "result" in reply:
        found = reply["result"]
        try:
            return [_answer(each) for each in found] if isinstance(found, list) else _answer(found)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ToolFailed(f"tool {name!r} returned what is no result") from None
    if "error" in reply:
        raise _raised(name, reply["error"])
    raise ToolFailed(f"tool {name!r}: {reply.get('refused') or 'no answer'}")


def _answer(found: Mapping[str, Any]) -> ToolMessage | Command[Any]:
    if "message" in found:
        if not isinstance(found["message"], ToolMessage):
            raise TypeError
        return found["message"]
    command = found["command"]
    goto = command["goto"]
    if command["graph"] not in (None, Command.PARENT) or not isinstance(command["update"], dict | None):
        raise TypeError
    if not all(isinstance(each, str) for each in (goto if isinstance(goto, list) else [goto])):
        raise TypeError
    return Command(graph=command["graph"], update=command["update"], goto=goto)


def _answered(result: Any, name: str, call_id: Any) -> Any:
    """`result` with a message for the model: LangGraph would end the run over a command that has none."""
    results = result if isinstance(result, list) else [result]
    commands = [each for each in results if isinstance(each, Command) and each.graph is None]
    if not commands or any(_is_answer(message, call_id) for each in results for message in _messages(each)):
        return result
    first = commands[0]
    update = first.update or {}
    keys = ", ".join(str(key) for each in commands for key in each.update or {} if key != "messages")
    message = ToolMessage(f"Updated: {keys}." if keys else "Done.", name=name, tool_call_id=call_id)
    mended = dataclasses.replace(first, update={**update, "messages": [*_messages(first), message]})
    return [mended if each is first else each for each in results] if isinstance(result, list) else mended


def _messages(result: Any) -> list[Any]:
    if not isinstance(result, Command):
        return [result]
    messages = (result.update or {}).get("messages") or []
    return messages if isinstance(messages, list) else [messages]


def _is_answer(message: Any, call_id: Any) -> bool:
    if isinstance(message, RemoveMessage) and message.id == REMOVE_ALL_MESSAGES:
        return True  # the call that was to be answered goes as well
    found = message.get("tool_call_id") if isinstance(message, dict) else getattr(message, "tool_call_id", None)
    return bool(found == call_id)


def _raised(name: str, error: Any) -> Exception:
    """The exception that the tool raised, by the name of its class; the class itself stays in the child."""
    kind, words = error.get("type"), error.get("message")
    if not (isinstance(kind, str) and kind.isidentifier() and len(kind) <= 100 and isinstance(words, str)):
        return ToolFailed(f"tool {name!r} raised what is no error")
    raised: Exception = type(kind, (ToolRaised,), {})(words, may_pass=error.get("may_pass") is True)
    if isinstance(trace := error.get("trace"), str) and trace:
        raised.add_note(f"In the tool's process:\n{trace}")
    return raised
