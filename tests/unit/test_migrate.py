"""migrate, as far as it needs no server: its settings and its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from agent_executor import migrate
from agent_executor.migrate import MigrationError, read, settings

SECRET = "pg-secret"
REPOSITORY = Path(__file__).parents[2]


def write(directory: Path, **files: bytes | str) -> Path:
    """Files `001_a__up` -> 001_a.up.sql."""
    for name, content in files.items():
        stem = name.removeprefix("n").replace("__", ".")
        data = content if isinstance(content, bytes) else content.encode()
        (directory / f"{stem}.sql").write_bytes(data)
    return directory


def test_the_defaults_are_those_of_the_contract() -> None:
    found = settings({"POSTGRES_PASSWORD": SECRET})
    dsn = conninfo_to_dict(found.dsn)
    assert dsn["host"] == "postgresql.bizmatters-dev.svc.cluster.local"
    assert (str(dsn["port"]), dsn["dbname"], dsn["user"]) == ("5432", "langgraph_dev", "postgres")
    assert dsn["password"] == SECRET
    assert found.directory == Path("migrations")


def test_variables_are_used_and_empty_ones_are_not() -> None:
    found = settings(
        {
            "POSTGRES_PASSWORD": "a b'c",
            "POSTGRES_HOST": "db",
            "POSTGRES_PORT": "6543",
            "POSTGRES_DB": "",
            "MIGRATION_DIR": "m",
        }
    )
    dsn = conninfo_to_dict(found.dsn)
    assert (dsn["host"], str(dsn["port"]), dsn["dbname"], dsn["password"]) == ("db", "6543", "langgraph_dev", "a b'c")
    assert found.directory == Path("m")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, ["POSTGRES_PASSWORD"]),
        ({"POSTGRES_PASSWORD": ""}, ["POSTGRES_PASSWORD"]),
        ({"POSTGRES_PASSWORD": SECRET, "POSTGRES_PORT": "x" + SECRET}, ["POSTGRES_PORT"]),
        ({"POSTGRES_PORT": "5432.0"}, ["POSTGRES_PASSWORD", "POSTGRES_PORT"]),
        ({"POSTGRES_PORT": "-1"}, ["POSTGRES_PASSWORD", "POSTGRES_PORT"]),
    ],
)
def test_all_that_is_missing_or_wrong_is_named_at_once(environment: dict[str, str], named: list[str]) -> None:
    with pytest.raises(MigrationError) as raised:
        settings(environment)
    assert [name for name in ("POSTGRES_PASSWORD", "POSTGRES_PORT") if name in str(raised.value)] == named
    assert SECRET not in str(raised.value)


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, n10_c__up="select 10", n9_b__up="select 9", n001_a__up="select 1", n001_a__down="select 0")
    assert [(each.version, each.name, each.text) for each in read(tmp_path)] == [
        (1, "a", "select 1"),
        (9, "b", "select 9"),
        (10, "c", "select 10"),
    ]


def test_a_number_used_twice_names_both(tmp_path: Path) -> None:
    write(tmp_path, n01_first__up="", n1_second__up="")
    with pytest.raises(MigrationError, match=r"1_second\.up\.sql: number 1 is used by first already"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["first", "1", "1_", "1-first", "v1_first", "1_two words"])
def test_a_name_that_fits_no_pattern_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.up.sql").write_text("")
    with pytest.raises(MigrationError, match="NUMBER_words"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"select 1;\0select 2", b"\0"])
def test_a_nul_character_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MigrationError, match=r"1_a\.up\.sql: holds a NUL character"):
        read(write(tmp_path, n1_a__up=content))


def test_what_is_not_utf_8_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=r"1_a\.up\.sql: not UTF-8 at byte 3"):
        read(write(tmp_path, n1_a__up=b"-- \xff"))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    [migration] = read(write(tmp_path, n1_a__up=b"\xef\xbb\xbfselect '\xc3\xa4'"))
    assert migration.text == "select 'ä'"


@pytest.mark.parametrize("exists", [True, False])
def test_no_files_is_a_mistake(tmp_path: Path, exists: bool) -> None:
    with pytest.raises(MigrationError, match=r"no \*\.up\.sql files"):
        read(tmp_path if exists else tmp_path / "nowhere")


def test_a_files_sum_is_that_of_its_text(tmp_path: Path) -> None:
    [migration] = read(write(tmp_path, n1_a__up="select 1"))
    assert migration.sha256 == hashlib.sha256(b"select 1").hexdigest()


def test_our_own_migrations_can_be_read_and_each_has_its_way_back() -> None:
    directory = REPOSITORY / "migrations"
    found = read(directory)
    assert [each.version for each in found] == list(range(1, len(found) + 1))
    for each in found:
        assert (directory / f"{each.version:03d}_{each.name}.down.sql").is_file()


def test_main_says_what_stopped_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert migrate.main({}) == 1
    assert migrate.main({"POSTGRES_PASSWORD": SECRET, "MIGRATION_DIR": str(tmp_path)}) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "migrations: POSTGRES_PASSWORD is required"
    assert said[1] == f"migrations: {tmp_path}: no *.up.sql files"


def test_main_names_a_database_that_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, n1_a__up="select 1")
    environment = {
        "POSTGRES_PASSWORD": SECRET,
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": "1",
        "MIGRATION_DIR": str(tmp_path),
    }
    assert migrate.main(environment) == 1
    said = capsys.readouterr().out
    assert said.startswith("migrations: database: ")
    assert SECRET not in said
