"""BuildKit's progress, as the engine streams it: `moby.buildkit.control.v1.StatusResponse`, in protobuf, in base64.

Only the few fields that a line of progress needs are read, so that no protobuf library is:
https://github.com/moby/buildkit/blob/master/api/services/control/control.proto
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

Value = int | bytes
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VERTEX, _LOG = 1, 3


@dataclass(frozen=True)
class Vertex:
    """One step, as it stands. `seconds` is None until it is done."""

    digest: str
    name: str
    cached: bool
    seconds: float | None
    error: str


@dataclass(frozen=True)
class Output:
    """What a step printed."""

    digest: str
    text: str


def read(trace: str) -> Iterator[Vertex | Output]:
    """What one `moby.buildkit.trace` says; ValueError where it is none."""
    for number, value in _fields(base64.b64decode(trace)):
        if number == _VERTEX:
            yield _vertex(_message(value))
        elif number == _LOG:
            found = _message(value)
            yield Output(_text(found.get(1)), _text(found.get(4)))


def _vertex(found: dict[int, Value]) -> Vertex:
    started, completed = _seconds(found.get(5)), _seconds(found.get(6))
    return Vertex(
        digest=_text(found.get(1)),
        name=_text(found.get(3)),
        cached=bool(found.get(4)),
        seconds=completed - started if started is not None and completed is not None else None,
        error=_text(found.get(7)),
    )


def _message(value: Value) -> dict[int, Value]:
    return dict(_fields(value)) if isinstance(value, bytes) else {}


def _text(value: Value | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _seconds(value: Value | None) -> float | None:
    """A google.protobuf.Timestamp."""
    if not isinstance(value, bytes):
        return None
    found = dict(_fields(value))
    return int(found.get(1, 0)) + int(found.get(2, 0)) / 1e9


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        value: Value
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind in {_BYTES, _FIXED64, _FIXED32}:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
            if kind == _BYTES:
                size, position = _varint(data, position)
            if position + size > len(data):
                raise ValueError("a field of BuildKit's progress is cut off")
            value, position = data[position : position + size], position + size
        else:
            raise ValueError(f"BuildKit's progress has a field of type {kind}")
        yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("a number of BuildKit's progress is cut off")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
