"""strict_json: what is refused at the door, and what is repaired on the way out."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from agent_executor import strict_json
from agent_executor.errors import InvalidInput

CANARY = "canary-4711"
MANY = strict_json.MAX_DEPTH


def refused(body: bytes) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        strict_json.loads(body, "event")
    return raised.value


@pytest.mark.parametrize(
    "value", [{}, [], "ä\u20ac\U0001f600", 0, -(2**63), 2**63 - 1, 1.5, True, None, {"a": [{"b": []}]}]
)
def test_json_comes_in_as_it_is(value: Any) -> None:
    assert strict_json.loads(json.dumps(value).encode()) == value
    assert strict_json.loads(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1, "a": 2}', "the same key twice"),
        (b'{"b": {"a": 1, "a": 1}}', "the same key twice"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"\\u0000": 1}', "a key holds a NUL"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"\\udfff": 1}', "a key holds a NUL character or a lone surrogate"),
        (b'"\xed\xa0\x80"', "event: "),
        (b"9223372036854775808", "beyond 64 bits"),
        (b"[-9223372036854775809]", "beyond 64 bits"),
        (b"1" * 5000, "out of range"),
        (b"1e999", "out of range"),
        (b"[" * (MANY + 1) + b"]" * (MANY + 1), "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b"\xff\xff", "not UTF-8 at byte 0"),
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n}', "line 2, column 1"),
        (b"{} {}", "Extra data"),
    ],
)
def test_what_cannot_be_stored_or_read_elsewhere_is_refused(body: bytes, reason: str) -> None:
    assert reason in str(refused(body))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_json_is_utf_8_and_nothing_else(encoding: str) -> None:
    refused('{"a": 1}'.encode(encoding))


def test_the_deepest_nesting_allowed_is_accepted() -> None:
    assert strict_json.loads(b"[" * MANY + b"]" * MANY)


def test_a_refusal_names_the_place() -> None:
    error = refused(b'{"data": {"list": [1, {"text": "a\\u0000"}]}}')
    assert [finding.field for finding in error.findings] == ["event.data.list[1].text"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"a": [[], {}, [0], {"b": 1}], "c": {"d": [{}, "\\u0000"]}}', "event.c.d[1]"),
        (b'[[1, [2, {"a": 3}]], {"b": {"\\u0000": 1}}]', "event[1].b"),
        (b'{"a": 1e999}', "event.a"),
        (b"[[[]], [], -9223372036854775809]", "event[2]"),
        (b'"\\u0000"', "event"),
        (b'{"' + b"k" * 100 + b'": "\\u0000"}', "event." + "k" * 64),
    ],
)
def test_the_place_is_right_wherever_it_is(body: bytes, place: str) -> None:
    assert [finding.field for finding in refused(body).findings] == [place]


def test_a_document_costs_no_more_than_a_multiple_of_its_size() -> None:
    """Long keys around many values: a path for each value would take thousands of times the document."""
    key = '"' + "k" * 64 + '":'
    body = (("{" + key) * 98 + "[" + "0," * 49_999 + "0]" + "}" * 98).encode()
    tracemalloc.start()
    try:
        strict_json.loads(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(body)


@pytest.mark.parametrize("bad", ["{}\\u0000", "{}\\ud800"])
@pytest.mark.parametrize("shape", ['"{}"', '{{"a": "{}"}}', '{{"{}": 1}}', '["{}"'])
def test_values_are_never_echoed(shape: str, bad: str) -> None:
    assert CANARY not in str(refused(shape.format(bad.format(CANARY)).encode()))


@pytest.mark.parametrize("shape", ['{"a": canary-4711}', '{"a": 1, "a": "canary-4711"}', "canary-4711"])
def test_malformed_text_is_never_echoed(shape: str) -> None:
    assert CANARY not in str(refused(shape.encode()))


def test_dumps_is_compact_utf_8() -> None:
    assert strict_json.dumps({"a": [1, "ä"], 2: None}) == '{"a":[1,"ä"],"2":null}'.encode()


@pytest.mark.parametrize("value", [object(), "\ud800", 2**70])
def test_dumps_refuses_what_has_no_json_form(value: Any) -> None:
    with pytest.raises(TypeError):
        strict_json.dumps(value)


def test_canonical_json_is_the_same_for_the_same_value() -> None:
    assert strict_json.canonical({"b": 1, "a": {"d": 2, "c": []}}) == b'{"a":{"c":[],"d":2},"b":1}'
    assert strict_json.canonical({"a": [1, 2]}) != strict_json.canonical({"a": [2, 1]})


@pytest.mark.parametrize(
    ("value", "clean", "repairs"),
    [
        ("a\0b", "a\ufffdb", ["NUL characters were replaced"]),
        ("a\ud800b", "a\ufffdb", ["lone surrogates were replaced"]),
        ("\0\udfff", "\ufffd\ufffd", ["NUL characters were replaced", "lone surrogates were replaced"]),
        (float("nan"), None, ["a number that is not finite became null"]),
        ([float("-inf"), 1.5], [None, 1.5], ["a number that is not finite became null"]),
        (2**63, str(2**63), ["an integer beyond 64 bits became a string"]),
        ({"a\0": 1}, {"a\ufffd": 1}, ["NUL characters were replaced"]),
        ({"a": ({"b": "\0"},)}, {"a": ({"b": "\ufffd"},)}, ["NUL characters were replaced"]),
    ],
)
def test_scrub_repairs_and_says_what(value: Any, clean: Any, repairs: list[str]) -> None:
    said: list[str] = []
    assert strict_json.scrub(value, said.append) == clean
    assert said == repairs


@pytest.mark.parametrize("value", [{"a": [1, ("x", 2.5)], "b": {"c": None}}, [], "ä", -(2**63), True, object()])
def test_scrub_gives_back_the_same_object_when_nothing_is_wrong(value: Any) -> None:
    assert strict_json.scrub(value, pytest.fail) is value


def test_scrub_changes_nothing_in_place() -> None:
    inner = {"b": "\0"}
    assert strict_json.scrub([inner], lambda _: None) == [{"b": "\ufffd"}]
    assert inner == {"b": "\0"}
