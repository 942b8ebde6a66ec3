"""tenant_command: its words, as far as they need no database."""

from __future__ import annotations

import pytest

from agent_executor import tenant_command


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["set"],
        ["set", "a.b", "--max-queued-jobs", "1"],
        ["set", "north", "--max-queued-jobs", "-1"],
        ["set", "north", "--max-queued-jobs", "1.5"],
        ["set", "north", "--max-queued-jobs", str(2**31)],
        ["set", "north", "--max-queued", "1"],
        ["unset"],
        ["nonsense"],
        ["list"],  # without a password in the environment
    ],
)
def test_a_wrong_call_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tenant_command.main(words, {}) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err
