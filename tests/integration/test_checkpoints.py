"""The fenced saver against PostgreSQL: LangGraph's own conformance suite, and what the fence refuses."""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.errors import DataError, UntranslatableCharacter

from agent_executor import checkpoint_commits, job
from agent_executor import database as connections
from agent_executor.checkpoint_commits import savers_of
from agent_executor.checkpoints import Saver
from agent_executor.errors import DamagedCheckpoint, LeaseLost, Unavailable
from agent_executor.group_commit import GroupCommit
from agent_executor.ledger import Claim, Ledger
from tests.definitions import DATA
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.postgres import Database

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[connections.Pool]:
    async with connections.pool(database.dsn, 8) as opened:
        yield opened


async def claimed(pool: connections.Pool, job_id: str = "a") -> Claim:
    ledger = Ledger(pool)
    await ledger.accept(job.from_json(DATA | {"job_id": job_id}))
    [claim] = await ledger.claim(job_id, 1)
    return claim


async def claim_of(pool: connections.Pool, job_id: str) -> tuple[str, int]:
    claim = await claimed(pool, job_id)
    return claim.job_id, claim.fence


@pytest.fixture
async def saver(pool: connections.Pool) -> Saver:
    claim = await claimed(pool)
    return Saver(pool, claim.job_id, claim.fence)


def place(checkpoint_id: str | None = None, thread_id: str = "a") -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}


def checkpoint(**values: Any) -> Any:
    versions = dict.fromkeys(values, "1")
    return empty_checkpoint() | {"channel_values": values, "channel_versions": versions}


async def put(
    saver: Saver, parent_id: str | None = None, thread: str = "a", source: str = "loop", **values: Any
) -> str:
    saved = checkpoint(**values)
    metadata: Any = {"source": source, "step": 1, "parents": {}}
    await saver.aput(place(parent_id, thread), saved, metadata, saved["channel_versions"])
    return str(saved["id"])


@pytest.fixture
async def new_saver(pool: connections.Pool) -> Saver:
    claim = await claimed(pool)
    return Saver(pool, claim.job_id, claim.fence, is_new=True)


@pytest.mark.parametrize("is_new", [False, True])
async def test_it_conforms(pool: connections.Pool, is_new: bool) -> None:
    """`copy_thread` and `delete_for_runs` are optional, and the stock saver has neither."""
    saver = Saver(pool, *await claim_of(pool, "a"), is_new=is_new)

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


async def test_no_checkpoint_is_committed_before_its_parents_writes(saver: Saver, database: Database) -> None:
    parent = await put(saver)
    writing = asyncio.create_task(saver.aput_writes(place(parent), [("messages", "x")], "task"))
    await asyncio.gather(put(saver, parent), writing)
    [(written,)] = rows(database, "select xmin::text::bigint from checkpoint_writes")
    [_, (saved,)] = rows(database, "select xmin::text::bigint from checkpoints order by checkpoint_id")
    assert written <= saved


async def test_a_checkpoint_whose_parents_writes_failed_is_not_committed(saver: Saver, database: Database) -> None:
    parent = await put(saver)
    writing = asyncio.create_task(saver.aput_writes(place(parent), [("messages\0", "x")], "task"))
    await asyncio.sleep(0)
    with pytest.raises(DataError):
        await put(saver, parent)
    with pytest.raises(DataError):
        await writing
    assert rows(database, "select count(*) from checkpoints") == [(1,)]


async def test_a_checkpoint_that_comes_after_its_parents_writes_failed_is_not_committed(
    saver: Saver, database: Database
) -> None:
    parent = await put(saver)
    with pytest.raises(DataError):
        await saver.aput_writes(place(parent), [("messages\0", "x")], "task")
    with pytest.raises(DataError):
        await put(saver, parent)
    assert rows(database, "select count(*) from checkpoints") == [(1,)]


def saved(database: Database) -> list[tuple[Any, ...]]:
    return rows(database, "select checkpoint_id, xmin::text from checkpoints order by checkpoint_id")


