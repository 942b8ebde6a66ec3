"""Where Vault is, who asks it, and where the service's secrets are in it: the variables that both sessions read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tier3.vault.errors import Misconfigured

_PLACE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_DEFAULTS = {"VAULT_MOUNT": "secret", "VAULT_PATH": "agent-executor"}


@dataclass(frozen=True)
class Access:
    """One Vault, a token for it, and the place of the service's secrets."""

    addr: str
    token: str = field(repr=False)
    mount: str
    path: str
    namespace: str | None = None
    cacert: str | None = None

    def data(self, name: str) -> str:
        """The API's path of a secret's newest version."""
        return f"{self.mount}/data/{self.path}/{name}"


def access(environment: Mapping[str, str], wrong: Sequence[str] = (), *, with_token: bool = True) -> Access:
    """Read VAULT_ADDR, VAULT_TOKEN, VAULT_MOUNT, VAULT_PATH, VAULT_NAMESPACE and VAULT_CACERT.

    Raises:
        Misconfigured: naming every missing or bad variable, after those that the caller found `wrong`.
    """
    found = {**_DEFAULTS, **{name: value for name, value in environment.items() if value}}
    places = {name: found.get(name, "").strip("/") for name in ("VAULT_MOUNT", "VAULT_PATH", "VAULT_NAMESPACE")}
    addr, token, cacert = found.get("VAULT_ADDR", ""), found.get("VAULT_TOKEN", ""), found.get("VAULT_CACERT")
    all_wrong = [
        *_required("VAULT_ADDR", addr, is_url(addr), "must be like https://vault.example:8200"),
        *(_required("VAULT_TOKEN", token, is_word(token), "must be one word of ASCII") if with_token else ()),
        *(f"{name} must be a path of letters, digits, _ . -" for name, place in places.items() if _odd(name, place)),
        *([f"VAULT_CACERT {problem}"] if cacert and (problem := unreadable(cacert)) else ()),
        *wrong,
    ]
    if all_wrong:
        raise Misconfigured("; ".join(all_wrong))
    return Access(addr, token, places["VAULT_MOUNT"], places["VAULT_PATH"], places["VAULT_NAMESPACE"] or None, cacert)


def is_url(text: str) -> bool:
    """Whether it is an http or https URL without a user, a query or white space."""
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return named and is_word(text) and parts.scheme in {"http", "https"} and not ("@" in parts.netloc or parts.query)


def is_word(text: str) -> bool:
    """Whether it can stand in an HTTP header: printable ASCII without white space."""
    return bool(re.fullmatch(r"[!-~]+", text))


def is_place(text: str) -> bool:
    """Whether it names a mount or a path, and holds nothing that a policy would take for a pattern."""
    return bool(_PLACE.fullmatch(text))


def unreadable(path: str) -> str | None:
    """What keeps a file from being read as text; None if nothing does."""
    try:
        Path(path).read_text()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "is no text"
    return None


def _required(name: str, value: str, good: bool, rule: str) -> list[str]:
    if not value:
        return [f"{name} is required"]
    return [] if good else [f"{name} {rule}"]


def _odd(name: str, place: str) -> bool:
    return not is_place(place) and not (name == "VAULT_NAMESPACE" and not place)
