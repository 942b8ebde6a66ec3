"""python -m agent_executor migrate [COMMAND] [FLAGS]: words in, exit status out."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .commands import baseline, down, status, up
from .errors import MigrationError
from .files import create
from .report import Report
from .settings import DEFAULTS, Settings, settings

_EPILOG = """commands:
  up                  apply what is pending (default)
  down [N|to VERSION] take back the last N (1) migrations, or all above VERSION; 0 is all
  status              what was applied, and what is pending
  plan                what up would do, changing nothing
  baseline VERSION    record the files up to VERSION as applied, running none
  new WORDS           write the next migration's two files

environment: POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD (required), _SSLMODE, _CACERT, MIGRATION_DIR (migrations)
exit status: 0 done, 1 a migration failed, 2 refused: call, environment or files, 3 lock not obtained,
  4 database unreachable
"""
_WAITS = {
    "--wait": ("wait_s", "for the database"),
    "--lock-timeout": ("lock_timeout_s", "for a table's lock; 0 is without end"),
    "--lock-wait": ("lock_wait_s", "for another run"),
}


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and print its report. Returns the exit status; 128 + the signal when one ended it."""
    former = signal.signal(signal.SIGTERM, _terminated)  # else the kernel ignores it for PID 1, as in a container
    report = Report(environment.get("POSTGRES_PASSWORD", ""))
    try:
        words, flags = _parse(arguments)
        if words[:1] == ["new"]:
            paths = create(Path(environment.get("MIGRATION_DIR") or DEFAULTS["MIGRATION_DIR"]), " ".join(words[1:]))
            report.say("\n".join(map(str, paths)))
            return 0
        wanted = replace(settings(environment), **flags)
        report = Report(wanted.secret)
        started = time.perf_counter()
        if done := _work(words)(wanted, report):
            report.say(f"migrations: {done} in {time.perf_counter() - started:.2f} s")
        return 0
    except SystemExit as error:  # argparse has printed why
        return int(error.code or 0)
    except KeyboardInterrupt as error:
        said = "migrations: interrupted; what was not finished was rolled back, run again to go on"
        ended = 128 + (signal.SIGTERM if error.args else signal.SIGINT)
    except MigrationError as error:
        said, ended = f"{error}\nmigrations: {error.summary}", error.exit_status
    except Exception as error:  # noqa: BLE001 - the outermost boundary: a traceback would show what is to stay hidden
        said, ended = f"migrations: unexpected: {type(error).__name__}: {' '.join(str(error).split())}", 2
    finally:
        report.end()
        signal.signal(signal.SIGTERM, former)
    report.say(said)
    return ended


def _work(words: Sequence[str]) -> Callable[[Settings, Report], str | None]:
    """What the words ask for: something that does it, and says what it did.

    Raises:
        ValueError: they ask for nothing.
    """
    match words:
        case [] | ["up"]:
            return lambda wanted, report: f"{len(up(wanted, report))} applied, nothing pending"
        case ["plan"]:
            return lambda wanted, report: f"{len(up(wanted, report, dry=True))} pending"
        case ["status"]:
            return status
        case ["down", *rest] if not rest or (len(rest) == 1 and _number(rest[0]) > 0):
            steps = _number(*rest) if rest else 1
            return lambda wanted, report: f"{len(down(wanted, steps, None, report))} taken back"
        case ["down", "to", word]:
            to = _number(word)
            return lambda wanted, report: f"{len(down(wanted, 0, to, report))} taken back"
        case ["baseline", word]:
            version = _number(word)
            return lambda wanted, report: f"{len(baseline(wanted, version))} recorded as applied, none run"
    raise ValueError


def _parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The words and the flags, by the names of Settings; ends in argparse's error if they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m agent_executor migrate",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="up unless given")
    for flag, (name, meaning) in _WAITS.items():
        default = getattr(Settings, name)
        told = f"{meaning} ({default:g})"
        parser.add_argument(flag, dest=name, type=seconds, default=default, metavar="SECONDS", help=told)
    parser.add_argument("--allow-edited", action="store_true", help="accept files edited after they were applied")
    flags = vars(parser.parse_intermixed_args(arguments))
    words = flags.pop("words")
    try:
        if words[:1] != ["new"] or len(words) == 1:
            _work(words)
    except ValueError:
        parser.error(f"cannot make out: {' '.join(words)}")
    return words, flags


def _number(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) <= 18):
        raise ValueError
    return int(word)


def seconds(word: str) -> float:
    """A duration, for argparse, whose message names this function."""
    found = float(word)
    if not 0 <= found <= 86400:
        raise ValueError
    return found


def _terminated(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)
