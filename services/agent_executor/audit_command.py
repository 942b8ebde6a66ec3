"""python -m agent_executor audit: who submitted, cancelled, resumed or redrove what, and who was refused.

It talks to the database that POSTGRES_* name, as `migrate` does, and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from . import sql
from .database_command import Connection, parser, run, say
from .listing import lines

SQL = sql.load("audit_command.sql")
_COLUMNS = ("at", "action", "outcome", "actor", "key_id", "tenant", "job_id", "address", "via", "count", "detail")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ABOUT = """examples:
  audit --job JOB                 who did what to this job
  audit --refused --since 2h      who was refused in the last two hours"""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Print what fits, the latest last. Returns the exit status."""
    return run(_parser(), arguments, environment)


def _show(connection: Connection, asked: argparse.Namespace) -> int:
    found = connection.execute(SQL["entries"], vars(asked) | _from(asked.since)).fetchall()
    if not found:
        return say("audit", "no entry fits", 1)
    if len(found) == asked.limit:
        say("audit", f"only the last {len(found)} are shown, see --limit", 0)
    found.reverse()
    if asked.json:
        sys.stdout.write("".join(f"{json.dumps(row, default=datetime.isoformat)}\n" for row in found))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines(_COLUMNS, found)))
    return 0


def _parser() -> argparse.ArgumentParser:
    wanted = parser("audit", _ABOUT, "0 done, 1 no entry fits")
    wanted.add_argument("--job", dest="job_id", metavar="ID", help="of this job")
    wanted.add_argument("--tenant", help="of this tenant")
    wanted.add_argument("--actor", help="of the caller of this name, or of the API key of this id")
    wanted.add_argument("--since", type=_since, help="from then on: 30m, 2h, 7d ago, or a time as 2026-01-31T03:00")
    wanted.add_argument("--refused", action="store_true", help="only what was refused")
    wanted.add_argument("--limit", type=_limit, default=1000, help="so many at most (1000)")
    wanted.add_argument("--json", action="store_true", help="one JSON object a line")
    wanted.set_defaults(run=_show)
    return wanted


def _since(word: str) -> float | datetime:
    """Seconds ago, or a time, which is UTC where it does not say."""
    if found := re.fullmatch(r"([0-9]{1,6})([smhd])", word):
        return float(int(found[1]) * _UNITS_S[found[2]])
    try:
        at = datetime.fromisoformat(word)
    except ValueError:
        raise argparse.ArgumentTypeError("must be like 2h, or a time as 2026-01-31T03:00") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _from(since: float | datetime | None) -> dict[str, float | datetime | None]:
    is_age = isinstance(since, float)
    return {"since": None if is_age else since, "age_s": since if is_age else None}


def _limit(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and 0 < int(word) <= 1_000_000):
        raise argparse.ArgumentTypeError("must be a number from 1 to 1000000")
    return int(word)
