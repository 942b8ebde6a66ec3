"""Vault's HTTP API, with failures in the operator's words.

Owns the connection. hvac would read other variables and files for what it is not told, so it is told everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import hvac
from hvac.exceptions import BadGateway, Forbidden, InvalidPath, VaultDown, VaultError
from requests.exceptions import RequestException, SSLError

from agent_executor.redaction import redact, remember
from tier3.vault.access import Access
from tier3.vault.errors import Denied, Failed, Unreachable

_TIMEOUT_S = 5
_ALL = "root"

Rights = Mapping[str, Collection[str]]
"""Path -> capabilities on it, as https://developer.hashicorp.com/vault/docs/concepts/policies names them."""


class Vault:
    """One Vault as one token sees it."""

    def __init__(self, access: Access, token: str | None = None) -> None:
        self.access = access
        self._client = self._connect(access.token if token is None else token, access.namespace)
        remember(access.token, token)

    def check(self) -> None:
        """Return if Vault answers and is unsealed. Asked outside any namespace, where health belongs.

        Raises:
            Unreachable: saying what is wrong.
        """
        asked = self._connect("", None).sys
        with _explained("health"):
            health: Any = asked.read_health_status(method="GET", standby_ok=True, sealed_code=200, uninit_code=200)
        if not isinstance(health, Mapping) or "sealed" not in health:
            raise Unreachable(f"what answers at {self.access.addr} is not Vault, or an ill one")
        if not health.get("initialized"):
            raise Unreachable(f"Vault at {self.access.addr} is not initialised: `vault operator init`, then unseal it")
        if health["sealed"]:
            raise Unreachable(f"Vault at {self.access.addr} is sealed: `vault operator unseal`, then run again")

    def read(self, path: str) -> Mapping[str, Any] | None:
        """The data at a path; None where there is nothing."""
        with _explained(f"read {path}"):
            return _data(self._client.read(path), path)

    def keys(self, path: str) -> list[str]:
        """Names below a path; those that end in a slash have more below them."""
        with _explained(f"list {path}"):
            return [*(_data(self._client.list(path), path) or {}).get("keys", [])]

    def write(self, path: str, data: Mapping[str, Any], *, wrap_ttl: str | None = None) -> Mapping[str, Any]:
        """Write, and return the whole answer: `data`, `auth`, `wrap_info`."""
        with _explained(f"write {path}"):
            answer: Any = self._client.write_data(path, data=dict(data), wrap_ttl=wrap_ttl)
        return answer if isinstance(answer, Mapping) else {}

    def secret(self, name: str) -> tuple[Mapping[str, Any], int]:
        """A secret of the service's and its version; ({}, 0) if there is none, ({}, N) if version N is gone.

        A version that was deleted or destroyed is a 404 with its metadata, which the next write has to name.
        """
        place = self.access.data(name)
        with _explained(f"read {place}"):
            try:
                answer: Any = self._client.adapter.get(f"/v1/{place}")
            except InvalidPath as error:
                gone: Any = error.json or {}
                answer = gone if gone.get("data") else None
        found = _data(answer, place) or {}
        return found.get("data") or {}, int(found.get("metadata", {}).get("version", 0))

    def rights(self, paths: Sequence[str]) -> Rights:
        """What the token may do at each path.

        Raises:
            Denied: Vault knows no such token.
        """
        try:
            found = self.write("sys/capabilities-self", {"paths": [*paths]})["data"]
        except Denied:
            raise Denied("Vault refuses the token: it is wrong, revoked or expired, or belongs elsewhere") from None
        return {path: found.get(path, ()) for path in paths}

    def _connect(self, token: str, namespace: str | None) -> hvac.Client:
        access = self.access
        return hvac.Client(
            url=access.addr, token=token, namespace=namespace, verify=access.cacert or True, timeout=_TIMEOUT_S
        )


def lacking(rights: Rights, wanted: Rights) -> list[str]:
    """What is wanted and not there, one line a path."""
    missing = {path: [each for each in sorted(needs) if not may(rights, path, each)] for path, needs in wanted.items()}
    return [f"{', '.join(needs)} on {path}" for path, needs in missing.items() if needs]


def may(rights: Rights, path: str, capability: str) -> bool:
    """Whether `rights` allow it; root may everything."""
    return capability in rights[path] or _ALL in rights[path]


def reason(error: Exception) -> str:
    """Another program's message, on one line and without the secrets that are known."""
    errors = getattr(error, "errors", None)
    text = "; ".join(map(str, errors)) if errors else str(error)
    return redact(" ".join(text.split())) or type(error).__name__


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Failures of hvac and of the network in our words; neither an address's query nor a body is repeated."""
    try:
        yield
    except Forbidden:
        raise Denied(f"Vault does not let this token {what}") from None
    except (VaultDown, BadGateway):
        raise Unreachable(f"Vault cannot {what}: it is sealed, or not ready") from None
    except VaultError as error:
        raise Failed(f"Vault refuses to {what}: {reason(error)}") from None
    except SSLError:
        raise Unreachable("Vault's certificate is not trusted: VAULT_CACERT names the file of its authority") from None
    except RequestException as error:
        raise Unreachable(f"Vault at VAULT_ADDR does not answer ({what}): {type(error).__name__}") from None


def _data(answer: Any, path: str) -> Mapping[str, Any] | None:
    if answer is None:
        return None
    if not isinstance(answer, Mapping) or not isinstance(answer.get("data"), Mapping):
        raise Unreachable(f"what Vault answered for {path} is no JSON of Vault's")
    found: Mapping[str, Any] = answer["data"]
    return found
