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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hvac
import structlog
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized, VaultError
from requests.exceptions import RequestException

from . import metrics
from .errors import Unavailable, VaultDenied
from .redaction import redact, remember

REFRESH_S = 300.0
_TIMEOUT_S = 2
_AGAIN_S = 5.0
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
        remember(jwt)
        return _granted(client.auth.kubernetes.login(self._role, jwt, use_token=False, mount_point=self._mount))


def _granted(answer: Mapping[str, Any]) -> Grant:
    auth = answer["auth"]
    return Grant(auth["client_token"], auth["lease_duration"], auth["renewable"])


@dataclass
class _Kept:
    data: dict[str, str]
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
        self._client = hvac.Client(
            url=address, token="", timeout=_TIMEOUT_S, namespace=namespace, verify=cacert or True
        )
        self._login = login
        self._mount = mount
        self._path = path
        self.refresh_s = refresh_s
        self._grant: Grant | None = None
        self._granted = asyncio.Event()
        self._logging_in = asyncio.Lock()
        self._kept: dict[str, _Kept] = {}
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def where(self, name: str) -> str:
        """The secret's full path, for people."""
        return f"{self._mount}/{self._path}/{name}"

    async def healthy(self) -> bool:
        """Whether Vault answers, initialised and unsealed."""
        try:
            status = await asyncio.to_thread(self._client.sys.read_health_status, method="GET", standby_ok=True)
        except (VaultError, RequestException):
            return False
        return isinstance(status, Mapping) and status.get("initialized") is True and status.get("sealed") is False

    async def secret(self, name: str) -> dict[str, str]:
        """The secret `name` below our path, at most `refresh_s` old; empty where there is none.

        When Vault does not give it any more, the last one is given, until its lease ends (KV's have none).

        Raises:
            Unavailable: Vault does not answer, and there is no secret to fall back on.
            VaultDenied: Vault refuses us, likewise.
        """
        async with self._reading[name]:
            kept = self._kept.get(name)
            if kept is not None and time.monotonic() < kept.until:
                return kept.data
            try:
                data, lease_s = await self._read(name)
            except (Unavailable, VaultDenied) as error:
                if kept is None or time.monotonic() > kept.usable_until:
                    raise
                log.warning("secret_kept", path=self.where(name), reason=str(error))
                kept.until = time.monotonic() + min(_AGAIN_S, self.refresh_s)
                return kept.data
            now = time.monotonic()
            self._kept[name] = _Kept(data, now + self.refresh_s, now + lease_s if lease_s else float("inf"))
            return data

    async def run(self) -> None:
        """Renew the token at two thirds of its life, and log in anew where it cannot be renewed for as long again."""
        while True:
            await self._granted.wait()
            grant = self._grant
            if grant is None or not grant.lease_s:
                self._granted.clear()
                continue
            await asyncio.sleep(grant.lease_s * _RENEW_AT)
            while grant is self._grant:
                try:
                    await self._renew(grant)
                except (Unavailable, VaultDenied) as error:
                    log.warning("vault_not_renewed", reason=str(error))
                    await asyncio.sleep(min(_AGAIN_S, grant.lease_s / 10) * random.uniform(0.5, 1.5))  # noqa: S311

    async def _renew(self, grant: Grant) -> None:
        renewed = None
        if grant.renewable:
            try:
                answer = await self._call("renewing the token", self._client.auth.token.renew_self)
                renewed = _granted(answer)
            except VaultDenied:
                if not self._login.again:
                    raise
        if self._login.again and (renewed is None or renewed.lease_s < grant.lease_s / 2):  # its max TTL is near
            await self._log_in(unless=None)
        elif renewed is None:
            raise VaultDenied("the token runs out and cannot be renewed")
        else:
            self._take(Grant(grant.token, renewed.lease_s, renewed.renewable))

    async def _read(self, name: str) -> tuple[dict[str, str], float]:
        await self._log_in(unless="")
        token = self._client.token
        try:
            return await self._call(f"reading {self.where(name)}", self._fetch, name)
        except VaultDenied:
            if not self._login.again:
                raise
        await self._log_in(unless=token)  # it may have been revoked
        return await self._call(f"reading {self.where(name)}", self._fetch, name)

    async def _log_in(self, unless: str | None) -> None:
        """Get a token: if there is none (`unless` ""), if it still is the one that failed, or in any case (None)."""
        async with self._logging_in:
            if unless == "" and self._grant is not None:
                return
            if unless and self._client.token != unless:
                return
            self._take(await self._call("logging in", self._login, self._client))
            log.info("vault_login", who=self._login.who, lease_s=self._grant.lease_s if self._grant else 0)

    def _take(self, grant: Grant) -> None:
        remember(grant.token)
        self._client.token = grant.token
        self._grant = grant
        self._granted.set()

    async def _call(self, what: str, call: Callable[..., T], *arguments: Any) -> T:
        """Call hvac in a thread, and give its failures our names."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except _DENIALS as error:
            metrics.vault_auth_failures.inc()
            said = redact(" ".join(str(next(iter(error.errors or ()), type(error).__name__)).split()))
            log.error("vault_refused", what=what, who=self._login.who, reason=said)
            raise VaultDenied(f"Vault refuses {self._login.who}: {what} ({said})") from None
        except (VaultError, RequestException) as error:
            log.warning("vault_unavailable", what=what, error=type(error).__name__)
            raise Unavailable(f"Vault does not answer: {type(error).__name__} when {what}") from None

    def _fetch(self, name: str) -> tuple[dict[str, str], float]:
        try:
            answer = self._client.secrets.kv.v2.read_secret_version(
                path=f"{self._path}/{name}", mount_point=self._mount, raise_on_deleted_version=True
            )
        except InvalidPath:
            return {}, 0
        data = {key: str(value) for key, value in answer["data"]["data"].items() if value is not None}
        return data, answer.get("lease_duration") or 0
