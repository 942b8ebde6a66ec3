"""`populate_secrets --verify`: read every secret as the service's role would, and try those that a server can judge."""

from __future__ import annotations

from collections.abc import Mapping

from tier3.vault import service_role
from tier3.vault.access import access, is_word
from tier3.vault.client import Vault
from tier3.vault.command import show
from tier3.vault.errors import Denied
from tier3.vault.fields import SECRETS, hide, ill
from tier3.vault.trials import TRIALS, TrialFailed

_NEEDED = ("postgres", "redis", "nats")
_GOOD = {"works", "present", "not set"}
_APP_ROLE = ("VAULT_ROLE_ID", "VAULT_SECRET_ID")


def verify(environment: Mapping[str, str]) -> int:
    """Print a table of all secrets; 1 if one of them cannot be read, is incomplete or does not work, else 0.

    VAULT_ROLE_ID and VAULT_SECRET_ID log in to the AppRole; without them VAULT_TOKEN makes a token of the policy.
    """
    given = {name: environment.get(name, "") for name in _APP_ROLE}
    wrong = [f"{name} must be one word of ASCII" for name, value in given.items() if value and not is_word(value)]
    if any(given.values()) and not all(given.values()):
        wrong.append(f"{' and '.join(_APP_ROLE)} go together")
    place = access(environment, wrong, with_token=not any(given.values()))
    vault = Vault(place)
    vault.check()
    role = (
        service_role.by_app_role(place, *given.values()) if all(given.values()) else service_role.by_child_token(vault)
    )
    with role as service:
        rows = [(path, *_outcome(service, path, _tls(environment, path))) for path in SECRETS]
    show(("Secret", "State", "Detail"), rows)
    bad = [path for path, state, _ in rows if state not in _GOOD]
    print(
        f"populate_secrets: {', '.join(bad)} will not do"
        if bad
        else "populate_secrets: the service can use all that is set"
    )
    return 1 if bad else 0


def _tls(environment: Mapping[str, str], path: str) -> dict[str, str | None]:
    """What the service's environment says of TLS to a server: POSTGRES_SSLMODE, POSTGRES_CACERT and the like."""
    return {name: environment.get(f"{path.upper()}_{name.upper()}") or None for name in ("cacert", "sslmode")}


def _outcome(service: Vault, path: str, tls: Mapping[str, str | None]) -> tuple[str, str]:
    """How it went with a secret, in a word and a sentence."""
    try:
        secret, _ = service.secret(path)
    except Denied:
        return "denied", f"the service's role may not read {service.access.data(path)}"
    if not secret:
        return ("missing", "the service needs it") if path in _NEEDED else ("not set", "")
    hide(path, secret)
    if problems := ill(path, secret):
        return "failed", "; ".join(problems)
    if path not in TRIALS:
        return "present", "read, not tried"
    try:
        return "works", TRIALS[path]({**secret, **tls})
    except TrialFailed as error:
        return "failed", str(error)
