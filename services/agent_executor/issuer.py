"""The public keys of an OIDC issuer: fetched, kept, and fetched again when a token names one that is not known.

Keys serve on while the issuer is away, for `_KEPT_S`. An unknown `kid` has them fetched anew, at most once in
`_PAUSE_S`, so that nobody can have us flood the issuer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm

from .errors import Unavailable
from .loopback import is_loopback, named_host

_FRESH_S = 300.0
_KEPT_S = 24 * 3600.0
_PAUSE_S = 10.0
_MAX_BYTES = 256 * 1024
_MIN_RSA_BITS = 2048
_OF_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OF_CURVE = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",)}

_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)

log = structlog.get_logger()


@dataclass(frozen=True)
class Key:
    """A public key, and the algorithms that a signature of it may have: asymmetric ones, those of its kind."""

    key: Any
    algorithms: list[str]


class Issuer:
    """One issuer's keys."""

    def __init__(
        self, name: str, http: httpx.AsyncClient, *, jwks_url: str | None = None, token_path: str | None = None
    ) -> None:
        """`name`: as the claim `iss` has it. `token_path`: a file with a token that the issuer wants to see; it is
        sent to the configured host alone.
        """
        self.name = name
        self._http = http
        self._jwks_url = jwks_url
        self._token_path = token_path
        self._keys: Mapping[str, Key] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str) -> Key | None:
        """The key of that id, None if the issuer has none.

        Raises:
            Unavailable: no keys are known, and the issuer does not give them.
        """
        age_s = _age(self._fetched_at)
        if kid in self._keys and age_s < _KEPT_S:
            if age_s > _FRESH_S:
                self._fetch()
            return self._keys[kid]
        fetching = self._fetch()
        if fetching is not None:
            await asyncio.shield(fetching)
        if _age(self._fetched_at) > _KEPT_S:
            raise Unavailable("the issuer of tokens does not give its keys")
        return self._keys.get(kid)

    def _fetch(self) -> asyncio.Task[None] | None:
        """The fetch that is on its way, or a new one unless the last was just now."""
        if self._fetching is not None and not self._fetching.done():
            return self._fetching
        if _age(self._tried_at) < (_PAUSE_S if self._keys else 1.0):
            return None
        self._tried_at = time.monotonic()
        self._fetching = asyncio.create_task(self._refresh())
        return self._fetching

    async def _refresh(self) -> None:
        try:
            url = self._jwks_url or await self._discovered()
            keys = _keys_of(await self._json(url))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, *_MALFORMED) as error:
            log.warning("issuer_unavailable", error=type(error).__name__)
            return
        if keys.keys() != self._keys.keys():
            log.info("issuer_keys", count=len(keys))
        self._keys = keys
        self._fetched_at = time.monotonic()

    async def _discovered(self) -> str:
        """OpenID Connect Discovery 1.0, section 4."""
        document = await self._json(f"{self.name.rstrip('/')}/.well-known/openid-configuration")
        if document["issuer"] != self.name:
            raise ValueError("another issuer's document")
        return str(document["jwks_uri"])

    async def _json(self, url: str) -> dict[str, Any]:
        if not url.startswith("https://") and not is_loopback(named_host(url)):
            raise ValueError("not https")
        headers = {}
        if self._token_path is not None and named_host(url) == named_host(self._jwks_url or self.name):
            token = await asyncio.to_thread(Path(self._token_path).read_text)
            headers = {"Authorization": f"Bearer {token.strip()}"}
        body = bytearray()
        async with asyncio.timeout(5), self._http.stream("GET", url, headers=headers) as response:
            if response.status_code != 200:
                raise ValueError("not 200")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise ValueError("too large")
        found = json.loads(body)
        if not isinstance(found, dict):
            raise TypeError("no object")
        return found


def _keys_of(document: Mapping[str, Any]) -> dict[str, Key]:
    """The keys that can verify signatures; RFC 7517, section 5: those that cannot be understood are passed over."""
    found: dict[str, Key] = {}
    for each in document["keys"]:
        try:
            kid, algorithms = each["kid"], _algorithms(each)
            if algorithms and isinstance(kid, str) and kid:
                key = jwt.PyJWK(each, algorithms[0]).key
                if each["kty"] != "RSA" or key.key_size >= _MIN_RSA_BITS:
                    found[kid] = Key(key, algorithms)
        except (jwt.PyJWTError, UnsupportedAlgorithm, *_MALFORMED):
            continue
    return found


def _algorithms(key: Mapping[str, Any]) -> list[str]:
    if key.get("use", "sig") != "sig" or "verify" not in key.get("key_ops", ["verify"]) or "d" in key:
        return []
    ours = _OF_RSA if key["kty"] == "RSA" else _OF_CURVE.get(key.get("crv", ""), ())
    return [each for each in ours if key.get("alg", each) == each]


def _age(at: float | None) -> float:
    return float("inf") if at is None else time.monotonic() - at
