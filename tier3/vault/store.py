"""The service's secrets as they lie in Vault: read, merged, and written so that two who write lose no fields.

Every write names the version it was made from (check-and-set); if another came first, it is read and merged again.
https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#create-update-secret
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tier3.vault.client import Vault, lacking
from tier3.vault.errors import Denied, Failed, Refused
from tier3.vault.fields import SECRETS, incomplete

_ATTEMPTS = 20
_OUTDATED = "check-and-set"


@dataclass(frozen=True)
class Stored:
    """A secret's fields, none if it is not there, and its version, of which 0 is before the first."""

    fields: Mapping[str, Any]
    version: int


@dataclass(frozen=True)
class Change:
    """What a write came to: `made`, `changed` or `found`, and the names of the fields that differ from before."""

    state: str
    fields: tuple[str, ...]
    version: int


class Store:
    """The secrets below VAULT_MOUNT and VAULT_PATH."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def check(self, paths: Iterable[str], *rights: str) -> None:
        """Return if version 2 of the engine is there and the token has `rights` on each of `paths`.

        Raises:
            Denied: naming every right that is missing.
            Refused: the engine is another.
        """
        access = self._vault.access
        wanted = {access.data(path): rights for path in paths}
        problems = lacking(self._vault.rights([*wanted]), wanted)
        if problems:
            raise Denied(f"nothing was changed; the token lacks {'; '.join(problems)}")
        try:
            mount = self._vault.read(f"sys/internal/ui/mounts/{access.mount}") or {}
        except Denied:
            raise Refused(f"there is no engine at {access.mount}/: `nox -s vault_init` makes it") from None
        if (mount.get("options") or {}).get("version") != "2":
            raise Refused(f"{access.mount}/ is not version 2 of the key-value engine; `nox -s vault_init` says more")

    def read(self, path: str) -> Stored:
        """A secret as it is now."""
        return Stored(*self._vault.secret(path))

    def put(self, path: str, given: Mapping[str, str], *, replace: bool) -> Change:
        """Merge `given` into a secret, or let it be all of it if `replace`. Writes nothing that changes nothing.

        Raises:
            Refused: a required field would be missing.
            Failed: others wrote again and again.
        """
        for _ in range(_ATTEMPTS):
            now = self.read(path)
            wanted = merged(now, given, replace=replace)
            if missing := incomplete(path, [*wanted]):
                raise Refused(f"{path} lacks {', '.join(missing)}")
            if wanted == now.fields:
                return Change("found", (), now.version)
            different = [name for name in {**now.fields, **wanted} if now.fields.get(name) != wanted.get(name)]
            if version := self._write(path, wanted, now.version):
                return Change("changed" if now.fields else "made", tuple(different), version)
        raise Failed(f"{path}: somebody else writes it all the time; run again")

    def paths(self, below: str = "") -> list[str]:
        """Paths of all secrets that are there, whether the service knows them or not."""
        access = self._vault.access
        found = []
        for key in self._vault.keys(f"{access.mount}/metadata/{access.path}/{below}"):
            found += self.paths(f"{below}{key}") if key.endswith("/") else [f"{below}{key}"]
        return found

    def _write(self, path: str, fields: Mapping[str, Any], version: int) -> int | None:
        """The new version; None if `version` is not the newest any more."""
        body = {"data": fields, "options": {"cas": version}}
        try:
            return int(self._vault.write(self._vault.access.data(path), body)["data"]["version"])
        except Failed as error:
            if _OUTDATED in str(error):
                return None
            raise


def merged(now: Stored, given: Mapping[str, str], *, replace: bool) -> Mapping[str, Any]:
    """What a secret becomes."""
    return dict(given) if replace else {**now.fields, **given}


def problems(now: Mapping[str, Stored], given: Mapping[str, Mapping[str, str]], *, replace: bool) -> list[str]:
    """Secrets that would lack a required field."""
    found = []
    for path, fields in given.items():
        missing = incomplete(path, [*merged(now[path], fields, replace=replace)])
        found += [f"{path} lacks {', '.join(missing)}"] if missing else []
    return found


def known(paths: Iterable[str]) -> list[str]:
    """`paths` in the order in which the service's are listed, then those that it does not know."""
    found = {*paths}
    return [*(path for path in SECRETS if path in found), *sorted(found - SECRETS.keys())]
