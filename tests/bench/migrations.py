"""The migration runner beside a bare psycopg connection and dbmate, on the same files and the same server."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg

from agent_executor import migrate
from tests.bench.figures import Figure, compared, side_by_side, timed
from tier3.stack import Postgres

FILES = 1000
APPLY_RUNS, NOTHING_RUNS = 5, 15
QUICK_APPLY_RUNS, QUICK_NOTHING_RUNS = 1, 1
NOTHING_MS = 30.0
SMALL = "create table t{0} (id bigint primary key, name text not null, made_at timestamptz not null default now());\n"
DBMATE = Path(sysconfig.get_path("scripts")) / "dbmate"


def measure(server: Postgres, place: Path, *, quick: bool = False) -> list[Figure]:
    """Every figure of the migration runner."""
    ours, theirs = _files(place)
    applied, nothing = (QUICK_APPLY_RUNS, QUICK_NOTHING_RUNS) if quick else (APPLY_RUNS, NOTHING_RUNS)
    return [*_apply(server, ours, theirs, applied), *_nothing(server, ours, theirs, nothing)]


def _apply(server: Postgres, ours: Path, theirs: Path, runs: int) -> list[Figure]:
    def on_a_new_database(work: Callable[[str], object]) -> Callable[[], float]:
        def run() -> float:
            name = f"bench_{uuid.uuid4().hex}"
            dsn = server.create_database(name)
            try:
                return timed(lambda: work(dsn))
            finally:
                server.drop_database(name)

        return run

    found = side_by_side(
        {
            "bare": on_a_new_database(lambda dsn: _bare(dsn, ours)),
            "ours": on_a_new_database(lambda dsn: migrate.up(migrate.Settings(dsn, ours))),
            "dbmate": on_a_new_database(lambda dsn: _dbmate(dsn, theirs)),
        },
        runs,
    )
    what = f"{FILES} small files"
    return [
        Figure(f"{what}, a bare psycopg connection", found["bare"]),
        Figure(f"{what}, dbmate (whole process)", found["dbmate"]),
        compared(f"{what}, ours (in process)", found["ours"], found["bare"], "bare", 1.1),
        compared(f"{what}, ours (in process)", found["ours"], found["dbmate"], "dbmate", 1.0),
    ]


def _nothing(server: Postgres, ours: Path, theirs: Path, runs: int) -> list[Figure]:
    dsn, other = server.create_database("nothing"), server.create_database("nothing_dbmate")
    migrate.up(migrate.Settings(dsn, ours))
    _dbmate(other, theirs)
    address = {"HOST": server.host, "PORT": str(server.port), "USER": server.user, "PASSWORD": server.password}
    environment = os.environ | {f"POSTGRES_{key}": value for key, value in address.items()}
    environment |= {"POSTGRES_DB": "nothing", "MIGRATION_DIR": str(ours), "DSN": dsn}

    def python(*words: str) -> Callable[[], float]:
        return lambda: timed(
            lambda: subprocess.run([sys.executable, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
        )

    connects = "import os, psycopg; psycopg.connect(os.environ['DSN']).close()"
    found = side_by_side(
        {
            "in process": lambda: timed(lambda: migrate.up(migrate.Settings(dsn, ours))),
            "psycopg": python("-c", connects),
            "ours": python("-m", "agent_executor", "migrate"),
            "dbmate": lambda: timed(lambda: _dbmate(other, theirs)),
        },
        runs,
    )
    median = sorted(found["in process"])[runs // 2]
    what = f"nothing to do, {FILES} applied"
    goal = f"at most {NOTHING_MS:g} ms"
    return [
        Figure(f"{what}, ours (in process, after imports)", found["in process"], goal, median <= NOTHING_MS),
        Figure("python -c 'import psycopg', and one connection", found["psycopg"]),
        Figure(f"{what}, dbmate (whole process)", found["dbmate"]),
        compared(f"{what}, ours (whole process)", found["ours"], found["psycopg"], "psycopg", 1.3),
    ]


def _files(place: Path) -> tuple[Path, Path]:
    """The same migrations, for us and for dbmate, which keeps both ways in one file."""
    ours, theirs = place / "ours", place / "theirs"
    ours.mkdir()
    theirs.mkdir()
    for number in range(1, FILES + 1):
        stem, up, down = f"{number:04d}_t{number}", SMALL.format(number), f"drop table t{number};\n"
        (ours / f"{stem}.up.sql").write_text(up)
        (ours / f"{stem}.down.sql").write_text(down)
        (theirs / f"{stem}.sql").write_text(f"-- migrate:up\n{up}\n-- migrate:down\n{down}")
    return ours, theirs


def _bare(dsn: str, directory: Path) -> None:
    """The least that runs the files: no order of numbers, no checks, no record."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for path in sorted(directory.glob("*.up.sql")):
            connection.execute(path.read_bytes())


def _dbmate(dsn: str, directory: Path) -> None:
    command = [str(DBMATE), "--url", f"{dsn}?sslmode=disable", "--migrations-dir", str(directory), "--no-dump-schema"]
    subprocess.run([*command, "migrate"], check=True, stdout=subprocess.DEVNULL)
