"""`scripted`: a chat model whose replies stand in the definition.

The nth reply answers a conversation that already holds n replies of the assistant, so the script needs no memory of its
own: a job resumed after a crash goes on where it was, and each call of a specialist starts at its first reply.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

from .model_options import Reply

_WORDS = re.compile(r"\s*\S+\s*$|\s*\S+")


class ScriptedError(Exception):
    """The failure that a reply's `error` asks for, or a conversation longer than its script."""


class ScriptedChatModel(BaseChatModel):
    """Plays `replies` through the real graph, token by token where somebody streams."""

    replies: list[Reply] = Field(min_length=1)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Tools change nothing: the script says which are called."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        position, reply = self._next(messages)
        return self._result(messages, position, reply)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        position, reply = self._next(messages)
        await asyncio.sleep(reply.delay_ms / 1000)
        return self._result(messages, position, reply)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        position, reply = self._next(messages)
        await asyncio.sleep(reply.delay_ms / 1000)
        if reply.error is not None:
            raise ScriptedError(reply.error)
        for number, word in enumerate(_WORDS.findall(_text(reply, messages))):
            if number and reply.token_delay_ms:
                await asyncio.sleep(reply.token_delay_ms / 1000)
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))
        calls = [
            {"name": call["name"], "args": json.dumps(call["args"]), "id": call["id"], "index": index}
            for index, call in enumerate(self._tool_calls(reply, position))
        ]
        last = AIMessageChunk(content="", tool_call_chunks=calls, chunk_position="last", usage_metadata=_usage(reply))
        yield ChatGenerationChunk(message=last)

    def _next(self, messages: Sequence[BaseMessage]) -> tuple[int, Reply]:
        position = sum(isinstance(message, AIMessage) for message in messages)
        if position >= len(self.replies):
            raise ScriptedError(f"the script has {len(self.replies)} replies, and reply {position + 1} was asked for")
        return position, self.replies[position]

    def _result(self, messages: Sequence[BaseMessage], position: int, reply: Reply) -> ChatResult:
        if reply.error is not None:
            raise ScriptedError(reply.error)
        message = AIMessage(
            content=_text(reply, messages), tool_calls=self._tool_calls(reply, position), usage_metadata=_usage(reply)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _tool_calls(self, reply: Reply, position: int) -> list[dict[str, Any]]:
        return [
            {"name": call.name, "args": call.args, "id": f"call_{self.name}_{position}_{index}", "type": "tool_call"}
            for index, call in enumerate(reply.tool_calls)
        ]


def _text(reply: Reply, messages: Sequence[BaseMessage]) -> str:
    return reply.text.replace("{last}", messages[-1].text) if messages else reply.text


def _usage(reply: Reply) -> UsageMetadata | None:
    """As a provider would report it."""
    if not reply.tokens:
        return None
    return UsageMetadata(input_tokens=0, output_tokens=reply.tokens, total_tokens=reply.tokens)
