"""What can be done with migrations: up, down, status, plan, baseline. Each reads the files before it connects."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from . import adopt, apply, ledger
from .errors import Refused, Unreachable
from .files import Migration, read
from .ledger import Row
from .report import Report, Silence
from .server import Connection, connect, pause, run
from .settings import Settings

_CONNECT_S = 10.0
_LOSSES = 3
_RETRY_S = 0.25
T = TypeVar("T")


def up(wanted: Settings, report: Report | None = None) -> list[Migration]:
    """Apply what is pending; returns it.

    Raises:
        MigrationError: its subclass, and so its exit status, says what stopped the run.
    """
    migrations = read(wanted.directory)
    report = report or Silence()
    applied: list[Migration] = []
    _connected(wanted, report, lambda connection: _up(connection, wanted, migrations, report, applied))
    return applied


def plan(wanted: Settings, report: Report) -> list[Migration]:
    """What `up` would apply, or the refusal that it would end with. Changes nothing."""
    migrations = read(wanted.directory)

    def work(connection: Connection) -> list[Migration]:
        ledger.lock(connection, wanted.lock_wait_s)
        known = ledger.rows(connection)
        if known is None:
            adopted = adopt.present(connection, migrations)
            known = {each.version: Row(each.name, each.sha256) for each in adopted}
            for each in adopted:
                report.say(f"would adopt {each.up.name}: it is in the database")
        return _pending(migrations, known, wanted, report)

    pending = _connected(wanted, report, work)
    for each in pending:
        report.say(f"would apply {each.up.name}{'' if each.up.transactional else ' (no transaction)'}")
    return pending


def down(wanted: Settings, steps: int, to: int | None, report: Report | None = None) -> list[Migration]:
    """Take back the last `steps` migrations, or all above version `to`; returns them, the last one first."""
    migrations = {each.version: each for each in read(wanted.directory)}
    report = report or Silence()
    if to and to not in migrations:
        raise Refused(f"down: no file has the number {to}")
    undone: list[Migration] = []

    def work(connection: Connection) -> None:
        nonlocal to
        ledger.lock(connection, wanted.lock_wait_s)
        known = ledger.rows(connection, complete=True) or {}
        if to is None:  # only once: the steps are not counted anew after a lost connection
            to = [0, *sorted(known)][-1 - min(steps, len(known))]
        chosen = sorted((version for version in known if version > to), reverse=True)
        if foreign := [f"{version:03d}_{known[version].name}" for version in chosen if version not in migrations]:
            raise Refused(f"down: not among the files: {', '.join(foreign)}; use the image that applied them")
        for number, version in enumerate(chosen, 1):
            ms = apply.down(connection, migrations[version], report.say)
            undone.append(migrations[version])
            report.file("took back", migrations[version].down.name, ms, number, len(chosen))

    _connected(wanted, report, work)
    return undone


def status(wanted: Settings, report: Report) -> None:
    """Say of each file whether it was applied, when and by whom. Takes no lock and changes nothing."""
    migrations = read(wanted.directory)

    def work(connection: Connection) -> None:
        rows = ledger.rows(connection)
        told = ledger.history(connection) if rows is not None else {}
        for each in migrations:
            edited = rows and each.version in rows and rows[each.version].sha256 != each.sha256
            state = told[each.version][1] if each.version in told else "pending"
            report.say(f"{each.up.name}: {state}{', EDITED since' if edited else ''}")
        for version, (name, state) in sorted(told.items()):
            if version > len(migrations):
                report.say(f"{version:03d}_{name}: {state}, not among the files")
        if rows is None:
            report.say("status: the database has no ledger yet")

    _connected(wanted, report, work)


def baseline(wanted: Settings, version: int) -> list[Migration]:
    """Record the files up to `version` as applied, running none; for a database without a ledger. Returns them."""
    migrations = read(wanted.directory)
    if version > len(migrations):
        raise Refused(f"baseline: no file has the number {version}")

    def work(connection: Connection) -> None:
        ledger.lock(connection, wanted.lock_wait_s)
        if rows := ledger.rows(connection):
            raise Refused(f"baseline: the ledger has {len(rows)} versions already, the last is {max(rows)}")
        run(connection, "begin")
        ledger.create(connection)
        ledger.record(connection, migrations[:version])
        run(connection, "commit")

    _connected(wanted, Silence(), work)
    return migrations[:version]


def _up(
    connection: Connection, wanted: Settings, migrations: list[Migration], report: Report, applied: list[Migration]
) -> None:
    ledger.lock(connection, wanted.lock_wait_s)
    known = ledger.rows(connection, complete=True)
    if known is None:
        known = _begin_ledger(connection, migrations, report)
    pending = _pending(migrations, known, wanted, report)
    if wanted.allow_edited:
        ledger.accept(connection, _edited(migrations, known))
    for number, each in enumerate(pending, 1):
        ms = apply.up(connection, each, report.say)
        applied.append(each)
        report.file("applied", each.up.name, ms, number, len(pending))


def _begin_ledger(connection: Connection, migrations: list[Migration], report: Report) -> dict[int, Row]:
    """The first run on this database: an empty ledger, or one that says what another tool did from these files."""
    adopted = adopt.present(connection, migrations)
    run(connection, "begin")
    ledger.create(connection)
    ledger.record(connection, adopted)
    run(connection, "commit")
    for each in adopted:
        report.say(f"adopted {each.up.name}: it is in the database")
    return {each.version: Row(each.name, each.sha256) for each in adopted}


def _pending(
    migrations: Sequence[Migration], known: Mapping[int, Row], wanted: Settings, report: Report
) -> list[Migration]:
    """What is to be applied. Refused where the ledger and the files tell different stories."""
    edited = _edited(migrations, known)
    pending = [each for each in migrations if each.version not in known]
    latest = max(known, default=0)
    refusals = (
        []
        if wanted.allow_edited
        else [f"{each.up.path}: edited after it was applied{_as(each, known)}" for each in edited]
    )
    refusals += [
        f"{each.up.path}: arrives out of order, {latest:03d}_{known[latest].name} was applied before it: give it a"
        " number after that"
        for each in pending
        if each.version < latest
    ]
    if refusals:
        hint = ["HINT: put it back as it was and write a new file; --allow-edited accepts the edit, running nothing"]
        raise Refused("\n".join(refusals + (hint if edited and not wanted.allow_edited else [])))
    if ahead := [f"{version:03d}_{row.name}" for version, row in sorted(known.items()) if version > len(migrations)]:
        report.say(f"warning: the database is ahead of the files, as after a rollback of the image: {', '.join(ahead)}")
    return pending


def _edited(migrations: Sequence[Migration], known: Mapping[int, Row]) -> list[Migration]:
    return [each for each in migrations if each.version in known and known[each.version].sha256 != each.sha256]


def _as(migration: Migration, known: Mapping[int, Row]) -> str:
    name = known[migration.version].name
    return "" if name == migration.name else f" as {name}"


def _connected(wanted: Settings, report: Report, work: Callable[[Connection], T]) -> T:
    """Do `work` on a connection. With a wait, again on another one if the first cannot be had or is lost.

    Work done twice is no harm: it begins by reading the ledger. A file that crashes the server gets _LOSSES tries.
    """
    deadline = time.monotonic() + wanted.wait_s
    losses = 0
    announced = False
    while True:
        begun = False
        patience_s = max(0.0, deadline - time.monotonic()) or _CONNECT_S
        try:
            with connect(wanted.dsn, ledger.SCHEMA, wanted.lock_timeout_s, min(patience_s, _CONNECT_S)) as connection:
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
        pause(_RETRY_S * random.uniform(0.5, 1.5))  # noqa: S311
