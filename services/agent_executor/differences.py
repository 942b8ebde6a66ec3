"""A large value as what sets it apart from an earlier one, in bytes.

Owns the format, and how differences are found and undone; not where they are stored, nor when one is worth it. A value
is pieces, each some literal bytes and then a range of the base, which ranges come in order (as in VCDIFF, RFC 3284).
They are found by comparing memory and by looking for short anchors (as rsync does, and Git's packs), never byte by
byte: a step adds to the end, or changes a few places. What looks too different is taken to be so.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

_HEADER = Struct(">BQQII")  # format, lengths of the base and of the value, the value's CRC-32, how many pieces
_PIECE = Struct(">QQQ")  # how many literal bytes, then where a range of the base begins and how long it is
_FORMAT = 1
_ANCHOR = 32
_WINDOW = 2**16
_STEP = 4
_MAX_PIECES = 64
_EFFORT = 4
_MAX_EFFORT = 2**24
"""How many bytes are looked through for anchors, at most; and how many times the length of the shorter of the two."""
_AT_ONCE = 1024
"""Through how many pieces ranges are looked up, at most: making a value in between costs less than more of them."""


_Range = tuple[int, int]


class Damaged(ValueError):
    """No difference, or not one to this base."""


@dataclass(frozen=True)
class _Piece:
    at: int
    """Where in the value it begins."""
    literal: memoryview
    start: int
    length: int


@dataclass(frozen=True)
class _Difference:
    base_length: int
    length: int
    checksum: int
    pieces: Sequence[_Piece]


def between(base: bytes, value: bytes) -> bytes:
    """How `value` is made from `base`: shorter than it, if they are alike."""
    pieces = _pieces(base, value)
    at, table, literals = 0, bytearray(), bytearray()
    for literal, start, length in pieces:
        table += _PIECE.pack(literal, start, length)
        literals += memoryview(value)[at : at + literal]
        at += literal + length
    header = _HEADER.pack(_FORMAT, len(base), len(value), zlib.crc32(value), len(pieces))
    return header + bytes(table) + bytes(literals)


def applied(base: bytes, differences: Sequence[bytes]) -> bytes:
    """The value that the last of `differences` tells, each being one to the value before it, and the first to `base`.

    Few values in between are made: what is needed is looked up through as many differences as have few pieces together.

    Raises:
        Damaged: they do not fit together, or the value is not the one that was written.
    """
    read = [_read(each) for each in differences]
    if not read:
        return base
    lengths = [len(base), *(each.length for each in read)]
    if [each.base_length for each in read] != lengths[:-1]:
        raise Damaged("it is a difference to something else")
    value: bytes | bytearray = base
    for some in _together(read):
        value = _at_once(value, some)
    if zlib.crc32(value) != read[-1].checksum:
        raise Damaged("its checksum does not hold")
    return bytes(value)


def _together(differences: Sequence[_Difference]) -> Iterator[list[_Difference]]:
    """Those that are undone at once."""
    some: list[_Difference] = []
    count = 0
    for difference in differences:
        count += len(difference.pieces)
        if some and count > _AT_ONCE:
            yield some
            some, count = [], len(difference.pieces)
        some.append(difference)
    yield some


def _at_once(base: bytes | bytearray, differences: Sequence[_Difference]) -> bytearray:
    length = differences[-1].length
    value = bytearray(length)
    needed = [(0, 0, length)]  # where it goes, and which range of the version at hand
    for difference in reversed(differences):
        needed = [each for wanted in needed for each in _looked_up(difference, wanted, value)]
    for at, start, end in needed:
        value[at : at + end - start] = memoryview(base)[start:end]
    return value


def _looked_up(
    difference: _Difference, wanted: tuple[int, int, int], value: bytearray
) -> Iterator[tuple[int, int, int]]:
    """Put literal bytes where they go; the rest as ranges of the base."""
    at, start, end = wanted
    pieces = difference.pieces
    for number in range(bisect_right(pieces, start, key=lambda piece: piece.at) - 1, len(pieces)):
        if start == end:
            return
        piece = pieces[number]
        copied_at = piece.at + len(piece.literal)
        if (size := min(end, copied_at) - start) > 0:
            skipped = start - piece.at
            value[at : at + size] = piece.literal[skipped : skipped + size]
            at, start = at + size, start + size
        if (size := min(end, copied_at + piece.length) - start) > 0:
            source = piece.start + start - copied_at
            yield at, source, source + size
            at, start = at + size, start + size


def _read(difference: bytes) -> _Difference:
    """Raises Damaged where its numbers contradict each other, so that it cannot claim to make more than it can."""
    content = memoryview(difference)
    if len(content) < _HEADER.size:
        raise Damaged("it is cut off")
    form, base_length, length, checksum, count = _HEADER.unpack_from(content)
    literals_at = _HEADER.size + count * _PIECE.size
    if form != _FORMAT or len(content) < literals_at:
        raise Damaged("it is of another format" if form != _FORMAT else "it is cut off")
    pieces, at, copied_to = [], 0, 0
    for literal, start, size in _PIECE.iter_unpack(content[_HEADER.size : literals_at]):
        if start < copied_to or start + size > base_length:
            raise Damaged("it copies what is not there")
        pieces.append(_Piece(at, content[literals_at : literals_at + literal], start, size))
        at, copied_to, literals_at = at + literal + size, start + size, literals_at + literal
    if at != length or literals_at != len(content):
        raise Damaged("its lengths contradict each other")
    return _Difference(base_length, length, checksum, pieces)


def _pieces(base: bytes, value: bytes) -> list[tuple[int, int, int]]:
    """Of each piece: how many literal bytes, and which range of the base follows, as its start and length."""
    mine = memoryview(value)
    at = start = _alike(base, (0, len(base)), mine, (0, len(value)))
    tail = _alike_at_end(base, (start, len(base)), mine, (at, len(value)))
    end, at_end = len(base) - tail, len(value) - tail
    pieces = [(0, 0, start)]
    effort = min(_EFFORT * min(len(base), len(value)), _MAX_EFFORT)
    while start < end and len(pieces) < _MAX_PIECES:
        found, effort = _found(base, (start, end), mine, (at, at_end), effort)
        if found is None:
            break
        back = _alike_at_end(base, (start, found[0]), mine, (at, found[1]))
        start, literal, at = found[0] - back, found[1] - back - at, found[1] - back
        length = _alike(base, (start, end), mine, (at, at_end))
        pieces.append((literal, start, length))
        start, at = start + length, at + length
    return [*pieces, (at_end - at, end, tail)]


def _found(
    base: bytes, within: _Range, mine: memoryview, of: _Range, effort: int
) -> tuple[tuple[int, int] | None, int]:
    """Where, in the base and in mine, they are alike again; and what is left of the effort."""
    start, end = within
    ahead = 0
    while effort > 0 and of[0] + ahead + _ANCHOR <= of[1]:
        at = of[0] + ahead
        stop = min(end, start + _WINDOW + _STEP**2 * ahead, start + effort)
        found = base.find(mine[at : at + _ANCHOR], start, stop)
        if found >= 0:
            return (found, at), effort - (found - start)
        effort -= stop - start
        ahead = _STEP * ahead or 1
    return None, effort


def _alike(base: bytes, theirs: _Range, mine: memoryview, ours: _Range) -> int:
    """How many bytes these ranges have in common at their beginnings."""
    limit = min(theirs[1] - theirs[0], ours[1] - ours[0])
    start, at = theirs[0], ours[0]
    return _longest(limit, lambda low, high: base.startswith(mine[at + low : at + high], start + low))


def _alike_at_end(base: bytes, theirs: _Range, mine: memoryview, ours: _Range) -> int:
    """How many bytes these ranges have in common at their ends."""
    limit = min(theirs[1] - theirs[0], ours[1] - ours[0])
    end, at_end = theirs[1], ours[1]
    return _longest(limit, lambda low, high: base.startswith(mine[at_end - high : at_end - low], end - high))


def _longest(limit: int, is_same: Callable[[int, int], bool]) -> int:
    """Up to where all is the same, by strides that grow while it is, and shrink where it is not."""
    length, stride = 0, 64
    while length < limit:
        stride = min(stride, limit - length)
        if is_same(length, length + stride):
            length, stride = length + stride, stride * 2
        elif stride == 1:
            break
        else:
            stride //= 2
    return length