async def test_the_input_of_a_new_job_is_committed_with_what_comes_next(new_saver: Saver, database: Database) -> None:
    parent = await put(new_saver, source="input", messages=["x"])
    assert saved(database) == []
    await put(new_saver, parent)
    [(first, transaction), (_, with_it)] = saved(database)
    assert (first, transaction) == (parent, with_it)
    assert rows(database, "select channel from checkpoint_blobs") == [("messages",)]


async def test_the_input_of_a_job_that_was_claimed_before_is_committed_at_once(
    saver: Saver, database: Database
) -> None:
    parent = await put(saver, source="input")
    assert [found for found, _ in saved(database)] == [parent]


async def test_the_input_of_a_new_job_is_read_at_once(new_saver: Saver, database: Database) -> None:
    parent = await put(new_saver, source="input", messages=["x"])
    found = await new_saver.aget_tuple(place())
    assert found is not None
    assert (found.checkpoint["id"], found.checkpoint["channel_values"]) == (parent, {"messages": ["x"]})
    assert [found for found, _ in saved(database)] == [parent]


async def test_without_its_input_no_later_checkpoint_is_committed(new_saver: Saver, database: Database) -> None:
    parent = await put(new_saver, source="input")
    with pytest.raises(DataError):
        await new_saver.aput_writes(place("of another namespace"), [("messages\0", "x")], "task")
    with pytest.raises(DataError):
        await put(new_saver, parent)
    assert saved(database) == []


