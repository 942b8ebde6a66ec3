"""interrupts: which answers decide an approval, and what is said of those that do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents.middleware import HumanInTheLoopMiddleware

from agent_executor import interrupts
from agent_executor.errors import InvalidInput
from tests.unit.test_validation import ANYTHING

CANARY = "canary-4711"
EVERY = ["approve", "edit", "reject", "respond"]
DECISIONS: dict[str, dict[str, Any]] = {
    "approve": {"type": "approve"},
    "edit": {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "Ann"}}},
    "reject": {"type": "reject"},
    "respond": {"type": "respond", "message": "done"},
}


def approval(*allowed: list[str]) -> dict[str, Any]:
    """What is asked about so many calls of `pay`."""
    return {
        "action_requests": [{"name": "pay", "args": {}, "description": "Pay?"} for _ in allowed],
        "review_configs": [{"action_name": "pay", "allowed_decisions": each} for each in allowed],
    }


def complaints(asked: Any, value: Any) -> list[str]:
    with pytest.raises(InvalidInput) as raised:
        interrupts.accepted(asked, value, "data.")
    assert CANARY not in str(raised.value)
    return [finding.field for finding in raised.value.findings]


@pytest.mark.parametrize("kind", EVERY)
def test_a_decision_that_is_allowed_is_accepted(kind: str) -> None:
    decided = {"decisions": [DECISIONS[kind]]}
    assert interrupts.accepted(approval([kind]), decided) == decided
    assert interrupts.accepted(approval([kind]), DECISIONS[kind]) == decided
    others = [each for each in EVERY if each != kind]
    assert complaints(approval(others), decided) == ["data.value.decisions[0].type"]
    assert complaints(approval(others), DECISIONS[kind]) == ["data.value.type"]


@pytest.mark.parametrize(
    ("decision", "field"),
    [
        (CANARY, ""),
        (None, ""),
        ({"type": CANARY}, ".type"),
        ({"type": [CANARY]}, ".type"),
        ({}, ".type"),
        ({"type": "edit"}, ".edited_action"),
        ({"type": "edit", "edited_action": {"name": CANARY, "args": {}}}, ".edited_action.name"),
        ({"type": "edit", "edited_action": {"name": "pay", "args": CANARY}}, ".edited_action.args"),
        ({"type": "edit", "edited_action": {"name": "pay"}}, ".edited_action.args"),
        ({"type": "respond"}, ".message"),
        ({"type": "respond", "message": [CANARY]}, ".message"),
        ({"type": "reject", "message": [CANARY]}, ".message"),
        ({"type": "reject", "message": None}, ".message"),
    ],
)
def test_a_refusal_names_the_field(decision: Any, field: str) -> None:
    asked = approval(EVERY, EVERY)
    assert complaints(asked, {"decisions": [DECISIONS["approve"], decision]}) == [f"data.value.decisions[1]{field}"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (CANARY, "data.value"),
        (None, "data.value"),
        (DECISIONS["approve"], "data.value"),
        ({"decisions": CANARY}, "data.value"),
        ({"decisions": []}, "data.value.decisions"),
        ({"decisions": [DECISIONS["approve"]] * 3}, "data.value.decisions"),
    ],
)
def test_every_request_needs_its_decision(value: Any, field: str) -> None:
    assert complaints(approval(EVERY, EVERY), value) == [field]


def test_everything_wrong_is_named_at_once() -> None:
    found = complaints(approval(EVERY, ["approve"]), {"decisions": [{"type": "edit"}, {"type": CANARY}]})
    assert found == ["data.value.decisions[0].edited_action", "data.value.decisions[1].type"]


@given(st.lists(st.lists(st.sampled_from(EVERY), min_size=1, unique=True), min_size=1, max_size=3), st.data())
def test_what_is_accepted_is_what_the_middleware_takes(allowed: list[list[str]], data: st.DataObject) -> None:
    decision = st.sampled_from([*DECISIONS.values()]) | ANYTHING
    value = data.draw(st.fixed_dictionaries({"decisions": st.lists(decision, max_size=3)}) | decision)
    try:
        decided = interrupts.accepted(approval(*allowed), value)
    except InvalidInput:
        return
    for each, kinds in zip(decided["decisions"], allowed, strict=True):
        call: Any = {"name": "pay", "args": {}, "id": "c", "type": "tool_call"}
        HumanInTheLoopMiddleware._process_decision(each, call, {"allowed_decisions": kinds})  # type: ignore[typeddict-item]


@given(ANYTHING, ANYTHING)
def test_a_plain_question_takes_any_answer(asked: Any, value: Any) -> None:
    assert interrupts.accepted(asked, value) is value


@pytest.mark.parametrize(
    "asked",
    [
        {"action_requests": [], "review_configs": []},
        {"action_requests": [1], "review_configs": [1]},
        {"action_requests": [{"name": 1}], "review_configs": [{"allowed_decisions": ["approve"]}]},
        {"action_requests": [{"name": "pay"}], "review_configs": [{"allowed_decisions": "approve"}]},
        {"action_requests": [{"name": "pay"}], "review_configs": [{"allowed_decisions": [1]}]},
        {"action_requests": [{"name": "pay"}], "review_configs": []},
    ],
)
def test_what_only_looks_like_an_approval_is_a_plain_question(asked: Any) -> None:
    assert interrupts.accepted(asked, CANARY) == CANARY


@pytest.mark.parametrize(
    ("stored", "value", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"decisions": [{"type": "approve"}]}, {"type": "approve"}, True),
        (None, None, True),
        (None, "", False),
    ],
)
def test_an_answer_is_known_again(stored: Any, value: Any, same: bool) -> None:
    assert interrupts.is_same(stored, value) is same


def test_who_answers_one_of_several_says_which() -> None:
    pending = [{"id": "a", "value": 1}, {"id": "b", "value": 2}]
    assert interrupts.chosen(pending[:1], None) == "a"
    assert interrupts.chosen(pending, "b") == "b"
    with pytest.raises(InvalidInput, match=r"data\.interrupt_id: is required, since 2 interrupts are pending: a, b"):
        interrupts.chosen(pending, None, "data.")
