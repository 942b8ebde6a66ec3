"""States that grow or change a little at each step, and a long chain of small steps: the fenced saver beside the saver
of LangGraph, as bare LangGraph has it. Milliseconds a step.

Each has a database of its own, with the tables as its own migrations make them. A step's time is that of a run between
its first node and its last, divided: what a run pays once, for its input, is not counted.
"""

from __future__ import annotations

import asyncio
import operator
import random
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage, HumanMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph, add_messages
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from agent_executor import database, job, migrate
from agent_executor.bases import Bases
from agent_executor.checkpoint_commits import savers_of
from agent_executor.checkpoints import Saver
from agent_executor.ledger import Ledger
from tests.bench.figures import Figure, compared, side_by_side
from tests.definitions import DATA
from tier3.stack import Postgres

MIGRATIONS = Path(__file__).parents[2] / "migrations"
KB = 1024
STEPS, RUNS, QUICK_RUNS, QUICK_CASES = 50, 5, 1, 4
WORDS = [format(hash_, "x") for hash_ in range(3**7, 3**12, 531)]

Bound = Callable[[Any], Coroutine[Any, Any, float]]
"""Runs a graph once, and says how many milliseconds a step took."""


class _Messages(TypedDict):
    value: Annotated[list[AnyMessage], add_messages]


class _List(TypedDict):
    value: Annotated[list[Any], operator.add]


class _Value(TypedDict):
    value: Any


@dataclass(frozen=True)
class _Case:
    """What a run begins with, what a node adds or changes, and how many times bare LangGraph it may take."""

    schema: type
    given: Any
    change: Callable[[Any], Any]
    at_most: float


def _said(number: int) -> str:
    """A kilobyte of text, which can be compressed as well as prose can."""
    return " ".join(random.Random(number).choices(WORDS, k=KB // 4))[:KB]


def _document(size: int) -> dict[str, Any]:
    return {f"key {number}": {"text": _said(number), "number": number} for number in range(size // KB)}


def _changed(document: dict[str, Any]) -> dict[str, Any]:
    key = f"key {len(document) // 2}"
    return {**document, key: {**document[key], "number": document[key]["number"] + 1}}


CASES: Mapping[str, _Case] = {
    "a chain of small nodes": _Case(_List, [], lambda _: ["x"], 1.1),
    "1 MB of messages, one more a step": _Case(
        _Messages, [HumanMessage(_said(n)) for n in range(KB)], lambda value: [HumanMessage(_said(len(value)))], 0.2
    ),
    "a list of 1 MB, one item more a step": _Case(
        _List, [_said(n) for n in range(KB)], lambda value: [_said(len(value))], 0.2
    ),
    "a dict of 100 KB, one key changed a step": _Case(_Value, _document(100 * KB), _changed, 1.0),
    "a dict of 1 MB, one key changed a step": _Case(_Value, _document(KB * KB), _changed, 1.0),
    "a text of 100 KB, one line more a step": _Case(
        _Value, "".join(map(_said, range(100))), lambda text: text + _said(0)[:80], 1.0
    ),
    "a text of 1 MB, one line more a step": _Case(
        _Value, "".join(map(_said, range(KB))), lambda text: text + _said(0)[:80], 1.0
    ),
}


def measure(server: Postgres, *, quick: bool = False) -> list[Figure]:
    """Every figure, each case in turns; quick the first cases only, since the last ones take most of the time."""
    figures = []
    with asyncio.Runner() as loop:
        stack = AsyncExitStack()
        contenders = loop.run(_contenders(stack, server))
        for name, case in list(CASES.items())[: QUICK_CASES if quick else None]:
            runs = {who: _run(loop, bound, case) for who, bound in contenders.items()}
            found = side_by_side(runs, QUICK_RUNS if quick else RUNS)
            figures.append(Figure(f"{name}, bare LangGraph", found["bare"]))
            figures.append(compared(f"{name}, ours", found["ours"], found["bare"], "bare", case.at_most))
        loop.run(stack.aclose())
    return figures


def _run(loop: asyncio.Runner, bound: Bound, case: _Case) -> Callable[[], float]:
    return lambda: loop.run(bound(case))


async def _contenders(stack: AsyncExitStack, server: Postgres) -> dict[str, Bound]:
    kwargs = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
    bare = AsyncConnectionPool[AsyncConnection[DictRow]](
        server.create_database(f"bare_{uuid.uuid4().hex[:8]}"), min_size=2, max_size=16, kwargs=kwargs, open=False
    )
    dsn = server.create_database(f"growth_{uuid.uuid4().hex[:8]}")
    migrate.up(migrate.Settings(dsn, MIGRATIONS))
    pool = database.pool(f"{dsn}?options=-csearch_path%3Dagent_executor", 16)
    for each in (bare, pool):
        await stack.enter_async_context(each)
    stock, ledger, group, bases = AsyncPostgresSaver(bare), Ledger(pool, lease_s=3600), savers_of(pool), Bases()
    await stock.setup()

    async def theirs(case: _Case) -> float:
        return await _per_step(case, stock, uuid.uuid4().hex)

    async def ours(case: _Case) -> float:
        await ledger.accept(job.from_json(DATA | {"job_id": uuid.uuid4().hex}))
        [claim] = await ledger.claim(uuid.uuid4().hex, 1)
        saver = Saver(pool, claim.job_id, claim.fence, group=group, bases=bases, is_new=True)
        took = await _per_step(case, saver, claim.job_id)
        bases.forget((claim.job_id, claim.fence))
        return took

    return {"bare": theirs, "ours": ours}


async def _per_step(case: _Case, saver: Any, thread_id: str) -> float:
    begun: list[float] = []

    def node(state: Any) -> Any:
        begun.append(time.perf_counter())
        return {"value": case.change(state["value"])}

    builder: Any = StateGraph(case.schema)
    names = [f"n{number}" for number in range(STEPS)]
    for name in names:
        builder.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    config: Any = {"configurable": {"thread_id": thread_id}}
    await builder.compile(saver).ainvoke({"value": case.given}, config, durability="sync")
    return (begun[-1] - begun[0]) / (STEPS - 1) * 1000
