"""The secrets of the service: their paths and fields, what a field may hold, and the variable that stands for it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agent_executor.redaction import remember, remember_url
from tier3.vault.access import is_url, is_word

PROVIDERS = ("anthropic", "ollama", "openai")
"""Those that the service reads a secret for."""

_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_HOST = re.compile(r"[A-Za-z0-9_.:-]+|/[^\x00-\x20]*")
_CREDENTIALS = ("-----BEGIN NATS USER JWT-----", "-----BEGIN USER NKEY SEED-----")

Rule = tuple[Callable[[str], bool], str]


@dataclass(frozen=True)
class Field:
    """One field of a secret: its name, the variable for it in a .env file, and what its value must be."""

    name: str
    variable: str
    rule: Rule
    hidden: bool = False
    """Whether typing it must not show it."""
    optional: bool = False
    default: str = ""
    """What a prompt offers."""

    def problem(self, value: str) -> str | None:
        """What is wrong with a value, without the value; None if nothing is."""
        good, words = self.rule
        return None if value and good(value) else f"must be {words}"


def _port(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) < 6 and 0 < int(value) < 65536


def _line(value: str) -> bool:
    return not _CONTROL.search(value)


def _urls(*schemes: str) -> Callable[[str], bool]:
    """For one or, with commas, several URLs of these schemes, each with a host."""

    def good(value: str) -> bool:
        try:
            parts = [urlsplit(each) for each in value.split(",")]
            return all(each.scheme in schemes and each.hostname and each.port != 0 for each in parts) and is_word(value)
        except ValueError:
            return False

    return good


_TEXT: Rule = (_line, "one line, and not empty")
_KEY: Rule = (is_word, "one word of ASCII, without white space")
_ADDRESS: Rule = (is_url, "like https://provider.example/v1")

SECRETS: Mapping[str, Sequence[Field]] = {
    "postgres": (
        Field("host", "POSTGRES_HOST", (lambda value: bool(_HOST.fullmatch(value)), "a host name or an address")),
        Field("port", "POSTGRES_PORT", (_port, "a number from 1 to 65535"), default="5432"),
        Field("database", "POSTGRES_DB", _TEXT, default="langgraph_dev"),
        Field("username", "POSTGRES_USER", _TEXT, default="postgres"),
        Field("password", "POSTGRES_PASSWORD", _TEXT, hidden=True),
    ),
    "redis": (
        Field("url", "REDIS_URL", (_urls("redis", "rediss"), "like redis://[:password@]host:port/db"), hidden=True),
    ),
    "nats": (
        Field(
            "url",
            "NATS_URL",
            (_urls("nats", "tls", "ws", "wss"), "like nats://[user:password@]host:port, several with commas"),
            hidden=True,
        ),
        Field(
            "credentials",
            "NATS_CREDENTIALS",
            (lambda value: all(mark in value for mark in _CREDENTIALS), "the text of a .creds file"),
            hidden=True,
            optional=True,
        ),
    ),
    "e2e": (Field("api_key", "E2E_API_KEY", _KEY, hidden=True),),
    **{
        f"llm-providers/{name}": (
            Field("api_key", f"{name.upper()}_API_KEY", _KEY, hidden=True, optional=name == "ollama"),
            Field("base_url", f"{name.upper()}_BASE_URL", _ADDRESS, optional=True),
        )
        for name in PROVIDERS
    },
}

VARIABLES: Mapping[str, tuple[str, Field]] = {
    field.variable: (path, field) for path, fields in SECRETS.items() for field in fields
}


def incomplete(path: str, names: Sequence[str]) -> list[str]:
    """Required fields of a secret that are not among `names`."""
    return [field.name for field in SECRETS[path] if not field.optional and field.name not in names]


def hide(path: str, secret: Mapping[str, Any]) -> None:
    """Keep what is hidden of a secret out of every message from now on."""
    for field in SECRETS[path]:
        if field.hidden and field.name in secret:
            value = str(secret[field.name])
            remember(value)
            with contextlib.suppress(ValueError):
                remember_url(value if "://" in value else None)


def ill(path: str, secret: Mapping[str, Any]) -> list[str]:
    """What is wrong with a whole secret, field by field, without the values."""
    found = [f"{name} is missing" for name in incomplete(path, [*secret])]
    for field in SECRETS[path]:
        if field.name in secret and (problem := field.problem(str(secret[field.name]))):
            found.append(f"{field.name} {problem}")
    return found
