"""python -m agent_executor api-key new|list|revoke: keys for callers of HTTP.

It talks to the database that POSTGRES_* name, as `migrate` does. A key is printed once, alone on stdout.
"""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import sys
from collections.abc import Mapping, Sequence

from . import sql
from .api_keys import new_key
from .callers import SCOPES, is_tenant
from .database_command import Connection, parser, run, say
from .job import DEFAULT_TENANT, MAX_ID_CHARS
from .listing import lines

SQL = sql.load("api_key_command.sql")
_COLUMNS = ("id", "name", "tenant", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at")
_ABOUT = f"scopes: {', '.join(sorted(SCOPES))}"


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command. Returns the exit status."""
    return run(_parser(), arguments, environment)


def _new(connection: Connection, asked: argparse.Namespace) -> int:
    key = new_key()
    row = {"id": key.id, "name": asked.name, "tenant": asked.tenant, "scopes": asked.scopes, "hash": key.hash}
    connection.execute(SQL["add"], {**row, "days": asked.days, "actor": _actor()})
    sys.stderr.write(f"key {key.id}; it is shown this once:\n")
    sys.stdout.write(f"{key.text}\n")
    return 0


def _list(connection: Connection, asked: argparse.Namespace) -> int:
    rows = connection.execute(SQL["all"]).fetchall()
    sys.stdout.write("".join(f"{line}\n" for line in lines(_COLUMNS, rows)))
    return 0


def _revoke(connection: Connection, asked: argparse.Namespace) -> int:
    if connection.execute(SQL["revoke"], {"id": asked.id, "actor": _actor()}).rowcount:
        return 0
    return say("api-key", "no key has this id; list shows all", 1)


def _parser() -> argparse.ArgumentParser:
    wanted = parser("api-key", _ABOUT, "0 done, 1 no such key")
    commands = wanted.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="make a key and print it, this once", allow_abbrev=False)
    new.add_argument("name", type=_name, metavar="NAME", help="who it is for; it stands in logs")
    new.add_argument("--scopes", type=_scopes, required=True, help="what it allows, with commas")
    new.add_argument("--tenant", type=tenant_name, default=DEFAULT_TENANT, help=f"whose it is ({DEFAULT_TENANT})")
    new.add_argument("--days", type=_days, help="how long it is good; without end unless given")
    new.set_defaults(run=_new)
    commands.add_parser("list", help="all keys, and when they were used last").set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="end a key at once, for good", allow_abbrev=False)
    revoke.add_argument("id", metavar="ID", help="the part of the key after ae_")
    revoke.set_defaults(run=_revoke)
    return wanted


def _name(word: str) -> str:
    if not (0 < len(word) <= 100 and word.isprintable()):
        raise argparse.ArgumentTypeError("must be 1 to 100 printable characters")
    return word


def _scopes(word: str) -> list[str]:
    found = set(word.replace(",", " ").split())
    if not found or found - SCOPES:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(sorted(SCOPES))}")
    return sorted(found)


def tenant_name(word: str) -> str:
    """A tenant on the command line."""
    if not is_tenant(word):
        raise argparse.ArgumentTypeError("must be 1 to 64 letters, digits, - and _")
    return word


def _days(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and 0 < int(word) <= 3650):
        raise argparse.ArgumentTypeError("must be a number from 1 to 3650")
    return int(word)


def _actor() -> str:
    """Who runs the command, and where, as the audit has it; in a pod the host's name is the pod's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name is known for the user's number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:MAX_ID_CHARS]
