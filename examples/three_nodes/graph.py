"""A graph from code: three plain nodes, no model. `langgraph.json` beside it gives it its name."""

from typing import Annotated, TypedDict

from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph, add_messages


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    words: list[str]
    count: int


def split(state: State) -> State:
    return {"words": str(state["messages"][-1].content).split()}


def count(state: State) -> State:
    return {"count": len(state["words"])}


def answer(state: State, config: RunnableConfig) -> State:
    unit = config.get("configurable", {}).get("unit", "words")
    return {"messages": [AIMessage(f"{state['count']} {unit}")]}


builder = StateGraph(State)
builder.add_node(split)
builder.add_node(count)
builder.add_node(answer)
builder.add_edge(START, "split")
builder.add_edge("split", "count")
builder.add_edge("count", "answer")
builder.add_edge("answer", END)
