"""Secrets from Vault's KV v2 engine, read with a token.

Owns the connection to Vault. hvac is synchronous: every call runs in a thread and has a short timeout. Nothing is
written, and no secret is logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import hvac
import structlog
from hvac.exceptions import Forbidden, InvalidPath, VaultError
from requests.exceptions import RequestException

from . import metrics
from .errors import ModelUnavailable, Unavailable
from .redaction import remember, remember_url

REFRESH_S = 300.0
_TIMEOUT_S = 2

log = structlog.get_logger()


class Vault:
    """The secrets below `<mount>/<path>`."""

    def __init__(self, address: str, token: str | None, *, mount: str, path: str) -> None:
        self._client = hvac.Client(url=address, token=token, timeout=_TIMEOUT_S)
        self._mount = mount
        self._path = path
        self._read: dict[str, tuple[float, dict[str, str]]] = {}

    async def healthy(self) -> bool:
        """Whether Vault answers, initialised and unsealed."""
        try:
            status = await asyncio.to_thread(self._client.sys.read_health_status, method="GET", standby_ok=True)
        except (VaultError, RequestException):
            return False
        return isinstance(status, Mapping) and status.get("initialized") is True and status.get("sealed") is False

    async def secret(self, name: str) -> dict[str, str]:
        """The secret `name` below our path, at most `REFRESH_S` old; empty where there is none.

        Raises:
            Unavailable: Vault does not answer.
            ModelUnavailable: the token may not read this path.
        """
        read_at, found = self._read.get(name, (-REFRESH_S, {}))
        if time.monotonic() - read_at < REFRESH_S:
            return found
        found = await asyncio.to_thread(self._fetch, f"{self._path}/{name}")
        self._read[name] = (time.monotonic(), found)
        return found

    def _fetch(self, path: str) -> dict[str, str]:
        try:
            answer = self._client.secrets.kv.v2.read_secret_version(
                path=path, mount_point=self._mount, raise_on_deleted_version=True
            )
        except InvalidPath:
            return {}
        except Forbidden:
            metrics.vault_auth_failures.inc()
            log.error("vault_refused", path=f"{self._mount}/{path}")
            raise ModelUnavailable(f"Vault refuses to let this token read {self._mount}/{path}") from None
        except (VaultError, RequestException) as error:
            log.warning("vault_unavailable", path=f"{self._mount}/{path}", error=type(error).__name__)
            raise Unavailable(f"Vault cannot be read: {type(error).__name__} at {self._mount}/{path}") from None
        data: dict[str, str] = answer["data"]["data"]
        remember(data.get("api_key"))
        remember_url(data.get("base_url"))
        return data


class Credentials:
    """Keys and addresses of model providers: an explicit environment variable wins over Vault."""

    def __init__(self, environment: Mapping[str, Mapping[str, str]], vault: Vault | None) -> None:
        self._environment = environment
        self._vault = vault

    async def of(self, provider: str) -> Mapping[str, str]:
        """`{api_key, base_url}` of `provider`, as far as known. Vault is asked for what the environment leaves out."""
        explicit = self._environment.get(provider, {})
        if self._vault is None or provider == "scripted" or "api_key" in explicit:
            return explicit
        return {**await self._vault.secret(f"llm-providers/{provider}"), **explicit}
