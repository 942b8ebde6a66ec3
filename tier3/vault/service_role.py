"""Vault as the service sees it: through a token that has the service's policy and nothing more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from agent_executor.redaction import remember
from tier3.vault.access import Access
from tier3.vault.client import Vault
from tier3.vault.errors import Denied, Failed
from tier3.vault.items import POLICY

_TTL = "120s"


@contextlib.contextmanager
def by_app_role(access: Access, role_id: str, secret_id: str) -> Iterator[Vault]:
    """Logged in with the AppRole's credentials. Denied if they are refused."""
    remember(secret_id)
    try:
        answer = Vault(replace(access, token="")).write(
            "auth/approle/login", {"role_id": role_id, "secret_id": secret_id}
        )
    except (Denied, Failed) as error:
        raise Denied(f"VAULT_ROLE_ID and VAULT_SECRET_ID are refused: {error}") from None
    with _revoked_after(Vault(access, answer["auth"]["client_token"])) as vault:
        yield vault


@contextlib.contextmanager
def by_child_token(vault: Vault) -> Iterator[Vault]:
    """With a token of two minutes that the operator's makes. Denied if it may not make one."""
    wanted = {"policies": [POLICY], "ttl": _TTL, "renewable": False, "display_name": "populate-secrets-verify"}
    try:
        answer = vault.write("auth/token/create", wanted)
    except (Denied, Failed):
        advice = "set VAULT_ROLE_ID and VAULT_SECRET_ID instead"
        raise Denied(f"VAULT_TOKEN may not make a token with {POLICY}: {advice}") from None
    with _revoked_after(Vault(vault.access, answer["auth"]["client_token"])) as child:
        yield child


@contextlib.contextmanager
def _revoked_after(vault: Vault) -> Iterator[Vault]:
    try:
        yield vault
    finally:
        with contextlib.suppress(Exception):  # it ends by itself soon
            vault.write("auth/token/revoke-self", {})
