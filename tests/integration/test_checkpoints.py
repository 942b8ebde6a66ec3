"""The fenced saver against PostgreSQL: LangGraph's own conformance suite, and what the fence refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate

from agent_executor import database as connections
from agent_executor import job
from agent_executor.checkpoints import Saver
from agent_executor.errors import LeaseLost
from agent_executor.ledger import Claim, Ledger
from tests.definitions import DATA
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.postgres import Database

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[connections.Pool]:
    async with connections.pool(database.dsn, 8) as opened:
        yield opened


async def claimed(pool: connections.Pool) -> Claim:
    ledger = Ledger(pool)
    await ledger.accept(job.from_json(DATA | {"job_id": "a"}))
    [claim] = await ledger.claim("worker", 1)
    return claim


@pytest.fixture
async def saver(pool: connections.Pool) -> Saver:
    claim = await claimed(pool)
    return Saver(pool, claim.job_id, claim.fence)


def place(checkpoint_id: str | None = None, thread_id: str = "a") -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}


def checkpoint(**values: Any) -> Any:
    versions = dict.fromkeys(values, "1")
    return empty_checkpoint() | {"channel_values": values, "channel_versions": versions}


async def put(saver: Saver, parent_id: str | None = None, **values: Any) -> str:
    saved = checkpoint(**values)
    metadata: Any = {"source": "loop", "step": 1, "parents": {}}
    await saver.aput(place(parent_id), saved, metadata, saved["channel_versions"])
    return str(saved["id"])


async def test_it_conforms(saver: Saver) -> None:
    """`copy_thread` and `delete_for_runs` are optional, and the stock saver has neither."""

    @checkpointer_test(name="fenced")
    async def fenced() -> AsyncIterator[Saver]:
        yield saver

    report = await validate(fenced)
    found = {name: result for name, result in report.results.items() if result.detected}
    assert {"put", "put_writes", "get_tuple", "list", "delete_thread", "prune"} <= set(found)
    assert {name: result.failures for name, result in found.items() if not result.passed} == {}


@pytest.mark.parametrize(
    "change",
    [
        "update jobs set fence = fence + 1",
        "update jobs set status = 'queued', lease_owner = null, lease_until = null",
        "update jobs set status = 'cancelled', lease_owner = null, lease_until = null, outcome_id = 'o',"
        " finished_at = now()",
        "delete from jobs",
    ],
)
async def test_who_lost_the_job_writes_nothing(saver: Saver, database: Database, change: str) -> None:
    parent = await put(saver, kept=["x"])
    rows(database, change)
    before = {table: rows(database, f"select * from {table}") for table in TABLES}
    with pytest.raises(LeaseLost, match="no longer held under fence 1"):
        await put(saver, parent, lost=["y"])
    for writes in ([("messages", "z")], [("__error__", "z")]):
        with pytest.raises(LeaseLost):
            await saver.aput_writes(place(parent), writes, "task")
    assert {table: rows(database, f"select * from {table}") for table in TABLES} == before


async def test_a_claim_waits_for_a_write_that_is_under_way(
    saver: Saver, pool: connections.Pool, database: Database
) -> None:
    """The write is either committed under the old fence, or refused under the new one; never in between."""
    async with pool.connection() as other, other.transaction():
        await other.execute("update jobs set fence = fence + 1")
        writing = asyncio.create_task(put(saver, values=["x"]))
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        while rows(database, waiting) == [(0,)]:  # noqa: ASYNC110 - it happens in the server
            await asyncio.sleep(0.01)
    with pytest.raises(LeaseLost):
        await writing
    assert rows(database, "select count(*) from checkpoints") == [(0,)]


async def test_no_checkpoint_is_committed_before_its_parents_writes(
    saver: Saver, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await put(saver)
    gate = asyncio.Event()
    original = saver._write_once

    async def slow(query: str, row: Any) -> None:
        if query == "put_writes":
            await gate.wait()
        await original(query, row)

    monkeypatch.setattr(saver, "_write_once", slow)
    writing = asyncio.create_task(saver.aput_writes(place(parent), [("messages", "x")], "task"))
    putting = asyncio.create_task(put(saver, parent))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not putting.done()
    assert rows(database, "select count(*) from checkpoints") == [(1,)]
    gate.set()
    await asyncio.gather(writing, putting)
    assert rows(database, "select count(*) from checkpoints") == [(2,)]


async def test_a_checkpoint_whose_parents_writes_failed_is_not_committed(
    saver: Saver, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await put(saver)

    async def fail(query: str, row: Any) -> None:
        raise ValueError("no luck")

    with monkeypatch.context() as broken:
        broken.setattr(saver, "_write_once", fail)
        with pytest.raises(ValueError, match="no luck"):
            await saver.aput_writes(place(parent), [("messages", "x")], "task")
    with pytest.raises(ValueError, match="no luck"):
        await put(saver, parent)
    assert rows(database, "select count(*) from checkpoints") == [(1,)]


async def test_writes_of_one_task_that_replace_each_other_leave_the_last(saver: Saver, database: Database) -> None:
    parent = await put(saver)
    await saver.aput_writes(place(parent), [("__error__", "first"), ("__error__", "second")], "task")
    found = await saver.aget_tuple(place(parent))
    assert found is not None
    assert found.pending_writes == [("task", "__error__", "second")]
    assert rows(database, "select count(*) from checkpoint_writes") == [(1,)]


async def test_a_write_waits_for_a_database_that_is_away(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent_executor.errors import Unavailable

    failures = [Unavailable("away"), Unavailable("away")]
    original = saver._write_once

    async def flaky(query: str, row: Any) -> None:
        if failures:
            raise failures.pop()
        await original(query, row)

    monkeypatch.setattr(saver, "_write_once", flaky)
    saved = await put(saver, x=["y"])
    found = await saver.aget_tuple(place())
    assert found is not None
    assert (found.checkpoint["id"], found.checkpoint["channel_values"]) == (saved, {"x": ["y"]})
    assert failures == []


async def test_other_writes_that_come_again_leave_the_first(saver: Saver) -> None:
    parent = await put(saver)
    for value in ("first", "second"):
        await saver.aput_writes(place(parent), [("messages", value), ("files", value)], "task")
    found = await saver.aget_tuple(place(parent))
    assert found is not None
    assert sorted(found.pending_writes or ()) == [("task", "files", "first"), ("task", "messages", "first")]


async def test_what_was_used_is_read_back_from_the_checkpoints(pool: connections.Pool) -> None:
    claim = await claimed(pool)
    used = iter([{"model_calls": 1, "tokens": 10, "seconds": 0.5}, {"model_calls": 3, "tokens": 30, "seconds": 2.5}])
    saver = Saver(pool, claim.job_id, claim.fence, lambda _: next(used))
    assert await saver.usage() == {}
    await put(saver, await put(saver))
    again = Saver(pool, claim.job_id, claim.fence)
    assert await again.usage() == {"model_calls": 3, "tokens": 30, "seconds": 2.5}
    await put(again)
    assert (await again.usage())["tokens"] == 30
