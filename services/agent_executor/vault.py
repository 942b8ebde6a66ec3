"""Secrets from Vault's KV v2 engine: how the process logs in, stays logged in, and reads.

Owns the connection to Vault. hvac is synchronous and renews nothing by itself: every call runs in a thread and has a
short timeout, and `run` renews the token. Nothing is written, and no secret is logged.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hvac
import structlog
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized, VaultError
from requests.exceptions import RequestException

from . import metrics
from .errors import LoginDenied, Unavailable, VaultDenied
from .redaction import redact, remember_latest

REFRESH_S = 300.0
_TIMEOUT_S = 2
AGAIN_S = 5.0
_SHARED_S = 1.0
_LONGEST_PAUSE_S = 60.0
_RENEW_AT = 2 / 3
_DENIALS = (Forbidden, InvalidRequest, Unauthorized)

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True)
class Grant:
    """A token, for how long, and whether that can be extended; `lease_s` 0 is for ever."""

    token: str
    lease_s: float
    renewable: bool
    taken_at: float = field(default_factory=time.monotonic)


class Login(Protocol):
    """A way to a token. `who` is how Vault's administrators know us; `again` says whether it works more than once."""

    who: str
    again: bool

    def __call__(self, client: hvac.Client) -> Grant:
        """Ask Vault; blocks."""


class TokenLogin:
    """A token that somebody made."""

    who = "the token"
    again = False

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, client: hvac.Client) -> Grant:
        """Look the token up."""
        client.token = self._token
        found = client.auth.token.lookup_self()["data"]
        return Grant(self._token, found["ttl"], found.get("renewable", False))


class AppRoleLogin:
    """AppRole: for where there is no Kubernetes."""

    again = True

    def __init__(self, role_id: str, secret_id: str) -> None:
        self.who = f"AppRole {role_id}"
        self._role_id = role_id
        self._secret_id = secret_id

    def __call__(self, client: hvac.Client) -> Grant:
        """Log in."""
        return _granted(client.auth.approle.login(self._role_id, self._secret_id, use_token=False))


class KubernetesLogin:
    """The pod's service account. Its token is short-lived and rotated by the kubelet, so it is read at each login."""

    again = True

    def __init__(self, role: str, *, mount: str, jwt_path: Path) -> None:
        self.who = f"role {role}"
        self._role = role
        self._mount = mount
        self._jwt_path = jwt_path

    def __call__(self, client: hvac.Client) -> Grant:
        """Log in. Raises VaultDenied if there is no service-account token."""
        try:
            jwt = self._jwt_path.read_text().strip()
        except OSError as error:
            raise VaultDenied(f"no service-account token at {self._jwt_path}: {error.strerror}") from None
        remember_latest("jwt", jwt)
        return _granted(client.auth.kubernetes.login(self._role, jwt, use_token=False, mount_point=self._mount))


def _granted(answer: Mapping[str, Any]) -> Grant:
    auth = answer["auth"]
    return Grant(auth["client_token"], auth["lease_duration"], auth["renewable"])


@dataclass
class _Kept:
    data: dict[str, Any]
    until: float
    usable_until: float


