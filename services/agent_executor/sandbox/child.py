"""What runs in a child once it is confined: loads one job's scripts and calls their tools.

Owns the child's end of the pipe. One thread reads; each call has a thread of its own, as calls of one step run side by
side; coroutines of all calls run on one event loop, so that they can share what belongs to a loop. Whatever a script
does to this program concerns its own job only: the other side believes nothing of what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import langgraph.types
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langgraph._internal._constants import CONFIG_KEY_RUNTIME
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.runtime import Runtime
from langgraph.types import Command

from ..retries import may_pass
from . import frames, scripts

KEY = "AGENT_EXECUTOR_IDEMPOTENCY_KEY"

_key: contextvars.ContextVar[str] = contextvars.ContextVar("key")
_asking: contextvars.ContextVar[Any] = contextvars.ContextVar("asking")
_keys: dict[int, str] = {}  # of the calls that run


class _Environment(os._Environ[str]):
    """The environment, in which the key is that of the call that asks: calls run side by side."""

    def __getitem__(self, name: str) -> str:
        return (_own_key() if name == KEY else "") or super().__getitem__(name)


def _own_key() -> str:
    """The call's; in a thread that no call started in a known way, that of the only call there is."""
    found = _key.get(None)
    keys = [*_keys.values()] if found is None else [found]
    return keys[0] if len(keys) == 1 else ""


def _submit(pool: ThreadPoolExecutor, task: Any, /, *arguments: Any, **named: Any) -> Any:
    """Stands for ThreadPoolExecutor's: a pool's threads serve many calls, and each task is of one."""
    return _plain_submit(pool, contextvars.copy_context().run, task, *arguments, **named)


_plain_submit = ThreadPoolExecutor.submit


class Child:
    """Answers frames until the pipe ends."""

    def __init__(self, pipe: socket.socket, output_bytes: int) -> None:
        self._pipe = pipe
        self._output_bytes = output_bytes
        self._tools: dict[str, BaseTool] = {}
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._sending = threading.Lock()
        self._loop = _Loop()

    def serve(self) -> None:
        """Until the end."""
        os.environ.__class__ = _Environment
        langgraph.types.interrupt = _interrupt
        ThreadPoolExecutor.submit = _submit  # type: ignore[assignment,method-assign]
        while (frame := frames.receive(self._pipe.recv)) is not None:
            if "scripts" in frame:
                self._send(frame["id"], self._load(frame["scripts"]))
            elif "tool" in frame:
                threading.Thread(target=self._call, args=(frame,), daemon=True).start()
            elif (waiting := self._answers.get(frame["id"])) is not None:
                waiting.put(frame)

    def _load(self, found: dict[str, str]) -> dict[str, Any]:
        try:
            self._tools = {name: scripts.load(name, script) for name, script in found.items()}
            return {"specs": [scripts.spec(tool) for tool in self._tools.values()]}
        except scripts.ScriptError as error:
            return {"script_error": str(error)}
        except Exception as error:  # noqa: BLE001 - a tool that cannot be described
            return {"script_error": f"a tool cannot be described: {type(error).__name__}: {error}"}

    def _call(self, frame: dict[str, Any]) -> None:
        call_id = frame["id"]
        self._answers[call_id] = queue.SimpleQueue()
        _key.set(frame["key"])
        _keys[call_id] = frame["key"]
        _asking.set(lambda value, schema: self._ask(call_id, value, schema))
        try:
            answer = {"result": _encoded(self._run(frame))}
        except GraphBubbleUp:
            return  # the other side asked nobody, and has ended the call
        except MemoryError:
            answer = {"limit": "TOOL_MEMORY_BYTES"}
        except BaseException as error:  # noqa: BLE001 - handed to the other side
            answer = {"error": scripts.described(error, may_pass(error))}
        finally:
            del self._answers[call_id], _keys[call_id]
        self._send(call_id, answer)

    def _run(self, frame: dict[str, Any]) -> Any:
        """As LangGraph's node runs it: arguments validated, state and runtime injected, the result made a message."""
        tool = self._tools[frame["tool"]]
        call = {"name": tool.name, "args": frame["arguments"], "id": frame["call_id"], "type": "tool_call"}
        config: Any = {"configurable": {**frame["configurable"], CONFIG_KEY_RUNTIME: Runtime()}}
        runtime: Any = ToolRuntime(
            state=frame["state"],
            context=None,
            config=config,
            stream_writer=lambda _: None,
            tool_call_id=frame["call_id"],
            store=None,
        )
        node: Any = _Node([tool])
        if scripts.is_async(tool):
            return self._loop.result(node._arun_one(call, "tool_calls", runtime))
        return node._run_one(call, "tool_calls", runtime)

    def _ask(self, call_id: int, value: Any, schema: Any) -> Any:
        self._send(call_id, {"interrupt": value, "schema": schema})
        answer = self._answers[call_id].get()
        if "answer" not in answer:
            raise GraphInterrupt
        return answer["answer"]

    def _send(self, call_id: int, answer: dict[str, Any]) -> None:
        try:
            frame = frames.dump({"id": call_id, **answer})
        except MemoryError:
            frame = frames.dump({"id": call_id, "limit": "TOOL_MEMORY_BYTES"})
        except Exception as error:  # noqa: BLE001 - of a method of a script's own class, say
            message = f"what the tool returns cannot leave the sandbox: {error}"
            frame = frames.dump({"id": call_id, "refused": message[:1000]})
        if len(frame) - frames.HEADER_BYTES > self._output_bytes:
            frame = frames.dump({"id": call_id, "limit": "TOOL_OUTPUT_BYTES"})
        with self._sending:
            self._pipe.sendall(frame)


