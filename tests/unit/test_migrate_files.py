"""migrate.files and migrate.judge: which files there must be, and what they may hold."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from agent_executor.migrate import MigrationError
from agent_executor.migrate.files import read
from agent_executor.migrate.judge import repeatable
from agent_executor.migrate.statements import split

REPOSITORY = Path(__file__).parents[2]
NO_TRANSACTION = "-- migrate: no-transaction\n"


def write(directory: Path, name: str, up: bytes | str, down: bytes | str | None = "select 1") -> Path:
    for way, content in (("up", up), ("down", down)):
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (directory / f"{name}.{way}.sql").write_bytes(data)
    return directory


def findings(directory: Path) -> list[str]:
    with pytest.raises(MigrationError) as raised:
        read(directory)
    assert raised.value.exit_status == 2
    return str(raised.value).replace(f"{directory}/", "").splitlines()


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1):
        write(tmp_path, f"{number}_a", f"select {number}")
    assert [(each.version, each.name, each.up.text) for each in read(tmp_path)] == [
        (number, "a", f"select {number}") for number in range(1, 11)
    ]


def test_a_number_used_twice_names_both_and_both_are_judged(tmp_path: Path) -> None:
    write(tmp_path, "01_first", "select 1")
    write(tmp_path, "1_second", "commit", None)
    assert findings(tmp_path) == [
        "1_second.up.sql: number 1 is used by 01_first.up.sql already",
        "1_second.up.sql:1:1: COMMIT in a file that runs in one transaction, which the runner opens and ends",
    ]


def test_missing_numbers_are_named(tmp_path: Path) -> None:
    for number in (2, 3, 7):
        write(tmp_path, f"{number}_a", "select 1")
    assert findings(tmp_path) == [f"{tmp_path}: number 1 is missing", f"{tmp_path}: numbers 4 to 6 are missing"]
    (tmp_path / "zero").mkdir()
    assert findings(write(tmp_path / "zero", "0_a", "select 1")) == [
        f"{tmp_path / 'zero'}: numbers begin at 1, not at 0"
    ]


@pytest.mark.parametrize(
    "name",
    ["first.up.sql", "1.up.sql", "1_.up.sql", "1-a.up.sql", "v1_a.up.sql", "1_a b.up.sql", "1_a.sql", "1_a.UP.SQL"],
)
def test_a_name_that_fits_no_pattern_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "1_good", "select 1")
    (tmp_path / name).write_text("select 1")
    assert findings(tmp_path) == [f"{name}: the name must be NUMBER_words.up.sql or NUMBER_words.down.sql"]


def test_what_does_not_look_like_a_migration_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "1_good", "select 1")
    for name in ("README.md", "..data", ".1_good.up.sql.swp"):
        (tmp_path / name).write_text("")
    assert len(read(tmp_path)) == 1


def test_each_file_needs_its_pair(tmp_path: Path) -> None:
    write(tmp_path, "1_a", "select 1", None)
    (tmp_path / "2_b.down.sql").write_text("select 1")
    assert findings(tmp_path) == ["1_a.up.sql: 1_a.down.sql is missing", "2_b.down.sql: 2_b.up.sql is missing"]


def test_a_directory_in_a_files_place_is_named(tmp_path: Path) -> None:
    write(tmp_path, "1_a", "select 1")
    (tmp_path / "2_b.up.sql").mkdir()
    (tmp_path / "2_b.down.sql").write_text("select 1")
    assert findings(tmp_path) == ["2_b.up.sql: not a file"]


def test_no_files_is_a_mistake(tmp_path: Path) -> None:
    assert findings(tmp_path) == [f"{tmp_path}: no NUMBER_words.up.sql files"]
    assert findings(tmp_path / "nowhere") == [
        f"{tmp_path}/nowhere: No such file or directory; MIGRATION_DIR names the directory"
    ]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (b"select 1;\nselect \0 2", "2:8: NUL character"),
        (b"-- \xff", "1:4: not UTF-8 at byte 3"),
        (b"\xef\xbb\xbfselect '\xff'", "1:9: not UTF-8 at byte 11"),
        ("\\i other.sql", "1:1: psql meta-command \\i: only SQL can be run"),
        ("select 1;\n  \\set x 1", "2:3: psql meta-command \\set: only SQL can be run"),
        ("copy t (a) from stdin;\n1'\n\\.\n", "1:1: COPY's inline data needs psql: use INSERT"),
        ("select 1; COPY t TO STDOUT", "1:11: COPY's inline data needs psql: use INSERT"),
        ("select 'a", "1:8: unterminated quoted string"),
        ('select "a', "1:8: unterminated quoted identifier"),
        ("do $x$ begin end $y$", "1:4: unterminated dollar-quoted string $x$"),
        ("select 1 /* a /* b */", "1:10: unterminated /* comment"),
        ("-- a\r\nselect 1;\r\n\\i x", "3:1: psql meta-command \\i"),
        ("-- a\rselect 1;\rcommit", "3:1: COMMIT in a file"),
        (
            "create function f(begin timestamptz) returns int language sql as $$ select 1 $$;\ncommit",
            "2:1: COMMIT in a file",
        ),
        ("create function begin() returns int language sql as $$ select 1 $$;\ncommit", "2:1: COMMIT in a file"),
        ("select e'a' -- '\n  -- '\n'\\''; commit; select ''", "3:7: COMMIT in a file"),
        (f"{NO_TRANSACTION}set client_encoding to latin1", "2:1: the rest of the file would be read in another"),
        (f"{NO_TRANSACTION}set names 'latin1'", "2:1: the rest of the file would be read in another"),
        (
            f"{NO_TRANSACTION}-- migrate: repeatable\ncreate index concurrently on t (a)",
            "3:1: CREATE INDEX CONCURRENTLY needs the index's name: ",
        ),
        ("-- nothing", " holds no statement"),
        (" ;; ", " holds no statement"),
        ("", " holds no statement"),
        (
            "-- migrate: notransaction\nselect 1",
            "1:1: unknown here: migrate: notransaction; it is no-transaction, above",
        ),
        ("select 1;\n-- migrate: no-transaction\nselect 2", "2:1: unknown here: migrate: no-transaction; it is"),
    ],
)
def test_what_a_file_must_not_hold_is_found_with_its_place(tmp_path: Path, text: bytes | str, finding: str) -> None:
    [found] = findings(write(tmp_path, "1_a", text))
    assert found.startswith(f"1_a.up.sql:{finding}")


@pytest.mark.parametrize(
    "statement", ["BEGIN", "begin work", "start transaction", "commit", "end", "rollback", "abort"]
)
def test_a_file_that_runs_in_a_transaction_does_not_end_it(tmp_path: Path, statement: str) -> None:
    write(tmp_path, "1_a", f"create table a ();\n{statement};\ncreate table b ()", f"select 1; {statement}")
    up, down = sorted(findings(tmp_path), key=lambda found: "down" in found)
    assert up.startswith(
        f"1_a.up.sql:2:1: {statement.split(maxsplit=1)[0].upper()} in a file that runs in one transaction"
    )
    assert down.startswith("1_a.down.sql:1:11: ")


@pytest.mark.parametrize(
    "text",
    [
        "create index concurrently if not exists i on t (a)",
        "drop index concurrently i",
        "vacuum t",
        "alter system set work_mem = '1MB'",
        "create database x",
        "reindex table concurrently t",
        "alter table t detach partition p concurrently",
    ],
)
def test_what_cannot_be_in_a_transaction_is_found_before_postgresql_says_so(tmp_path: Path, text: str) -> None:
    assert "cannot run in a transaction: put -- migrate: no-transaction" in findings(write(tmp_path, "1_a", text))[0]


@pytest.mark.parametrize(
    "text",
    [
        "savepoint a; rollback to a; rollback work to savepoint a; release a",
        "do $$ begin perform 1; end $$; select 'commit;', $q$ rollback; $q$ -- commit;",
        "select 1; /* begin; /* end; */ commit; */ select 2",
        "create function f() returns int begin atomic select case when true then 1 end; end; select 1",
        "create rule r as on insert to t do also (insert into u values (1); insert into v values (2)); select 1",
        "refresh materialized view concurrently m",
        "select e'\\'; commit; ', 'a''; commit', \"b\"\"; commit\"",
        "select e'a'\n'\\'; commit;'",
        "create table t (a$b$c int); select a$b$c from t",
        "insert into t values ('it''s')",
    ],
)
def test_what_only_looks_like_a_finding_is_none(tmp_path: Path, text: str) -> None:
    [migration] = read(write(tmp_path, "1_a", text))
    assert migration.up.transactional


def test_a_file_without_transaction_holds_what_can_be_repeated(tmp_path: Path) -> None:
    good = "create index concurrently if not exists i on t (a);\n-- migrate: repeatable\nupdate t set a = 1;\nvacuum t"
    [migration] = read(write(tmp_path, "1_a", f"-- why\n{NO_TRANSACTION}{good}"))
    assert not migration.up.transactional
    assert migration.down.transactional
    bad = good.replace("if not exists", "").replace("-- migrate: repeatable\n", "")
    assert [found.split(" may not be")[0] for found in findings(write(tmp_path, "1_a", f"{NO_TRANSACTION}{bad}"))] == [
        "1_a.up.sql:2:1: CREATE INDEX",
        "1_a.up.sql:3:1: UPDATE T",
    ]


@pytest.mark.parametrize(
    ("statement", "is_repeatable"),
    [
        ("create index if not exists i on t (a)", True),
        ("create unique index concurrently if not exists i on t (a)", True),
        ("create index concurrently i on t (a)", False),
        ("create table t (a int default 1, b text default 'if not exists')", False),
        ("create or replace view v as select 1", True),
        ("drop index concurrently if exists i", True),
        ("drop index concurrently i", False),
        ("alter type e add value if not exists 'x'", True),
        ("alter type e add value 'x'", False),
        ("alter table t add column if not exists a int, add b int", False),
        ("alter table t add column if not exists a int", True),
        ("alter table t add constraint c check (true)", False),
        ("alter table t drop column if exists a", True),
        ("alter table t drop column a", False),
        ("alter table t alter column a drop not null", True),
        ("alter table t validate constraint c", True),
        ("alter table t rename to u", False),
        ("alter table t attach partition p for values in (1)", False),
        ("alter table t alter column a type bigint using a * 100", False),
        ("alter table t alter column a type bigint", True),
        ("alter table t set schema public", False),
        ("alter table t inherit u", False),
        ("alter table t no inherit u", False),
        ("alter sequence s restart", False),
        ("insert into t values (1) on conflict do nothing", False),
        ("insert into t values (1) on conflict (a) do update set b = t.b + 1", False),
        ("insert into t values (1)", False),
        ("update t set a = a + 1", False),
        ("delete from t", True),
        ("delete from t where a in (select a from t limit 1)", False),
        ("reindex index i", True),
        ("reindex index concurrently i", False),
        ("reindex (concurrently) table t", False),
        ("begin", False),
        ("do $$ begin end $$", False),
    ],
)
def test_what_can_be_repeated(statement: str, is_repeatable: bool) -> None:
    assert repeatable(split(statement).statements[0].sentence) is is_repeatable


def test_statements_keep_their_text_and_place() -> None:
    text = "-- a\nselect ';' ;;\n /* ; */ do $$;$$; select 2; copy t from stdin;\n';\n\\.\nselect 3"
    script = split(text)
    assert [each.text for each in script.statements] == ["select ';'", "do $$;$$", "select 2", "copy t from stdin"]
    assert all(text[each.offset :].startswith(each.text) for each in script.statements)
    assert script.problems == []


@pytest.mark.parametrize(
    "text", ["\ufeffselect 'ä';\r\nselect 2;\r\n", "select 'ä';\rselect 2;\r", "select 'ä';\nselect 2;\n"]
)
def test_a_byte_order_mark_and_line_ends_are_no_part_of_the_sum_but_strings_keep_theirs(
    tmp_path: Path, text: str
) -> None:
    [migration] = read(write(tmp_path, "1_a", text))
    assert migration.up.text == text.removeprefix("\ufeff")
    assert migration.sha256 == hashlib.sha256("select 'ä';\nselect 2;\n".encode()).hexdigest()


def test_a_pipe_in_a_files_place_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(write(tmp_path, "1_a", "select 1") / "2_b.up.sql")
    (tmp_path / "2_b.down.sql").write_text("select 1")
    assert findings(tmp_path) == ["2_b.up.sql: not a file"]


def test_a_long_file_is_read_whole(tmp_path: Path) -> None:
    text = "select 1;\n" * 16384  # several chunks, and the last one full
    [migration] = read(write(tmp_path, "1_a", text))
    assert migration.up.text == text


def test_one_bad_file_is_found_among_many(tmp_path: Path) -> None:
    for number in range(1, 40):
        write(tmp_path, f"{number}_a", "select 1")
    write(tmp_path, "23_a", "select 1; commit")
    assert [found.split(":")[:3] for found in findings(tmp_path)] == [["23_a.up.sql", "1", "11"]]


def test_our_own_migrations_are_in_order() -> None:
    found = read(REPOSITORY / "migrations")
    assert [each.version for each in found] == list(range(1, len(found) + 1))
