"""Which versions of large values this process has in memory, so that the next ones can be stored as differences.

Owns what is remembered, for how long, and when a value is stored whole again; `differences` has the format, and
`checkpoints` the tables. A row that holds a difference says so in its type, which names the version that it is one to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from . import differences

SMALLEST = 16 * 2**10
"""Smaller values are always stored whole."""
PREFIX = "difference of "
_MAX_BYTES = 128 * 2**20
_LINK_BYTES = 4 * 2**10
"""What it costs to look up one more difference, in bytes that could be read meanwhile."""
_MAX_LINKS = 1000


@dataclass(frozen=True)
class Base:
    """A version of a value that is in the database; `kind` is the serializer's.

    `cost`: how many bytes are read to make it, beside those of a value that is stored whole; of so many `links`.
    """

    version: str
    kind: str
    content: bytes
    cost: int = 0
    links: int = 0


def stored(base: Base | None, version: str, kind: str, content: bytes) -> tuple[str, bytes, Base]:
    """The type and the bytes of a row, and what it will be a base as, once it is committed.

    A value is stored whole as soon as its differences would cost as much, so that reading takes at most twice as long,
    and what is stored of a value that grows is proportional to its growth.
    """
    if base is not None and base.kind == kind and base.version != version:
        difference = differences.between(base.content, content)
        cost = base.cost + len(difference) + _LINK_BYTES
        if cost <= len(content) and base.links < _MAX_LINKS:
            return PREFIX + base.version, difference, Base(version, kind, content, cost, base.links + 1)
    return kind, content, Base(version, kind, content)


def whole(version: str, kind: str, content: bytes, row_of: Callable[[str], tuple[str, bytes] | None]) -> Base:
    """What a row stands for. `row_of` gives the type and the bytes of another version's row.

    Raises:
        differences.Damaged: a version that is needed is not there, or not as it was.
    """
    chain: list[bytes] = []
    while kind.startswith(PREFIX):
        chain.append(content)
        needed = kind.removeprefix(PREFIX)
        row = row_of(needed)
        if row is None or len(chain) > _MAX_LINKS:
            raise differences.Damaged(f"version {needed}, which it is a difference of, is missing")
        kind, content = row
    cost = sum(map(len, chain)) + _LINK_BYTES * len(chain)
    return Base(version, kind, differences.applied(content, chain[::-1]), cost, len(chain))


class Bases:
    """Those of all jobs that a process runs: the ones used last, within a number of bytes."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[Hashable, Sequence[str]], Base] = OrderedDict()

    def find(self, owner: Hashable, place: tuple[str, ...]) -> Base | None:
        """The version of the value at `place` that was kept."""
        found = self._kept.get((owner, place))
        if found is not None:
            self._kept.move_to_end((owner, place))
        return found

    def keep(self, owner: Hashable, place: tuple[str, ...], base: Base) -> None:
        """Keep a version that was committed, instead of the one before."""
        self._drop((owner, place))
        if len(base.content) >= SMALLEST:
            self._kept[owner, place] = base
            self._bytes += len(base.content)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def forget(self, owner: Hashable) -> None:
        """Drop all that is `owner`'s."""
        for key in [key for key in self._kept if key[0] == owner]:
            self._drop(key)

    def _drop(self, key: tuple[Hashable, Sequence[str]]) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self._bytes -= len(dropped.content)
