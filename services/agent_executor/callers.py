"""Who calls, and what a caller may do: the words that a credential is turned into."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .job import DEFAULT_TENANT

ADMIN = "admin"
SCOPES = frozenset({"jobs:submit", "jobs:read", "jobs:control", "definitions:validate", "metrics:read", ADMIN})
"""`admin` includes all others."""

_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Caller:
    """Whoever a credential stands for. `expires_at` is in seconds since 1970; None is never. `key_id`: an API key's."""

    name: str
    tenant: str
    scopes: frozenset[str]
    expires_at: float | None
    key_id: str | None = None

    def may(self, scope: str) -> bool:
        """Whether the caller has `scope`."""
        return scope in self.scopes or ADMIN in self.scopes


ANONYMOUS = Caller("anonymous", DEFAULT_TENANT, SCOPES, None)
"""Everybody, where AUTH_MODE is `none`."""


Holds = Callable[[], bool]
"""Whether a credential that was let in is still good."""


class Authenticator(Protocol):
    """A way to check credentials."""

    async def admit(self, credential: str) -> tuple[Caller, Holds] | None:
        """Who the credential stands for, None where it is no good.

        Raises:
            Unavailable: that cannot be found out now. Forbidden: it is good, and of no use here.
        """


def is_tenant(word: object) -> bool:
    """Whether `word` can name a tenant: it becomes a part of NATS subjects."""
    return isinstance(word, str) and _TENANT.fullmatch(word) is not None
