"""What goes over a child's pipe: length-prefixed JSON, in which messages, documents and bytes keep their type.

Owns the form: a mark, another word in each frame, and the JSON. `{mark: ["message", {"type", "data"}]}` can become one
of LangChain's message classes and nothing else; data that looks like it cannot know the mark, and stays data. Never
pickle, and no constructor that the sender names: either side takes the other for somebody else's program.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import PurePath
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, messages_from_dict
from pydantic import BaseModel

HEADER_BYTES = 4
_MARK_BYTES = 16


def dump(value: Any) -> bytes:
    """One frame. ASCII, so that what is no Unicode (lone surrogates) arrives as it was.

    Raises:
        TypeError, ValueError, RecursionError: something in `value` has no JSON form.
    """
    mark = os.urandom(_MARK_BYTES // 2).hex()
    body = (mark + json.dumps(value, default=partial(_plain, mark), separators=(",", ":"))).encode("ascii")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def load(body: bytes, at_most: int | None = None) -> dict[str, Any]:
    """The frame's content, with `at_most` so many messages, documents and bytes: they take time to make.

    Raises:
        ValueError, TypeError, RecursionError: it is no frame.
    """
    mark = body[:_MARK_BYTES].decode("ascii")
    places = itertools.repeat(None) if at_most is None else itertools.repeat(None, at_most)
    found = json.loads(body[_MARK_BYTES:], object_hook=partial(_revived, mark, places))
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


def _plain(mark: str, value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return {mark: ["message", {"type": value.type, "data": dict(value)}]}
    if type(value) is Document:
        return {mark: ["document", dict(value)]}
    if isinstance(value, bytes | bytearray | memoryview):
        return {mark: ["bytes", base64.b64encode(value).decode()]}
    return _data(value)


def _data(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, uuid.UUID | Decimal | PurePath):
        return str(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} has no JSON form")


def _revived(mark: str, places: Iterator[None], found: dict[str, Any]) -> Any:
    if found.keys() != {mark}:
        return found
    if next(places, found) is not None:
        raise ValueError("more messages than a frame may have")
    kind, content = found[mark]
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "document":
        return Document(**content)
    [message] = messages_from_dict([{"message": content}[kind]])
    return message
