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
    for path, reason in _unstorable(value, what):
        raise InvalidInput("not acceptable JSON", [Finding(path, reason)])
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


def _unstorable(root: Any, what: str) -> Iterator[tuple[str, str]]:
    """Yield (path, reason) for what may not be stored. Iterative: nesting must not exhaust the stack."""
    pending = [(root, what, 1)]
    while pending:
        value, path, depth = pending.pop()
        if depth > MAX_DEPTH:
            yield what, f"nested deeper than {MAX_DEPTH} levels"
        elif isinstance(value, dict):
            yield from ((path, f"a key {reason}") for key in value if (reason := _why_not(key)))
            pending.extend((item, f"{path}.{key:.64}", depth + 1) for key, item in value.items())
        elif isinstance(value, list):
            pending.extend((item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
        elif reason := _why_not(value):
            yield path, reason


def _why_not(value: Any) -> str | None:
    """Why a string or number may not be stored; None when it may."""
    if isinstance(value, str) and ("\0" in value or not _encodable(value)):
        return "holds a NUL character or a lone surrogate"
    if isinstance(value, float) and not math.isfinite(value):
        return "is a number out of range"
    if type(value) is int and value not in _INT64:
        return "is an integer beyond 64 bits"
    return None
