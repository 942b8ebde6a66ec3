"""Asking for secrets at a terminal: what is hidden is typed without echo, what is set is called set and never shown."""

from __future__ import annotations

import getpass
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tier3.vault.errors import Refused
from tier3.vault.fields import SECRETS, Field
from tier3.vault.store import Stored

_GUIDE = "Enter keeps what is set, or skips it; Ctrl-C before the end writes nothing.\n"


def ask(paths: Iterable[str], stored: Mapping[str, Stored], *, replace: bool) -> dict[str, dict[str, str]]:
    """Ask for each field of each secret; returns path -> field -> what was typed.

    Raises:
        Refused: there is no terminal, or it cannot be kept from showing what is typed.
    """
    if not sys.stdin.isatty():
        raise Refused("there is no terminal to ask at: use --from-env FILE or --from-json -")
    print(_GUIDE)
    found: dict[str, dict[str, str]] = {}
    try:
        for path in paths:
            print(f"{path}: {state(path, stored[path].fields)}")
            if given := _secret(path, {} if replace else stored[path].fields):
                found[path] = given
    except EOFError:
        raise Refused("the input ended, or the terminal would show what is typed; nothing was written") from None
    return found


def state(path: str, fields: Mapping[str, object]) -> str:
    """Which fields of a secret are set."""
    names = [field.name for field in SECRETS.get(path, ())]
    names += [name for name in fields if name not in names]
    return ", ".join(f"{name} {'set' if name in fields else 'unset'}" for name in names)


def _secret(path: str, there: Mapping[str, object]) -> dict[str, str]:
    """What was typed for a secret, with the defaults of what is not there; nothing if nothing was typed."""
    typed = {field.name: _ask(field, field.name in there) for field in SECRETS[path]}
    if not any(typed.values()):
        return {}
    defaults = {field.name: field.default for field in SECRETS[path] if field.name not in there}
    return {name: chosen for name, value in typed.items() if (chosen := value or defaults.get(name, ""))}


def _ask(field: Field, is_set: bool) -> str:
    """What was typed for a field, asked again while it is wrong; nothing for Enter."""
    hint = "set" if is_set else field.default or ("optional" if field.optional else "unset")
    words = "file with the credentials" if field.name == "credentials" else field.name
    while True:
        value = _typed(field)(f"  {words} [{hint}]: ")
        problem = field.problem(value) if value else None
        if problem is None:
            return value
        print(f"  {words} {problem}")


def _typed(field: Field) -> Callable[[str], str]:
    if field.name == "credentials":
        return _file
    if not field.hidden:
        return lambda prompt: input(prompt).strip()
    return _hidden if field.name == "password" else lambda prompt: _hidden(prompt).strip()


def _hidden(prompt: str) -> str:
    """A line typed without echo. Refused where the terminal would show it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt)
        except getpass.GetPassWarning:
            raise EOFError from None


def _file(prompt: str) -> str:
    """The text of the file that was named, since it is too long to be typed; a name alone if there is none."""
    where = input(prompt).strip()
    try:
        return Path(where).expanduser().read_text() if where else ""
    except (OSError, ValueError):
        return where
