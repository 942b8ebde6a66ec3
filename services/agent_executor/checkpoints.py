"""LangGraph checkpoints in PostgreSQL, fenced by the claim.

Owns the choice of saver, what it may deserialise, and its writes (`checkpoints.sql`): those of all running jobs go
together, and each asserts its claim's fence in the same statement, so that a worker that lost its job can write
nothing, and one that freezes holds no lock. The tables are made by our migrations; the saver's own `setup()` is never
called (it races, and needs CREATE rights even when there is nothing to do).
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.base import id as ids
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, _DeltaSnapshot
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow

from . import database, sql
from .arrays import Bigints, Blobs, Ints, Texts
from .database import Pool, persistently
from .errors import LeaseLost, Stopped
from .group_commit import GroupCommit
from .redaction import redact

SQL = sql.load("checkpoints.sql")
TABLES = {"puts": SQL["puts"], "blobs": SQL["blobs"], "writes": SQL["writes"], "replaced": SQL["replaced"]}
_PLACE = ("job_id", "fence", "thread_id", "checkpoint_ns")
_WRITE = (*_PLACE, "checkpoint_id", "task_id", "task_path", "idx", "channel", "type", "blob")
_COLUMNS = {
    "puts": (*_PLACE, "checkpoint_id", "parent_id", "checkpoint", "metadata"),
    "blobs": (*_PLACE, "channel", "version", "type", "blob"),
    "writes": _WRITE,
    "replaced": _WRITE,
}
_ARRAYS: dict[str, Callable[[Iterable[Any]], list[Any]]] = {"fence": Bigints, "idx": Ints, "blob": Blobs}
_REPLACING = {"puts": (2, 3, 4), "replaced": (2, 3, 4, 5, 7)}
"""Of rows that replace what is there: which columns are their key."""

Claimed = tuple[str, int]
"""A job and the fence it was claimed with."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """What one call of a saver writes: rows of each table, as `_COLUMNS` has them after the claim."""

    claim: Claimed
    puts: Sequence[tuple[Any, ...]] = ()
    blobs: Sequence[tuple[Any, ...]] = ()
    writes: Sequence[tuple[Any, ...]] = ()
    replaced: Sequence[tuple[Any, ...]] = ()

    def size(self) -> int:
        """About how many bytes are sent."""
        rows = (*self.puts, *self.blobs, *self.writes, *self.replaced)
        return sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))


@dataclass
class _Thread:
    """What a saver knows of its thread. langgraph copies savers, and the copies have to know it, too."""

    is_empty: bool
    has_asked: bool = False


Group = GroupCommit[_Rows, bool]


class Saver(AsyncPostgresSaver):
    """LangGraph's saver, for one claimed job: it holds a lock around every call, so jobs share the pool, never a saver.

    It makes objects of langgraph's own safe types (messages, Command, Send, dates, ...); in strict mode langgraph adds
    those that the state schema of the graph at hand declares. Everything else comes back as plain data.

    Reads and writes are patient: while PostgreSQL is away they are tried again, until the worker ends the run because
    it could not renew the lease.

    Raises:
        LeaseLost: from every write, once the job has been claimed by another worker or has ended.
    """

    def __init__(
        self,
        pool: Pool,
        job_id: str,
        fence: int,
        usage_at: Callable[[int], Mapping[str, float]] | None = None,
        *,
        group: Group | None = None,
        is_new: bool = False,
    ) -> None:
        """`usage_at`: told a checkpoint's step, says what was used until then; it stands in the metadata. `group`: the
        savers of this process, which commit together. `is_new`: nobody can have saved anything of this job."""
        serializer: Any = JsonPlusSerializer(allowed_msgpack_modules=None)
        super().__init__(pool, serde=serializer)
        self._pool = pool
        self._group = group or savers_of(pool)
        self._claim: Claimed = (job_id, fence)
        self._usage_at = usage_at
        self._thread = _Thread(is_empty=is_new)
        self._writing: defaultdict[tuple[str, str], list[asyncio.Future[None]]] = defaultdict(list)

    @property
    def has_asked(self) -> bool:
        """Whether a node has been interrupted since."""
        return self._thread.has_asked

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The latest checkpoint, or the one that `config` names."""
        if self._thread.is_empty:
            return None
        found = await persistently(partial(super().aget_tuple, config))
        if found is not None:
            _continue_after(found.checkpoint["id"])
        return found

    async def usage(self) -> dict[str, float]:
        """What the checkpoints say was used, by all runs of this job."""
        [row] = await persistently(self._read_usage)
        return {name: value for name, value in row.items() if value is not None}

    async def _read_usage(self) -> list[DictRow]:
        async with database.connection(self._pool) as connection:
            return await (await connection.execute(SQL["usage"], {"job_id": self._claim[0]})).fetchall()

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """The writes from which channels that store differences are rebuilt."""
        read = partial(super().aget_delta_channel_history, config=config, channels=channels)
        return await persistently(read)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Save a checkpoint, after the writes of its parent: deep agents keep their messages in those."""
        place = config["configurable"]
        thread_id, namespace, parent_id = place["thread_id"], place["checkpoint_ns"], place.get("checkpoint_id")
        described = get_serializable_checkpoint_metadata(config, metadata)
        if self._usage_at is not None:
            described = {**described, "usage": self._usage_at(metadata.get("step", 0))}  # type: ignore[typeddict-unknown-key]
        inline, large = _split(checkpoint["channel_values"])
        versions: ChannelVersions = {
            channel: str(version) for channel, version in new_versions.items() if channel in large
        }
        blobs = self._dump_blobs(thread_id, namespace, large, versions)
        saved = (json.dumps({**checkpoint, "channel_values": inline}), json.dumps(described))
        put = (thread_id, namespace, checkpoint["id"], parent_id, *saved)
        before = self._writing.pop((namespace, parent_id), ()) if parent_id is not None else ()
        await self._write(_Rows(self._claim, puts=[put], blobs=blobs), before)
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint["id"]}}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Save what one task wrote on top of a checkpoint."""
        writes = [(channel, _told(value) if channel == ERROR else value) for channel, value in writes]
        self._thread.has_asked |= any(channel == INTERRUPT for channel, _ in writes)
        place = config["configurable"]
        thread_id, namespace, checkpoint_id = place["thread_id"], place["checkpoint_ns"], place["checkpoint_id"]
        written = asyncio.get_running_loop().create_future()
        self._writing[namespace, checkpoint_id].append(written)
        try:
            replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
            dumped = self._dump_writes(thread_id, namespace, checkpoint_id, task_id, task_path, writes)
            # One statement may not write a row twice: of the same index the last one stays, or the first.
            rows = list({row[5]: row for row in (dumped if replaces else reversed(dumped))}.values())
            await self._write(_Rows(self._claim, **{"replaced" if replaces else "writes": rows}))
        except BaseException as error:
            written.set_exception(error if isinstance(error, Exception) else Stopped("the write was cancelled"))
            written.exception()  # whoever waits is told; nobody has to
            raise
        written.set_result(None)

    async def _write(self, rows: _Rows, after: Sequence[asyncio.Future[None]] = ()) -> None:
        self._thread.is_empty = False
        if not await self._group.commit(self._claim, rows, rows.size(), after):
            raise LeaseLost("job {} is no longer held under fence {}".format(*self._claim))

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Every read of the saver goes through here, and its deletions."""
        with database.answering():
            async with super()._cursor(pipeline=pipeline) as cursor:
                with database.severed_after(cursor.connection, database.LIMIT_S):
                    yield cursor


def _told(error: Any) -> Any:
    """An exception's repr, which the serializer would make of it, without secrets."""
    return redact(repr(error)) if isinstance(error, BaseException) else error


