"""What an interrupted job asks, and what may be answered.

Owns the rules for answers to approvals (`interrupt_on` of a definition), in the shape that langchain's
HumanInTheLoopMiddleware asks and reads: without them a bad answer would fail the run instead of the request. What a
tool or a node asks with `interrupt()` takes any JSON value. No finding repeats what was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import strict_json
from .errors import Finding, InvalidInput

Interrupt = Mapping[str, Any]
"""`id`, `value` and, where the graph gave one, `response_schema`."""


def unanswered(interrupts: Sequence[Interrupt] | None, answered: Sequence[str]) -> list[Interrupt]:
    """Those of `interrupts` that still wait."""
    return [each for each in interrupts or () if each["id"] not in answered]


def chosen(pending: Sequence[Interrupt], interrupt_id: str | None, prefix: str = "") -> str:
    """The id of the interrupt that is meant: the one named, or the only one that is pending.

    Raises:
        InvalidInput: none is named, and there is a choice.
    """
    if interrupt_id is not None:
        return interrupt_id
    if len(pending) != 1:
        ids = ", ".join(str(each["id"]) for each in pending)
        complaint = f"is required, since {len(pending)} interrupts are pending: {ids}"
        raise InvalidInput("invalid answer", [Finding(f"{prefix}interrupt_id", complaint)])
    return str(pending[0]["id"])


def accepted(asked: Any, value: Any, prefix: str = "") -> Any:
    """`value` as the answer to `asked`, in the form in which the graph reads it.

    Raises:
        InvalidInput: `asked` is an approval, and `value` does not decide it.
    """
    if not is_approval(asked):
        return value
    if len(asked["action_requests"]) == 1 and isinstance(value, dict) and "decisions" not in value:
        decided, path = {"decisions": [value]}, ""
    else:
        decided, path = value, ".decisions[{}]"
    findings = [Finding(f"{prefix}value{where}", complaint) for where, complaint in _complaints(asked, decided, path)]
    if findings:
        raise InvalidInput("invalid answer", findings)
    return decided


def is_same(stored: Any, value: Any) -> bool:
    """Whether `value` was stored as `stored`."""
    known = strict_json.canonical(stored)
    return known in (strict_json.canonical(value), strict_json.canonical({"decisions": [value]}))


def is_approval(asked: Any) -> bool:
    """Whether `asked` is what a HumanInTheLoopMiddleware asks; what only looks like it is a plain question."""
    if not isinstance(asked, dict):
        return False
    requests, configs = asked.get("action_requests"), asked.get("review_configs")
    if not (isinstance(requests, list) and isinstance(configs, list) and len(requests) == len(configs) > 0):
        return False
    names = [each.get("name") if isinstance(each, dict) else None for each in requests]
    allowed = [each.get("allowed_decisions") if isinstance(each, dict) else None for each in configs]
    return all(isinstance(each, str) for each in names) and all(_is_words(each) for each in allowed)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _complaints(asked: Mapping[str, Any], value: Any, path: str) -> Iterator[tuple[str, str]]:
    requests, configs = asked["action_requests"], asked["review_configs"]
    decisions = value.get("decisions") if isinstance(value, dict) else None
    if not isinstance(decisions, list):
        yield "", 'must be an object with "decisions", a list of one decision for each action request'
        return
    if len(decisions) != len(requests):
        yield (
            ".decisions",
            f"must hold {len(requests)} decisions, one for each action request, and holds {len(decisions)}",
        )
        return
    for index, (decision, request, config) in enumerate(zip(decisions, requests, configs, strict=True)):
        for where, complaint in _of_decision(decision, request["name"], config["allowed_decisions"]):
            yield path.format(index) + where, complaint


def _of_decision(decision: Any, name: str, allowed: Sequence[str]) -> Iterator[tuple[str, str]]:
    if not isinstance(decision, dict):
        yield "", "must be an object with a type"
        return
    kind = decision.get("type")
    if kind not in allowed:
        yield ".type", f"must be one of {', '.join(allowed)}"
    elif kind == "edit":
        yield from _of_edit(decision.get("edited_action"), name)
    elif kind == "respond" and not isinstance(decision.get("message"), str):
        yield ".message", "must be a string: it is what the model gets in place of the tool's result"
    elif kind == "reject" and not isinstance(decision.get("message", ""), str):
        yield ".message", "must be a string"


def _of_edit(action: Any, name: str) -> Iterator[tuple[str, str]]:
    if not isinstance(action, dict):
        yield ".edited_action", "must be an object with name and args"
        return
    if action.get("name") != name:
        yield ".edited_action.name", "must be the name of the action that is asked for"
    if not isinstance(action.get("args"), dict):
        yield ".edited_action.args", "must be an object"
