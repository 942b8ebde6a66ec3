"""`nox -s populate_secrets`: put the service's secrets into Vault, list them, and try them as the service would.

Values come from prompts, a .env file or JSON on standard input, never from the command line; none is ever shown.
Nothing is written unless everything that was given is right and everything may be written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from tier3.vault import prompts, sources
from tier3.vault.access import access
from tier3.vault.client import Vault
from tier3.vault.command import run, show
from tier3.vault.errors import EXIT_STATUSES, Refused
from tier3.vault.fields import SECRETS, VARIABLES, hide
from tier3.vault.sources import Given
from tier3.vault.store import Store, known, problems
from tier3.vault.verify import verify

_EPILOG = f"""PATH: {", ".join(SECRETS)}
variables in a .env file: {", ".join(VARIABLES)}
environment: VAULT_ADDR and VAULT_TOKEN (required), VAULT_MOUNT (secret), VAULT_PATH (agent-executor),
  VAULT_NAMESPACE, VAULT_CACERT; for --verify VAULT_ROLE_ID and VAULT_SECRET_ID may stand for VAULT_TOKEN,
  and POSTGRES_SSLMODE, POSTGRES_CACERT, REDIS_CACERT, NATS_CACERT are as for the service
{EXIT_STATUSES}"""


class _Parser(argparse.ArgumentParser):
    """One that repeats no argument it does not understand: it may be a secret."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, "populate_secrets: cannot make out these arguments; values are never taken from them\n")


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do what the arguments ask for. Returns the exit status."""
    options = _parse(arguments)
    if options.verify:
        return verify(environment)
    vault = Vault(access(environment))
    given = _from_input(options)
    vault.check()
    store = Store(vault)
    if options.list:
        return _list(store)
    paths = [*given] if given is not None else options.paths or [*SECRETS]
    store.check(paths, "create", "read", "update")
    stored = {path: store.read(path) for path in paths}
    if given is None:
        given = prompts.ask(paths, stored, replace=options.replace)
    if wrong := problems(stored, given, replace=options.replace):
        raise Refused(f"nothing was written; {'; '.join(wrong)}")
    return _write(store, given, replace=options.replace)


def _from_input(options: argparse.Namespace) -> Given | None:
    """What a file or standard input gives; None if it is to be asked for."""
    where = options.from_env or options.from_json
    if where is None:
        return None
    body, warning = sources.read(where)
    if warning:
        print(f"populate_secrets: {warning}", flush=True)
    if options.from_json:
        return sources.from_json(body)
    given, passed = sources.from_env(sources.decoded(body))
    if passed:
        print(f"populate_secrets: settings that are no secrets are passed over: {', '.join(passed)}", flush=True)
    return given


def _write(store: Store, given: Given, *, replace: bool) -> int:
    """Write one secret after the other, and print what became of each, also if one fails."""
    rows: list[tuple[str, ...]] = []
    try:
        for path, fields in given.items():
            hide(path, fields)
            change = store.put(path, fields, replace=replace)
            rows.append((path, change.state, str(change.version), ", ".join(change.fields)))
    finally:
        if rows:
            show(("Secret", "State", "Version", "Fields that differ"), rows)
    changed = sum(row[1] != "found" for row in rows)
    print(f"populate_secrets: {changed} made or changed" if changed else "populate_secrets: nothing to change")
    return 0


def _list(store: Store) -> int:
    """Print paths, versions and names of fields; no values."""
    store.check(SECRETS, "read")
    stored = {path: store.read(path) for path in known({*store.paths(), *SECRETS})}
    rows = [
        (
            path,
            str(now.version) if now.fields else "",
            prompts.state(path, now.fields),
            "" if path in SECRETS else "unknown",
        )
        for path, now in stored.items()
    ]
    show(("Secret", "Version", "Fields", "To the service"), rows)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="populate_secrets",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="ask for these secrets only")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--from-env", metavar="FILE", help="read a .env file; - is standard input")
    how.add_argument("--from-json", metavar="FILE", help="read JSON, path -> field -> value; - is standard input")
    how.add_argument("--list", action="store_true", help="show paths, versions and names of fields")
    how.add_argument("--verify", action="store_true", help="read each secret as the service's role, and try it")
    parser.add_argument("--replace", action="store_true", help="a secret becomes what is given, other fields go")
    options = parser.parse_args(arguments)
    asked = not (options.from_env or options.from_json or options.list or options.verify)
    if (options.paths and not asked) or (options.replace and (options.list or options.verify)):
        parser.error("")
    if not {*options.paths} <= SECRETS.keys():
        raise Refused(f"no such path; known are {', '.join(SECRETS)}. Values are never taken from the command line")
    return options


if __name__ == "__main__":
    sys.exit(run("populate_secrets", lambda: main(sys.argv[1:], os.environ)))