def _continue_after(checkpoint_id: str) -> None:
    """Have this process make larger checkpoint ids from now on, also where another machine's clock was ahead of ours.

    Ids hold the time, and the largest is the latest. langgraph's generator never goes back behind the last it made.
    """
    found = ids.UUID(checkpoint_id)
    if found.version == 6:
        generator: Any = ids
        generator._last_v6_timestamp = max(generator._last_v6_timestamp or 0, found.time)


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """As the saver does it: small values stand in the checkpoint itself, the others in blobs."""
    inline: dict[str, Any] = {}
    large: dict[str, Any] = {}
    for channel, value in values.items():
        if isinstance(value, _DeltaSnapshot):
            inline[channel], large[channel] = True, value
        elif value is None or isinstance(value, str | int | float | bool):
            inline[channel] = value
        else:
            large[channel] = value
    return inline, large


async def _commit(connection: AsyncConnection[DictRow], works: Sequence[_Rows], alone: bool) -> Mapping[Hashable, bool]:
    """Write what belongs to claims that hold; returns these."""
    claims = {work.claim for work in works}
    parameters: dict[str, Any] = {
        "job_ids": Texts(job_id for job_id, _ in claims),
        "fences": Bigints(fence for _, fence in claims),
    }
    tables = []
    for table, names in _COLUMNS.items():
        rows = [(*work.claim, *row) for work in works for row in getattr(work, table)]
        if not rows:
            continue
        if table in _REPLACING:  # one statement may not write a row twice
            rows = list({itemgetter(*_REPLACING[table])(row): row for row in rows}.values())
        columns = zip(*rows, strict=True)
        parameters |= {
            f"{table}_{name}": _ARRAYS.get(name, Texts)(column) for name, column in zip(names, columns, strict=True)
        }
        tables.append(table)
    cursor = await connection.execute(_statement(tuple(tables), alone), parameters, binary=True)
    return {(row["job_id"], row["fence"]): True for row in await cursor.fetchall()}


@cache
def _statement(tables: tuple[str, ...], alone: bool) -> str:
    """It writes to these tables only, since every one that it names takes time."""
    held = SQL["held"].replace(" skip locked", "") if alone else SQL["held"]
    return f"with {', '.join([held, *map(TABLES.__getitem__, tables)])}" + SQL["commit"]


def savers_of(pool: Pool) -> Group:
    """Where the savers of one process meet."""
    return GroupCommit(pool, _commit, is_patient=True)
