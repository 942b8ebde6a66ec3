"""Arrays as parameters of a query: flat lists of one known type, in PostgreSQL's binary format.

Owns their encoding (`array_send` in PostgreSQL's src/backend/utils/adt/arrayfuncs.c). psycopg's own looks at every
element to find out what a list holds, which for the many arrays of a group's commit takes longer than the commit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

_HEADER = struct.Struct("!iiIii")
_EMPTY = struct.Struct("!iiI")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)


class Texts(list[str | None]):
    """`text[]`."""


class Blobs(list[bytes | None]):
    """`bytea[]`."""


class Ints(list[int | None]):
    """`int[]`."""


class Bigints(list[int | None]):
    """`bigint[]`."""


class _ArrayDumper(Dumper):
    format = Format.BINARY
    element_oid: ClassVar[int]
    encode: ClassVar[Callable[[Any], bytes]]

    def dump(self, obj: list[Any]) -> Buffer:
        """Raises UnicodeEncodeError or struct.error for what the type cannot hold."""
        if not obj:
            return _EMPTY.pack(0, 0, self.element_oid)
        encode, length, parts = type(self).encode, _LENGTH.pack, [b""]
        for value in obj:
            if value is None:
                parts.append(_NULL)
            else:
                encoded = encode(value)
                parts += (length(len(encoded)), encoded)
        parts[0] = _HEADER.pack(1, None in obj, self.element_oid, len(obj), 1)
        return b"".join(parts)


def _register(array: type[list[Any]], name: str, encode: Callable[[Any], bytes]) -> None:
    info = psycopg.adapters.types[name]
    body = {"oid": info.array_oid, "element_oid": info.oid, "encode": staticmethod(encode)}
    psycopg.adapters.register_dumper(array, type(f"{array.__name__}Dumper", (_ArrayDumper,), body))


_register(Texts, "text", str.encode)
_register(Blobs, "bytea", bytes)
_register(Ints, "int4", _LENGTH.pack)
_register(Bigints, "int8", struct.Struct("!q").pack)
