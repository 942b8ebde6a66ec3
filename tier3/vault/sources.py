"""Secrets from a .env file or from JSON: path -> field -> value, with everything that is wrong named at once.

What is refused is named by line, variable, path and field; no value is repeated.
"""

from __future__ import annotations

import io
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dotenv.parser import Binding, parse_stream

from agent_executor import strict_json
from agent_executor.errors import InvalidInput
from agent_executor.settings import Settings
from tier3.vault.errors import Refused
from tier3.vault.fields import SECRETS, VARIABLES, Field

Given = Mapping[str, Mapping[str, str]]
"""Path -> field -> value."""

_MAX_BYTES = 1_048_576
_NO_SECRETS = {name.upper() for name in Settings.model_fields} | {"PORT"}


def from_env(text: str) -> tuple[Given, list[str]]:
    """What a .env file gives, and the names of settings in it that are no secrets. `${NAME}` is not replaced.

    Raises:
        Refused: naming every line, variable and value that is wrong.
    """
    found: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    wrong, passed = [], []
    for binding in _bindings(text):
        name, value = binding.key, binding.value
        where = f"line {binding.original.line}"
        if binding.error or name is None or value is None:
            wrong.append(f"{where} is not NAME=VALUE")
        elif name in seen:
            wrong.append(f"{where}: {name} is there already")
        elif name in VARIABLES:
            path, field = VARIABLES[name]
            if value:  # an empty one counts as missing, as it does for the service
                wrong += [f"{name} {problem}" for problem in _problems(field, value)]
                found.setdefault(path, {})[field.name] = value
        elif name in _NO_SECRETS:
            passed.append(name)
        else:
            wrong.append(f"{where}: {_name(name)} is no variable of a secret or of the service")
        seen.add(name or "")
    return _given(found, wrong), passed


def from_json(body: bytes) -> Given:
    """What a JSON object of objects gives: `{"postgres": {"host": ...}, "llm-providers/openai": {"api_key": ...}}`.

    Raises:
        Refused: naming every path, field and value that is wrong.
    """
    try:
        document = strict_json.loads(body, "input")
    except InvalidInput as error:
        raise Refused("; ".join(f"the input: {finding.message}" for finding in error.findings)) from None
    if not isinstance(document, dict):
        raise Refused("the input must be a JSON object: path -> field -> value")
    found: dict[str, dict[str, str]] = {}
    wrong: list[str] = []
    for path, fields in document.items():
        if path not in SECRETS:
            wrong.append(f"{_name(path)} is no path of a secret; known are {', '.join(SECRETS)}")
        elif not isinstance(fields, dict) or not fields:
            wrong.append(f"{path} must be an object with fields")
        else:
            found[path] = dict(_values(path, fields, wrong))
    return _given(found, wrong)


def read(where: str) -> tuple[bytes, str | None]:
    """The bytes of a file, or of standard input for `-`; and a warning if others can read the file.

    Raises:
        Refused: it cannot be read, or is larger than 1 MiB.
    """
    try:
        if where == "-":
            return _bounded(sys.stdin.buffer.read(_MAX_BYTES + 1)), None
        with Path(where).open("rb") as file:
            mode = Path(where).stat().st_mode
            others = stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH)
            return _bounded(file.read(_MAX_BYTES + 1)), f"others can read {where}: chmod 600" if others else None
    except OSError as error:
        raise Refused(f"{where} cannot be read: {error.strerror}") from None


def decoded(body: bytes) -> str:
    """UTF-8 as text, without a mark at its beginning. Refused if it is none."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"the input is not UTF-8 at byte {error.start}") from None


def _bindings(text: str) -> Iterable[Binding]:
    """The assignments of a .env file, without blank lines and comments."""
    return (each for each in parse_stream(io.StringIO(text)) if each.error or each.key is not None)


def _values(path: str, fields: Mapping[str, Any], wrong: list[str]) -> Iterable[tuple[str, str]]:
    """The values of a secret's fields as text; whatever is wrong is added to `wrong`."""
    known = {field.name: field for field in SECRETS[path]}
    for name, value in fields.items():
        if name not in known:
            wrong.append(f"{path} has no field {_name(name)}; it has {', '.join(known)}")
        elif not isinstance(value, str) and (name != "port" or type(value) is not int):
            wrong.append(f"{path}.{name} must be a string{' or a number' if name == 'port' else ''}")
        else:
            wrong += [f"{path}.{name} {problem}" for problem in _problems(known[name], str(value))]
            yield name, str(value)


def _problems(field: Field, value: str) -> list[str]:
    problem = field.problem(value)
    return [problem] if problem else []


def _given(found: Given, wrong: list[str]) -> Given:
    if wrong:
        raise Refused("; ".join(wrong))
    if not found:
        raise Refused("the input holds no secret")
    return found


def _bounded(body: bytes) -> bytes:
    if len(body) > _MAX_BYTES:
        raise Refused("the input is larger than 1 MiB")
    return body


def _name(text: str) -> str:
    """A name that somebody chose, as far as it is one: a value that slipped into its place must not be shown."""
    plain = text.replace("_", "").replace("-", "").replace("/", "")
    return text if len(text) <= 40 and plain.isascii() and plain.isalpha() else "(a name that is none)"
