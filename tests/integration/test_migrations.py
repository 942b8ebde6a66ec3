"""The migrations against a real PostgreSQL: `python -m agent_executor migrate`."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from tests.integration.fixtures.postgres import ROOT, Database
from tier3.stack import Stack


@pytest.fixture
def empty(stack: Stack) -> Iterator[Database]:
    name = f"empty_{uuid.uuid4().hex[:12]}"
    stack.postgres.create_database(name)
    yield Database(stack.postgres, name)
    stack.postgres.drop_database(name)


def migrate(database: Database, directory: Path = ROOT / "migrations") -> subprocess.Popen[str]:
    environment = os.environ | database.environment | {"MIGRATION_DIR": str(directory)}
    command = [sys.executable, "-m", "agent_executor", "migrate"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def report(run: subprocess.Popen[str]) -> tuple[int, list[str]]:
    output, _ = run.communicate(timeout=60)
    return run.returncode, output.splitlines()


def test_what_is_pending_is_applied_once(empty: Database) -> None:
    applied = ["applied 001_langgraph_checkpoints", "applied 002_jobs", "migrations: 2 applied, nothing pending"]
    assert report(migrate(empty)) == (0, applied)
    assert report(migrate(empty)) == (0, ["migrations: 0 applied, nothing pending"])


def test_runs_at_the_same_time_wait_for_each_other(empty: Database) -> None:
    reports = [report(run) for run in [migrate(empty) for _ in range(4)]]
    assert [status for status, _ in reports] == [0, 0, 0, 0]
    assert sorted(lines[-1][12:13] for _, lines in reports) == ["0", "0", "0", "2"]


def test_a_failing_file_leaves_nothing_and_names_itself(empty: Database, tmp_path: Path) -> None:
    (tmp_path / "1_good.up.sql").write_text("create table good ();")
    (tmp_path / "2_bad.up.sql").write_text("create table half (); select 1/0; create table other ();")
    status, lines = report(migrate(empty, tmp_path))
    assert status == 1
    assert lines[0].startswith("migrations: 002_bad: division by zero")
    with psycopg.connect(empty.dsn) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'agent_executor'").fetchall()
    assert sorted(name for (name,) in tables) == ["good", "schema_migrations"]


def test_a_file_that_was_edited_afterwards_is_refused(empty: Database, tmp_path: Path) -> None:
    file = tmp_path / "1_good.up.sql"
    file.write_text("create table good ();")
    assert report(migrate(empty, tmp_path))[0] == 0
    file.write_text("create table better ();")
    assert report(migrate(empty, tmp_path)) == (1, ["migrations: edited after they were applied: 001_good"])


def test_a_database_that_is_not_there_is_said_without_the_password(empty: Database) -> None:
    status, lines = report(migrate(Database(empty.server, "nowhere")))
    assert status == 1
    assert 'database "nowhere" does not exist' in lines[0]


def test_langgraphs_own_setup_finds_nothing_to_do(database: Database) -> None:
    catalog = "select table_name, column_name, data_type, is_nullable from information_schema.columns order by 1, 2"
    with psycopg.connect(database.dsn, autocommit=True, row_factory=dict_row) as connection:
        before = connection.execute(catalog).fetchall()
        PostgresSaver(connection).setup()
        assert connection.execute(catalog).fetchall() == before
        versions = connection.execute("select v from checkpoint_migrations order by v").fetchall()
    assert [row["v"] for row in versions] == list(range(len(PostgresSaver.MIGRATIONS)))
