"""arrays: what is sent is what psycopg itself would send, for every list that the type can hold."""

from __future__ import annotations

import struct
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer

from agent_executor.arrays import Bigints, Blobs, Ints, Texts

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ARRAYS = st.one_of(
    st.builds(Texts, st.lists(st.none() | TEXT)),
    st.builds(Blobs, st.lists(st.none() | st.binary())),
    st.builds(Ints, st.lists(st.none() | st.integers(-(2**31), 2**31 - 1))),
    st.builds(Bigints, st.lists(st.none() | st.integers(-(2**63), 2**63 - 1))),
)
NAMES = {Texts: "text", Blobs: "bytea", Ints: "int4", Bigints: "int8"}


def sent(value: list[Any]) -> tuple[bytes, int]:
    """The bytes, and the type they are announced as."""
    dumper = Transformer().get_dumper(value, PyFormat.BINARY)
    dumped = dumper.dump(value)
    assert dumped is not None
    return bytes(dumped), dumper.oid


@given(ARRAYS)
def test_it_is_read_as_it_was(array: list[Any]) -> None:
    data, oid = sent(array)
    assert oid == psycopg.adapters.types[NAMES[type(array)]].array_oid
    assert Transformer().get_loader(oid, psycopg.pq.Format.BINARY).load(data) == array


def test_an_empty_array_says_its_type_too() -> None:
    assert sent(Texts()) == (struct.pack("!iiI", 0, 0, 25), 1009)


@pytest.mark.parametrize(
    ("array", "error"), [(Texts(["\ud800"]), UnicodeEncodeError), (Ints([2**31]), struct.error)], ids=str
)
def test_what_the_type_cannot_hold_is_an_error(array: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        sent(array)
