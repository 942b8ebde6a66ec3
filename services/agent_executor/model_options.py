"""What a definition may say about a model beside its provider and name.

Owns the names of options, and the replies of `scripted`. Light, so that a definition can be checked at submission
without a provider's package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .job import findings_of

SCRIPTED = "scripted"
# Where requests and keys go is the operator's: addresses, proxies and headers are not among these, nor are files or
# clients of the provider's package.
OPTIONS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_sequences", "n", "timeout", "max_retries"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "num_ctx", "keep_alive"),
        *("presence_penalty", "frequency_penalty", "repeat_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("reasoning", "reasoning_effort", "thinking", "effort", "verbosity", "service_tier", "use_responses_api"),
    }
)


class ScriptedToolCall(BaseModel):
    """One tool call of a reply."""

    model_config = ConfigDict(extra="forbid")

    name: str
    args: dict[str, Any] = Field(default_factory=dict)


class Reply(BaseModel):
    """What the model does when it is asked: wait, then fail with `error`, or say `text` and call tools.

    `{last}` in `text` stands for the content of the conversation's last message, e.g. a tool's result.
    """

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    tool_calls: Annotated[list[ScriptedToolCall], Field(fail_fast=True)] = Field(default_factory=list)
    delay_ms: float = Field(0, ge=0, description="before the first token")
    token_delay_ms: float = Field(0, ge=0, description="before each further token")
    error: str | None = None
    tokens: int = Field(0, ge=0, description="said to be used")


class _Script(BaseModel):
    replies: Annotated[list[Reply], Field(min_length=1, fail_fast=True)]


def wrong_options(provider: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a definition may not say, by path below the model; values are looked at only where they are our own."""
    for name in options:
        if name not in OPTIONS and (provider, name) != (SCRIPTED, "replies"):
            yield f"{name:.64}", "is not an option that a definition may set"
    if provider != SCRIPTED:
        return
    if (wide := next(_too_wide(options.get("replies")), None)) is not None:
        yield wide, "has keys that it cannot have"
    else:
        try:
            _Script.model_validate(options)
        except ValidationError as error:
            yield from ((finding.field, finding.message) for finding in findings_of(error))


def _too_wide(replies: Any) -> Iterator[str]:
    """Objects with more keys than there are: pydantic has an error for each, and there may be any number."""
    for index, reply in _objects(replies):
        if len(reply) > len(Reply.model_fields):
            yield f"replies[{index}]"
        for number, call in _objects(reply.get("tool_calls")):
            if len(call) > len(ScriptedToolCall.model_fields):
                yield f"replies[{index}].tool_calls[{number}]"


def _objects(values: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    return (
        (index, each) for index, each in enumerate(values if isinstance(values, list) else ()) if type(each) is dict
    )
