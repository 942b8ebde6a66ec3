"""differences and bases: any two values, chains that stay cheap to read, and damage that is told."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_executor import bases, differences
from agent_executor.bases import Base, Bases, stored, whole
from agent_executor.differences import Damaged, applied, between

PARTS = st.lists(st.sampled_from([b"\xdc\x01\x02", b"0123456789" * 7, bytes(range(256)), b"", b"x", b"\0" * 300]))


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_value_is_made_from_any_base(base: bytes, value: bytes) -> None:
    assert applied(base, [between(base, value)]) == value


@given(st.lists(PARTS.map(b"".join), min_size=1, max_size=6))
def test_a_chain_is_undone_at_once(versions: list[bytes]) -> None:
    chain = [between(one, other) for one, other in pairwise(versions)]
    assert applied(versions[0], chain) == versions[-1]


@given(st.binary(max_size=3000), st.integers(0, 2999), st.binary(max_size=50), st.integers(0, 2999))
def test_two_changes_cost_little_more_than_themselves(content: bytes, at: int, put: bytes, other: int) -> None:
    base = random.Random(1).randbytes(3000) + content
    first, second = sorted((at, other))
    value = base[:first] + put + base[first:second] + b"!" + base[second + 1 :]
    difference = between(base, value)
    assert applied(base, [difference]) == value
    assert len(difference) < 25 + 24 * 5 + len(put) + 3 * 32


@given(st.data())
def test_what_was_cut_off_or_changed_is_an_error_or_does_not_matter(data: st.DataObject) -> None:
    base, value = b"abcdefgh" * 40, b"abcdefgh" * 20 + b"new" + b"abcdefgh" * 25
    difference = between(base, value)
    at = data.draw(st.integers(0, len(difference) - 1))
    byte = data.draw(st.integers(0, 255))
    for damaged in (difference[:at], difference[:at] + bytes([byte]) + difference[at + 1 :]):
        try:
            assert applied(base, [damaged]) == value
        except Damaged:
            continue


def test_a_long_chain_of_many_changes_is_undone_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change is a range of its own, to be looked up through all differences before it."""
    steps = 0

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return looked_up(*arguments)

    looked_up = differences._looked_up
    monkeypatch.setattr(differences, "_looked_up", counted)
    chosen = random.Random(1)
    versions = [chosen.randbytes(1_000_000)]
    for _ in range(60):
        changed = bytearray(versions[-1])
        for at in chosen.sample(range(len(changed)), 50):
            changed[at] ^= 1
        versions.append(bytes(changed))
    chain = [between(one, other) for one, other in pairwise(versions)]
    assert sum(map(len, chain)) < len(chain) * 5000
    assert applied(versions[0], chain) == versions[-1]
    assert steps < 50_000


class Searched(bytes):
    """Counts how much of it is looked through."""

    effort = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        """As `bytes.find`."""
        found = super().find(sub, start, end)
        self.effort += (end if found < 0 else found) - start
        return found


@pytest.mark.parametrize(("size", "other", "most"), [(2**21, 2**14, 2**16), (2**25, 2**25, 2**24)])
def test_what_is_not_alike_is_given_up_soon(size: int, other: int, most: int) -> None:
    base, value = Searched(b"a" * size), b"b" * other
    assert len(between(base, value)) > other
    assert base.effort <= most


def test_another_base_is_told() -> None:
    difference = between(b"a" * 100, b"a" * 100 + b"b")
    for base in (b"a" * 99, b"c" * 100):
        with pytest.raises(Damaged):
            applied(base, [difference])


def test_a_difference_cannot_claim_to_make_more_than_it_can() -> None:
    header = differences._HEADER.pack(1, 10, 2**60, 0, 1)
    with pytest.raises(Damaged):
        applied(b"0123456789", [header + differences._PIECE.pack(0, 0, 2**60)])
    checksum = zlib.crc32(b"0123456789" * 2)
    twice = differences._HEADER.pack(1, 10, 20, checksum, 2) + differences._PIECE.pack(0, 0, 10) * 2
    with pytest.raises(Damaged):
        applied(b"0123456789", [twice])


def grown(sizes: list[int]) -> tuple[dict[str, tuple[str, bytes]], list[bytes]]:
    rows: dict[str, tuple[str, bytes]] = {}
    values, base, content = [], None, b""
    for number, size in enumerate(sizes):
        content += random.Random(number).randbytes(size)
        kind, row, base = stored(base, str(number), "msgpack", content)
        rows[str(number)] = (kind, row)
        values.append(content)
    return rows, values


def test_what_grows_is_stored_in_proportion_and_read_at_twice_its_size() -> None:
    rows, values = grown([1000] * 1000)
    assert sum(len(row) for _, row in rows.values()) < 12 * len(values[-1])
    for version in (10, 500, 998, 999):
        kind, row = rows[str(version)]
        read = whole(str(version), kind, row, rows.get)
        assert (read.content, read.kind) == (values[version], "msgpack")
        assert read.cost <= len(values[version])
        assert read.links * bases._LINK_BYTES <= read.cost


def test_a_chain_has_an_end() -> None:
    base = Base("0", "msgpack", b"x" * 10**8, links=bases._MAX_LINKS)
    assert stored(base, "1", "msgpack", base.content + b"y")[0] == "msgpack"


def test_a_version_that_is_missing_is_named() -> None:
    rows, _ = grown([20000, 10, 10])
    del rows["0"]
    with pytest.raises(Damaged, match="version 0, which it is a difference of, is missing"):
        whole("2", *rows["2"], rows.get)
    with pytest.raises(Damaged):
        whole("1", "difference of 1", between(b"", b""), {"1": ("difference of 1", between(b"", b""))}.get)


def test_a_value_of_another_kind_or_of_the_same_version_is_whole() -> None:
    base = Base("1", "msgpack", b"x" * 50000)
    assert stored(base, "2", "bytes", base.content)[0] == "bytes"
    assert stored(base, "1", "msgpack", base.content)[0] == "msgpack"
    assert stored(base, "2", "msgpack", base.content)[0] == "difference of 1"


def test_bases_are_bounded_and_forgotten() -> None:
    kept = Bases(100_000)
    for number in range(4):
        kept.keep("job", ("t", "", str(number)), Base("1", "bytes", bytes(40_000)))
        kept.find("job", ("t", "", "0"))
    assert [number for number in range(4) if kept.find("job", ("t", "", str(number)))] == [0, 3]
    kept.keep("other", ("t", "", "0"), Base("1", "bytes", bytes(20_000)))
    kept.keep("other", ("t", "", "small"), Base("1", "bytes", b"x"))
    assert kept.find("other", ("t", "", "small")) is None
    kept.forget("job")
    assert (kept._bytes, len(kept._kept)) == (20_000, 1)
