"""Graphs that do nothing but emit: `burst` as fast as it can, `tokens` a model's, `paced` so many events a second.

An event says when it was emitted, by the clock that its reader reads too. Of what a graph from code sends itself, the
service shows its readers the warnings, so that is what `burst` and `paced` send.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    """How many events, how many a second, and from when on, in seconds since 1970."""

    events: int
    a_second: float
    start_at: float


async def burst(state: State) -> None:
    """Emit without a pause."""
    await _until(state["start_at"])
    write = get_stream_writer()
    for number in range(state["events"]):
        write(_event(number))


async def tokens(state: State) -> None:
    """Ask a model that streams without a pause."""
    await _until(state["start_at"])
    await Clock(events=state["events"]).ainvoke("What time is it?")


async def paced(state: State) -> None:
    """Emit each event at its time."""
    write = get_stream_writer()
    for number in range(state["events"]):
        await _until(state["start_at"] + number / state["a_second"])
        write(_event(number))


class Clock(BaseChatModel):
    """A model whose every token is the time."""

    events: int

    @property
    def _llm_type(self) -> str:
        return "clock"

    def _generate(self, *arguments: Any, **named: Any) -> ChatResult:
        raise NotImplementedError

    async def _astream(self, *arguments: Any, **named: Any) -> AsyncIterator[ChatGenerationChunk]:
        for _ in range(self.events):
            yield ChatGenerationChunk(message=AIMessageChunk(content=repr(time.time())))


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0, moment - time.time()))


def _event(number: int) -> dict[str, Any]:
    data = {"message": f"this is event {number}", "about": "bench", "at": time.time()}
    return {"event_type": "warning", "data": data}


def _alone(node: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile()


graphs = {node.__name__: _alone(node) for node in (burst, tokens, paced)}
burst_graph, tokens_graph, paced_graph = graphs.values()
