"""What is said about bad input repeats no value, and of a key no more than its beginning."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_executor import job, model_options, models, strict_json, validation
from agent_executor.definition import ModelChoice
from agent_executor.errors import Finding, InvalidInput, ModelUnavailable
from tests.definitions import adder, event

CANARY = "canary-4711-of-a-caller"
NUMBER = 471147114711
KEY = CANARY * 10
VALUES: list[Any] = [
    *(CANARY, NUMBER, -NUMBER, NUMBER / 7, [CANARY], [[NUMBER]], {KEY: CANARY}, {"type": CANARY, "name": NUMBER}),
    *([{"type": CANARY}], {"": CANARY}, f"http://{CANARY}", f"2026-13-01T{CANARY}", f'{{"a": {CANARY}'),
]
REFERENCE: dict[str, Any] = {
    "graph": "three-nodes",
    "config": {"configurable": {"a": 1}, "recursion_limit": 5, "tags": ["t"], "metadata": {"m": 1}},
}
OPTIONS = sorted(model_options.OPTIONS | {"replies", "name", "disable_streaming", "cache", "metadata"})


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every way to a value inside of `value`."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*way, key)
        yield from places(value[key], (*way, key))


@st.composite
def changed(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """`document` with canaries in the place of some of its values, or as further ones."""
    made = copy.deepcopy(document)
    for way in draw(st.lists(st.sampled_from([*places(document)]), min_size=1, max_size=4, unique=True)):
        target: Any = made
        try:
            for key in way[:-1]:
                target = target[key]
            key = draw(st.sampled_from([way[-1], KEY])) if isinstance(target, dict) else way[-1]
            target[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        except (KeyError, IndexError, TypeError):  # what it stood in was replaced before
            continue
    return made


def full() -> dict[str, Any]:
    """A definition with something in every place."""
    document = adder()
    document["edges"] = [{"source": "lead", "target": "calc", "type": "specialists"}]
    config = document["nodes"][1]["config"]
    config |= {"interrupt_on": ["a"], "state_schema": {"f": {"type": "list", "item_type": "any", "reducer": "append"}}}
    document["tool_definitions"][0]["runtime"]["dependencies"] = ["langchain-core"]
    return document


def check(findings: list[Finding]) -> None:
    for finding in findings:
        assert CANARY not in finding.message
        assert str(NUMBER) not in finding.message
        assert KEY[:65] not in finding.field
        assert str(NUMBER) not in finding.field


@given(changed(full()))
def test_findings_of_a_definition(document: dict[str, Any]) -> None:
    report = validation.check(document)
    check([*report.errors, *report.warnings])


@given(changed(REFERENCE))
def test_findings_of_the_name_of_a_graph(document: dict[str, Any]) -> None:
    report = validation.check(document, graphs={"three-nodes"})
    check([*report.errors, *report.warnings])


@given(changed(event(full(), traceparent="00-1", subject="s", time="now")), st.booleans())
def test_findings_of_an_event(document: dict[str, Any], whole: bool) -> None:
    try:
        submission = job.from_event(document) if whole else job.from_json(document["data"])
        assert isinstance(submission, job.Submission)
        validation.read(submission.definition, "data.agent_definition")
    except InvalidInput as error:
        check([*error.findings])


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None)  # the first of each imports its package
@given(
    st.sampled_from(OPTIONS), st.sampled_from(VALUES), st.sampled_from(["scripted", "openai", "anthropic", "ollama"])
)
def test_what_a_providers_package_says_of_an_option(option: str, value: Any, provider: str) -> None:
    choice = ModelChoice.model_validate({"provider": provider, "model": "m", option: value, KEY: value})
    for refused in (choice, ModelChoice.model_validate({"provider": provider, "model": "m", option: value})):
        try:
            models.create(refused, {"api_key": "a-key-of-the-operator", "base_url": "http://localhost"})
        except InvalidInput as error:
            check([*error.findings])
        except ModelUnavailable:
            pass


@given(st.sampled_from(VALUES), st.sampled_from(["", "\\", "\x00", "\\ud800", "NaN", "}", "'", "\\x", "1" * 5000]))
def test_findings_of_bytes_that_are_no_json(value: Any, odd: str) -> None:
    for text in (f"{json.dumps(value)}{odd}", f'{{"{KEY}": "{odd}{CANARY}"}}', f'{{"{KEY}": {odd}, "{KEY}": 1}}'):
        try:
            strict_json.loads(text.encode(), "event")
        except InvalidInput as error:
            check([*error.findings])


@pytest.mark.parametrize("headers", [{"ce-id": CANARY}, {"ce-specversion": CANARY, "ce-type": CANARY}])
def test_findings_of_headers(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as raised:
        job.from_http(CANARY, headers, {CANARY: CANARY})
    assert CANARY not in str(raised.value)
