"""A pytest plugin: a stage's banner, and its verdict with the total coverage.

`pytest -p tier3.verdict --stage=unit`. Colours are pytest's own: on a terminal only, and never where NO_COLOR is set.
"""

from __future__ import annotations

import platform
from typing import Any

import pytest

_FAILED_TO_RUN = {
    pytest.ExitCode.INTERRUPTED: "interrupted",
    pytest.ExitCode.NO_TESTS_COLLECTED: "no tests were selected",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --stage."""
    parser.addoption("--stage", default="tests", help="name of the stage in the banner and the verdict")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """The banner."""
    line = f"=== agent-executor: {config.getoption('stage')} tests, Python {platform.python_version()} "
    return [line.ljust(80, "=")]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The verdict, after everything else was printed."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or not hasattr(terminal, "_session"):
        return
    status = terminal._session.exitstatus
    passed = status == pytest.ExitCode.OK
    word = "PASSED" if passed else f"FAILED ({_FAILED_TO_RUN.get(status, f'exit status {int(status)}')})"
    terminal.write_line(
        f"{config.getoption('stage')}: {word}, {_coverage(config)}", bold=True, green=passed, red=not passed
    )


def _coverage(config: pytest.Config) -> str:
    plugin: Any = config.pluginmanager.get_plugin("_cov")
    total = getattr(plugin, "cov_total", None)
    return "coverage was not measured" if total is None else f"total coverage {total:.1f} %"
