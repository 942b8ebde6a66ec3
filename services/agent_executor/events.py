"""What a run tells the world: LangGraph's stream and callbacks -> the events of docs/events.md.

Owns the translation, nothing of where events go. Whatever a state holds becomes real JSON, never a Python repr.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import orjson
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessageChunk, BaseMessage, ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command
from pydantic import BaseModel

from . import tracing
from .redaction import LONG, redact, redact_json
from .strict_json import scrub

Emit = Callable[[str, Any], None]

_INTERRUPT = "__interrupt__"
_ROLES = {"human": "user", "ai": "assistant"}
_LEFT_OUT = frozenset({"type", "artifact", "additional_kwargs", "response_metadata", "example", "invalid_tool_calls"})


def to_json(value: Any) -> Any:
    """`value` as plain JSON values: messages as message objects, dataclasses and pydantic models as objects.

    Keys and tokens are left out of it, but no short password: it may be a word, and what a job says is not ours.
    """
    return orjson.loads(_dumps(value))


def _dumps(value: Any) -> bytes:
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS
    dumped = orjson.dumps(scrub(value, _ignore), default=_encode, option=options)
    document = dumped.decode()
    clean = redact_json(document, LONG)
    return dumped if clean is document else orjson.dumps(orjson.loads(clean))


def message_object(message: BaseMessage) -> dict[str, Any]:
    """A message as readers get it: role, content, id, and name, tool_calls, tool_call_id, ... where there are any."""
    fields = {name: value for name in type(message).model_fields if (value := getattr(message, name))}
    shown = {name: value for name, value in fields.items() if name not in _LEFT_OUT and value != "default"}
    return {"role": _ROLES.get(message.type, message.type), "content": message.content} | shown


def content(message: BaseMessage) -> Any:
    """A message's content: a string where it is nothing but text, also where the provider sent it in blocks."""
    blocks = message.content
    if isinstance(blocks, list) and all(isinstance(block, dict) and block.get("type") == "text" for block in blocks):
        return "".join(str(block.get("text", "")) for block in blocks if isinstance(block, dict))
    return blocks


def error_object(error: BaseException) -> dict[str, str]:
    """`message` and `type` of an exception; the message is never blank."""
    message = redact(str(error)).strip()
    return {"message": message or f"{type(error).__name__} without a message", "type": type(error).__name__}


