"""python -m agent_executor tenant set|list|unset: limits of single tenants.

It talks to the database that POSTGRES_* name, as `migrate` does. What is set there goes before TENANT_MAX_*.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from . import sql
from .api_key_command import tenant_name
from .database_command import Connection, parser, run, say
from .listing import lines

SQL = sql.load("tenant_command.sql")
_LIMITS = {
    "max_queued_jobs": "jobs that wait",
    "max_running_jobs": "jobs that run, in all processes together; more wait",
    "max_submits_per_minute": "new jobs in a minute",
    "max_open_streams": "event streams, in all processes together",
    "max_body_bytes": "size of a request or message; never more than MAX_BODY_BYTES",
}
_COLUMNS = ("tenant", *_LIMITS, "queued", "running", "streams")
_ABOUT = "limits: a number; 0 for none; `default` for what the settings TENANT_MAX_* say"


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command. Returns the exit status."""
    return run(_parser(), arguments, environment)


def _set(connection: Connection, asked: argparse.Namespace) -> int:
    named = {name: limit for name in _LIMITS if (limit := getattr(asked, name)) is not None}
    if not named:
        return say("tenant", "set needs a limit; set --help has them", 2)
    limits = {name: None if limit == "default" else limit for name, limit in named.items()}
    nothing = dict.fromkeys(_LIMITS)
    connection.execute(SQL["set_limits"], {"tenant": asked.tenant, "named": list(named), **nothing, **limits})
    return 0


def _list(connection: Connection, asked: argparse.Namespace) -> int:
    rows = connection.execute(SQL["all"]).fetchall()
    sys.stdout.write("".join(f"{line}\n" for line in lines(_COLUMNS, rows)))
    return 0


def _unset(connection: Connection, asked: argparse.Namespace) -> int:
    if connection.execute(SQL["unset"], {"tenant": asked.tenant}).rowcount:
        return 0
    return say("tenant", "the tenant has no limits of its own; list shows all", 1)


def _parser() -> argparse.ArgumentParser:
    wanted = parser("tenant", _ABOUT, "0 done, 1 no such tenant")
    commands = wanted.add_subparsers(required=True, metavar="COMMAND")
    change = commands.add_parser("set", help="change limits of a tenant; those not named stay", allow_abbrev=False)
    change.add_argument("tenant", type=tenant_name, metavar="NAME")
    for name, meaning in _LIMITS.items():
        change.add_argument(f"--{name.replace('_', '-')}", type=_limit, metavar="N", help=meaning)
    change.set_defaults(run=_set)
    commands.add_parser("list", help="limits that were set, and what tenants use").set_defaults(run=_list)
    unset = commands.add_parser("unset", help="have the settings hold for a tenant again", allow_abbrev=False)
    unset.add_argument("tenant", type=tenant_name, metavar="NAME")
    unset.set_defaults(run=_unset)
    return wanted


def _limit(word: str) -> int | str:
    if word == "default":
        return word
    if not (word.isascii() and word.isdecimal() and int(word) < 2**31):
        raise argparse.ArgumentTypeError("must be a number from 0, or `default`")
    return int(word)
