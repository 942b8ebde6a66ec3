"""The migration runner, killed and cut off, against a real PostgreSQL: the next run always goes on."""

from __future__ import annotations

import random
import select
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agent_executor.migrate import Unreachable
from tests.integration.fixtures.migrations import (
    applied,
    ended,
    in_background,
    invalid_indexes,
    rows,
    runner,
    tables,
    until,
    up,
    write,
)
from tests.integration.fixtures.postgres import Database
from tier3.stack import Postgres

FILES = 1000
KILLS = 20
SEED = 7
NO_TRANSACTION = "-- migrate: no-transaction\n"
NAMES = ["i", "j", "k"]
LEDGER = "select to_regclass('schema_migrations')"
SLEEPING = "select 1 from pg_stat_activity where query like 'select pg_sleep%'"


@pytest.fixture
def database(postgres: Postgres) -> Database:
    postgres.create_database("faults")
    return Database(postgres, "faults")


def check_all_applied_once(database: Database, files: int) -> None:
    """The ledger, the tables and the indexes tell the same story."""
    assert applied(database) == list(range(1, files + 1))
    assert invalid_indexes(database) == []
    kinds = "select relkind::text, count(*) from pg_class where relnamespace = 'agent_executor'::regnamespace"
    found = dict(rows(database, f"{kinds} and relname ~ '^[ti][0-9]+$' group by 1"))
    assert found == {"r": files - files // 10, "i": files // 10}


def indexes(database: Database) -> list[str]:
    """The finished ones of t."""
    query = "select indexrelid::regclass::text from pg_index where indrelid = 't'::regclass and indisvalid order by 1"
    return [name for (name,) in rows(database, query)]


def kill_after(run: subprocess.Popen[str], lines: int, delay_s: float) -> bool:
    """SIGKILL after so many files and a bit more; whether it was still running."""
    assert run.stdout
    for _ in range(lines):
        if not run.stdout.readline():
            break
    select.select([], [], [], delay_s)
    alive = run.poll() is None
    run.kill()
    run.communicate()
    return alive


def test_each_of_twenty_random_kills_among_a_thousand_files_is_followed_by_a_run_that_finishes(
    postgres: Postgres, tmp_path: Path
) -> None:
    """The kills fall before, between, in and after files; the next run takes up where the killed one ended."""
    tables(tmp_path, FILES)
    chance = random.Random(SEED)
    killed = 0
    for number in range(KILLS):
        database = Database(postgres, f"kill_{number}")
        postgres.create_database(database.name)
        killed += kill_after(runner(database, tmp_path), chance.randint(0, FILES - 20), chance.uniform(0, 0.003))
        there = len(applied(database)) if rows(database, LEDGER) != [(None,)] else 0
        assert len(up(database, tmp_path)) == FILES - there
        check_all_applied_once(database, FILES)
        postgres.drop_database(database.name)
    assert killed == KILLS, "a run ended before its kill"


def test_a_run_that_is_killed_again_and_again_gets_there(database: Database, tmp_path: Path) -> None:
    tables(tmp_path, 200)
    chance = random.Random(SEED)
    for _ in range(KILLS):
        kill_after(runner(database, tmp_path), chance.randint(0, 10), chance.uniform(0, 0.01))
        assert ended(runner(database, tmp_path, "status"))[0] == 0
    up(database, tmp_path)
    check_all_applied_once(database, 200)


def _is_seen_or_over(watcher: psycopg.Connection[Any], run: subprocess.Popen[str]) -> bool:
    return bool(watcher.execute(SLEEPING).fetchall()) or run.poll() is not None


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_way_back_killed_at_random_points_is_finished_or_undone(
    database: Database, tmp_path: Path, repeatable: bool
) -> None:
    """Whatever the kill left: the index is there and finished if and only if the ledger says so."""
    write(tmp_path, {"1_t": "create table t (a int)"})
    kind = "index concurrently if not exists" if repeatable else "index"
    head = NO_TRANSACTION if repeatable else ""
    write(tmp_path, {"2_i": head + "".join(f"create {kind} {name} on t (a);\n" for name in NAMES)})
    pause = "-- migrate: repeatable\nselect pg_sleep(0.02);\n"
    back = "".join(f"drop index concurrently if exists {name};\n{pause}" for name in NAMES)
    (tmp_path / "2_i.down.sql").write_text(f"{NO_TRANSACTION}{pause}{back}")
    chance = random.Random(SEED)
    halves = 0
    for _ in range(KILLS):
        assert ended(runner(database, tmp_path))[0] == 0
        assert indexes(database) == NAMES
        with psycopg.connect(database.dsn, autocommit=True) as watcher:
            run = runner(database, tmp_path, "down")
            # One that was not seen has ended, which `halves` counts.
            begun = partial(_is_seen_or_over, watcher, run)
            until(begun, "the way back does not begin")
        kill_after(run, 0, chance.uniform(0, 0.08))
        half = rows(database, "select 1 from schema_migrations where sha256 = ''") != []
        halves += half
        if chance.random() < 0.5 or (half and not repeatable):
            assert ended(runner(database, tmp_path, "down", "to", "1"))[0] == 0
            assert (indexes(database), applied(database)) == ([], [1])
    assert halves > KILLS // 2, "the kills came too late"
    assert invalid_indexes(database) == []


def test_a_way_back_killed_while_it_waits_is_undone_by_the_next_run(database: Database, tmp_path: Path) -> None:
    write(tmp_path, {"1_t": "create table t (a int)"})
    made = "create index concurrently if not exists i on t (a);\ncreate index concurrently if not exists j on t (a)"
    write(tmp_path, {"2_i": f"{NO_TRANSACTION}{made}"})
    back = "drop index concurrently if exists i; drop index concurrently if exists j"
    (tmp_path / "2_i.down.sql").write_text(f"{NO_TRANSACTION}{back}")
    up(database, tmp_path)
    waits = "select 1 from pg_stat_activity where query like 'drop index conc%' and wait_event_type = 'Lock'"
    with psycopg.connect(database.dsn) as reader:
        reader.execute("select from t")
        run = runner(database, tmp_path, "down")
        until(lambda: rows(database, waits), "the DROP does not wait for the reader")
        run.kill()
        run.communicate()
        until(lambda: not rows(database, waits), "the server goes on for a client that is gone")
    assert invalid_indexes(database) == ["i"]
    assert up(database, tmp_path) == ["i"]
    assert (indexes(database), applied(database)) == (["i", "j"], [1, 2])


def test_killed_inside_create_index_concurrently_the_next_run_makes_the_index(
    database: Database, tmp_path: Path
) -> None:
    up(database, write(tmp_path, {"1_t": "create table t (a int)"}))
    write(tmp_path, {"2_i": f"{NO_TRANSACTION}create index concurrently if not exists i on t (a)"})
    waits = "select 1 from pg_stat_activity where query like 'create index conc%' and wait_event_type = 'Lock'"
    with_lock = "begin; lock table t in row exclusive mode"
    with psycopg.connect(database.dsn, autocommit=True) as writer:
        writer.execute(with_lock.encode())
        run = runner(database, tmp_path)
        until(lambda: rows(database, waits), "the index does not wait for the writer")
        run.kill()
        run.communicate()
        # The server notices by itself that its client is gone, and gives up the statement and the lock.
        until(lambda: not rows(database, waits), "the server goes on for a client that is gone")
        writer.execute("rollback")
    assert invalid_indexes(database) == ["i"]
    assert up(database, tmp_path) == ["i"]
    assert (applied(database), invalid_indexes(database)) == ([1, 2], [])


def test_a_server_that_restarts_in_the_middle_is_4_and_the_next_run_goes_on(
    postgres: Postgres, database: Database, tmp_path: Path
) -> None:
    tables(tmp_path, 300)
    run = runner(database, tmp_path)
    assert run.stdout
    for _ in range(30):
        run.stdout.readline()
    postgres.restart()
    status, lines = ended(run)
    assert status == 4
    assert lines[-2].startswith("database: the connection was lost: ")
    assert lines[-1] == "migrations: database unreachable; run again"
    assert 30 <= len(applied(database)) < 300
    up(database, tmp_path)
    check_all_applied_once(database, 300)


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_with_a_wait_a_run_outlives_a_restart(postgres: Postgres, database: Database, tmp_path: Path, how: str) -> None:
    tables(tmp_path, 300)
    run = runner(database, tmp_path, "--wait", "30")
    assert run.stdout
    for _ in range(30):
        run.stdout.readline()
    if how == "crash":
        postgres.kill()
    else:
        postgres.stop()
    assert any(line.startswith("waiting up to 30 s: database: ") for line in iter(run.stdout.readline, ""))
    postgres.start()
    status, lines = ended(run)
    assert (status, lines[-1].split(",")[-1].split(" in ")[0]) == (0, " nothing pending")
    check_all_applied_once(database, 300)


def test_a_server_that_starts_late_is_waited_for(postgres: Postgres, database: Database, tmp_path: Path) -> None:
    tables(tmp_path, 20)
    postgres.stop()
    with pytest.raises(Unreachable):
        up(database, tmp_path)
    running = in_background(lambda: up(database, tmp_path, wait_s=30))
    postgres.start()
    assert len(running.result(60)) == 20
    check_all_applied_once(database, 20)
