"""The AppRole's credentials: made only on request, and shown, wrapped, or put into a file of the caller's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from agent_executor.redaction import remember
from tier3.vault.client import Rights, Vault
from tier3.vault.errors import Refused
from tier3.vault.items import ROLE

_PLACE = f"auth/approle/role/{ROLE}"
RIGHTS: Rights = {f"{_PLACE}/role-id": ("read",), f"{_PLACE}/secret-id": ("update",)}


def issue(vault: Vault, wrap_ttl: str | None) -> str:
    """Lines for a .env file: the role's id and a new secret id, or with `wrap_ttl` a token that can be unwrapped once.

    Response wrapping: https://developer.hashicorp.com/vault/docs/concepts/response-wrapping
    """
    role_id = (vault.read(f"{_PLACE}/role-id") or {})["role_id"]
    answer = vault.write(f"{_PLACE}/secret-id", {}, wrap_ttl=wrap_ttl)
    if wrap_ttl:
        wrapped = answer["wrap_info"]
        token = f"VAULT_WRAPPED_SECRET_ID={wrapped['token']}"
        return f"VAULT_ROLE_ID={role_id}\n# `vault unwrap` it within {wrapped['ttl']} s, once\n{token}\n"
    secret_id = answer["data"]["secret_id"]
    remember(secret_id)
    accessor = answer["data"]["secret_id_accessor"]
    return f"VAULT_ROLE_ID={role_id}\nVAULT_SECRET_ID={secret_id}\n# accessor, to revoke it: {accessor}\n"


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[int]:
    """A new file that only its owner can read; it is gone again if the block fails.

    Raises:
        Refused: there is something at `path`, or nothing can be made there.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused(f"{path} exists: credentials go into a new file only") from None
    except OSError as error:
        raise Refused(f"{path} cannot be made: {error.strerror}") from None
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
        os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
