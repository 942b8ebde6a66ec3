"""JSON Web Tokens of an OIDC issuer, service-account tokens of Kubernetes among them: which are good, and whose.

A token says which key of the issuer it is signed with, by `kid`, and nothing else of it is believed before that key has
verified it: the algorithm follows from the key, and what a header says of keys elsewhere (`jku`, `x5u`, `jwk`) is not
looked at.

A token that was good is known again by its SHA-256, so that it is verified once and not at every request: until its
end, and while the issuer has the key that verified it. Those that were no good are not kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from .callers import SCOPES, Caller, Holds, is_tenant
from .errors import Forbidden
from .issuer import Issuer, Key
from .job import DEFAULT_TENANT

_TYPES = frozenset({"jwt", "at+jwt"})
_REQUIRED = ["exp", "iss", "aud", "sub"]
_MAX_KID_CHARS = 256
_MOST_KEPT = 4096


@dataclass(frozen=True)
class Claims:
    """How claims become a caller. A claim that begins with `/` is a JSON pointer into the token."""

    tenant: str | None = None
    scope: str = "scope"
    default_scopes: frozenset[str] = frozenset()
    subjects: Sequence[str] = ()

    def caller(self, claims: Mapping[str, Any]) -> Caller:
        """Who it is.

        Raises:
            Forbidden: the subject is not among those that are taken, or the token names no tenant where it has to.
        """
        subject = str(claims["sub"])
        if not subject or not subject.isprintable():
            raise Forbidden("the token's subject is no name")
        if self.subjects and not any(_matches(subject, each) for each in self.subjects):
            raise Forbidden("the token's subject is not among those that are taken here")
        tenant = DEFAULT_TENANT if self.tenant is None else _claim(claims, self.tenant)
        if not is_tenant(tenant):
            raise Forbidden("the token names no tenant")
        return Caller(subject[:200], tenant, self._scopes(_claim(claims, self.scope)), float(claims["exp"]))

    def _scopes(self, found: Any) -> frozenset[str]:
        if found is None:
            return self.default_scopes
        words = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
        return SCOPES & {word for word in words if isinstance(word, str)}


@dataclass(frozen=True)
class _Verified:
    kid: str
    key: Key
    caller: Caller


class Tokens:
    """The tokens of one issuer."""

    def __init__(self, issuer: Issuer, audience: str, claims: Claims, leeway_s: float) -> None:
        self._issuer = issuer
        self._audience = audience
        self._claims = claims
        self._leeway_s = leeway_s
        self._verified: dict[bytes, _Verified] = {}

    async def admit(self, credential: str) -> tuple[Caller, Holds] | None:
        """As `callers.Authenticator` says."""
        digest = hashlib.sha256(credential.encode()).digest()
        known = self._verified.get(digest)
        kid = known.kid if known is not None else _kid(credential)
        if kid is None:
            return None
        key = await self._issuer.key(kid)
        if known is None or known.key is not key or not self._holds(known.caller):
            self._verified.pop(digest, None)
            caller = None if key is None else self._caller(credential, key)
            if key is None or caller is None:
                return None
            self._keep(digest, _Verified(kid, key, caller))
        else:
            caller = known.caller
        return caller, lambda: self._holds(caller)

    def _caller(self, credential: str, key: Key) -> Caller | None:
        try:
            claims = jwt.decode(
                credential,
                key.key,
                algorithms=key.algorithms,
                audience=self._audience,
                issuer=self._issuer.name,
                leeway=self._leeway_s,
                options={"require": _REQUIRED},
            )
            if not isinstance(claims["exp"], int | float):  # the library takes a text of digits as well
                return None
            return self._claims.caller(claims)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None

    def _keep(self, digest: bytes, verified: _Verified) -> None:
        if len(self._verified) >= _MOST_KEPT:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = verified

    def _holds(self, caller: Caller) -> bool:
        return time.time() < (caller.expires_at or 0) + self._leeway_s


def _kid(credential: str) -> str | None:
    """Which key is to verify the token; None for a token that none can."""
    try:
        header = jwt.get_unverified_header(credential)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    kid, kind = header.get("kid"), header.get("typ", "JWT")
    if "crit" in header or not isinstance(kind, str) or not isinstance(kid, str):
        return None  # whatever is critical, we do not know it
    is_token = kind.lower().removeprefix("application/") in _TYPES
    return kid if is_token and 0 < len(kid) <= _MAX_KID_CHARS else None


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    if not name.startswith("/"):
        return claims.get(name)
    found: Any = claims
    for part in name[1:].split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _matches(subject: str, pattern: str) -> bool:
    return subject.startswith(pattern[:-1]) if pattern.endswith("*") else subject == pattern
