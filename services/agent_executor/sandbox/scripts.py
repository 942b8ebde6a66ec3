"""A tool script -> a langchain tool, and what others are told of it. Runs in a child and nowhere else."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.json_schema import dereference_refs
from langgraph.prebuilt import ToolNode


class ScriptError(Exception):
    """A script does not run, or makes no tool of the promised name; the message names the tool."""


def load(name: str, script: str) -> BaseTool:
    """Run the script, as a module that others find where they look for one, and return its tool of that name.

    Raises:
        ScriptError: see there.
    """
    module = ModuleType(f"tool_script_{name}")
    module.__file__ = file = f"<tool {name}>"
    sys.modules[module.__name__] = module  # pydantic, dataclasses and pickle
    linecache.cache[file] = (len(script), None, script.splitlines(keepends=True), file)  # tracebacks and inspect
    try:
        exec(compile(script, file, "exec", dont_inherit=True), vars(module))  # noqa: S102
    except (Exception, SystemExit) as error:
        raise ScriptError(f"the script of tool {name!r} fails: {type(error).__name__}: {error}") from error
    made = {value.name: value for value in vars(module).values() if isinstance(value, BaseTool)}
    if name not in made:
        names = ", ".join(sorted(made)) or "none"
        raise ScriptError(f"the script of tool {name!r} makes no tool of that name; it makes: {names}")
    return made[name]


def spec(tool: BaseTool) -> dict[str, Any]:
    """What the service rebuilds the tool from; `state`: which fields its calls need, None for all of them."""
    found: Any = tool.tool_call_schema
    schema = dereference_refs(found if isinstance(found, dict) else found.model_json_schema())  # here it has limits
    injected = ToolNode([tool])._injected_args[tool.name]
    fields = None if injected.runtime or None in injected.state.values() else [*injected.state.values()]
    return {
        "name": tool.name,
        "description": tool.description,
        "schema": {key: value for key, value in schema.items() if key not in ("$defs", "definitions")},
        "return_direct": tool.return_direct,
        "state": fields,
    }


def is_async(tool: BaseTool) -> bool:
    """Whether the tool has a coroutine of its own."""
    return getattr(tool, "coroutine", None) is not None or _overrides_arun(tool)


def _overrides_arun(tool: BaseTool) -> bool:
    return type(tool)._arun is not BaseTool._arun and not hasattr(tool, "coroutine")


def described(error: BaseException, may_pass: bool) -> Mapping[str, Any]:
    """An exception for the other side, bounded: its class by name, its message, where in the script it was raised."""
    kind = type(error) if isinstance(error, Exception) else RuntimeError
    try:
        message = str(error) if isinstance(error, Exception) else f"{type(error).__name__} in a tool: {error}"
        trace = "".join(traceback.format_exception(error))
    except Exception as odd:  # noqa: BLE001 - its own __str__, say
        message, trace = f"an error that cannot be shown ({type(odd).__name__})", ""
    return {"type": kind.__name__, "message": message[:10_000], "trace": trace[-20_000:], "may_pass": may_pass}
