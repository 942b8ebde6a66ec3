"""Tool scripts of a definition -> langchain tools.

Scripts run inside this process, with its rights: only definitions from people you trust may be submitted. What this
module does keep apart is the event loop: whatever a tool does, it blocks a thread of its own, never the service.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, Tool

from .definition import ToolDefinition
from .errors import ToolScriptError


def load(definitions: Sequence[ToolDefinition]) -> dict[str, BaseTool]:
    """Run each script once and return its tool, by name.

    Raises:
        ToolScriptError: a script fails, or makes no tool of the promised name; the message names the tool.
    """
    return {definition.name: _load(definition) for definition in definitions}


def _load(definition: ToolDefinition) -> BaseTool:
    namespace: dict[str, Any] = {"__name__": f"tool_script_{definition.name}"}
    try:
        exec(compile(definition.runtime.script, f"<tool {definition.name}>", "exec"), namespace)  # noqa: S102
    except (Exception, SystemExit) as error:
        raise ToolScriptError(
            f"the script of tool {definition.name!r} fails: {type(error).__name__}: {error}"
        ) from error
    made = {value.name: value for value in namespace.values() if isinstance(value, BaseTool)}
    if definition.name not in made:
        names = ", ".join(sorted(made)) or "none"
        raise ToolScriptError(f"the script of tool {definition.name!r} makes no tool of that name; it makes: {names}")
    return _off_the_loop(made[definition.name])


def _off_the_loop(tool: BaseTool) -> BaseTool:
    """An async tool may block like any other: give its coroutine a loop in the thread that sync tools run in."""
    if isinstance(tool, StructuredTool | Tool):
        return tool if tool.coroutine is None else _with_function(tool, tool.coroutine)
    if type(tool)._arun is not BaseTool._arun:
        _override(tool)
    return tool


def _with_function(tool: StructuredTool | Tool, coroutine: Callable[..., Awaitable[Any]]) -> BaseTool:
    @functools.wraps(coroutine)
    def run(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(_awaited(coroutine(*args, **kwargs)))

    return tool.model_copy(update={"func": run, "coroutine": None})


def _override(tool: BaseTool) -> None:
    """A class of the script's own: the tool becomes one of a subclass whose `_arun` leaves the loop."""
    kind = type(tool)
    own = kind._arun

    @functools.wraps(own)
    async def _arun(self: BaseTool, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(lambda: asyncio.run(_awaited(own(self, *args, **kwargs))))

    tool.__class__ = type(kind.__name__, (kind,), {"_arun": _arun, "__module__": kind.__module__})


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
