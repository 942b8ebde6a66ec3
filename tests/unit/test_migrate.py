"""migrate, as far as it needs no server: its settings and its command line."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from agent_executor.migrate import MigrationError, Refused, settings
from agent_executor.migrate.command_line import main
from agent_executor.migrate.report import Report

SECRET = "pg-secret"


def test_the_defaults_are_those_of_the_contract() -> None:
    found = settings({"POSTGRES_PASSWORD": SECRET})
    dsn = conninfo_to_dict(found.dsn)
    assert dsn["host"] == "postgresql.bizmatters-dev.svc.cluster.local"
    assert (str(dsn["port"]), dsn["dbname"], dsn["user"]) == ("5432", "langgraph_dev", "postgres")
    assert dsn["password"] == found.secret == SECRET
    assert found.directory == Path("migrations")
    assert (found.wait_s, found.lock_timeout_s, found.lock_wait_s, found.allow_edited) == (0, 5, 60, False)


def test_variables_are_used_and_empty_ones_are_not() -> None:
    address = {"POSTGRES_HOST": "db", "POSTGRES_PORT": "6543", "POSTGRES_DB": ""}
    found = settings({"POSTGRES_PASSWORD": "a b'c", "MIGRATION_DIR": "m", **address})
    dsn = conninfo_to_dict(found.dsn)
    assert (dsn["host"], str(dsn["port"]), dsn["dbname"], dsn["password"]) == ("db", "6543", "langgraph_dev", "a b'c")
    assert found.directory == Path("m")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, ["POSTGRES_PASSWORD"]),
        ({"POSTGRES_PASSWORD": ""}, ["POSTGRES_PASSWORD"]),
        ({"POSTGRES_PASSWORD": SECRET, "POSTGRES_PORT": "x" + SECRET}, ["POSTGRES_PORT"]),
        ({"POSTGRES_PASSWORD": SECRET, "POSTGRES_PORT": "0"}, ["POSTGRES_PORT"]),
        ({"POSTGRES_PASSWORD": SECRET, "POSTGRES_PORT": "65536"}, ["POSTGRES_PORT"]),
        ({"POSTGRES_PORT": "5432.0"}, ["POSTGRES_PASSWORD", "POSTGRES_PORT"]),
        ({"POSTGRES_PORT": "-1"}, ["POSTGRES_PASSWORD", "POSTGRES_PORT"]),
        ({"POSTGRES_PORT": "\u0665"}, ["POSTGRES_PASSWORD", "POSTGRES_PORT"]),
        ({"POSTGRES_PASSWORD": SECRET, "POSTGRES_PORT": "9" * 5000}, ["POSTGRES_PORT"]),
        ({"POSTGRES_PASSWORD": f"{SECRET}\udcff"}, ["POSTGRES_PASSWORD"]),
    ],
)
def test_all_that_is_missing_or_wrong_is_named_at_once(environment: dict[str, str], named: list[str]) -> None:
    with pytest.raises(MigrationError) as raised:
        settings(environment)
    assert [name for name in ("POSTGRES_PASSWORD", "POSTGRES_PORT") if name in str(raised.value)] == named
    assert SECRET not in str(raised.value)


def test_a_bad_environment_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {}) == 2
    assert main([], {"POSTGRES_PASSWORD": SECRET, "MIGRATION_DIR": str(tmp_path)}) == 2
    assert capsys.readouterr().out.splitlines() == [
        "POSTGRES_PASSWORD is required",
        "migrations: refused, nothing was run",
        f"{tmp_path}: no NUMBER_words.up.sql files",
        "migrations: refused, nothing was run",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["sideways"],
        ["up", "2"],
        ["down", "0"],
        ["down", "-1"],
        ["down", "to"],
        ["down", "to", "x"],
        ["down", "1", "2"],
        ["status", "now"],
        ["baseline"],
        ["baseline", "x"],
        ["new"],
        ["--wait"],
        ["--wait", "soon"],
        ["--wait", "-1"],
        ["--wait", "nan"],
        ["--lock-timeout", "inf"],
        ["--force"],
    ],
)
def test_a_wrong_call_is_2_and_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments, {"POSTGRES_PASSWORD": SECRET}) == 2
    assert capsys.readouterr().err.startswith("usage: python -m agent_executor migrate")


def test_help_names_every_command_and_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], {}) == 0
    said = capsys.readouterr().out
    for word in ("up", "down", "status", "plan", "baseline", "new", "--wait", "--lock-timeout", "--allow-edited"):
        assert word in said
    assert "4\n  database unreachable" in said or "4 database unreachable" in " ".join(said.split())


def test_new_writes_the_next_two_files_and_needs_no_database(tmp_path: Path) -> None:
    environment = {"MIGRATION_DIR": str(tmp_path / "migrations")}
    assert main(["new", "Add", "jobs' Index!"], environment) == 0
    assert sorted(path.name for path in (tmp_path / "migrations").iterdir()) == [
        "001_add_jobs_index.down.sql",
        "001_add_jobs_index.up.sql",
    ]
    assert main(["new", "next"], environment) == 0  # although the first is empty yet
    assert (tmp_path / "migrations" / "002_next.up.sql").exists()
    assert main(["new", "!"], environment) == 2
    assert main(["new", "x"], {"MIGRATION_DIR": str(tmp_path / "migrations" / "002_next.up.sql")}) == 2


def test_a_new_file_that_was_left_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"MIGRATION_DIR": str(tmp_path), "POSTGRES_PASSWORD": SECRET}
    assert main(["new", "later"], environment) == 0
    capsys.readouterr()
    assert main([], environment) == 2
    assert "001_later.up.sql: holds no statement" in capsys.readouterr().out


def test_an_unreachable_database_is_4_and_the_password_is_not_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for way in ("up", "down"):
        (tmp_path / f"1_a.{way}.sql").write_text("select 1")
    address = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1", "MIGRATION_DIR": str(tmp_path)}
    assert main(["--wait", "0.3"], {"POSTGRES_PASSWORD": SECRET, **address}) == 4
    said = capsys.readouterr().out
    assert said.startswith("waiting up to 0.3 s: database: ")
    assert said.endswith("migrations: database unreachable; run again\n")
    assert SECRET not in said


def test_the_password_is_replaced_wherever_it_appears() -> None:
    out = io.StringIO()
    Report(SECRET, out).say(f"role {SECRET} at db")
    Report("it's-a-secret", out).say("'it''s-a-secret' is it's-a-secret")
    Report("x", out).say("next to x")
    assert out.getvalue() == "role *** at db\n'***' is ***\nnext to ***\n"
    word = {"POSTGRES_PASSWORD": "langgraph_dev"}
    assert settings(word).secret == ""  # everybody may know it, or nothing could be said
    assert settings({**word, "POSTGRES_DB": "x"}).secret == "langgraph_dev"


def test_what_nobody_expected_is_one_line_without_the_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"at {SECRET}\nand more")

    monkeypatch.setattr("agent_executor.migrate.command_line.up", broken)
    assert main([], {"POSTGRES_PASSWORD": SECRET, "MIGRATION_DIR": str(tmp_path)}) == 2
    said = capsys.readouterr()
    assert said.out == "migrations: unexpected: RuntimeError: at *** and more\n"
    assert said.err == ""


def test_a_terminal_that_knows_ascii_only_gets_the_rest_escaped(tmp_path: Path) -> None:
    (tmp_path / "1_a.up.sql").write_text("select '\u00e4")
    environment = {"POSTGRES_PASSWORD": SECRET, "MIGRATION_DIR": str(tmp_path / "\u00e4"), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "agent_executor", "migrate"]
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "")
    assert ran.stdout.startswith(f"{tmp_path}/\\xe4: No such file or directory")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_past_20_files_and_a_pod_gets_lines() -> None:
    pod, few, many = io.StringIO(), Terminal(), Terminal()
    for out, total in ((pod, 21), (few, 20), (many, 21)):
        report = Report(out=out)
        for number in range(1, total + 1):
            report.file("applied", f"{number}_a.up.sql", 1.4, number, total)
        report.say("done")
    assert pod.getvalue().splitlines() == [*(f"applied {each}_a.up.sql in 1 ms" for each in range(1, 22)), "done"]
    assert "\x1b" not in few.getvalue()
    assert "[#" in many.getvalue()
    assert "1/21" in many.getvalue()
    shown = re.sub(r"\[[#.]*\] \d+/21\r\x1b\[K", "", many.getvalue())
    assert shown.splitlines() == pod.getvalue().splitlines()


def test_a_bar_is_left_behind_when_a_run_ends_early() -> None:
    out = Terminal()
    report = Report(out=out)
    report.file("applied", "1_a.up.sql", 1, 1, 30)
    report.end()
    report.say("failed")
    assert out.getvalue().endswith("1/30\nfailed\n")


def test_nothing_of_the_service_is_imported() -> None:
    code = "import json, sys; before = set(sys.modules); import agent_executor.migrate.command_line;"
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = json.loads(ran.stdout)
    assert "agent_executor.migrate.commands" in names
    assert [each for each in names if each.startswith("agent_executor.") and ".migrate" not in each] == []
    packages = {each.split(".")[0] for each in names} - sys.stdlib_module_names
    allowed = {"agent_executor", "psycopg", "psycopg_binary", "typing_extensions", "cython_runtime"}
    assert [each for each in packages if each not in allowed and not each.startswith("_")] == []


def test_a_refusal_is_what_scripts_call_2() -> None:
    assert Refused("x").exit_status == 2
