"""errors: what an error says, and what it carries."""

from __future__ import annotations

import inspect

import pytest

from agent_executor import errors
from agent_executor.errors import AgentExecutorError, Finding, InvalidInput

ALL = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)]


def test_a_finding_names_its_field_where_it_has_one() -> None:
    assert str(Finding("data.job_id", "must not be blank")) == "data.job_id: must not be blank"
    assert str(Finding("", "must not be blank")) == "must not be blank"


def test_invalid_input_says_everything_that_is_wrong_in_one_line() -> None:
    findings = [Finding("a", "is missing"), Finding("b[0].c", "is used twice")]
    error = InvalidInput("invalid job", iter(findings))
    assert str(error) == "invalid job: a: is missing; b[0].c: is used twice"
    assert error.findings == tuple(findings)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_one_of_ours_and_says_when_it_is_raised(kind: type[Exception]) -> None:
    assert issubclass(kind, AgentExecutorError)
    assert kind.__doc__


def test_an_error_without_findings_has_none() -> None:
    assert AgentExecutorError("no").findings == ()