class Vault:
    """The secrets below `<mount>/<path>`. `run` has to run beside it, so that the token stays good."""

    def __init__(
        self,
        address: str,
        login: Login,
        *,
        mount: str,
        path: str,
        namespace: str | None = None,
        cacert: str | None = None,
        refresh_s: float = REFRESH_S,
    ) -> None:
        asked: dict[str, Any] = {"url": address, "token": "", "timeout": _TIMEOUT_S, "verify": cacert or True}
        self._client = hvac.Client(**asked, namespace=namespace)
        self._outside = hvac.Client(**asked)  # health is told outside of namespaces only
        self._login = login
        self._mount = mount
        self._path = path
        self.refresh_s = refresh_s
        self._grant: Grant | None = None
        self._changed = asyncio.Event()
        self._logging_in = asyncio.Lock()
        self._kept: dict[str, _Kept] = {}
        self._failed: dict[str, tuple[float, Unavailable | VaultDenied]] = {}
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.is_behind = False

    def where(self, name: str) -> str:
        """The secret's full path, for people."""
        return f"{self._mount}/{self._path}/{name}"

    async def healthy(self) -> bool:
        """Whether Vault answers, initialised and unsealed."""
        ask = partial(self._outside.sys.read_health_status, method="GET", standby_ok=True, performance_standby_code=200)
        try:
            status = await asyncio.to_thread(ask)
        except (VaultError, RequestException, OSError, ValueError):
            return False
        return isinstance(status, Mapping) and status.get("initialized") is True and status.get("sealed") is False

    async def secret(self, name: str) -> dict[str, Any]:
        """The secret `name` below our path, at most `refresh_s` old; empty where there is none.

        When Vault does not give it any more, the last one is given, until its lease ends (KV's have none); `is_behind`
        says so.

        Raises:
            Unavailable: Vault does not answer, and there is no secret to fall back on.
            VaultDenied: Vault refuses us, likewise.
        """
        async with self._reading[name]:
            kept = self._kept.get(name)
            if kept is not None and time.monotonic() < kept.until:
                return kept.data
            failed_until, failure = self._failed.get(name, (0, Unavailable("")))
            if time.monotonic() < failed_until:  # who waited for the lock meanwhile shares what came of it
                raise failure
            try:
                data, lease_s = await self._read(name)
            except (Unavailable, VaultDenied) as error:
                if kept is None or time.monotonic() > kept.usable_until:
                    self._failed[name] = (time.monotonic() + _SHARED_S, error)
                    raise
                log.warning("secret_kept", path=self.where(name), reason=str(error))
                kept.until = time.monotonic() + min(AGAIN_S, self.refresh_s)
                self.is_behind = True
                return kept.data
            now = time.monotonic()
            self._kept[name] = _Kept(data, now + self.refresh_s, now + lease_s if lease_s else float("inf"))
            self.is_behind = False
            return data

    async def run(self) -> None:
        """Renew the token at two thirds of its life, and log in anew where it cannot be renewed for as long again."""
        failures = 0
        while True:
            grant = self._grant
            self._changed.clear()
            if grant is None or not grant.lease_s:
                await self._changed.wait()
                continue
            pause_s = grant.taken_at + grant.lease_s * _RENEW_AT - time.monotonic()
            if failures:
                pause_s = min(_LONGEST_PAUSE_S, 2.0**failures) * random.uniform(0.5, 1)  # noqa: S311
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0, pause_s)):
                    await self._changed.wait()
                    failures = 0
                    continue  # somebody else has logged in
            try:
                await self._renew(grant)
                failures = 0
            except (Unavailable, VaultDenied) as error:
                failures += 1
                log.warning("vault_not_renewed", reason=str(error))
                if isinstance(error, VaultDenied) and not self._login.again:
                    await self._changed.wait()  # nothing more can be done here

    async def _renew(self, grant: Grant) -> None:
        renewed = None
        if grant.renewable:
            try:
                renewed = _granted(await self._call("renewing the token", self._client.auth.token.renew_self))
            except VaultDenied:
                if not self._login.again:
                    raise
        if renewed is not None and renewed.lease_s and renewed.lease_s >= grant.lease_s / 2:
            self._take(Grant(grant.token, renewed.lease_s, renewed.renewable))
        elif self._login.again:  # its max TTL is near
            await self._log_in(unless=None)
        elif renewed is not None and renewed.lease_s:
            self._take(Grant(grant.token, renewed.lease_s, renewed.renewable))
        else:
            raise VaultDenied("the token runs out and cannot be renewed")

    async def _read(self, name: str) -> tuple[dict[str, Any], float]:
        what = f"reading {self.where(name)}"
        await self._log_in(unless="")
        token = self._client.token
        try:
            return await self._call(what, self._fetch, name, is_final=not self._login.again)
        except VaultDenied:
            if not self._login.again:
                raise
        await self._log_in(unless=token)  # it may have been revoked, or have run out while Vault was away
        return await self._call(what, self._fetch, name)

    async def _log_in(self, unless: str | None) -> None:
        """Get a token: if there is none (`unless` ""), if it still is the one that failed, or in any case (None)."""
        async with self._logging_in:
            if unless == "" and self._grant is not None:
                return
            if unless and self._client.token != unless:
                return
            try:
                self._take(await self._call("logging in", self._login, self._client))
            except VaultDenied as error:
                raise LoginDenied(str(error)) from None
            log.info("vault_login", who=self._login.who, lease_s=self._grant.lease_s if self._grant else 0)

    def _take(self, grant: Grant) -> None:
        remember_latest("token", grant.token)
        self._client.token = grant.token
        self._grant = grant
        self._changed.set()

    async def _call(self, what: str, call: Callable[..., T], *arguments: Any, is_final: bool = True) -> T:
        """Call hvac in a thread, and give its failures our names; `is_final`: a refusal is told to people."""
        try:
            async with asyncio.timeout(2 * _TIMEOUT_S):  # requests' own counts from byte to byte
                return await asyncio.to_thread(call, *arguments)
        except VaultDenied:
            raise
        except _DENIALS as error:
            said = redact(" ".join(str(next(iter(error.errors or ()), type(error).__name__)).split()))
            if is_final:
                metrics.vault_auth_failures.inc()
                log.error("vault_refused", what=what, who=self._login.who, reason=said)
            raise VaultDenied(f"Vault refuses {self._login.who}: {what} ({said})") from None
        except Exception as error:  # noqa: BLE001 - whatever stands in Vault's place may answer anything
            kind = type(error).__name__
            hint = " (is VAULT_CACERT right?)" if "SSL" in kind or "certificate" in str(error) else ""
            log.warning("vault_unavailable", what=what, error=kind)
            raise Unavailable(f"Vault does not answer: {kind} when {what}{hint}") from None

    def _fetch(self, name: str) -> tuple[dict[str, Any], float]:
        try:
            answer = self._client.secrets.kv.v2.read_secret_version(
                path=f"{self._path}/{name}", mount_point=self._mount, raise_on_deleted_version=True
            )
        except InvalidPath as error:
            if not isinstance(error.json, dict):  # the page of a proxy, say
                raise
            return {}, 0
        return dict(answer["data"]["data"]), float(answer.get("lease_duration") or 0)
