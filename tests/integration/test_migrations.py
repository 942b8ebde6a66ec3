"""The migration runner against a real PostgreSQL. What takes long, such as kills and restarts, is in tests/faults."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from agent_executor import migrate
from agent_executor.migrate import Failed, Refused, Unreachable, adopt, apply, ledger
from agent_executor.migrate.command_line import main
from agent_executor.migrate.judge import File
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
            connection.execute(file.read_bytes())


# Up, down, and what is said about it


def test_what_is_pending_is_applied_once_and_told(empty: Database) -> None:
    status, lines = ended(runner(empty, OURS))
    assert status == 0
    assert [line.split(" in ")[0] for line in lines] == [
        "applied 001_langgraph_checkpoints.up.sql",
        "applied 002_jobs.up.sql",
        "migrations: 2 applied, nothing pending",
    ]
    assert up(empty, OURS) == []
    columns = "name, length(sha256), applied_at > now() - interval '1 hour', duration_ms >= 0, by like 'postgres%'"
    assert rows(empty, f"select {columns} from schema_migrations order by version") == [
        ("langgraph_checkpoints", 64, True, True, True),
        ("jobs", 64, True, True, True),
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


def test_waiting_runners_do_not_deadlock_with_create_index_concurrently(
    empty: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "ATTEMPTS", 1)  # nor does the index give up after the lock timeout
    rows(empty, "create table public.big (a int)")
    concurrently = f"{NO_TRANSACTION}create index concurrently if not exists i on public.big (a);"
    write(tmp_path, {"1_a": "create table a ()", "2_i": concurrently, "3_c": "create table c ()"})
    waits = (
        "select pid from pg_stat_activity where query like 'create index concurrently%' and wait_event_type = 'Lock'"
    )
    with psycopg.connect(empty.dsn) as writer, ThreadPoolExecutor(8) as pool:
        writer.execute("insert into public.big values (1)")
        first = pool.submit(up, empty, tmp_path, lock_timeout_s=0.001)
        until(lambda: rows(empty, waits), "the index does not wait for the writer")
        runs = [first, *(pool.submit(up, empty, tmp_path) for _ in range(7))]
        until(lambda: len(rows(empty, RUNNERS)) == 8, "the runners do not come")
        writer.commit()
        done = [run.result(30) for run in runs]
    assert sorted(done) == [[]] * 7 + [["a", "i", "c"]]
    assert invalid_indexes(empty) == []


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


def test_an_alter_gives_up_its_place_in_the_queue_and_tries_again(empty: Database, tmp_path: Path) -> None:
    write(tmp_path, {"1_t": "create table t ()", "2_more": "alter table t add column a int"})
    waiting = "select 1 from pg_locks where relation = 't'::regclass and mode = 'AccessExclusiveLock' and not granted"
    (tmp_path / "first").mkdir()
    up(empty, write(tmp_path / "first", {"1_t": "create table t ()"}))
    with psycopg.connect(empty.dsn) as reader:
        reader.execute("select from t")
        running = in_background(lambda: up(empty, tmp_path, lock_timeout_s=0.3))
        until(lambda: rows(empty, waiting), "the ALTER does not wait for the reader")
        # This one returns although the first reader goes on reading.
        assert rows(empty, "set statement_timeout = '20s'; select from t") == []
        assert not running.done()
    assert running.result(30) == ["more"]


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


def test_a_file_that_ends_its_own_transaction_is_not_recorded(empty: Database) -> None:
    text = (
        "create table a (); commit; create table b ();"  # the judge would refuse it; the server is asked all the same
    )
    both = File("1_a.up.sql", text), File("1_a.down.sql", text.replace("create table b ()", "select 1"))
    migration = migrate.Migration(1, "a", *both, "0" * 64)
    up(empty, OURS)
    with psycopg.connect(empty.dsn, autocommit=True) as connection:
        for run in (apply.up, apply.down):
            with pytest.raises(Failed, match=r"1_a\.(up|down)\.sql: the file ended the transaction that it runs in"):
                run(connection, migration, print)
            connection.execute("drop table a")
    assert applied(empty) == [1, 2]
    assert "table b" not in catalog(empty)


def test_the_password_is_never_said(empty: Database, command: Command, tmp_path: Path) -> None:
    rows(empty, "create role keeper login superuser password 'hush-hush-7'")
    write(tmp_path, {"1_a": "do $$ begin raise exception 'it is hush-hush-7'; end $$"})
    for database, password in ((empty.name, "hush-hush-7"), ("nowhere", "hush-hush-7"), (empty.name, "hush-hush-8")):
        status, said = command(POSTGRES_USER="keeper", POSTGRES_PASSWORD=password, POSTGRES_DB=database)
        assert status in (1, 2, 4)
        assert password not in said
    rows(empty, "drop owned by keeper cascade")
    rows(empty, "drop role keeper")


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


# The ledger's own rules


def test_an_edited_file_is_refused_by_name_unless_that_is_allowed(
    empty: Database, command: Command, tmp_path: Path
) -> None:
    write(tmp_path, {"1_a": "create table a ()", "2_b": "create table b ()"})
    up(empty, tmp_path)
    write(tmp_path, {"1_a": "create table a (c int)", "3_c": "create table c ()"})
    for words in ([], ["plan"]):
        status, said = command(*words)
        assert (status, said.splitlines()[0]) == (2, "1_a.up.sql: edited after it was applied")
    assert "1_a.up.sql: applied" in command("status")[1]
    assert ", EDITED since\n2_b" in command("status")[1]
    assert applied(empty) == [1, 2]
    assert command("--allow-edited")[0] == 0
    assert command()[0] == 0
    assert (applied(empty), "column a.c" in catalog(empty)) == ([1, 2, 3], False)


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


def test_a_ledger_of_version_0_1_0_is_extended(empty: Database, command: Command, tmp_path: Path) -> None:
    write(tmp_path, {"1_a": "create table a ()"})
    [migration] = migrate.read(tmp_path)
    rows(empty, "create schema agent_executor")
    columns = "version bigint primary key, name text not null, sha256 text not null"
    rows(empty, f"create table schema_migrations ({columns}, applied_at timestamptz not null default now())")
    rows(empty, f"insert into schema_migrations values (1, 'a', '{migration.sha256}')")
    write(tmp_path, {"2_b": "create table b ()"})
    status, said = command("status")
    assert status == 0
    assert said.splitlines()[0].endswith("Z in ? ms by ?")
    assert up(empty, tmp_path) == ["b"]
    assert rows(empty, "select count(duration_ms), count(by) from schema_migrations") == [(2, 2)]


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
    assert (applied(empty), catalog(empty)) == ([1, 2], before)
    assert rows(empty, "select thread_id from checkpoints") == [("t",)]
    assert up(empty, OURS) == []


def test_a_database_that_psql_made_by_half_gets_the_rest(empty: Database) -> None:
    by_psql(empty, OURS / "001_langgraph_checkpoints.up.sql")
    assert up(empty, OURS) == ["jobs"]
    assert applied(empty) == [1, 2]


def test_a_database_that_does_not_match_is_refused_with_the_difference(empty: Database, command: Command) -> None:
    by_psql(empty, *sorted(OURS.glob("*.up.sql")))
    rows(empty, "alter table jobs alter attempt type bigint")
    rows(empty, "drop index jobs_leased")
    rows(empty, "create table other ()")
    before = catalog(empty)
    status, said = command(directory=OURS)
    assert status == 2
    assert "does not match the files; nearest is 002_jobs.up.sql:\n  missing: index jobs_leased: CREATE INDEX" in said
    assert "\n  not from the files: table other" in said
    assert "\n  different: column jobs.attempt: the files make 'integer not null default 0" in said
    assert catalog(empty) == before
    assert rows(empty, "select to_regclass('schema_migrations')") == [(None,)]
    assert command("baseline", "2", directory=OURS)[0] == 0
    assert up(empty, OURS) == []
    assert command("baseline", "2", directory=OURS)[0] == 2


def test_files_that_leave_no_trace_are_not_guessed_at(empty: Database, tmp_path: Path) -> None:
    concurrently = f"{NO_TRANSACTION}create index concurrently if not exists i on a (b);"
    write(tmp_path, {"1_a": "create table a (b int)", "2_i": concurrently, "3_data": "insert into a values (1)"})
    by_psql(empty, tmp_path / "1_a.up.sql", tmp_path / "2_i.up.sql")
    with pytest.raises(Refused, match=r"the schema is the same after 2_i\.up\.sql and 3_data\.up\.sql: say which"):
        up(empty, tmp_path)
    migrate.baseline(migrate.settings({**empty.environment, "MIGRATION_DIR": str(tmp_path)}), 2)
    assert up(empty, tmp_path) == ["data"]


# The schema itself


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