class _Loop:
    """An event loop in a thread of its own, from its first coroutine on."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    def result(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What comes of it; it has the context of the thread that waits here."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._run, args=(self._loop,), daemon=True).start()
        found, error = asyncio.run_coroutine_threadsafe(_outcome(coroutine), self._loop).result()
        if error is not None:
            raise error
        return found

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        while not loop.is_closed():  # a script's own task may stop it, or exit
            with contextlib.suppress(BaseException):
                loop.run_forever()


async def _outcome(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """Its result or its exception, of which some would end the loop."""
    try:
        return await coroutine, None
    except BaseException as error:  # noqa: BLE001
        return None, error


class _Node(ToolNode):
    """Lets a command without the message of its own call pass: the other side adds one."""

    def _validate_tool_command(self, command: Any, call: Any, input_type: Any, **_: Any) -> Any:
        return super()._validate_tool_command(command, call, input_type, require_terminator=False)

    def _validate_tool_command_list(self, response: Any, tool_call: Any, input_type: Any) -> Any:
        commands = (each for each in response if isinstance(each, Command))
        checked = {id(each): self._validate_tool_command(each, tool_call, input_type) for each in commands}
        return [checked.get(id(each), each) for each in response]


def _interrupt(value: Any, *, response_schema: Any = None) -> Any:
    """Stands for langgraph's: the other side asks."""
    if response_schema is not None and not isinstance(response_schema, dict):
        raise TypeError("in a tool script, a response_schema has to be a JSON schema")
    return _asking.get()(value, response_schema)


def _encoded(result: Any) -> Any:
    if isinstance(result, list):
        return [_encoded(each) for each in result]
    if isinstance(result, Command):
        if result.resume is not None or not _is_names(result.goto):
            raise TypeError("a tool's Command may have update, goto (names of nodes) and graph")
        update = dict(result.update) if isinstance(result.update, list | tuple) else result.update
        return {"command": {"update": update, "goto": result.goto, "graph": result.graph}}
    if isinstance(result, ToolMessage):
        return {"message": result}
    raise TypeError(f"a tool may not return a {type(result).__name__}")


def _is_names(goto: Any) -> bool:
    return all(isinstance(each, str) for each in (goto if isinstance(goto, list | tuple) else [goto]))
