"""What the commands on the database have in common: their parser, their connection, and how each failure ends.

They talk to the database that POSTGRES_* name, as `migrate` does, and to nobody else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

import psycopg
from psycopg.rows import DictRow, dict_row

from .migrate import settings as database_settings
from .migrate.errors import Refused

Connection = psycopg.Connection[DictRow]
Run = Callable[[Connection, argparse.Namespace], int]
"""What a command does, on an autocommit connection and as it was asked; returns the exit status."""

_ENVIRONMENT = "environment: POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD (required), _SSLMODE, _CACERT"


def parser(command: str, about: str, exit_status: str) -> argparse.ArgumentParser:
    """For `python -m agent_executor <command>`; its default `run` is a `Run`. `exit_status`: what 0 and 1 mean."""
    status = f"exit status: {exit_status}, 2 refused: call or environment, 4 database unreachable or not migrated"
    return argparse.ArgumentParser(
        prog=f"python -m agent_executor {command}",
        epilog=f"{about}\n{_ENVIRONMENT}\n{status}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run(wanted: argparse.ArgumentParser, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do what `arguments` say. Returns the exit status."""
    try:
        asked = wanted.parse_args(arguments)
        dsn = database_settings(environment).dsn
        with psycopg.connect(
            dsn, connect_timeout=10, options="-c search_path=agent_executor", autocommit=True, row_factory=dict_row
        ) as connection:
            status: int = asked.run(connection, asked)
            return status
    except SystemExit as error:  # argparse has printed why
        return int(error.code or 0)
    except Refused as error:
        return say(wanted, str(error), 2)
    except psycopg.Error as error:
        certificate = ": POSTGRES_CACERT names the authority of its certificate" if "SSL" in str(error) else ""
        return say(wanted, f"the database does not do it: {type(error).__name__}{certificate}", 4)


def say(wanted: argparse.ArgumentParser | str, text: str, status: int) -> int:
    """A line on stderr that begins with the command's name; returns `status`."""
    command = wanted if isinstance(wanted, str) else wanted.prog.rpartition(" ")[2]
    sys.stderr.write(f"{command}: {text}\n")
    return status
