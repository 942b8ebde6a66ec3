"""The migration runner against a real PostgreSQL. What takes long, such as kills and restarts, is in tests/faults."""

from __future__ import annotations

import os
import pty
import re
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from agent_executor import migrate
from agent_executor.migrate import Failed, Locked, Refused, Unreachable, adopt, apply, ledger
from agent_executor.migrate.command_line import main
from agent_executor.migrate.files import Migration
from agent_executor.migrate.judge import File
from agent_executor.migrate.report import Report
from agent_executor.migrate.statements import split
from tests.definitions import adder
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
from tests.integration.fixtures.postgres import ROOT, Database
from tests.integration.fixtures.service import Starter
from tier3.stack import Stack

OURS = ROOT / "migrations"
NAMES = sorted(path.name.removesuffix(".up.sql") for path in OURS.glob("*.up.sql"))
VERSIONS = list(range(1, len(NAMES) + 1))
RUNNERS = "select 1 from pg_stat_activity where datname = current_database() and application_name like 'agent%'"
NO_TRANSACTION = "-- migrate: no-transaction\n"
Made = Callable[[], Database]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def make(stack: Stack) -> Iterator[Made]:
    made: list[str] = []

    def new() -> Database:
        made.append(f"empty_{uuid.uuid4().hex[:12]}")
        stack.postgres.create_database(made[-1])
        return Database(stack.postgres, made[-1])

    yield new
    for name in made:
        stack.postgres.drop_database(name)


@pytest.fixture(scope="module")
def one(stack: Stack) -> Iterator[Database]:
    name = f"one_{uuid.uuid4().hex[:12]}"
    stack.postgres.create_database(name)
    yield Database(stack.postgres, name)
    stack.postgres.drop_database(name)


@pytest.fixture
def empty(one: Database) -> Iterator[Database]:
    """A database with nothing in it; the same one for each test, since making one takes longer than most tests."""
    yield one
    for schema in ("agent_executor", "public"):
        rows(one, f"drop schema if exists {schema} cascade")
    rows(one, "create schema public")


