"""JSON as it may enter and as it leaves.

Enter: what PostgreSQL, msgpack or a reader in another language could not take later is refused at the door: NaN and
infinities, NUL, lone surrogates, integers beyond 64 bits, duplicate keys (RFC 8259 leaves them undefined), nesting past
`MAX_DEPTH`. Leave: `scrub` repairs what models and tools return, since a run must not die of one odd character.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from .errors import Finding, InvalidInput

MAX_DEPTH = 100
_INT64 = range(-(2**63), 2**63)


class _Refused(ValueError):
    pass


def loads(body: bytes, what: str = "body") -> Any:
    """Parse `body`, strictly.

    Raises:
        InvalidInput: with one finding; `what` names the document in it. Values are not echoed.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except _Refused as refused:
        raise InvalidInput("not acceptable JSON", [Finding(what, str(refused))]) from None
    except RecursionError:
        raise InvalidInput("not acceptable JSON", [Finding(what, f"nested deeper than {MAX_DEPTH} levels")]) from None
    except UnicodeDecodeError as error:
        raise InvalidInput("malformed JSON", [Finding(what, f"not UTF-8 at byte {error.start}")]) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidInput("malformed JSON", [Finding(what, f"{error.msg} at {where}")]) from None
    except ValueError:  # int() refuses more than 4300 digits
        raise InvalidInput("not acceptable JSON", [Finding(what, "a number is out of range")]) from None
    if (found := _unstorable(value, what)) is not None:
        raise InvalidInput("not acceptable JSON", [found])
    return value


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON. Raises TypeError for what has no JSON form, lone surrogates included."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


def canonical(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no white space (the spirit of RFC 8785), for hashing."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def scrub(value: Any, repaired: Callable[[str], None]) -> Any:
    """Return `value` with everything that cannot be stored repaired; unchanged values come back as the same object.

    NUL and lone surrogates become U+FFFD, NaN and infinities None, integers beyond 64 bits strings. `repaired` is
    called with a short description for each kind of repair made (possibly several times).
    """
    if isinstance(value, str):
        return _scrub_text(value, repaired)
    if isinstance(value, float) and not math.isfinite(value):
        repaired("a number that is not finite became null")
        return None
    if type(value) is int and value not in _INT64:
        repaired("an integer beyond 64 bits became a string")
        return str(value)
    if type(value) is dict:
        clean = {scrub(key, repaired): scrub(item, repaired) for key, item in value.items()}
        changed = any(a is not b for a, b in zip(clean.values(), value.values(), strict=False))
        return clean if changed or clean.keys() != value.keys() else value
    if type(value) in (list, tuple):
        items = [scrub(item, repaired) for item in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def _scrub_text(text: str, repaired: Callable[[str], None]) -> str:
    if "\0" in text:
        repaired("NUL characters were replaced")
        text = text.replace("\0", "\ufffd")
    if not _encodable(text):
        repaired("lone surrogates were replaced")
        text = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("an object has the same key twice")
    return members


def _no_constants(name: str) -> Any:
    raise _Refused(f"{name} is not JSON")


def _unstorable(root: Any, what: str) -> Finding | None:
    """The first thing in `root` that may not be stored.

    Iterative, since nesting must not exhaust the stack; a path is made of what is wrong only, since paths of everything
    take many times the memory of the document.
    """
    keys: list[int | str] = []
    opened: list[Iterator[tuple[int | str, Any]]] = [iter([("", root)])]
    while opened:
        for key, value in opened[-1]:
            if isinstance(value, str | int | float):
                if reason := _why_not(value):
                    return Finding(_path(what, [*keys, key]), reason)
            elif value and isinstance(value, dict | list):
                if len(opened) >= MAX_DEPTH:
                    return Finding(what, f"nested deeper than {MAX_DEPTH} levels")
                keys.append(key)
                if isinstance(value, dict):
                    for name in value:
                        if reason := _why_not(name):
                            return Finding(_path(what, keys), f"a key {reason}")
                    opened.append(iter(value.items()))
                else:
                    opened.append(enumerate(value))
                break
        else:
            opened.pop()
            if keys:
                keys.pop()
    return None


def _path(what: str, keys: list[int | str]) -> str:
    """Where `keys` lead; the first stands for the document itself."""
    return what + "".join(f"[{key}]" if isinstance(key, int) else f".{key:.64}" for key in keys[1:])


def _why_not(value: str | float) -> str | None:
    """Why a string or number may not be stored; None when it may."""
    if isinstance(value, str):
        return "holds a NUL character or a lone surrogate" if "\0" in value or not _encodable(value) else None
    if isinstance(value, float):
        return None if math.isfinite(value) else "is a number out of range"
    return None if -(2**63) <= value < 2**63 else "is an integer beyond 64 bits"
