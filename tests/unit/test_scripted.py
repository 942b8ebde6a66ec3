"""scripted: a model that says what the definition says, streamed or not."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from pydantic import ValidationError

from agent_executor.scripted import ScriptedChatModel, ScriptedError

QUESTION = HumanMessage("2+3?")


def model(*replies: dict[str, Any]) -> ScriptedChatModel:
    return ScriptedChatModel.model_validate({"name": "m", "replies": replies})


async def streamed(script: ScriptedChatModel, *messages: BaseMessage) -> list[AIMessageChunk]:
    return [chunk async for chunk in script.astream(list(messages)) if isinstance(chunk, AIMessageChunk)]


async def test_the_nth_reply_answers_the_nth_question() -> None:
    script = model({"text": "one"}, {"text": "two"})
    first = await script.ainvoke([QUESTION])
    second = await script.ainvoke([QUESTION, first, QUESTION])
    assert (first.content, second.content) == ("one", "two")
    assert (await script.ainvoke([QUESTION])).content == "one"


def test_it_answers_without_a_loop_as_well() -> None:
    assert model({"text": "one"}).invoke([QUESTION]).content == "one"


async def test_last_stands_for_the_last_message() -> None:
    messages = [QUESTION, AIMessage(""), ToolMessage("5", tool_call_id="c")]
    assert (await model({}, {"text": "It is {last}: {last}"}).ainvoke(messages)).content == "It is 5: 5"


@pytest.mark.parametrize("text", ["", "one", " two  words ", "a\nb\n", "{last} said"])
async def test_a_streamed_reply_is_the_same_text_in_words(text: str) -> None:
    chunks = await streamed(model({"text": text}), QUESTION)
    assert "".join(chunk.text for chunk in chunks) == text.replace("{last}", "2+3?")
    assert len([chunk for chunk in chunks if chunk.text]) == len(text.split())


@pytest.mark.parametrize("how", ["invoke", "stream"])
async def test_tool_calls(how: str) -> None:
    script = model({"text": "x", "tool_calls": [{"name": "add", "args": {"a": 1}}, {"name": "stop"}]})
    if how == "invoke":
        answer: Any = await script.ainvoke([QUESTION])
    else:
        first, *rest = await streamed(script, QUESTION)
        answer = first
        for chunk in rest:
            answer += chunk
    assert [(call["name"], call["args"], call["id"]) for call in answer.tool_calls] == [
        ("add", {"a": 1}, "call_m_0_0"),
        ("stop", {}, "call_m_0_1"),
    ]


async def test_tool_call_ids_differ_from_reply_to_reply() -> None:
    script = model({"tool_calls": [{"name": "add"}]}, {"tool_calls": [{"name": "add"}]})
    first = await script.ainvoke([QUESTION])
    second = await script.ainvoke([QUESTION, first])
    assert first.tool_calls[0]["id"] != second.tool_calls[0]["id"]


async def test_an_error_is_raised_however_the_model_is_asked() -> None:
    script = model({"text": "never", "error": "overloaded"})
    with pytest.raises(ScriptedError, match="overloaded"):
        script.invoke([QUESTION])
    with pytest.raises(ScriptedError, match="overloaded"):
        await script.ainvoke([QUESTION])
    with pytest.raises(ScriptedError, match="overloaded"):
        await streamed(script, QUESTION)


async def test_a_script_that_is_too_short_says_so() -> None:
    with pytest.raises(ScriptedError, match="the script has 1 replies, and reply 2 was asked for"):
        await model({"text": "x"}).ainvoke([QUESTION, AIMessage("x")])


@pytest.mark.parametrize(
    "reply", [{"txt": "x"}, {"delay_ms": -1}, {"tool_calls": [{}]}, {"tool_calls": [{"name": "a", "arg": 1}]}]
)
def test_a_mistake_in_a_script_is_refused(reply: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model(reply)


def test_a_script_has_replies() -> None:
    with pytest.raises(ValidationError):
        model()


def test_tools_change_nothing() -> None:
    script = model({"text": "x"})
    assert script.bind_tools([lambda: None]) is script
