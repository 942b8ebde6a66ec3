"""A node's `state_schema` -> the fields that its agent's state has besides deepagents' own.

Owns their types and reducers, the shape of files, and what of a specialist's state reaches its parent's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypedDict

from deepagents.backends.utils import create_file_data
from langchain_core.messages import BaseMessage
from langgraph.graph.message import add_messages

from .definition import StateField

Reducer = Callable[[Any, Any], Any]

TYPES: Mapping[str, Any] = {"list": list, "dict": dict, "str": str, "int": int, "any": Any}
_MESSAGE_TYPES = frozenset({"message", "basemessage", "anymessage"})


def schema(fields: Mapping[str, StateField]) -> Any:
    """A TypedDict of the fields, as `create_agent` takes them from a middleware.

    A field begins empty (`[]`, `{}`, `""`, 0; `any` has no value before the first write), so that a tool may read it.
    """
    return TypedDict("Fields", {name: Annotated[TYPES[field.type], reducer(field)] for name, field in fields.items()})  # type: ignore[operator]


def reducer(field: StateField) -> Reducer:
    """How a new value joins the one that is there. Without one the last value counts, also of several in one step."""
    if field.reducer is None:
        return last
    if field.reducer == "append" or (field.item_type or "message").lower() not in _MESSAGE_TYPES:
        return append
    return add_messages_or_append


def last(old: Any, new: Any) -> Any:
    """The new value."""
    return new


def append(old: Any, new: Any) -> list[Any]:
    """The new items after the old ones; a value that is no list is one item."""
    return [*(old or ()), *(new if isinstance(new, list) else [new])]


def add_messages_or_append(old: Any, new: Any) -> Any:
    """langgraph's `add_messages` where all items are messages, `append` otherwise."""
    items = [*(old or ()), *(new if isinstance(new, list) else [new])]
    return add_messages(old, new) if all(map(_is_message, items)) else append(old, new)


def _is_message(item: Any) -> bool:
    if isinstance(item, dict):
        return "content" in item and ("role" in item or "type" in item)
    return isinstance(item, BaseMessage)


def added(field: StateField, before: Any, after: Any) -> Any:
    """What a specialist added to a field: it begins with the parent's list, and hands back the whole."""
    if field.reducer is None or not isinstance(before, Sequence) or not isinstance(after, list):
        return after
    return after[len(before) :] if after[: len(before)] == list(before) else after


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The files that a specialist wrote, and None for those that it deleted: it hands back all of them.

    The others are left out, since what it has of them may be older than what another specialist wrote meanwhile.
    """
    written = {path: file for path, file in after.items() if path not in before or before[path] != file}
    return written | {path: None for path in before if path not in after}


def readable(files: Any, drop: Callable[[str], None]) -> dict[str, Any]:
    """Files as deepagents keeps them: text alone becomes one, and None deletes one.

    What is neither, and no file of deepagents, would fail who reads it. It is left out, and `drop` is told what it is.
    """
    if not isinstance(files, Mapping):
        drop(f"a {type(files).__name__} is no object of paths and texts")
        return {}
    found: dict[str, Any] = {}
    for path, file in files.items():
        if file is None or _is_file(file):
            found[path] = file
        elif isinstance(file, str):
            found[path] = create_file_data(file)
        else:
            drop(f"what stands at {path!r:.100} is neither a text nor null nor an object with a text as its content")
    return found


def _is_file(value: Any) -> bool:
    content = value.get("content") if isinstance(value, dict) else None
    return isinstance(content, str) or (isinstance(content, list) and all(isinstance(line, str) for line in content))
