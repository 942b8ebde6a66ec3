"""Where the service's addresses, passwords and keys come from: an explicit variable wins over Vault.

Owns the precedence, and which secret is current: whoever opens a connection asks for it each time, so that a rotated
one is used from then on without a restart. The log says from where each came, and never what it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import stamina
import structlog

from .addresses import check_nats, check_redis, check_text, check_word
from .errors import Incomplete, LoginDenied, ModelUnavailable, Unavailable, VaultDenied
from .redaction import remember, remember_url
from .vault import AGAIN_S, Vault

_FIELDS: Mapping[str, frozenset[str]] = {
    "postgres": frozenset({"host", "port", "database", "username", "password"}),
    "redis": frozenset({"url"}),
    "nats": frozenset({"url", "credentials"}),
}
_PROVIDER = frozenset({"api_key", "base_url"})
_CHECKS: Mapping[tuple[str, str], Callable[[Any], None]] = {
    ("redis", "url"): check_redis,
    ("nats", "url"): check_nats,
    ("nats", "credentials"): check_text,
}
_REQUIRED = {"postgres": ("host", "password"), "redis": ("url",), "nats": ("url",)}

log = structlog.get_logger()


class Credentials:
    """All of them. After `until_loaded`, the connections' are there; `keep_fresh` has to run beside."""

    def __init__(
        self,
        explicit: Mapping[str, Mapping[str, str]],
        vault: Vault | None,
        providers: Mapping[str, Mapping[str, str]],
        dsn_of: Callable[[Mapping[str, str]], str],
    ) -> None:
        """What the environment says, by secret and field, of connections and of model providers.

        `dsn_of` makes libpq's connection string of the fields of `postgres`.
        """
        self._explicit = {name: dict(explicit.get(name, {})) for name in _FIELDS}
        self._vault = vault
        self._providers = providers
        self._dsn_of = dsn_of
        for provider in providers.values():
            _remember(provider)
        self._current: dict[str, dict[str, str]] = {}
        self._told: dict[str, dict[str, str]] = {}
        self.on_rotated: Callable[[], None] = lambda: None
        for name, found in self._explicit.items():
            if found.keys() >= (set(_REQUIRED[name]) if vault is None else _FIELDS[name]):
                self._take(name, {})  # there is nothing to ask for

    async def until_loaded(self) -> None:
        """Wait until every connection's address and password is known, for as long as Vault takes to give it."""
        async for attempt in stamina.retry_context(
            on=(Unavailable, VaultDenied, Incomplete),
            attempts=None,
            timeout=None,
            wait_initial=0.2,
            wait_max=10,
            wait_jitter=1,
        ):
            with attempt:
                try:
                    for name in _FIELDS:
                        await self._load(name)
                except (Unavailable, VaultDenied, Incomplete) as error:
                    log.warning("waiting_for_secrets", reason=str(error))
                    raise

    async def keep_fresh(self) -> None:
        """Look for rotated secrets until cancelled; what cannot be read stays as it is."""
        while self._vault is not None:
            pause_s = min(AGAIN_S, self._vault.refresh_s) if self._vault.is_behind else self._vault.refresh_s
            await asyncio.sleep(pause_s * random.uniform(0.9, 1))  # noqa: S311 - replicas do not ask in step
            for name in _FIELDS:
                try:
                    await self._load(name)
                except (Unavailable, VaultDenied, Incomplete) as error:
                    log.warning("secret_kept", path=self._vault.where(name), reason=str(error))

    def dsn(self) -> str:
        """How PostgreSQL is reached now."""
        return self._dsn_of(self._current["postgres"])

    def redis_url(self) -> str:
        """How Redis is reached now."""
        return self._current["redis"]["url"]

    def nats_url(self) -> str:
        """How NATS is reached now."""
        return self._current["nats"]["url"]

    def nats_credentials(self) -> str | None:
        """The content of a .creds file, where Vault has one."""
        return self._current["nats"].get("credentials")

    async def of(self, provider: str) -> Mapping[str, str]:
        """`{api_key, base_url}` of a model provider, as far as known. Vault is asked for what the environment lacks.

        Raises:
            ModelUnavailable: Vault refuses it, or what it has cannot be used.
            Unavailable: Vault does not answer, or does not let us in.
        """
        explicit = self._providers.get(provider, {})
        if self._vault is None or provider == "scripted" or "api_key" in explicit:
            return explicit
        try:
            path = f"llm-providers/{provider}"
            found = _checked(self._vault.where(path), await self._vault.secret(path), _PROVIDER)
        except LoginDenied as error:
            raise Unavailable(str(error)) from None
        except (VaultDenied, Incomplete) as error:
            raise ModelUnavailable(str(error)) from None
        _remember(found)
        return {**found, **explicit}

    async def _load(self, name: str) -> None:
        explicit = self._explicit[name]
        if self._vault is None or explicit.keys() >= _FIELDS[name]:
            return  # Vault has nothing to add
        is_enough = explicit.keys() >= set(_REQUIRED[name])
        try:
            found = _checked(self._vault.where(name), await self._vault.secret(name), _FIELDS[name])
        except (Unavailable, VaultDenied):
            if not is_enough:
                raise
            if name not in self._current:
                self._take(name, {})
            return  # what Vault might add can come later
        missing = [field for field in _REQUIRED[name] if not (explicit.get(field) or found.get(field))]
        if missing:
            raise Incomplete(f"{self._vault.where(name)} lacks {', '.join(missing)}")
        self._take(name, found)

    def _take(self, name: str, found: Mapping[str, str]) -> None:
        known = {field: value for field, value in found.items() if field in _FIELDS[name]}
        current = {**known, **self._explicit[name]}
        before = self._current.get(name)
        if current == before:
            return
        _remember(current)
        if before is not None and (moved := _moved(name, before, current)):
            if self._told.get(name) != current:
                log.error("secret_needs_restart", secret=name, fields=moved)
                self._told[name] = current
            if name != "postgres":  # of a URL no part can be taken alone
                return
            stays = {field: value for field, value in before.items() if field in moved}
            current = {**{field: value for field, value in current.items() if field not in moved}, **stays}
            if current == before:
                return
        sources = {"environment": sorted(self._explicit[name]), "vault": sorted(set(known) - set(self._explicit[name]))}
        log.info("secret_found" if before is None else "secret_rotated", secret=name, **sources)
        self._current[name] = current
        if before is not None:
            self.on_rotated()


