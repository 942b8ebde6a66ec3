"""LangGraph checkpoints in PostgreSQL, fenced by the claim.

Owns the choice of saver, what it may deserialise, and how values are stored; `checkpoint_commits` writes the rows under
the claim's fence. A large value that changes is stored as a difference to a version that this saver committed or read
(`bases`), and every read makes it whole. The tables are made by our migrations; the saver's own `setup()` is never
called (it races, and needs CREATE rights even when there is nothing to do).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.base import id as ids
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import PRUNE_BLOBS_SQL, _keep_latest, _refuse_delta_threads
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, _DeltaSnapshot
from psycopg import AsyncCursor
from psycopg.rows import DictRow

from . import database, differences, sql
from .bases import PREFIX, SMALLEST, Base, Bases, stored, whole
from .checkpoint_commits import Claimed, Group, Rows, joined, savers_of
from .database import Pool, persistently
from .errors import DamagedCheckpoint, LeaseLost, Stopped
from .redaction import redact

SQL = sql.load("checkpoints.sql")
_BASES = SQL["bases"].strip().removesuffix(";")
_WITH_BASES = (
    f"{AsyncPostgresSaver.SELECT_SQL.removesuffix('from checkpoints ')}, ({_BASES}) as bases from checkpoints "
)
_RANDOM = random.Random()  # noqa: S311 - no secret, but our own, which no node can seed
_LONG = 4 * 2**10
"""Longer texts do not stand in the checkpoint itself, which is written at each step."""
_Place = tuple[str, str, str]
"""A thread, a namespace and a channel."""


@dataclass
class _Thread:
    """What a saver knows of its thread. langgraph copies savers, and the copies have to know it, too."""

    is_new: bool
    is_empty: bool
    has_asked: bool = False
    inputs: list[tuple[Rows, asyncio.Future[None]]] = field(default_factory=list)
    """First checkpoints, which are written with what comes next."""
    texts: dict[_Place, str] = field(default_factory=dict)
    """Which version of a long text is known to stand in a blob."""


class Saver(AsyncPostgresSaver):
    """LangGraph's saver, for one claimed job: it holds a lock around every call, so jobs share the pool, never a saver.

    It makes objects of langgraph's own safe types (messages, Command, Send, dates, ...); in strict mode langgraph adds
    those that the state schema of the graph at hand declares. Everything else comes back as plain data.

    Of a job's first run, the checkpoint of an input is written with whatever comes next of the job, and `aput` does not
    wait: langgraph does not wait for it either before it starts, and the input itself is in the ledger.

    Reads and writes are patient: while PostgreSQL is away they are tried again, until the worker ends the run because
    it could not renew the lease.

    Raises:
        LeaseLost: from every write, once the job has been claimed by another worker or has ended.
        DamagedCheckpoint: from every read, if what a value is made of is not there.
    """

    SELECT_SQL = _WITH_BASES

    def __init__(
        self,
        pool: Pool,
        job_id: str,
        fence: int,
        usage_at: Callable[[int], Mapping[str, float]] | None = None,
        *,
        group: Group | None = None,
        bases: Bases | None = None,
        is_new: bool = False,
    ) -> None:
        """`usage_at`: told a checkpoint's step, says what was used until then; it stands in the metadata. `group`: the
        savers of this process, which commit together. `bases`: what they remember, until whoever gave it has it forget
        the claim. `is_new`: nobody can have saved anything of this job."""
        serializer: Any = JsonPlusSerializer(allowed_msgpack_modules=None)
        super().__init__(pool, serde=serializer)
        self._pool = pool
        self._group = group or savers_of(pool)
        self._bases = bases or Bases()
        self._claim: Claimed = (job_id, fence)
        self._usage_at = usage_at
        self._thread = _Thread(is_new=is_new, is_empty=is_new)
        self._writing: defaultdict[tuple[str, str], list[asyncio.Future[None]]] = defaultdict(list)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """As langgraph makes it, but no two are the same where a node seeds Python's own random numbers.

        A version's row is written once, so that of two values the later would be lost, and what is a difference to it.
        """
        number, _, _ = super().get_next_version(current, channel).partition(".")
        return f"{number}.{_RANDOM.random():016}"

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
        try:
            return await persistently(read)
        except _Differs:
            return await BaseCheckpointSaver.aget_delta_channel_history(self, config=config, channels=channels)

    def _build_delta_channels_writes_history(self, **found: Any) -> dict[str, DeltaChannelHistory]:
        """A channel that stores differences of its own may have been one that does not, earlier in the thread."""
        if any((row["type"] or "").startswith(PREFIX) for row in found["stage2_rows"]):
            raise _Differs
        return super()._build_delta_channels_writes_history(**found)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints of a thread."""
        self._forget()
        await super().adelete_thread(thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete checkpoints but the latest, and all blobs that none of these needs."""
        self._forget()
        if strategy != "keep_latest" or isinstance(thread_ids, str):
            await super().aprune(thread_ids, strategy=strategy)
            return
        async with self._cursor() as cursor:
            await _execute(cursor, _refuse_delta_threads(list(thread_ids)))
        for thread_id in thread_ids:
            async with self._cursor() as cursor, cursor.connection.transaction():
                await _execute(cursor, _keep_latest(thread_id))

    def _forget(self) -> None:
        self._bases.forget(self._claim)
        self._thread.texts.clear()

    async def _load_checkpoint_tuple(self, value: DictRow) -> CheckpointTuple:
        """As langgraph does it, once every difference is made whole."""
        rows = {(each[0].decode(), each[1].decode()): (each[2].decode(), each[3]) for each in value["bases"] or ()}
        thread_id, namespace = value["thread_id"], value["checkpoint_ns"]
        versions = value["checkpoint"]["channel_versions"]

        def read(channel: str, version: str, kind: str, content: bytes) -> Base:
            try:
                return whole(version, kind, content, lambda needed: rows.get((channel, needed)))
            except differences.Damaged as damage:
                where = f"channel {channel!r} in a checkpoint of thread {thread_id}"
                raise DamagedCheckpoint(f"{where} cannot be read: {damage}") from None

        values = value["channel_values"] or []
        for number, (name, kind, content) in enumerate(values):
            if content is None or (len(content) < _LONG and not kind.startswith(PREFIX.encode())):
                continue
            channel = name.decode()
            version = str(versions.get(channel, ""))
            found = read(channel, version, kind.decode(), content)
            values[number] = (name, found.kind.encode(), found.content)
            self._thread.texts[thread_id, namespace, channel] = version
            self._remember((thread_id, namespace, channel), found)
        writes = value["pending_writes"] or []
        for number, (task, name, kind, content, *rest) in enumerate(writes):
            if kind.startswith(PREFIX.encode()):
                found = read(name.decode(), "", kind.decode(), content)
                writes[number] = (task, name, found.kind.encode(), found.content, *rest)
        return await super()._load_checkpoint_tuple(value)

    def _remember(self, place: _Place, read: Base) -> None:
        """The latest of the versions that were read."""
        known = self._bases.find(self._claim, place)
        if read.version and (known is None or known.version < read.version):
            self._bases.keep(self._claim, place, read)

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
        for channel in [name for name, value in large.items() if isinstance(value, str) and name not in new_versions]:
            known = self._thread.texts.get((thread_id, namespace, channel))
            if known is None or known != str(checkpoint["channel_versions"].get(channel)):
                inline[channel] = large.pop(channel)  # nobody knows whether it has a blob
        versions: ChannelVersions = {
            channel: str(version) for channel, version in new_versions.items() if channel in large
        }
        dumped = self._dump_blobs(thread_id, namespace, large, versions)
        blobs, bases = self._as_differences(dumped)
        saved = (json.dumps({**checkpoint, "channel_values": inline}), json.dumps(described))
        put = (thread_id, namespace, checkpoint["id"], parent_id, *saved)
        before = self._writing.pop((namespace, parent_id), ()) if parent_id is not None else ()
        rows = Rows(self._claim, puts=[put], blobs=blobs)
        saved_as = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint["id"]}
        if self._thread.is_new and metadata.get("source") == "input" and parent_id is None and not bases:
            self._thread.is_empty = False
            self._thread.inputs.append((rows, self._written(namespace, checkpoint["id"])))
        else:
            await self._write(rows, before)
            for where, base in bases.items():
                self._bases.keep(self._claim, where, base)
                self._thread.texts[where] = base.version
        return {"configurable": saved_as}

    def _written(self, namespace: str, checkpoint_id: str) -> asyncio.Future[None]:
        """What the checkpoint after this one is not to be written without."""
        written = asyncio.get_running_loop().create_future()
        self._writing[namespace, checkpoint_id].append(written)
        return written

    def _as_differences(self, dumped: Sequence[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], dict[_Place, Base]]:
        """Rows of blobs as they are stored, and what they are bases as, once they are committed."""
        rows: list[tuple[Any, ...]] = []
        bases: dict[_Place, Base] = {}
        for thread_id, namespace, channel, version, kind, content in dumped:
            if not isinstance(content, bytes) or len(content) < _LONG:
                rows.append((thread_id, namespace, channel, version, kind, content))
                continue
            place = (thread_id, namespace, channel)
            known = self._bases.find(self._claim, place) if len(content) >= SMALLEST else None
            *row, bases[place] = stored(known, version, kind, content)
            rows.append((*place, version, *row))
        return rows, bases

    def _write_as_difference(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A task's write, which is often the whole next value of its channel."""
        thread_id, namespace, *middle, channel, kind, content = row
        known = self._bases.find(self._claim, (thread_id, namespace, channel))
        if known is None or not isinstance(content, bytes) or len(content) < SMALLEST:
            return row
        kind, content, _ = stored(known, "", kind, content)
        return (thread_id, namespace, *middle, channel, kind, content)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Save what one task wrote on top of a checkpoint."""
        writes = [(channel, _told(value) if channel == ERROR else value) for channel, value in writes]
        self._thread.has_asked |= any(channel == INTERRUPT for channel, _ in writes)
        place = config["configurable"]
        thread_id, namespace, checkpoint_id = place["thread_id"], place["checkpoint_ns"], place["checkpoint_id"]
        written = self._written(namespace, checkpoint_id)
        try:
            replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
            dumped = self._dump_writes(thread_id, namespace, checkpoint_id, task_id, task_path, writes)
            # One statement may not write a row twice: of the same index the last one stays, or the first.
            rows = list({row[5]: row for row in (dumped if replaces else reversed(dumped))}.values())
            rows = rows if replaces else [self._write_as_difference(row) for row in rows]
            await self._write(Rows(self._claim, **{"replaced" if replaces else "writes": rows}))
        except BaseException as error:
            _fail(error if isinstance(error, Exception) else Stopped("the write was cancelled"), written)
            raise
        written.set_result(None)

    async def _write(self, rows: Rows, after: Sequence[asyncio.Future[None]] = ()) -> None:
        self._thread.is_empty = False
        inputs, self._thread.inputs = self._thread.inputs, []
        rows = joined([*(each for each, _ in inputs), rows]) if inputs else rows
        committed = self._group.submit(self._claim, rows, rows.size(), after)
        if inputs:
            committed.add_done_callback(partial(self._tell, [written for _, written in inputs]))
            committed = asyncio.shield(committed)  # whoever waits may be cancelled, and the inputs be another's
        if not await committed:
            raise self._lost()

    def _tell(self, inputs: Sequence[asyncio.Future[None]], committed: asyncio.Future[bool | None]) -> None:
        error = committed.exception() or (None if committed.result() else self._lost())
        for written in inputs:
            if error is None:
                written.set_result(None)
            else:
                _fail(error, written)

    def _lost(self) -> LeaseLost:
        return LeaseLost("job {} is no longer held under fence {}".format(*self._claim))

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Every read of the saver goes through here, and its deletions."""
        if self._thread.inputs:
            await self._write(Rows(self._claim))
        with database.answering():
            async with super()._cursor(pipeline=pipeline) as cursor:
                with database.severed_after(cursor.connection, database.LIMIT_S):
                    yield cursor


def _fail(error: BaseException, written: asyncio.Future[None]) -> None:
    written.set_exception(error)
    written.exception()  # whoever waits is told; nobody has to


class _Differs(Exception):
    """A row that langgraph has read itself is a difference."""


async def _execute(cursor: AsyncCursor[DictRow], statements: Generator[tuple[str, Any, bool], list[DictRow]]) -> None:
    """langgraph's statements that prune a thread; its blobs go but for those that are bases of others."""
    with suppress(StopIteration):
        query, parameters, is_read = next(statements)
        while True:
            if query == PRUNE_BLOBS_SQL:
                names = ("thread_id", "namespace", "channel", "versions")
                await cursor.execute(SQL["prune_blobs"], dict(zip(names, parameters, strict=True)), prepare=False)
            else:
                await cursor.execute(query, parameters, prepare=False)
            query, parameters, is_read = statements.send(await cursor.fetchall() if is_read else [])


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
    """As the saver does it: small values stand in the checkpoint itself, the others in blobs; long texts do, too."""
    inline: dict[str, Any] = {}
    large: dict[str, Any] = {}
    for channel, value in values.items():
        if isinstance(value, _DeltaSnapshot):
            inline[channel], large[channel] = True, value
        elif value is None or (isinstance(value, str | int | float | bool) and not _is_long(value)):
            inline[channel] = value
        else:
            large[channel] = value
    return inline, large


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > _LONG
