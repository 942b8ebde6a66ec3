"""Three plain nodes that emit eight events in all: the graph that every contender of the throughput benchmark runs."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph

NODES = 3


class State(TypedDict):
    """A list that every node adds to."""

    items: Annotated[list[str], operator.add]


def node(state: State) -> State:
    """Emit one event, add one item."""
    get_stream_writer()({"seen": len(state["items"])})
    return {"items": ["x"]}


def chain(nodes: int, node: Any = node) -> StateGraph[State]:
    """So many of these nodes, one after the other."""
    builder = StateGraph(State)
    names = [f"n{number}" for number in range(nodes)]
    for name in names:
        builder.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder


graph = chain(NODES).compile()
