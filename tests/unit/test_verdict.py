"""tier3/verdict.py, as a plugin of a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSING = "def test_passes(): pass\n"
FAILING = "def test_fails(): assert False\n"
ESCAPE = "\x1b["


def stage(directory: Path, source: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the plugin over one file."""
    test = directory / "test_inner.py"
    test.write_text(source)
    kept = {name: value for name, value in os.environ.items() if "COV" not in name and "COLOR" not in name}
    command = [sys.executable, "-m", "pytest", "-p", "tier3.verdict", "--rootdir", str(directory), "-c", os.devnull]
    return subprocess.run(
        [*command, *arguments, str(test)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
    )


@pytest.mark.parametrize(
    ("source", "arguments", "verdict", "status"),
    [
        (PASSING, [], "unit: PASSED, coverage was not measured", 0),
        (FAILING, [], "unit: FAILED (exit status 1), coverage was not measured", 1),
        (PASSING, ["-k", "nothing"], "unit: FAILED (no tests were selected), coverage was not measured", 5),
        ("import nowhere\n", [], "unit: FAILED (interrupted), coverage was not measured", 2),
    ],
    ids=["passed", "failed", "none", "broken"],
)
def test_a_stage_ends_with_its_verdict(
    tmp_path: Path, source: str, arguments: list[str], verdict: str, status: int
) -> None:
    ended = stage(tmp_path, source, "--stage=unit", *arguments)
    assert ended.stdout.splitlines()[-1] == verdict
    assert ended.returncode == status


def test_a_stage_begins_with_its_banner(tmp_path: Path) -> None:
    lines = stage(tmp_path, PASSING, "--stage=unit").stdout.splitlines()
    [banner] = [line for line in lines if line.startswith("=== agent-executor: unit tests, Python 3.")]
    assert len(banner) == 80
    assert lines.index(banner) < 5


def test_the_verdict_holds_the_total_coverage(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text("a = 1\nif a == 2:\n    b = 1\n    c = 1\n")
    source = "import sys\nsys.path.insert(0, __file__.rpartition('/')[0])\ndef test_it():\n    import measured\n"
    arguments = ["--stage=unit", "-p", "pytest_cov", f"--cov={tmp_path}", "--cov-config=/dev/null"]
    ended = stage(tmp_path, source, *arguments, COVERAGE_FILE=str(tmp_path / ".coverage"))
    word, _, total = ended.stdout.splitlines()[-1].partition(", total coverage ")
    assert word == "unit: PASSED"
    assert 0 < float(total.removesuffix(" %")) < 100


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_there_is_no_colour_where_nobody_sees_it(tmp_path: Path, environment: dict[str, str]) -> None:
    assert ESCAPE not in stage(tmp_path, FAILING, **environment).stdout


def test_no_color_beats_a_terminal(tmp_path: Path) -> None:
    terminal = stage(tmp_path, PASSING, FORCE_COLOR="1").stdout.splitlines()[-1]
    assert terminal.startswith(ESCAPE)
    assert ESCAPE not in stage(tmp_path, PASSING, FORCE_COLOR="1", NO_COLOR="1").stdout


@pytest.mark.parametrize(("source", "code", "other"), [(PASSING, "32", "31"), (FAILING, "31", "32")])
def test_green_is_passed_and_red_is_failed(tmp_path: Path, source: str, code: str, other: str) -> None:
    verdict = stage(tmp_path, source, FORCE_COLOR="1").stdout.splitlines()[-1]
    assert f"{ESCAPE}{code}m" in verdict
    assert f"{ESCAPE}{other}m" not in verdict