class RunEvents(AsyncCallbackHandler):
    """One run's translator: fed with stream items by `runner`, and with tool calls by LangChain's callbacks."""

    run_inline = True
    ignore_chain = ignore_llm = ignore_retriever = True  # asked for every node, before it would be told

    def __init__(self, emit: Emit, at_state: Callable[[int], None] = lambda _: None) -> None:
        """`emit` gets what an event holds as JSON that is encoded already, or as plain values.

        `at_state` is told how many bytes each state has that a graph comes to, as JSON.
        """
        self._emit = emit
        self._at_state = at_state
        self._warned: set[str] = set()
        self._paths: dict[str, list[str]] = {}
        self._tools: dict[UUID, tuple[dict[str, Any], tracing.Span]] = {}

    def on_item(self, namespace: tuple[str, ...], mode: str, payload: Any) -> None:
        """One item of `astream(stream_mode=["values", "messages", "custom"], subgraphs=True)`."""
        if mode == "values":
            if not (isinstance(payload, dict) and _INTERRUPT in payload):  # the state as it was, and what is asked
                self._on_state(payload, is_root=not namespace)
        elif mode == "messages":
            self._on_message(*payload)
        elif mode == "custom" and isinstance(payload, dict) and payload.get("event_type") == "warning":
            self._on_warning(payload.get("data"))

    def _on_state(self, state: Any, *, is_root: bool) -> None:
        try:
            encoded = _dumps(state)
        except (TypeError, ValueError, RecursionError):
            if is_root:
                self._send("on_state_update", state)  # which says what is wrong
            return
        if is_root:
            self._emit("on_state_update", orjson.Fragment(encoded))
        self._at_state(len(encoded))

    def _on_warning(self, data: Any) -> None:
        """Each once: a tool that is called again says the same again."""
        if (key := repr(data)) not in self._warned:
            self._warned.add(key)
            self._send("warning", data)

    def _on_message(self, message: BaseMessage, metadata: Mapping[str, Any]) -> None:
        if not isinstance(message, AIMessageChunk) or not (message.content or message.tool_call_chunks):
            return
        data = {
            "message_id": message.id,
            "node": metadata.get("langgraph_node"),
            "path": self._path(metadata),
            "content": content(message),
        }
        if message.tool_call_chunks:
            data["tool_call_chunks"] = message.tool_call_chunks
        self._send("on_llm_stream", data)

    def _path(self, metadata: Mapping[str, Any] | None) -> list[str]:
        """Names of the subagents around what `metadata` belongs to, outermost first; empty for the root."""
        namespace = str((metadata or {}).get("langgraph_checkpoint_ns", ""))
        enclosing, _, _ = namespace.rpartition("|")
        return self._paths.get(enclosing, [])

    async def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Emit `on_tool_start`; remember which subagent a `task` call opens."""
        name, path = serialized.get("name"), self._path(metadata)
        arguments = {key: value for key, value in (inputs or {}).items() if key not in ("runtime", "state")}
        if name == "task" and metadata and "subagent_type" in arguments:
            self._paths[str(metadata.get("langgraph_checkpoint_ns"))] = [*path, str(arguments["subagent_type"])]
        call = {"name": name, "call_id": kwargs.get("tool_call_id"), "path": path}
        self._tools[run_id] = (call, tracing.start(f"tool {name}"))
        self._send("on_tool_start", call | {"arguments": arguments})

    async def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Emit `on_tool_end` with the result, or with the error that the tool handed to the model."""
        result = _result(output)
        failed = isinstance(result, ToolMessage) and result.status == "error"
        content = result.content if isinstance(result, ToolMessage) else result
        self._end(
            run_id, {"error": {"message": redact(str(content)), "type": "ToolError"}} if failed else {"result": content}
        )

    async def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Emit `on_tool_end` with the error; not for a tool that asks, which starts again when it is answered."""
        if isinstance(error, GraphBubbleUp):
            _, span = self._tools.pop(run_id, ({}, tracing.NO_SPAN))
            span.end()
        else:
            self._end(run_id, {"error": error_object(error)})

    def _end(self, run_id: UUID, ended: dict[str, Any]) -> None:
        call, span = self._tools.pop(run_id, ({}, tracing.NO_SPAN))
        span.end()
        self._send("on_tool_end", call | ended)

    def _send(self, event_type: str, data: Any) -> None:
        """Emit; what has no JSON form (nested too deep, say) costs its event and not the job."""
        try:
            self._emit(event_type, orjson.Fragment(_dumps(data)))
        except (TypeError, ValueError, RecursionError) as error:
            self._emit(
                "warning", {"message": f"an event could not be shown: {type(error).__name__}", "about": event_type}
            )


def _result(output: Any) -> Any:
    """A command's own answer to the model, where it has one."""
    if isinstance(output, Command) and isinstance(output.update, dict):
        messages = output.update.get("messages") or []
        return next((message for message in messages if isinstance(message, ToolMessage)), None)
    return output


def _encode(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return scrub(message_object(value), _ignore)
    if isinstance(value, BaseModel):
        return scrub(value.model_dump(), _ignore)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return scrub({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, _ignore)
    if isinstance(value, set | frozenset | tuple):
        return scrub(list(value), _ignore)
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    return {"type": f"{type(value).__module__}.{type(value).__qualname__}"}


def _ignore(repair: str) -> None:
    """What a state holds was repaired, and announced, where it entered."""
