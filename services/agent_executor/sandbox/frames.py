"""What goes over a child's pipe: length-prefixed JSON, in which LangChain's messages keep their type.

Owns the form. Never pickle, and no constructor that the sender names: `{"$message": {"type", "data"}}` can become one
of LangChain's message classes and nothing else. Either side takes the other for somebody else's program.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from langchain_core.messages import BaseMessage, messages_from_dict
from pydantic import BaseModel

HEADER_BYTES = 4
_MESSAGE = "$message"


def dump(value: Any) -> bytes:
    """One frame. ASCII, so that what is no Unicode (lone surrogates) arrives as it was.

    Raises:
        TypeError, ValueError, RecursionError: something in `value` has no JSON form.
    """
    body = json.dumps(value, default=_plain, separators=(",", ":")).encode("ascii")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def load(body: bytes) -> dict[str, Any]:
    """The frame's content.

    Raises:
        ValueError, TypeError, RecursionError: it is no frame.
    """
    found = json.loads(body, object_hook=_revived)
    if not isinstance(found, dict):
        raise TypeError("a frame is an object")
    return found


def receive(read: Callable[[int], bytes], at_most: int | None = None) -> dict[str, Any] | None:
    """The next frame from a blocking `read`, None at the end."""
    header = _exactly(read, HEADER_BYTES)
    if header is None:
        return None
    length = int.from_bytes(header, "big")
    if at_most is not None and length > at_most:
        raise ValueError(f"a frame of {length} bytes")
    body = _exactly(read, length)
    return None if body is None else load(body)


def _exactly(read: Callable[[int], bytes], count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        if not (chunk := read(count - len(found))):
            return None
        found += chunk
    return bytes(found)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return {_MESSAGE: {"type": value.type, "data": value.model_dump()}}
    if isinstance(value, BaseModel):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        return list(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} has no JSON form")


def _revived(found: dict[str, Any]) -> Any:
    if found.keys() == {_MESSAGE}:
        [message] = messages_from_dict([found[_MESSAGE]])
        return message
    return found
