"""python -m agent_executor migrate [COMMAND] [FLAGS]: words in, exit status out."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .commands import baseline, down, plan, status, up
from .errors import MigrationError
from .files import create
from .report import Report
from .settings import Settings, directory, settings

_EPILOG = """commands:
  up                  apply what is pending (default)
  down [N|to VERSION] take back the last N (1) migrations, or all above VERSION; 0 is all
  status              what was applied, and what is pending
  plan                what up would do, changing nothing
  baseline VERSION    record the files up to VERSION as applied, running none
  new WORDS           write the next migration's two files

environment: POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD (required), MIGRATION_DIR (migrations)
exit status: 0 done, 1 a migration failed, 2 refused: call, environment or files, 3 lock not obtained,
  4 database unreachable
"""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and print its report. Returns the exit status; 128 + the signal when one ended it."""
    former = signal.signal(signal.SIGTERM, _terminated)  # else the kernel ignores it for PID 1, as in a container
    try:
        return _run(_parse(arguments), environment)
    except SystemExit as error:  # argparse has printed why
        return int(error.code or 0)
    except KeyboardInterrupt as error:
        Report().say("migrations: interrupted; what was not finished was rolled back, run again to go on")
        return 128 + (signal.SIGTERM if error.args else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, former)


def _run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    report = Report()
    try:
        if options.command == "new":
            report.say("\n".join(str(path) for path in create(directory(environment), options.words)))
            return 0
        wanted = replace(
            settings(environment),
            wait_s=options.wait,
            lock_timeout_s=options.lock_timeout,
            lock_wait_s=options.lock_wait,
            allow_edited=options.allow_edited,
        )
        report = Report(wanted.secret, wanted.public)
        _dispatch(options, wanted, report)
    except MigrationError as error:
        report.end()
        report.say(f"{error}\nmigrations: {error.summary}")
        return error.exit_status
    finally:
        report.end()
    return 0


def _dispatch(options: argparse.Namespace, wanted: Settings, report: Report) -> None:
    started = time.perf_counter()
    match options.command:
        case "up":
            done = f"{len(up(wanted, report))} applied, nothing pending"
        case "down":
            done = f"{len(down(wanted, options.steps, options.to, report))} taken back"
        case "plan":
            done = f"{len(plan(wanted, report))} pending"
        case "baseline":
            done = f"{len(baseline(wanted, options.version))} recorded as applied, none run"
        case _:
            status(wanted, report)
            return
    report.say(f"migrations: {done} in {time.perf_counter() - started:.2f} s")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m agent_executor migrate",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="up unless given")
    parser.add_argument("--wait", type=seconds, default=Settings.wait_s, metavar="SECONDS", help="for the database (0)")
    parser.add_argument(
        "--lock-timeout",
        type=seconds,
        default=Settings.lock_timeout_s,
        metavar="SECONDS",
        help="for a table's lock (5)",
    )
    parser.add_argument(
        "--lock-wait", type=seconds, default=Settings.lock_wait_s, metavar="SECONDS", help="for another run (60)"
    )
    parser.add_argument("--allow-edited", action="store_true", help="accept files edited after they were applied")
    options = parser.parse_intermixed_args(arguments)
    vars(options).update(_command(parser, options.words))
    return options


def _command(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, object]:
    """What the words ask for; ends in the parser's error if they ask for nothing."""
    found: dict[str, object] = {"command": words[0] if words else "up"}
    match words:
        case [] | ["up" | "status" | "plan"]:
            pass
        case ["down"]:
            found |= {"steps": 1, "to": None}
        case ["down", number] if _whole(number) and int(number) > 0:
            found |= {"steps": int(number), "to": None}
        case ["down", "to", number] if _whole(number):
            found |= {"steps": 0, "to": int(number)}
        case ["baseline", number] if _whole(number):
            found |= {"version": int(number)}
        case ["new", *rest] if rest:
            found |= {"words": " ".join(rest)}
        case _:
            parser.error(f"cannot make out: {' '.join(words)}")
    return found


def _whole(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) <= 18


def seconds(word: str) -> float:
    """A duration, for argparse, whose message names this function."""
    found = float(word)
    if not 0 <= found <= 86400:
        raise ValueError
    return found


def _terminated(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)