async def test_an_input_survives_the_cancelling_of_what_it_was_to_go_with(new_saver: Saver, database: Database) -> None:
    parent = await put(new_saver, source="input")
    cancelled = asyncio.create_task(new_saver.aput_writes(place("of another namespace"), [("messages", "x")], "task"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    later = await put(new_saver, parent)
    assert [found for found, _ in saved(database)] == [parent, later]


async def test_a_checkpoint_is_not_committed_without_an_input_that_was_to_go_with_a_cancelled_write(
    new_saver: Saver, database: Database
) -> None:
    parent = await put(new_saver, source="input")
    cancelled = asyncio.create_task(new_saver.aput_writes(place("of another namespace"), [("messages", "x")], "task"))
    following = asyncio.create_task(put(new_saver, parent))
    await asyncio.sleep(0)
    cancelled.cancel()
    later = await following
    assert [found for found, _ in saved(database)] == [parent, later]


async def test_no_node_starts_before_a_checkpoint_of_its_input(new_saver: Saver, database: Database) -> None:
    def count(state: Grown) -> Any:
        return {"items": [len(saved(database))]}

    builder = StateGraph(Grown)
    builder.add_node("count", count)
    builder.add_edge(START, "count")
    builder.add_edge("count", END)
    graph = builder.compile(checkpointer=new_saver)
    given: Any = {"items": []}
    assert (await graph.ainvoke(given, place(), durability="sync"))["items"] == [2]


async def test_what_cannot_be_stored_fails_alone_and_whole(pool: connections.Pool, database: Database) -> None:
    """In one transaction: a job with a good and a bad checkpoint, one that has lost its claim, and a neighbour."""
    group = savers_of(pool)
    savers = {name: Saver(pool, *await claim_of(pool, name), group=group) for name in ("bad", "lost", "good")}
    rows(database, "update jobs set fence = fence + 1 where job_id = 'lost'")
    results = await asyncio.gather(
        put(savers["bad"], thread="bad", x=["y"]),
        put(savers["bad"], thread="bad", x="\0"),
        put(savers["lost"], thread="lost"),
        put(savers["good"], thread="good"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [UntranslatableCharacter, UntranslatableCharacter, LeaseLost, str]
    assert rows(database, "select thread_id from checkpoints") == [("good",)]
    assert rows(database, "select count(*) from checkpoint_blobs") == [(0,)]
    await put(savers["bad"], thread="bad", x=["z"])  # and bears no grudge


async def test_nobody_waits_for_a_lock_on_another_job(pool: connections.Pool, database: Database) -> None:
    group = savers_of(pool)
    savers = {name: Saver(pool, *await claim_of(pool, name), group=group) for name in ("locked", "free")}
    async with pool.connection() as other, other.transaction():
        await other.execute("update jobs set updated_at = now() where job_id = 'locked'")
        waiting = asyncio.create_task(put(savers["locked"], thread="locked"))
        first = await put(savers["free"], thread="free")
        await put(savers["free"], first, thread="free")
        assert not waiting.done()
    await waiting
    assert sorted(rows(database, "select thread_id from checkpoints")) == [("free",), ("free",), ("locked",)]


async def test_what_nobody_waits_for_any_more_is_not_committed(saver: Saver, database: Database) -> None:
    cancelled = asyncio.create_task(put(saver))
    await asyncio.sleep(0)
    cancelled.cancel()
    await put(saver)
    assert rows(database, "select count(*) from checkpoints") == [(1,)]


async def test_a_bug_in_company_leaves_nobody_waiting(pool: connections.Pool) -> None:
    """Also not those that came while it happened."""

    async def stumble(connection: Any, works: Any, alone: bool) -> Any:
        if not alone:
            later.append(asyncio.create_task(group.commit("later", "work")))
            await asyncio.sleep(0)
            raise KeyError("a bug")
        if works == ["bad"]:
            raise KeyError("its own")
        return {"good": True, "later": True}

    later: list[asyncio.Task[bool | None]] = []
    group = GroupCommit[str, bool](pool, stumble)
    async with asyncio.timeout(10):
        found = await asyncio.gather(group.commit("good", "x"), group.commit("bad", "bad"), return_exceptions=True)
        assert (found[0], type(found[1])) == (True, KeyError)
        assert await later[0] is True


async def test_many_jobs_share_a_transaction(pool: connections.Pool, database: Database) -> None:
    group = savers_of(pool)
    savers = {f"j{number}": Saver(pool, *await claim_of(pool, f"j{number}"), group=group) for number in range(20)}
    await asyncio.gather(*(put(saver, thread=name) for name, saver in savers.items()))
    assert rows(database, "select count(*), count(distinct xmin::text) from checkpoints") == [(20, 1)]


async def test_writes_of_one_task_that_replace_each_other_leave_the_last(saver: Saver, database: Database) -> None:
    parent = await put(saver)
    await saver.aput_writes(place(parent), [("__error__", "first"), ("__error__", "second")], "task")
    found = await saver.aget_tuple(place(parent))
    assert found is not None
    assert found.pending_writes == [("task", "__error__", "second")]
    assert rows(database, "select count(*) from checkpoint_writes") == [(1,)]


async def test_a_write_waits_for_a_database_that_is_away(pool: connections.Pool, database: Database) -> None:
    claim = await claimed(pool)
    failures = [Unavailable("away"), Unavailable("away")]

    async def flaky(connection: Any, works: Any, alone: bool) -> Any:
        if failures:
            raise failures.pop()
        return await checkpoint_commits.commit(connection, works, alone)

    saver = Saver(pool, claim.job_id, claim.fence, group=GroupCommit(pool, flaky, is_patient=True))
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


class Grown(TypedDict):
    items: Annotated[list[Any], operator.add]
    text: str


def growing(saver: Any, nodes: int, node: Any = None) -> Any:
    """A graph whose nodes add one item each, and the configuration of its thread."""

    def add(state: Grown) -> Any:
        return {"items": [f"{len(state['items'])}: {'x' * 500}"]}

    builder = StateGraph(Grown)
    names = [f"n{number}" for number in range(nodes)]
    for name in names:
        builder.add_node(name, node or add)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder.compile(saver)


THREAD: Any = {"configurable": {"thread_id": "a"}}
MANY = {"items": [f"{number}: {'y' * 1000}" for number in range(100)], "text": "z" * 10_000}
DIFFERENCES = "select count(*) from checkpoint_blobs where type like 'difference of %%'"


async def test_a_list_that_grows_is_stored_by_what_it_grows(saver: Saver, database: Database) -> None:
    found = await growing(saver, 40).ainvoke(MANY, THREAD, durability="sync")
    [(stored,)] = rows(database, "select sum(length(blob)) from checkpoint_blobs where channel = 'items'")
    assert stored < 4 * 100_000
    texts = "select count(*), sum(length(blob)) from checkpoint_blobs where channel = 'text'"
    assert rows(database, texts) == [(1, 10_003)]
    state = await growing(saver, 40).aget_state(THREAD)
    assert state.values == found
    histories = [each async for each in growing(saver, 40).aget_state_history(THREAD)]
    assert [len(each.values.get("items", ())) for each in histories] == [*range(140, 99, -1), 0]


async def test_another_claim_goes_on_from_a_difference(
    saver: Saver, pool: connections.Pool, database: Database
) -> None:
    await growing(saver, 5).ainvoke(MANY, THREAD, durability="sync")
    before = rows(database, DIFFERENCES)[0][0]
    rows(database, "update jobs set fence = fence + 1")
    again = Saver(pool, "a", 2)
    found = await growing(again, 5).ainvoke({"items": ["more"]}, THREAD, durability="sync")
    assert len(found["items"]) == 111
    assert found["text"] == MANY["text"]
    assert rows(database, DIFFERENCES)[0][0] == before + 6
    assert (await growing(Saver(pool, "a", 2), 5).aget_state(THREAD)).values == found


async def test_both_branches_of_a_fork_are_read(saver: Saver, pool: connections.Pool) -> None:
    graph = growing(saver, 5)
    found = await graph.ainvoke(MANY, THREAD, durability="sync")
    history = [each async for each in graph.aget_state_history(THREAD)]
    older = next(each for each in history if len(each.values["items"]) == 102)
    forked = await graph.aupdate_state(older.config, {"items": ["fork"]})
    graph = growing(Saver(pool, "a", 1), 5)
    assert (await graph.aget_state(history[0].config)).values == found
    assert (await graph.aget_state(forked)).values["items"] == [*older.values["items"], "fork"]


async def test_what_a_node_changes_in_place_is_stored(saver: Saver, pool: connections.Pool) -> None:
    def change(state: Grown) -> Any:
        state["items"][50]["said"] = f"changed {len(state['items'])}"
        return {"items": [{"said": "z" * 300}]}

    given = {"items": [{"said": "y" * 1000} for _ in range(100)], "text": ""}
    found = await growing(saver, 3, change).ainvoke(given, THREAD, durability="sync")
    read = (await growing(Saver(pool, "a", 1), 3).aget_state(THREAD)).values
    assert read == found
    assert read["items"][50] == {"said": "changed 102"}


async def test_what_was_not_committed_is_no_base(saver: Saver, pool: connections.Pool, database: Database) -> None:
    value = [f"{number} {'v' * 100}" for number in range(1000)]

    async def save(parent: str | None, version: str, text: str, value: list[str]) -> str:
        saved = checkpoint(list=value, text=text) | {"channel_versions": {"list": version, "text": version}}
        metadata: Any = {"source": "loop", "step": 1, "parents": {}}
        await saver.aput(place(parent), saved, metadata, saved["channel_versions"])
        return str(saved["id"])

    first = await save(None, "1", "", value)
    with pytest.raises(UntranslatableCharacter):
        await save(first, "2", "\0", [*value, "lost"])
    await save(first, "3", "", [*value, "kept"])
    assert rows(database, "select version, type from checkpoint_blobs order by 1") == [
        ("1", "msgpack"),
        ("3", "difference of 1"),
    ]
    found = await Saver(pool, "a", 1).aget_tuple(place())
    assert found is not None
    assert found.checkpoint["channel_values"]["list"] == [*value, "kept"]


async def test_a_write_of_a_whole_value_is_read_as_it_was(
    saver: Saver, pool: connections.Pool, database: Database
) -> None:
    value = {str(number): "v" * 100 for number in range(1000)}
    parent = await put(saver, value=value)
    await saver.aput_writes(place(parent), [("value", value | {"7": "w"})], "task")
    assert rows(database, "select type, length(blob) < 1000 from checkpoint_writes") == [("difference of 1", True)]
    found = await Saver(pool, "a", 1).aget_tuple(place())
    assert found is not None
    assert found.pending_writes == [("task", "value", value | {"7": "w"})]


async def test_a_base_that_is_gone_is_told(saver: Saver, pool: connections.Pool, database: Database) -> None:
    await growing(saver, 3).ainvoke(MANY, THREAD, durability="sync")
    rows(database, "delete from checkpoint_blobs where channel = 'items' and type = 'msgpack'")
    with pytest.raises(
        DamagedCheckpoint, match=r"channel 'items' in a checkpoint of thread a cannot be read: version "
    ):
        await Saver(pool, "a", 1).aget_tuple(place())


async def test_what_is_left_of_a_pruned_thread_is_whole(
    saver: Saver, pool: connections.Pool, database: Database
) -> None:
    graph = growing(saver, 5)
    found = await graph.ainvoke(MANY, THREAD, durability="sync")
    await saver.aprune(["a"])
    assert rows(database, "select count(*) from checkpoints") == [(1,)]
    assert (await growing(Saver(pool, "a", 1), 5).aget_state(THREAD)).values == found
    await graph.ainvoke({"items": ["more"]}, THREAD, durability="sync")
    assert len((await growing(Saver(pool, "a", 1), 5).aget_state(THREAD)).values["items"]) == 111


async def test_a_channel_that_becomes_one_of_differences_begins_with_what_it_was(saver: Saver) -> None:
    await growing(saver, 3).ainvoke(MANY, THREAD, durability="sync")
    state = await growing(saver, 3).aget_state(THREAD)
    history = await saver.aget_delta_channel_history(config=state.config, channels=["items"])
    before = await growing(saver, 3).aget_state(state.parent_config)
    assert history["items"]["seed"] == before.values["items"]


async def test_versions_stay_apart_where_a_node_seeds_pythons_random(
    saver: Saver, pool: connections.Pool, database: Database
) -> None:
    """A version's row is written once: two values of one version would be one, and a difference to the other."""

    def seed(state: Grown) -> Any:
        random.seed(1)
        return {"items": [f"{len(state['items'])}: {'x' * 500}"]}

    graph = growing(saver, 3, seed)
    await graph.ainvoke(MANY, THREAD, durability="sync")
    history = [each async for each in graph.aget_state_history(THREAD)]
    older = next(each for each in history if len(each.values["items"]) == 101)
    random.seed(1)
    forked = await graph.aupdate_state(older.config, {"items": ["fork"]})
    found = await graph.ainvoke(None, forked, durability="sync")
    graph = growing(Saver(pool, "a", 1), 3)
    assert (await graph.aget_state(forked)).values["items"] == [*older.values["items"], "fork"]
    assert (await graph.aget_state(THREAD)).values == found
    assert (await graph.aget_state(history[0].config)).values == history[0].values


async def test_a_channel_that_is_said_to_be_empty_is_read(saver: Saver, database: Database) -> None:
    """As older versions of LangGraph's saver say it."""
    await put(saver, items=["x"], gone=["y"])
    rows(database, "update checkpoint_blobs set type = 'empty', blob = null where channel = 'gone'")
    found = await saver.aget_tuple(place())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"items": ["x"]}


async def test_a_text_that_langgraphs_saver_wrote_is_kept(saver: Saver, pool: connections.Pool) -> None:
    """It stands in the checkpoint, has no blob, and is not written again until it changes."""
    await growing(AsyncPostgresSaver(pool), 3).ainvoke(MANY, THREAD, durability="sync")
    found = await growing(saver, 3).ainvoke({"items": ["more"]}, THREAD, durability="sync")
    assert found["text"] == MANY["text"]
    assert (await growing(Saver(pool, "a", 1), 3).aget_state(THREAD)).values == found
