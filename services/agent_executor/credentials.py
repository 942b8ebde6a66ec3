"""Where the service's addresses, passwords and keys come from: an explicit variable wins over Vault.

Owns the precedence, and which secret is current: whoever opens a connection asks for it each time, so that a rotated
one is used from then on without a restart. The log says from where each came, and never what it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import stamina
import structlog

from .errors import Incomplete, ModelUnavailable, Unavailable, VaultDenied
from .redaction import remember, remember_url
from .vault import Vault

_FIELDS: Mapping[str, frozenset[str]] = {
    "postgres": frozenset({"host", "port", "database", "username", "password"}),
    "redis": frozenset({"url"}),
    "nats": frozenset({"url", "credentials"}),
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
        for name, found in self._explicit.items():
            if found.keys() >= set(_REQUIRED[name]):
                self._take(name, {})

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
                    await self._load(name for name in _FIELDS if name not in self._current)
                except (Unavailable, VaultDenied, Incomplete) as error:
                    log.warning("waiting_for_secrets", reason=str(error))
                    raise

    async def keep_fresh(self) -> None:
        """Look for rotated secrets until cancelled; what cannot be read stays as it is."""
        while self._vault is not None:
            await asyncio.sleep(self._vault.refresh_s)
            for name in _FIELDS:
                try:
                    await self._load([name])
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
            ModelUnavailable: Vault refuses it. Unavailable: Vault does not answer.
        """
        explicit = self._providers.get(provider, {})
        if self._vault is None or provider == "scripted" or "api_key" in explicit:
            return explicit
        try:
            found = await self._vault.secret(f"llm-providers/{provider}")
        except VaultDenied as error:
            raise ModelUnavailable(str(error)) from None
        _remember(found)
        return {**found, **explicit}

    async def _load(self, names: Iterable[str]) -> None:
        for name in names:
            explicit = self._explicit[name]
            if self._vault is None or explicit.keys() >= set(_REQUIRED[name]):
                continue  # Vault has nothing to add
            found = await self._vault.secret(name)
            missing = [field for field in _REQUIRED[name] if not (explicit.get(field) or found.get(field))]
            if missing:
                raise Incomplete(f"{self._vault.where(name)} lacks {', '.join(missing)}")
            self._take(name, found)

    def _take(self, name: str, found: Mapping[str, str]) -> None:
        known = {field: value for field, value in found.items() if field in _FIELDS[name]}
        current = {**known, **self._explicit[name]}
        if current == self._current.get(name):
            return
        _remember(current)
        sources = {"environment": sorted(self._explicit[name]), "vault": sorted(set(known) - set(self._explicit[name]))}
        log.info("secret_rotated" if name in self._current else "secret_found", secret=name, **sources)
        self._current[name] = current


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
