"""What can be done with migrations: up, down, status, plan, baseline. Each reads the files before it connects."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from . import adopt, apply, ledger
from .errors import Refused, Unreachable
from .files import Migration, read
from .ledger import HALF, Known, Row
from .report import Report
from .server import Connection, connect
from .settings import Settings

_CONNECT_S = 10.0
_LOSSES = 3
_RETRY_S = 0.25
_PENDING = Row("", "not yet", "pending")
T = TypeVar("T")


def up(wanted: Settings, report: Report | None = None, *, dry: bool = False) -> list[Migration]:
    """Apply what is pending; returns it. With `dry`, say what would be applied, or why not, and change nothing.

    Raises:
        MigrationError: its subclass, and so its exit status, says what stopped the run.
    """
    migrations = read(wanted.directory)
    report = report or _silence(wanted)
    applied: list[Migration] = []

    def work(connection: Connection) -> list[Migration]:
        ledger.lock(connection, wanted.lock_wait_s, report.hide)
        known = ledger.rows(connection)
        if known is None:
            known = _adopt(connection, migrations, report, dry)
        pending = _pending(migrations, known, wanted, report)
        if dry:
            for each in pending:
                report.say(f"would apply {each.up.name}{'' if each.up.transactional else ' (no transaction)'}")
            return pending
        if wanted.allow_edited:
            ledger.accept(connection, [each for each in migrations if _edited(each, known)])
        for number, each in enumerate(pending, 1):
            ms = apply.up(connection, each, report)
            applied.append(each)
            report.file("applied", each.up.name, ms, number, len(pending))
        return applied

    return _connected(wanted, report, work)


def down(wanted: Settings, steps: int, to: int | None, report: Report | None = None) -> list[Migration]:
    """Take back the last `steps` migrations, or all above version `to`; returns them, the last one first."""
    migrations = {each.version: each for each in read(wanted.directory)}
    report = report or _silence(wanted)
    if to and to not in migrations:
        raise Refused(f"down: no file has the number {to}")
    undone: list[Migration] = []

    def work(connection: Connection) -> None:
        nonlocal to
        ledger.lock(connection, wanted.lock_wait_s, report.hide)
        known = ledger.rows(connection) or {}
        if to is None:  # only once: the steps are not counted anew after a lost connection
            to = [0, *sorted(known)][-1 - min(steps, len(known))]
        chosen = sorted((version for version in known if version > to), reverse=True)
        if foreign := [_label(version, known) for version in chosen if version not in migrations]:
            raise Refused(f"down: not among the files: {', '.join(foreign)}; use the image that applied them")
        for number, version in enumerate(chosen, 1):
            ms = apply.down(connection, migrations[version], report)
            undone.append(migrations[version])
            report.file("took back", migrations[version].down.name, ms, number, len(chosen))

    _connected(wanted, report, work)
    return undone


def status(wanted: Settings, report: Report) -> None:
    """Say of each file whether it was applied, when and by whom. Takes no lock and changes nothing."""
    migrations = read(wanted.directory)

    def work(connection: Connection) -> None:
        rows = ledger.rows(connection, ledger.STORY)
        known = rows or {}
        for each in migrations:
            row = known.get(each.version, _PENDING)
            marks = f"{', HALF TAKEN BACK since' * (row.sha256 == HALF)}{', EDITED since' * _edited(each, known)}"
            report.say(f"{each.up.name}: {row.story}{marks}")
        for version in sorted(known):
            if version > len(migrations):
                report.say(f"{_label(version, known)}: {known[version].story}, not among the files")
        if rows is None:
            report.say("status: the database has no ledger yet")

    _connected(wanted, report, work)


def baseline(wanted: Settings, version: int) -> list[Migration]:
    """Record the files up to `version` as applied, running none; for a database without a ledger. Returns them."""
    migrations = read(wanted.directory)
    report = _silence(wanted)
    if version > len(migrations):
        raise Refused(f"baseline: no file has the number {version}")

    def work(connection: Connection) -> None:
        ledger.lock(connection, wanted.lock_wait_s, report.hide)
        if rows := ledger.rows(connection):
            raise Refused(f"baseline: the ledger has {len(rows)} versions already, the last is {max(rows)}")
        ledger.create(connection, migrations[:version])

    _connected(wanted, report, work)
    return migrations[:version]


def _silence(wanted: Settings) -> Report:
    return Report(wanted.secret, io.StringIO())


def _adopt(connection: Connection, migrations: Sequence[Migration], report: Report, dry: bool) -> Known:
    """The first run on this database: an empty ledger, or one that says what another tool did from these files."""
    adopted = adopt.present(connection, migrations, report.hide)
    if not dry:
        ledger.create(connection, adopted)
    for each in adopted:
        report.say(f"{'would adopt' if dry else 'adopted'} {each.up.name}: it is in the database")
    return {each.version: Row(each.name, each.sha256) for each in adopted}


def _pending(migrations: Sequence[Migration], known: Known, wanted: Settings, report: Report) -> list[Migration]:
    """What is to be applied. Refused where the ledger and the files tell different stories."""
    pending, refusals = list[Migration](), list[str]()
    latest = max(known, default=0)
    for each in migrations:
        row = known.get(each.version)
        if row is None and each.version < latest:
            refusals.append(
                f"{each.up.path}: arrives out of order, {_label(latest, known)} was applied before it: give it a number"
                " after that"
            )
        elif row is None or (row.sha256 == HALF and not each.up.transactional):
            pending.append(each)
        elif row.sha256 == HALF:
            refusals.append(f"{each.up.path}: half taken back, its down file was cut off: run down, and then up")
        elif row.sha256 != each.sha256 and not wanted.allow_edited:
            was = "" if row.name == each.name else f" as {row.name}"
            refusals.append(
                f"{each.up.path}: edited after it was applied{was}: put it back as it was and write a new file, or"
                " accept the edit, running nothing, with --allow-edited"
            )
    if refusals:
        raise Refused("\n".join(refusals))
    if ahead := [_label(version, known) for version in sorted(known) if version > len(migrations)]:
        report.say(f"warning: the database is ahead of the files, as after a rollback of the image: {', '.join(ahead)}")
    return pending


def _edited(migration: Migration, known: Known) -> bool:
    return known.get(migration.version, _PENDING).sha256 not in (HALF, _PENDING.sha256, migration.sha256)


def _label(version: int, known: Known) -> str:
    return f"{version:03d}_{known[version].name}{' (half taken back)' if known[version].sha256 == HALF else ''}"


def _connected(wanted: Settings, report: Report, work: Callable[[Connection], T]) -> T:
    """Do `work` on a connection. With a wait, again on another one if the first cannot be had or is lost.

    Work done twice is no harm: it begins by reading the ledger. A file that crashes the server gets _LOSSES tries.
    """
    deadline = time.monotonic() + wanted.wait_s
    losses = 0
    announced = False
    while True:
        begun = False
        patience_s = min(max(0.0, deadline - time.monotonic()) or _CONNECT_S, _CONNECT_S)
        try:
            with connect(wanted.dsn, ledger.SCHEMA, wanted.lock_timeout_s, patience_s, report.say) as connection:
                begun = True
                return work(connection)
        except Unreachable as error:
            if begun:
                losses += 1
                announced = False
                deadline = time.monotonic() + wanted.wait_s
            if losses == _LOSSES or time.monotonic() >= deadline:
                raise
            if not announced:
                report.say(f"waiting up to {wanted.wait_s:g} s: {error}")
                announced = True
        time.sleep(_RETRY_S * random.uniform(0.5, 1.5))  # noqa: S311
