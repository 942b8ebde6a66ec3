"""__main__: commands and their exit status."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from agent_executor.__main__ import main


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["--version"]])
def test_a_wrong_call_gets_the_usage_and_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("usage: python -m agent_executor COMMAND\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_what_was_asked_for(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    said = capsys.readouterr()
    assert "migrate" in said.out
    assert said.err == ""


def test_the_process_ends_with_the_commands_status() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTGRES_")}
    command = [sys.executable, "-m", "agent_executor", "migrate"]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout.splitlines()[0] == "POSTGRES_PASSWORD is required"
    assert ended.stderr == ""