def _moved(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Fields whose change would lead a part of the process to another server than the rest."""
    if name == "postgres":
        return [field for field in ("host", "port", "database") if before.get(field) != now.get(field)]
    if name == "redis":
        places = [urlsplit(each["url"]) for each in (before, now)]
        old, new = ((each.scheme, each.hostname, each.port, each.path, not each.password) for each in places)
        return ["url"] if old != new else []
    return []


def _checked(where: str, secret: Mapping[str, Any], fields: Collection[str]) -> dict[str, str]:
    """The secret's fields as texts. Raises Incomplete, naming those that cannot be used."""
    found, wrong = {}, []
    for field in sorted(fields & secret.keys()):
        try:
            _CHECKS.get((where.rpartition("/")[2], field), check_word)(secret[field])
            found[field] = str(secret[field])
        except ValueError as error:
            wrong.append(f"{field} {error}")
    if wrong:
        raise Incomplete(f"{where}: {'; '.join(wrong)}")
    return {field: value for field, value in found.items() if value}


def _remember(secret: Mapping[str, str]) -> None:
    """Keep these values out of all that is said."""
    for field in ("api_key", "password", "credentials"):
        if secret.get(field) != "postgres":  # as on a developer's machine: no secret, and a word that logs are full of
            remember(secret.get(field))
    for line in secret.get("credentials", "").splitlines():  # a .creds file: a token and a seed, one in a line
        if not line.startswith("-"):
            remember(line.strip())
    for field in ("url", "base_url"):
        remember_url(secret.get(field))