@pytest.fixture
def command(empty: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, on `empty` and the test's own files."""

    def run(*words: str, directory: Path = tmp_path, **environment: str) -> tuple[int, str]:
        status = main(words, {**empty.environment, "MIGRATION_DIR": str(directory), **environment})
        return status, capsys.readouterr().out.replace(f"{directory}/", "")

    return run


def catalog(database: Database) -> dict[str, str]:
    with psycopg.connect(database.dsn) as connection:
        return dict(adopt.catalog(connection))


def by_psql(database: Database, *files: Path) -> None:
    """What the script did that ran the files with psql: no ledger, and the schema made beforehand."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("create schema agent_executor")
        for file in files:
            for statement in split(file.read_text()).statements:
                connection.execute(statement.text.encode())


# Up, down, and what is said about it


def test_what_is_pending_is_applied_once_and_told(empty: Database) -> None:
    status, lines = ended(runner(empty, OURS))
    assert status == 0
    assert [line.split(" in ")[0] for line in lines] == [
        *(f"applied {name}.up.sql" for name in NAMES),
        f"migrations: {len(NAMES)} applied, nothing pending",
    ]
    assert up(empty, OURS) == []
    columns = (
        "version, name, length(sha256), applied_at > now() - interval '1 hour', duration_ms >= 0, by like 'postgres%'"
    )
    assert rows(empty, f"select {columns} from schema_migrations order by version") == [
        (version, NAMES[version - 1].split("_", 1)[1], 64, True, True, True) for version in VERSIONS
    ]


def test_up_then_down_to_zero_then_up_gives_the_same_catalog(empty: Database, command: Command) -> None:
    assert command(directory=OURS)[0] == 0
    first = catalog(empty)
    assert command("down", "to", "0", directory=OURS)[0] == 0
    assert (catalog(empty), applied(empty)) == ({}, [])  # the schema and its ledger stay, and can be asked
    assert command("up", directory=OURS)[0] == 0
    assert catalog(empty) == first


def test_down_takes_back_one_or_some_or_down_to_a_version(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {f"{number}_t{number}": f"create table t{number} ()" for number in range(1, 7)})
    up(empty, tmp_path)
    status, said = command("down")
    assert (status, applied(empty)) == (0, [1, 2, 3, 4, 5])
    assert said.startswith("took back 6_t6.down.sql in ")
    assert command("down", "2")[0] == 0
    assert applied(empty) == [1, 2, 3]
    assert command("down", "to", "2")[0] == 0
    assert applied(empty) == [1, 2]
    assert command("down", "to", "9")[0] == 2
    assert command("down", "9")[0] == 0
    assert applied(empty) == []


def test_a_way_back_that_fails_leaves_all_as_it_was(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a ()"})
    (tmp_path / "1_a.down.sql").write_text("drop table a; drop table b;")
    up(empty, tmp_path)
    status, said = command("down")
    assert (status, applied(empty), list(catalog(empty))) == (1, [1], ["table a"])
    assert said.startswith('1_a.down.sql:1:15: table "b" does not exist (SQLSTATE 42P01)\n')


def test_status_and_plan_change_nothing(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a ()", "2_b": f"{NO_TRANSACTION}create table if not exists b ()"})
    assert command("status") == (
        0,
        "1_a.up.sql: pending\n2_b.up.sql: pending\nstatus: the database has no ledger yet\n",
    )
    status, said = command("plan")
    assert status == 0
    assert said.startswith("would apply 1_a.up.sql\nwould apply 2_b.up.sql (no transaction)\nmigrations: 2 pending in ")
    assert rows(empty, "select to_regnamespace('agent_executor')") == [(None,)]
    up(empty, tmp_path)
    status, said = command("status")
    assert status == 0
    assert said.splitlines()[0].startswith("1_a.up.sql: applied 2")


# Two at once


def test_eight_runners_at_once_apply_every_file_once(empty: Database, tmp_path: Path) -> None:
    tables(tmp_path, 40)
    with psycopg.connect(empty.dsn) as starter:  # all eight are there before the first can begin
        starter.execute("select pg_advisory_lock(%s)", [ledger.LOCK_KEY])
        runs = [runner(empty, tmp_path) for _ in range(8)]
        until(lambda: len(rows(empty, RUNNERS)) == 8, "the runners do not come")
    outcomes = [ended(run) for run in runs]
    assert [status for status, _ in outcomes] == [0] * 8
    assert applied(empty) == list(range(1, 41))
    done = [line.split()[1] for _, lines in outcomes for line in lines if line.startswith("applied")]
    assert len(done) == len(set(done)) == 40


def test_waiting_runners_do_not_deadlock_with_create_index_concurrently(empty: Database, tmp_path: Path) -> None:
    rows(empty, "create table public.big (a int)")
    concurrently = f"{NO_TRANSACTION}create index concurrently if not exists i on public.big (a);"
    write(tmp_path, {"1_a": "create table a ()", "2_i": concurrently, "3_c": "create table c ()"})
    waits = (
        "select pid from pg_stat_activity where query like 'create index concurrently%' and wait_event_type = 'Lock'"
    )
    with psycopg.connect(empty.dsn) as writer:
        writer.execute("insert into public.big values (1)")
        runs = [runner(empty, tmp_path, "--lock-timeout", "0.001") for _ in range(8)]
        until(lambda: rows(empty, waits), "the index does not wait for the writer")
        until(lambda: len(rows(empty, RUNNERS)) == 8, "the runners do not come")
        writer.commit()
        outcomes = [ended(run) for run in runs]
    assert [status for status, _ in outcomes] == [0] * 8
    assert not [line for _, lines in outcomes for line in lines if "attempt" in line]  # the index never gave up
    done = [line.split()[1] for _, lines in outcomes for line in lines if line.startswith("applied")]
    assert done == ["1_a.up.sql", "2_i.up.sql", "3_c.up.sql"]
    assert (applied(empty), invalid_indexes(empty)) == ([1, 2, 3], [])


def test_who_waits_too_long_is_told_who_holds_the_lock(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "select pg_advisory_xact_lock(1)"})
    with psycopg.connect(empty.dsn) as holder:
        holder.execute("select pg_advisory_lock(1)")
        running = in_background(lambda: up(empty, tmp_path))
        until(lambda: rows(empty, "select 1 from pg_locks where not granted"), "the first run does not wait")
        pid = rows(empty, "select pid from pg_locks where not granted")[0][0]
        status, said = command("--lock-wait", "0.2")
        assert status == 3
        assert said.startswith(
            f"lock: another run holds it after 0.2 s: pid {pid}, postgres at 127.0.0.1, application ag"
        )
        assert "select pg_advisory_xact_lock(1)" in said
        holder.execute("select pg_advisory_unlock(1)")
        assert running.result(30) == ["a"]


def test_an_alter_that_gives_up_lets_those_through_who_queued_behind_it(
    empty: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(empty, write(tmp_path, {"1_t": "create table t ()"}))
    write(tmp_path, {"2_more": "alter table t add column a int"})
    monkeypatch.setattr(apply, "ATTEMPTS", 1)
    altering = "select pid from pg_locks where relation = 't'::regclass and mode = 'AccessExclusiveLock'"
    behind = f"select 1 from pg_stat_activity where pg_blocking_pids(pid) && array({altering})"
    with psycopg.connect(empty.dsn) as reader:
        reader.execute("select from t")
        running = in_background(lambda: up(empty, tmp_path, lock_timeout_s=3))
        until(lambda: rows(empty, altering), "the ALTER does not wait")
        other = in_background(lambda: rows(empty, "select from t"))
        until(lambda: rows(empty, behind), "the other reader is not behind the ALTER")
        with pytest.raises(Locked):
            running.result(30)
        assert other.result(30) == []  # although the first reader goes on reading
        assert rows(empty, altering) == []
        assert reader.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_an_alter_tries_again(empty: Database, tmp_path: Path) -> None:
    up(empty, write(tmp_path, {"1_t": "create table t ()"}))
    write(tmp_path, {"2_more": "alter table t add column a int"})
    with psycopg.connect(empty.dsn) as reader:
        reader.execute("select from t")
        run = runner(empty, tmp_path, "--lock-timeout", "0.05")
        assert run.stdout
        assert run.stdout.readline().endswith("canceling statement due to lock timeout; attempt 1 of 10\n")
    assert ended(run)[0] == 0
    assert applied(empty) == [1, 2]


def test_an_alter_that_never_gets_its_lock_is_3_and_names_the_reader(
    empty: Database, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "ATTEMPTS", 3)
    monkeypatch.setattr(apply, "_PAUSE_S", 0.01)
    up(empty, write(tmp_path, {"1_t": "create table t ()"}))
    write(tmp_path, {"2_more": "create table new ();\nalter table t add column a int"})
    with psycopg.connect(empty.dsn, application_name="slow-report") as reader:
        reader.execute("select from t")
        status, said = command("--lock-timeout", "0.1")
    assert status == 3
    assert said.count("attempt ") == 2
    assert "2_more.up.sql:2:1: canceling statement due to lock timeout (SQLSTATE 55P03)\n" in said
    assert "gave up after 3 attempts; the oldest transaction is pid" in said
    assert "application slow-report" in said
    assert applied(empty) == [1]


# Errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "create table a ();\n\tselect colour from a;",
            '2:9: column "colour" does not exist (SQLSTATE 42703)\n'
            "     2 | \tselect colour from a;\n       | \t       ^\n",
        ),
        (
            "-- ä\nselect 1;\n\nselect\n  'ä', 1/0;\nselect 2;",
            "4:1: division by zero (SQLSTATE 22012)\n     4 | select\n       | ^\n     5 |   'ä', 1/0;\n",
        ),
        (
            "create table a (b int);\nselect cc from a;",
            '2:8: column "cc" does not exist (SQLSTATE 42703)\n     2 | select cc from a;\n       |        ^\n',
        ),
        ("create tabel a ()", '1:8: syntax error at or near "tabel" (SQLSTATE 42601)\n     1 | create tabel a ()\n'),
        ("select 1;\ncreate table a (b int", "2:21: syntax error at the end of the file (SQLSTATE 42601)\n"),
        (
            "select 1;\ndo $$ begin\n  raise exception 'no' using hint = 'yes', detail = 'so'; end $$",
            "2:1: no (SQLSTATE P0001)\n     2 | do $$ begin\n       | ^\n"
            "     3 |   raise exception 'no' using hint = 'yes', detail = 'so'; end $$\n"
            "DETAIL: so\nHINT: yes\nCONTEXT: PL/pgSQL function inline_code_block line 2 at RAISE",
        ),
        (
            "create table a (b int unique deferrable initially deferred); insert into a values (1), (1);",
            ' duplicate key value violates unique constraint "a_b_key" (at the end, when the file was committed)'
            " (SQLSTATE 23505)\nDETAIL: Key (b)=(1) already exists.\n",
        ),
        ("select pg_no_such()", "1:8: function pg_no_such() does not exist (SQLSTATE 42883)\n"),
        (
            f"{NO_TRANSACTION}vacuum;\n-- migrate: repeatable\nselect 1,\n nothing",
            '5:2: column "nothing" does not exist (SQLSTATE 42703)\n'
            "     4 | select 1,\n     5 |  nothing\n       |  ^\n",
        ),
        (f"{NO_TRANSACTION}vacuum;\n-- migrate: repeatable\nselect 1/0", "4:1: division by zero (SQLSTATE 22012)\n"),
        ("call pg_no_such()", "1:6: procedure pg_no_such() does not exist (SQLSTATE 42883)\n"),
        (
            "do $$ begin execute 'vacuum'; end $$",
            "1:1: VACUUM cannot run inside a transaction block (SQLSTATE 25001)\n",
        ),
    ],
)
def test_an_error_names_its_place_and_nothing_of_the_file_remains(
    empty: Database, command: Command, tmp_path: Path, text: str, expected: str
) -> None:
    write(tmp_path, {"1_good": "create table good ()", "2_bad": text, "3_after": "create table after ()"})
    status, said = command()
    first, _, rest = said.partition("\n")
    assert (status, first.split(" in ")[0]) == (1, "applied 1_good.up.sql")
    assert rest.startswith(f"2_bad.up.sql:{expected}")
    assert rest.endswith("\nmigrations: a migration failed; what was applied before it stays applied\n")
    assert (applied(empty), list(catalog(empty))) == ([1], ["table good"])
    write(tmp_path, {"2_bad": "create table bad ()"})
    assert up(empty, tmp_path) == ["bad", "after"]


def test_an_error_in_what_a_statement_ran_shows_that_too(command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "do $$ begin\n  perform 1;\n  execute 'select 1,\n nothing'; end $$"})
    assert "QUERY:\n     1 | select 1,\n     2 |  nothing\n       |  ^\nCONTEXT: PL/pgSQL" in command()[1]


def test_a_file_without_transaction_is_not_told_to_be_one(command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": f"{NO_TRANSACTION}-- migrate: repeatable\ndo $$ begin execute 'vacuum'; end $$"})
    status, said = command()
    assert (status, "SQLSTATE 25001" in said, "HINT" in said) == (1, True, False)


def test_warnings_are_told(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "do $$ begin raise warning 'careful'; raise notice 'never'; end $$"})
    status, said = command()
    assert (status, said.splitlines()[0], "never" in said) == (0, "WARNING: careful", False)


def test_carriage_returns_count_as_lines_and_reach_the_server(
    empty: Database, command: Command, tmp_path: Path
) -> None:
    write(tmp_path, {"1_a": ""})
    file = tmp_path / "1_a.up.sql"
    file.write_bytes(b"create table a as select 'x\r\ny' as b;\r\nselect\r\n  colour from a")
    status, said = command()
    assert (status, said.partition("\n")[0]) == (1, '1_a.up.sql:4:3: column "colour" does not exist (SQLSTATE 42703)')
    assert "     3 | select\n     4 |   colour from a\n       |   ^\n" in said
    file.write_bytes(b"create table a as select 'x\r\ny' as b;\r\n")
    assert up(empty, tmp_path) == ["a"]
    assert rows(empty, "select b from a") == [("x\r\ny",)]


def test_a_file_that_ends_its_own_transaction_is_not_recorded(empty: Database) -> None:
    text = (
        "create table a (); commit; create table b ();"  # the judge would refuse it; the server is asked all the same
    )
    both = File("1_a.up.sql", text), File("1_a.down.sql", text.replace("create table b ()", "select 1"))
    migration = Migration(1, "a", *both, "0" * 64)
    up(empty, OURS)
    with psycopg.connect(empty.dsn, autocommit=True) as connection:
        ledger.lock(connection, 0, str)
        for run in (apply.up, apply.down):
            with pytest.raises(Failed, match=r"1_a\.(up|down)\.sql:1:20: the file ended the transaction that it"):
                run(connection, migration, Report())
            connection.execute("drop table a")
    assert applied(empty) == VERSIONS
    assert "table b" not in catalog(empty)


@pytest.mark.parametrize(
    "text",
    [
        "do $$ begin raise exception 'it is hush''hush-7'; end $$",
        f"select '{'x' * 70} hush''hush-7', 1/0",
        f"select nothing, '{'x' * 126} hush''hush-7'",  # the excerpt ends in the middle of it
        f"select '{' ' * 20}hush''hush-7{'x' * 68}', nothing",  # or begins there
        "do $$ begin execute 'select nothing, ''hush''''hush-7'''; end $$",
        "do $$ begin raise warning 'hush''hush-7'; end $$",
    ],
)
def test_the_password_is_never_said(empty: Database, command: Command, tmp_path: Path, text: str) -> None:
    rows(empty, "create role keeper login superuser password 'hush''hush-7'")
    write(tmp_path, {"1_a": text})
    secret, wrong = "hush'hush-7", "hush'hush-8"
    said = ""
    for database, password in ((empty.name, secret), ("nowhere", secret), (empty.name, wrong)):
        said += command(POSTGRES_USER="keeper", POSTGRES_PASSWORD=password, POSTGRES_DB=database)[1]
    rows(empty, "drop owned by keeper cascade")
    rows(empty, "drop role keeper")
    assert [part for part in ("hush", "ush-", "h-7") if part in said] == []


def test_the_password_is_not_in_the_statement_of_who_is_in_the_way(
    empty: Database, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "ATTEMPTS", 1)
    up(empty, write(tmp_path, {"1_t": "create table t ()"}))
    write(tmp_path, {"2_more": "alter table t add column a int"})
    with psycopg.connect(empty.dsn) as reader:
        rows(empty, "create role keeper login superuser password 'hush-hush-7'")
        reader.execute(f"select '{'x' * 84}hush-hush-7' from t".encode())
        status, said = command("--lock-timeout", "0.01", POSTGRES_USER="keeper", POSTGRES_PASSWORD="hush-hush-7")
    rows(empty, "drop role keeper")
    assert (status, "xxx" in said, "hush" in said) == (3, True, False)


def test_a_wrong_password_is_2_and_a_database_that_is_not_there_is_4(command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "select 1"})
    status, said = command(POSTGRES_PASSWORD="wrong")
    assert (status, "password authentication failed" in said) == (2, True)
    status, said = command(POSTGRES_DB="nowhere")
    assert (status, 'database "nowhere" does not exist' in said) == (4, True)


def test_a_database_that_comes_later_is_waited_for(stack: Stack, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a ()"})
    late = Database(stack.postgres, f"late_{uuid.uuid4().hex[:12]}")
    with pytest.raises(Unreachable):
        up(late, tmp_path)
    run = runner(late, tmp_path, "--wait", "30")
    assert run.stdout
    assert run.stdout.readline().startswith("waiting up to 30 s: database: ")
    stack.postgres.create_database(late.name)
    assert ended(run)[0] == 0
    assert applied(late) == [1]
    stack.postgres.drop_database(late.name)


def test_sigterm_rolls_back_and_ends_at_once(empty: Database, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a (); select pg_sleep(60)"})
    sleeping = "select 1 from pg_stat_activity where query like '%pg_sleep(60)%' and wait_event = 'PgSleep'"
    run = runner(empty, tmp_path)
    until(lambda: rows(empty, sleeping), "the file does not run")
    run.send_signal(signal.SIGTERM)
    assert ended(run)[0] == 128 + signal.SIGTERM
    until(lambda: not rows(empty, sleeping), "the server still runs the file")
    assert (applied(empty), catalog(empty)) == ([], {})


def test_the_runners_own_statements_give_up_with_3(empty: Database, command: Command, tmp_path: Path) -> None:
    up(empty, write(tmp_path, {"1_a": "create table a ()"}))
    with psycopg.connect(empty.dsn) as holder:
        holder.execute("lock table schema_migrations")
        status, said = command("--lock-timeout", "0.05")
    assert status == 3
    assert said.startswith("database: canceling statement due to lock timeout")


def test_the_shortest_lock_timeout_is_not_none(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a as select current_setting('lock_timeout') as b"})
    assert command("--lock-timeout", "0.0004")[0] == 0
    write(tmp_path, {"2_b": "create table b as select current_setting('lock_timeout') as b"})
    assert command("--lock-timeout", "0")[0] == 0
    assert rows(empty, "select a.b, b.b from a, b") == [("1ms", "0")]


def test_a_reader_of_stdout_that_goes_away_stops_nothing(empty: Database, tmp_path: Path) -> None:
    tables(tmp_path, 60)
    run = runner(empty, tmp_path)
    assert run.stdout
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(60) == 0
    assert applied(empty) == list(range(1, 61))


def test_a_terminal_shows_a_bar_that_ends_as_lines(empty: Database, tmp_path: Path) -> None:
    tables(tmp_path, 30)
    ours, theirs = pty.openpty()
    run = runner(empty, tmp_path, stdout=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # which is how a terminal ends
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    assert run.wait(60) == 0
    assert re.search(rb"\[#+\.\] 29/30\r\x1b\[K", said)
    lines = re.sub(r"\[[#.]*\] \d+/30\r\x1b\[K", "", said.decode()).splitlines()
    assert [line.split()[0] for line in lines] == ["applied"] * 30 + ["migrations:"]


# The ledger's own rules


def test_an_edited_file_is_refused_by_name_unless_that_is_allowed(
    empty: Database, command: Command, tmp_path: Path
) -> None:
    write(tmp_path, {"1_a": "create table a ()", "2_b": "create table b ()"})
    up(empty, tmp_path)
    write(tmp_path, {"1_a": "create table a (c int)", "3_c": "create table c ()"})
    for words in ([], ["plan"]):
        status, said = command(*words)
        assert (status, said.partition(": put it back")[0]) == (2, "1_a.up.sql: edited after it was applied")
    assert "1_a.up.sql: applied" in command("status")[1]
    assert ", EDITED since\n2_b" in command("status")[1]
    assert applied(empty) == [1, 2]
    assert command("--allow-edited")[0] == 0
    assert command()[0] == 0
    assert (applied(empty), "column a.c" in catalog(empty)) == ([1, 2, 3], False)


def test_an_edit_that_is_allowed_brings_the_files_new_name(empty: Database, command: Command, tmp_path: Path) -> None:
    up(empty, write(tmp_path, {"1_a": "create table a ()"}))
    for way in ("up", "down"):
        (tmp_path / f"1_a.{way}.sql").rename(tmp_path / f"1_b.{way}.sql")
    write(tmp_path, {"1_b": "create table b ()"})
    assert command()[1].startswith("1_b.up.sql: edited after it was applied as a: put it back")
    assert command("--allow-edited")[0] == 0
    assert rows(empty, "select name from schema_migrations") == [("b",)]


def test_line_ends_and_a_byte_order_mark_are_no_edit(empty: Database, tmp_path: Path) -> None:
    up(empty, write(tmp_path, {"1_a": "create table a\n();\n"}))
    (tmp_path / "1_a.up.sql").write_bytes(b"\xef\xbb\xbfcreate table a\r\n();\r\n")
    assert up(empty, tmp_path) == []


def test_a_file_that_arrives_out_of_order_is_refused_by_name(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {f"{number}_t{number}": f"create table t{number} ()" for number in (1, 2, 3)})
    up(empty, tmp_path)
    rows(empty, "delete from schema_migrations where version = 2")
    status, said = command()
    assert status == 2
    assert said.startswith("2_t2.up.sql: arrives out of order, 003_t3 was applied before it")


def test_a_database_ahead_of_the_files_is_a_warning(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {f"{number}_t{number}": f"create table t{number} ()" for number in (1, 2)})
    up(empty, tmp_path)
    for way in ("up", "down"):
        (tmp_path / f"2_t2.{way}.sql").unlink()
    status, said = command()
    assert status == 0
    assert said.startswith("warning: the database is ahead of the files, as after a rollback of the image: 002_t2\n")
    assert "002_t2: applied" in command("status")[1]
    status, said = command("down")
    assert (status, said.splitlines()[0].startswith("down: not among the files: 002_t2;")) == (2, True)


def test_another_tools_table_of_that_name_is_left_alone(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a ()"})
    rows(empty, "create schema agent_executor")
    rows(empty, "create table schema_migrations (version bigint primary key, dirty boolean not null)")
    status, said = command()
    assert (status, said.splitlines()[0]) == (
        2,
        'agent_executor.schema_migrations is another tool\'s table, no ledger of ours: column "name" does not exist',
    )
    query = "select count(*) from information_schema.columns where table_name = 'schema_migrations'"
    assert rows(empty, query) == [(2,)]


def test_what_a_file_does_to_the_session_ends_with_it(empty: Database, tmp_path: Path) -> None:
    rows(empty, "do $$ begin create role somebody; exception when duplicate_object then null; end $$")
    mess = (
        "set search_path to public; set lock_timeout = 0; set role somebody; prepare p as select 1;"
        "set default_transaction_read_only to on; create temp table mine (); declare c cursor with hold for select 1;"
        "listen x; reset role; "
    )
    write(tmp_path, {"1_a": f"create table a (); {mess} set role somebody", "2_b": f"create table b (); {mess}"})
    write(
        tmp_path,
        {"3_c": f"{NO_TRANSACTION}-- migrate: repeatable\nset search_path to public", "4_d": "create table d ()"},
    )
    assert up(empty, tmp_path) == ["a", "b", "c", "d"]
    assert list(catalog(empty)) == ["table a", "table b", "table d"]
    rows(empty, "drop role somebody")


def test_the_record_tells_the_host_whatever_a_file_calls_itself(empty: Database, tmp_path: Path) -> None:
    up(empty, write(tmp_path, {"1_a": "set application_name = 'liar'"}))
    assert rows(empty, "select by from schema_migrations") == [(f"postgres, agent-executor-migrate@{gethostname()}",)]


@pytest.mark.parametrize(
    "text", ["select pg_advisory_unlock_all()", f"{NO_TRANSACTION}-- migrate: repeatable\ndiscard all"]
)
def test_a_file_that_gives_up_the_runs_lock_is_not_recorded(
    empty: Database, command: Command, tmp_path: Path, text: str
) -> None:
    write(tmp_path, {"1_a": text})
    status, said = command()
    assert (status, applied(empty)) == (1, [])
    assert "1_a.up.sql: the file gave up the lock of this run; it is not recorded" in said


def test_a_files_own_session_locks_end_with_it(empty: Database, tmp_path: Path) -> None:
    taken = "select pg_advisory_lock(7), pg_advisory_lock(7), pg_advisory_lock_shared(8)"
    left = "create table {} as select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
    write(tmp_path, {"1_a": taken, "2_b": left.format("b"), "3_c": f"{NO_TRANSACTION}-- migrate: repeatable\n{taken}"})
    write(tmp_path, {"4_d": left.format("d")})
    up(empty, tmp_path)
    assert rows(empty, "select b.count, d.count from b, d") == [(1, 1)]  # the runner's own


def test_a_role_that_may_not_write_the_ledger_is_told(empty: Database, command: Command, tmp_path: Path) -> None:
    up(empty, write(tmp_path, {"1_a": "create table a ()"}))
    role = f"reader_{uuid.uuid4().hex[:8]}"
    rows(empty, f"create role {role} login password 'reader'")
    rows(empty, f"grant usage on schema agent_executor to {role}; grant select on schema_migrations to {role}")
    as_role = {"POSTGRES_USER": role, "POSTGRES_PASSWORD": "reader"}
    status, nothing = command(**as_role)  # needs no right to create or to write
    said = []
    for head in ("", NO_TRANSACTION):
        write(tmp_path, {"2_b": f"{head}set search_path to public"})
        said.append(command(**as_role)[1])
    rows(empty, f"drop owned by {role}")
    rows(empty, f"drop role {role}")
    assert (status, nothing.startswith("migrations: 0 applied, nothing pending")) == (0, True)
    record = "(writing the record to agent_executor.schema_migrations)"
    told = f"2_b.up.sql: permission denied for table schema_migrations {record} (SQLSTATE 42501)\n"
    assert [told in each for each in said] == [True, True]


# Without a transaction


def test_an_invalid_index_is_dropped_and_made_again(empty: Database, command: Command, tmp_path: Path) -> None:
    index = f'{NO_TRANSACTION}create table if not exists "T" (a int);\ncreate unique index concurrently if not exists'
    write(tmp_path, {"1_t": "create table t (a int); insert into t values (1), (1)", "2_i": f"{index} I_T on t (a)"})
    status, said = command()
    assert status == 1
    assert '2_i.up.sql:3:1: could not create unique index "i_t" (SQLSTATE 23505)' in said
    assert (applied(empty), invalid_indexes(empty)) == ([1], ["i_t"])
    rows(empty, "delete from t")
    assert up(empty, tmp_path) == ["i"]
    assert (applied(empty), invalid_indexes(empty)) == ([1, 2], [])
    assert "index i_t" in catalog(empty)


@pytest.mark.parametrize(
    "statement",
    [
        "set search_path to public;\ncreate unique index concurrently if not exists i on big(a)",
        'create unique index concurrently if not exists "Ä i" on only "public" . big (a)',
        "-- migrate: repeatable\ncreate unique index concurrently i on public.big(a)",
        "create unique index if not exists Ä on public.big(a)",
    ],
)
def test_an_index_is_known_by_its_table_and_name(
    empty: Database, command: Command, tmp_path: Path, statement: str
) -> None:
    rows(empty, "create table public.big (a int); insert into public.big values (1), (1)")
    if "concurrently" not in statement:
        with pytest.raises(psycopg.errors.UniqueViolation):
            rows(empty, statement.replace("index", "index concurrently"))
    write(tmp_path, {"1_i": f"{NO_TRANSACTION}{statement}"})
    assert command()[0] == 1
    assert len(invalid_indexes(empty)) == ("concurrently" in statement)
    rows(empty, "delete from public.big")
    assert up(empty, tmp_path) == ["i"]
    assert invalid_indexes(empty) == []
    assert len(rows(empty, "select 1 from pg_index where indrelid = 'public.big'::regclass")) == 1


def test_an_index_of_another_table_is_not_dropped_and_not_taken_for_ours(
    empty: Database, command: Command, tmp_path: Path
) -> None:
    up(empty, write(tmp_path, {"1_t": "create table a (x int); create table b (x int); insert into b values (1), (1)"}))
    with pytest.raises(psycopg.errors.UniqueViolation):
        rows(empty, "create unique index concurrently i on b (x)")
    write(tmp_path, {"2_i": f"{NO_TRANSACTION}create index concurrently if not exists i on a (x)"})
    status, said = command()
    assert (status, invalid_indexes(empty), applied(empty)) == (1, ["i"], [1])
    assert said.startswith("2_i.up.sql:2:1: a has no finished index i after this; something else may have the name\n")


def test_a_files_own_lock_timeout_is_kept(empty: Database, tmp_path: Path) -> None:
    text = f"{NO_TRANSACTION}set lock_timeout = '123ms';\ncreate table if not exists a as "
    up(empty, write(tmp_path, {"1_a": f"{text}select current_setting('lock_timeout') as b"}))
    assert rows(empty, "select b from a") == [("123ms",)]


@pytest.mark.parametrize("repeatable", [True, False])
def test_what_was_half_taken_back_is_not_taken_for_the_whole(
    empty: Database, command: Command, tmp_path: Path, repeatable: bool
) -> None:
    write(tmp_path, {"1_t": "create table t (a int)"})
    head = f"{NO_TRANSACTION}create index concurrently if not exists" if repeatable else "create index"
    write(tmp_path, {"2_i": f"{head} i on t (a)"})
    back = "drop index concurrently if exists i;\n-- migrate: repeatable\nselect 1/0"
    (tmp_path / "2_i.down.sql").write_text(f"{NO_TRANSACTION}{back}")
    up(empty, tmp_path)
    assert command("down")[0] == 1
    status, said = command()
    if repeatable:
        assert (status, said.split(" in ")[0]) == (0, "applied 2_i.up.sql")
        assert "index i" in catalog(empty)
    else:
        told = "2_i.up.sql: half taken back, its down file was cut off: run down, and then up"
        assert (status, said.splitlines()[0]) == (2, told)
        assert ", HALF TAKEN BACK since\n" in command("status")[1]
    (tmp_path / "2_i.down.sql").write_text(f"{NO_TRANSACTION}drop index concurrently if exists i")
    assert command("down")[0] == 0
    assert ("index i" in catalog(empty), applied(empty)) == (False, [1])
    assert up(empty, tmp_path) == ["i"]


def test_a_file_cut_off_before_its_record_is_repeated(empty: Database, tmp_path: Path) -> None:
    up(empty, write(tmp_path, {"1_t": "create table t (a int)"}))
    statements = "create index concurrently if not exists i on t (a);\nalter table t add column if not exists b int"
    rows(empty, "create index i on t (a)")
    rows(empty, "alter table t add column b int")
    assert up(empty, write(tmp_path, {"2_i": f"{NO_TRANSACTION}{statements}"})) == ["i"]


# Databases that others made


def test_a_database_that_psql_made_is_adopted(empty: Database, command: Command) -> None:
    by_psql(empty, *sorted(OURS.glob("*.up.sql")))
    rows(empty, "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('t', 'c', '{}')")
    before = catalog(empty)
    assert command("plan", directory=OURS)[1].startswith("would adopt 001_langgraph_checkpoints.up.sql: ")
    assert command(directory=OURS)[1].startswith("adopted 001_langgraph_checkpoints.up.sql: it is in the database\n")
    assert (applied(empty), catalog(empty)) == (VERSIONS, before)
    assert rows(empty, "select thread_id from checkpoints") == [("t",)]
    assert up(empty, OURS) == []


def test_a_lock_in_the_way_of_an_adoption_is_3(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a (); lock table public.busy"})
    rows(empty, "create schema agent_executor; create table a (); create table public.busy ()")
    with psycopg.connect(empty.dsn) as holder:
        holder.execute("lock table public.busy")
        assert command("--lock-timeout", "0.05")[0] == 3
    assert command()[0] == 0


def test_a_database_that_psql_made_by_half_gets_the_rest(empty: Database) -> None:
    by_psql(empty, OURS / "001_langgraph_checkpoints.up.sql")
    assert up(empty, OURS) == [name.split("_", 1)[1] for name in NAMES[1:]]
    assert applied(empty) == VERSIONS


def test_a_database_that_does_not_match_is_refused_with_the_difference(empty: Database, command: Command) -> None:
    by_psql(empty, *sorted(OURS.glob("*.up.sql")))
    rows(empty, "alter table jobs alter attempt type bigint")
    rows(empty, "drop index jobs_of_tenant")
    rows(empty, "create table other ()")
    before = catalog(empty)
    status, said = command(directory=OURS)
    assert status == 2
    nearest = f"does not match the files; nearest is {NAMES[-1]}.up.sql:"
    assert f"{nearest}\n  missing: index jobs_of_tenant: CREATE INDEX" in said
    assert "\n  not from the files: table other" in said
    assert "\n  different: column jobs.attempt: the files make 'integer not null default 0" in said
    assert catalog(empty) == before
    assert rows(empty, "select to_regclass('schema_migrations')") == [(None,)]
    assert command("baseline", str(VERSIONS[-1]), directory=OURS)[0] == 0
    assert up(empty, OURS) == []
    assert command("baseline", str(VERSIONS[-1]), directory=OURS)[0] == 2


@pytest.mark.parametrize(
    ("made", "change"),
    [
        ("create type c as (x int, y text)", ("drop type c", "missing: composite type c")),
        ("create type c as (x int, y text)", ("alter type c drop attribute y", "missing: column c.y")),
        ("create sequence s", ("alter sequence s increment 5", "different: sequence s")),
        ("create sequence s", ("drop sequence s; create sequence s start 7", "different: sequence s")),
        (
            "create table b (c int generated by default as identity)",
            ("alter sequence b_c_seq cycle", "sequence b_c_seq"),
        ),
        ("create table b (); create rule r as on insert to b do nothing", ("drop rule r on b", "missing: rule b.r")),
        (
            "create table b (); create function f() returns trigger language plpgsql as 'begin return new; end';"
            "create trigger t before insert on b for each row execute function f()",
            ("alter table b disable trigger t", "different: trigger b.t"),
        ),
        (
            "create table b (c int) partition by range (c)",
            ("drop table b; create table b (c int) partition by list (c)", "different: partitioned table b"),
        ),
        (
            "create table b (c int) partition by range (c); create table d partition of b for values from (1) to (2)",
            ("drop table d; create table d partition of b for values from (1) to (3)", "different: table d"),
        ),
        (
            "create table b (c int); create table d () inherits (b)",
            ("drop table d; create table d (c int)", "different: table d"),
        ),
        ("create table b ()", ("alter table b force row level security", "different: table b")),
        (
            "create table b (); create policy p on b for select",
            ("drop policy p on b; create policy p on b as restrictive for select", "different: policy b.p"),
        ),
    ],
)
def test_every_difference_stops_the_adoption(
    empty: Database, command: Command, tmp_path: Path, made: str, change: tuple[str, str]
) -> None:
    write(tmp_path, {"1_a": f"create table a ();\n{made}"})
    rows(empty, f"create schema agent_executor; create table a ();\n{made}")
    assert command("plan")[1].startswith("would adopt 1_a.up.sql: ")
    rows(empty, change[0])
    status, said = command()
    assert (status, change[1] in said) == (2, True), said


def test_files_that_leave_no_trace_are_not_guessed_at(empty: Database, tmp_path: Path) -> None:
    concurrently = f"{NO_TRANSACTION}create index concurrently if not exists i on a (b);"
    write(tmp_path, {"1_a": "create table a (b int)", "2_i": concurrently, "3_data": "insert into a values (1)"})
    by_psql(empty, tmp_path / "1_a.up.sql", tmp_path / "2_i.up.sql")
    with pytest.raises(Refused, match=r"the schema is the same after 2_i\.up\.sql and 3_data\.up\.sql: say which"):
        up(empty, tmp_path)
    migrate.baseline(migrate.settings({**empty.environment, "MIGRATION_DIR": str(tmp_path)}), 2)
    assert up(empty, tmp_path) == ["data"]


# The schema itself


OTHER_EVENT = "values (%s, %s, 't', 'shop', 'e', '', '{}', '{}')"


def test_jobs_from_before_tenants_belong_to_the_default_one(empty: Database, command: Command) -> None:
    assert up(empty, OURS)
    assert command("down", "to", "5", directory=OURS)[0] == 0
    job = "insert into jobs (job_id, trace_id, source, event_id, body_hash, definition, input)"
    rows(empty, f"{job} values ('a', 't', 'shop', 'e', '', '{{}}', '{{}}')")
    assert up(empty, OURS)
    assert rows(empty, "select job_id, tenant from jobs") == [("a", "default")]


def test_a_way_back_from_tenants_that_share_an_event_changes_nothing(empty: Database, command: Command) -> None:
    assert up(empty, OURS)
    whole = catalog(empty)
    assert command("down", "to", "6", directory=OURS)[0] == 0
    before = catalog(empty)
    job = "insert into jobs (job_id, tenant, trace_id, source, event_id, body_hash, definition, input)"
    for job_id, tenant in (("a", "north"), ("b", "south")):
        rows(empty, f"{job} {OTHER_EVENT}", job_id, tenant)
    status, said = command("down", "to", "5", directory=OURS)
    assert (status, "several tenants have a job of source shop and event id e" in said) == (1, True), said
    assert catalog(empty) == before
    assert up(empty, OURS)
    assert catalog(empty) == whole
    rows(empty, "delete from jobs where job_id = 'b'")
    assert command("down", "to", "5", directory=OURS)[0] == 0
    assert up(empty, OURS)
    assert catalog(empty) == whole


@pytest.mark.parametrize("count", range(9))
@pytest.mark.parametrize("way", ["up", "down"])
def test_tenants_that_were_cut_off_are_repeated(empty: Database, command: Command, way: str, count: int) -> None:
    """Each statement is committed by itself, and a killed run begins with the first one again."""
    assert up(empty, OURS)
    after = catalog(empty)
    assert command("down", "to", "5", directory=OURS)[0] == 0
    before = catalog(empty)
    if way == "down":
        assert up(empty, OURS)
    with psycopg.connect(empty.dsn, autocommit=True) as connection:
        for statement in split((OURS / f"006_tenants.{way}.sql").read_text()).statements[:count]:
            connection.execute(statement.text.encode())
    status, said = command(*(("up",) if way == "up" else ("down", "to", "5")), directory=OURS)
    assert status == 0, said
    assert catalog(empty) == (after if way == "up" else before)


@pytest.mark.parametrize("count", [2, 5, 7])
@pytest.mark.parametrize("way", ["up", "down"])
def test_limits_that_were_cut_off_are_repeated(empty: Database, command: Command, way: str, count: int) -> None:
    assert up(empty, OURS)
    after = catalog(empty)
    assert command("down", "to", "8", directory=OURS)[0] == 0
    before = catalog(empty)
    if way == "down":
        assert up(empty, OURS)
    with psycopg.connect(empty.dsn, autocommit=True) as connection:
        for statement in split((OURS / f"009_tenant_limits.{way}.sql").read_text()).statements[:count]:
            connection.execute(statement.text.encode())
    status, said = command(*(("up",) if way == "up" else ("down", "to", "8")), directory=OURS)
    assert status == 0, said
    assert catalog(empty) == (after if way == "up" else before)


def test_langgraphs_own_setup_makes_what_our_migrations_make(make: Made) -> None:
    """Fails when an upgrade of langgraph-checkpoint-postgres changes its tables, until a migration follows."""
    ours, theirs = make(), make()
    up(ours, OURS)
    rows(theirs, "create schema agent_executor")
    versions = "select v from checkpoint_migrations order by v"
    before, recorded = catalog(ours), rows(ours, versions)
    for database in (theirs, ours):
        with psycopg.connect(database.dsn, autocommit=True, row_factory=dict_row) as connection:
            PostgresSaver(connection).setup()
    made = catalog(theirs)
    assert catalog(ours) == before
    assert {name: each for name, each in before.items() if "checkpoint" in name} == made
    assert sorted(name for name in made if name.startswith("table ")) == [
        "table checkpoint_blobs",
        "table checkpoint_migrations",
        "table checkpoint_writes",
        "table checkpoints",
    ]
    assert (
        recorded
        == rows(ours, versions)
        == rows(theirs, versions)
        == [(v,) for v in range(len(PostgresSaver.MIGRATIONS))]
    )


def test_the_service_runs_as_a_role_that_can_create_nothing(start_service: Starter, database: Database) -> None:
    """The grants are those of docs/migrations.md."""
    role: Any = f"service_{uuid.uuid4().hex[:8]}"
    rows(database, f"create role {role} login password 'service'")
    rows(database, f"grant usage on schema agent_executor to {role}")
    rows(database, f"grant select, insert, update, delete on all tables in schema agent_executor to {role}")
    service = start_service(POSTGRES_USER=role, POSTGRES_PASSWORD="service").ready()
    assert service.run(adder(), "as-a-role")["status"] == "completed"
    assert rows(database, "select has_schema_privilege(%s, 'agent_executor', 'create')", role) == [(False,)]
    service.close()
    rows(database, f"drop owned by {role}")
    rows(database, f"drop role {role}")


def test_a_role_that_may_not_create_the_schema_is_told(empty: Database, command: Command, tmp_path: Path) -> None:
    role = f"poor_{uuid.uuid4().hex[:8]}"
    rows(empty, f"create role {role} login password 'poor'")
    write(tmp_path, {"1_a": "create table a ()"})
    status, said = command(POSTGRES_USER=role, POSTGRES_PASSWORD="poor")
    rows(empty, f"drop role {role}")
    assert status == 2
    assert said.startswith("database: permission denied for database ")


def test_a_role_that_may_not_look_beside_the_schema_is_told(empty: Database, command: Command, tmp_path: Path) -> None:
    role = f"owner_{uuid.uuid4().hex[:8]}"
    rows(empty, f"create role {role} login password 'owner'")
    write(tmp_path, {"1_a": "create table a ()"})
    by_psql(empty, tmp_path / "1_a.up.sql")
    rows(empty, f"alter schema agent_executor owner to {role}")
    status, said = command(POSTGRES_USER=role, POSTGRES_PASSWORD="owner")
    assert (status, list(catalog(empty))) == (2, ["table a"])
    assert said.startswith("database: permission denied for database ")
    rows(empty, f"grant create on database {empty.name} to {role}")
    assert command(POSTGRES_USER=role, POSTGRES_PASSWORD="owner")[0] == 0
    assert (applied(empty), list(catalog(empty))) == ([1], ["table a"])
    rows(empty, f"reassign owned by {role} to postgres")
    rows(empty, f"drop owned by {role}")
    rows(empty, f"drop role {role}")
