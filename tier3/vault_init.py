"""`nox -s vault_init`: prepare a Vault for the service: engine, policy, AppRole, and on request Kubernetes auth.

Everything is looked up, and every right checked, before anything is changed. What is there and as it should be is left
alone, so that a second run changes nothing, and one that was interrupted is completed by the next.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_executor.redaction import remember
from tier3.vault import credentials, items
from tier3.vault.access import Access, access, is_place, is_url, unreadable
from tier3.vault.client import Vault
from tier3.vault.command import run
from tier3.vault.errors import EXIT_STATUSES
from tier3.vault.items import Item
from tier3.vault.survey import carry_out, foretell, look

_EPILOG = f"""environment: VAULT_ADDR and VAULT_TOKEN (required), VAULT_MOUNT (secret), VAULT_PATH (agent-executor),
  VAULT_NAMESPACE, VAULT_CACERT; ENABLE_K8S_AUTH (false), SERVICE_ACCOUNT (agent-executor), K8S_NAMESPACE
  (bizmatters-dev), VAULT_K8S_MOUNT (kubernetes), VAULT_K8S_AUDIENCE (vault), KUBERNETES_HOST, KUBERNETES_CA_FILE,
  KUBERNETES_REVIEWER_JWT_FILE
{EXIT_STATUSES}"""
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_DEFAULTS = {
    "ENABLE_K8S_AUTH": "false",
    "SERVICE_ACCOUNT": "agent-executor",
    "K8S_NAMESPACE": "bizmatters-dev",
    "VAULT_K8S_MOUNT": "kubernetes",
    "VAULT_K8S_AUDIENCE": "vault",
}
_FILES = {"KUBERNETES_CA_FILE": "kubernetes_ca_cert", "KUBERNETES_REVIEWER_JWT_FILE": "token_reviewer_jwt"}
_RULES: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "ENABLE_K8S_AUTH": (lambda value: value in {"true", "false"}, "must be true or false"),
    "SERVICE_ACCOUNT": (lambda value: bool(_NAME.fullmatch(value)), "must be one name of Kubernetes"),
    "K8S_NAMESPACE": (lambda value: bool(_NAME.fullmatch(value)), "must be one name of Kubernetes"),
    "VAULT_K8S_MOUNT": (is_place, "must be a path of letters, digits, _ . -"),
    "VAULT_K8S_AUDIENCE": (lambda value: value.isprintable() and " " not in value, "must be one word"),
    "KUBERNETES_HOST": (is_url, "must be like https://kubernetes.example:6443"),
}


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Prepare the Vault that the environment names. Returns the exit status."""
    options = _parse(arguments)
    place, wanted = _read(environment, replace_config=options.replace_k8s_config)
    vault = Vault(place)
    vault.check()
    issuing = options.show_credentials or bool(options.wrap) or options.write is not None
    entries = look(vault, wanted, credentials.RIGHTS if issuing else {})
    if options.dry_run:
        foretell(entries)
        return 0
    with credentials.private_file(options.write) if options.write else contextlib.nullcontext() as file:
        carry_out(vault, entries)
        if issuing:
            _hand_over(credentials.issue(vault, options.wrap), file, options)
    return 0


def _read(environment: Mapping[str, str], *, replace_config: bool) -> tuple[Access, list[Item]]:
    """Where Vault is, and what has to be in it. Misconfigured names everything that is wrong."""
    found = {**_DEFAULTS, **{name: value for name, value in environment.items() if value}}
    found["ENABLE_K8S_AUTH"] = found["ENABLE_K8S_AUTH"].lower()
    found["VAULT_K8S_MOUNT"] = found["VAULT_K8S_MOUNT"].strip("/")
    wrong = [f"{name} {rule}" for name, (good, rule) in _RULES.items() if name in found and not good(found[name])]
    wrong += [f"{name} {problem}" for name in _FILES if name in found and (problem := unreadable(found[name]))]
    place = access(environment, wrong)
    wanted = [
        items.engine(place.mount),
        items.policy(place.mount, place.path),
        items.method("approle", "approle"),
        items.app_role(),
    ]
    if found["ENABLE_K8S_AUTH"] == "true":
        mount = found["VAULT_K8S_MOUNT"]
        account, namespace, audience = (
            found[name] for name in ("SERVICE_ACCOUNT", "K8S_NAMESPACE", "VAULT_K8S_AUDIENCE")
        )
        extra: dict[str, Any] = {
            key: Path(found[name]).read_text().strip() for name, key in _FILES.items() if name in found
        }
        remember(extra.get("token_reviewer_jwt"))
        if "kubernetes_ca_cert" in extra:  # else Vault reads its own pod's
            extra["disable_local_ca_jwt"] = True
        wanted += [
            items.method("kubernetes", mount),
            items.kubernetes_config(mount, found.get("KUBERNETES_HOST"), extra, replace=replace_config),
            items.kubernetes_role(mount, account, namespace, audience),
        ]
    return place, wanted


def _hand_over(issued: str, file: int | None, options: argparse.Namespace) -> None:
    if file is not None:
        os.write(file, issued.encode())
        print(f"vault_init: credentials are in {options.write}, for its owner only", flush=True)
        return
    if not options.wrap:
        print("vault_init: whoever reads the next lines can read the service's secrets", flush=True)
    print(issued, end="", flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vault_init",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--replace-k8s-config", action="store_true", help="overwrite a Kubernetes config that differs")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--show-credentials", action="store_true", help="make a secret id of the AppRole and print it")
    how.add_argument(
        "--wrap", nargs="?", const="10m", type=_duration, metavar="TTL", help="print it response-wrapped for TTL (10m)"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put it, or the wrapped one, into a new file that only you can read"
    )
    options = parser.parse_args(arguments)
    if options.dry_run and (options.show_credentials or options.wrap or options.write):
        parser.error("--dry-run makes no credentials")
    if options.show_credentials and options.write:
        parser.error("--show-credentials prints them, --write does not")
    return options


def _duration(word: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,5}[smh]", word):
        raise argparse.ArgumentTypeError("must be like 300s, 10m or 1h")
    return word


if __name__ == "__main__":
    sys.exit(run("vault_init", lambda: main(sys.argv[1:], os.environ)))
