"""noxfile.py, without nox: sessions that the contract names, that each explains itself, and what runs on workers."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ast.parse((ROOT / "noxfile.py").read_text())
LINE = 120
CONTRACT = ["lint", "unit", "integration", "e2e", "run", "build", "migrations", "vault_init", "populate_secrets"]


def _decorator(function: ast.FunctionDef) -> ast.Call | None:
    for each in function.decorator_list:
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "nox.session":
            return each
    return None


SESSIONS = {each.name: each for each in SOURCE.body if isinstance(each, ast.FunctionDef) and _decorator(each)}


def _keyword(name: str, key: str) -> object:
    decorator = _decorator(SESSIONS[name])
    assert decorator is not None
    found = [each.value for each in decorator.keywords if each.arg == key]
    return ast.literal_eval(found[0]) if found else None


def _default_sessions() -> list[str]:
    for each in SOURCE.body:
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "nox.options.sessions":
            found: list[str] = ast.literal_eval(each.value)
            return found
    return []


def test_the_local_check_is_the_default() -> None:
    assert _default_sessions() == ["lint", "unit", "integration"]


@pytest.mark.parametrize("name", CONTRACT)
def test_the_sessions_of_the_contract_exist(name: str) -> None:
    assert name in SESSIONS


@pytest.mark.parametrize("name", SESSIONS)
def test_only_the_default_sessions_run_unasked(name: str) -> None:
    assert (_keyword(name, "default") is not False) == (name in _default_sessions())


@pytest.mark.parametrize("name", SESSIONS)
def test_a_sessions_docstring_is_its_line_in_the_table_of_contents(name: str) -> None:
    first, *rest = (ast.get_docstring(SESSIONS[name]) or "").splitlines()
    assert first.endswith(".")
    assert 20 <= len(first) <= LINE
    assert not rest or not rest[0]


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_hands_on_its_arguments(name: str) -> None:
    called = {ast.unparse(each.func) for each in ast.walk(SESSIONS[name]) if isinstance(each, ast.Call)}
    helpers = [each for each in SOURCE.body if isinstance(each, ast.FunctionDef) and each.name in called]
    assert any("session.posargs" in ast.unparse(each) for each in [SESSIONS[name], *helpers])


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_says_who_calls_it(name: str) -> None:
    tags = _keyword(name, "tags")
    assert isinstance(tags, list)
    assert {*tags} <= {"local", "ci"}
    assert tags


def test_e2e_fails_where_it_cannot_run() -> None:
    assert "session.error(" in ast.unparse(SESSIONS["e2e"])
    assert "session.skip(" not in ast.unparse(SOURCE)


def test_run_is_never_called_by_ci() -> None:
    assert _keyword("run", "tags") == ["local"]


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_is_about_ten_lines(name: str) -> None:
    assert len(ast.unparse(SESSIONS[name]).splitlines()) <= 16


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The noxfile's functions, bare of nox."""
    bare = SimpleNamespace(options=SimpleNamespace(), session=lambda **_: lambda function: function)
    monkeypatch.setitem(sys.modules, "nox", bare)
    monkeypatch.chdir(ROOT)
    return runpy.run_path("noxfile.py")


def _words_of_pytest(session: Any, *arguments: str) -> list[str]:
    ran: list[str] = []
    session(SimpleNamespace(venv_backend="none", posargs=[*arguments], run=lambda *words, env: ran.extend(words)))
    return ran


@pytest.mark.parametrize("arguments", [[], ["-x"], ["--no-cov"], ["-n", "8"]], ids=" ".join)
def test_all_of_unit_runs_on_bounded_workers(sessions: dict[str, Any], arguments: list[str]) -> None:
    words = _words_of_pytest(sessions["unit"], *arguments)
    assert {f"--numprocesses={n}" for n in (2, 3, 4)} & {*words}
    assert words[-1 - len(arguments) :] == ["tests/unit", *arguments]


@pytest.mark.parametrize(
    "arguments", [["tests/unit/test_job.py"], ["tests/unit/test_job.py::test_x"], ["-k", "job"], ["--lf"]], ids=" ".join
)
def test_what_is_chosen_of_unit_runs_in_one_process(sessions: dict[str, Any], arguments: list[str]) -> None:
    assert not [word for word in _words_of_pytest(sessions["unit"], *arguments) if "numprocesses" in word]


@pytest.mark.parametrize("stage", ["unit", "integration"])
@pytest.mark.parametrize("arguments", [["--pdb"], ["--trace"], ["-s"], ["-p", "no:xdist"]], ids=" ".join)
def test_what_workers_cannot_do_is_done_without_them(
    sessions: dict[str, Any], stage: str, arguments: list[str]
) -> None:
    words = _words_of_pytest(sessions[stage], *arguments)
    assert not [word for word in words if word.startswith(("--numprocesses", "--dist"))]


@pytest.mark.parametrize("arguments", [[], ["tests/integration/test_jobs.py"]], ids=" ".join)
def test_integration_runs_on_workers_also_where_files_are_named(sessions: dict[str, Any], arguments: list[str]) -> None:
    assert "--numprocesses=3" in _words_of_pytest(sessions["integration"], *arguments)
