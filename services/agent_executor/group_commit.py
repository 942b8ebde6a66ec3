"""Group commit: what many jobs have to write, in one transaction (DeWitt et al., "Implementation techniques for main
memory database systems", 1984).

Owns who waits with whom. While one transaction is under way the next one gathers; it starts as soon as the connection
is free, never on a timer. A caller returns only after its work is committed. What fails in company is tried again one
owner at a time, so that nobody suffers for a neighbour; what it means to have failed is the caller's concern.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from . import database
from .database import Pool
from .errors import Stopped, Unavailable

W = TypeVar("W")
R = TypeVar("R")

MAX_WORKS = 500
MAX_BYTES = 4 * 2**20
_TURNS = 6  # of the loop, after which whoever is about to write has come: a step's checkpoint follows its tasks' writes
_BYTES_A_SECOND = 2**20  # what the slowest database we wait for takes in

Commit = Callable[[AsyncConnection[DictRow], Sequence[W], bool], Awaitable[Mapping[Hashable, R]]]
"""Commit all works in one statement, and say what came of them, by owner. An owner that is not there was passed over:
it is tried again alone, which the last argument says, and then has no result."""


@dataclass(eq=False)
class _Work(Generic[W, R]):
    content: W
    size: int
    after: Sequence[asyncio.Future[Any]]
    done: asyncio.Future[R | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class GroupCommit(Generic[W, R]):
    """One per kind of work and process. An owner's works are committed in the order they came in."""

    def __init__(self, pool: Pool, commit: Commit[W, R], *, is_patient: bool = False) -> None:
        """`is_patient`: while PostgreSQL is away, try again until it is back; whoever waits may leave."""
        self._pool = pool
        self._commit = commit
        self._is_patient = is_patient
        self._waiting: dict[Hashable, deque[_Work[W, R]]] = {}
        self._alone: dict[Hashable, asyncio.Task[None]] = {}
        self._flushing: asyncio.Task[None] | None = None

    async def commit(
        self, owner: Hashable, content: W, size: int = 0, after: Sequence[asyncio.Future[Any]] = ()
    ) -> R | None:
        """Have `content`, of `size` bytes, committed, and return what came of it; None: its owner was refused.

        Works of one owner that get into the same transaction are all committed, or none is. If one of `after` has
        failed when the turn comes, this fails as it did.

        Raises:
            Unavailable: PostgreSQL is away, unless this is patient. psycopg.Error: it cannot be stored.
        """
        return await self.submit(owner, content, size, after)

    def submit(
        self, owner: Hashable, content: W, size: int = 0, after: Sequence[asyncio.Future[Any]] = ()
    ) -> asyncio.Future[R | None]:
        """`commit`, without a wait; whoever cancels the future wants it no more."""
        work: _Work[W, R] = _Work(content, size, after)
        self._waiting.setdefault(owner, deque()).append(work)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush(), context=Context())
        return work.done

    async def _flush(self) -> None:
        try:
            while self._waiting:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                if not (batch := self._next()):
                    return  # those who wait are being tried alone
                await self._together(batch)
        finally:
            self._flushing = None

    def _next(self) -> dict[Hashable, list[_Work[W, R]]]:
        """What goes into the next transaction: of each owner that is not being tried alone, the oldest works."""
        batch: dict[Hashable, list[_Work[W, R]]] = {}
        count = size = 0
        for owner in [each for each in self._waiting if each not in self._alone]:
            works, taken = self._waiting[owner], []
            while works and count < MAX_WORKS and (not count or size + works[0].size <= MAX_BYTES):
                work = works.popleft()
                if not _is_due(work):
                    continue
                taken.append(work)
                count, size = count + 1, size + work.size
            if not works:
                del self._waiting[owner]
            if taken:
                batch[owner] = taken
            if count == MAX_WORKS:
                break
        return batch

    async def _together(self, batch: Mapping[Hashable, list[_Work[W, R]]]) -> None:
        try:
            results = await self._committed(batch, alone=False)
        except Unavailable as error:
            for works in batch.values():
                _fail(works, error)
            return
        except Exception:  # noqa: BLE001 - one of them cannot be stored; which one, and why, shows alone
            results = {}
        except BaseException:
            for works in batch.values():
                _fail(works, Stopped("the commit was cancelled"))
            raise
        for owner, works in batch.items():
            if owner in results:
                _succeed(works, results[owner])
            else:
                self._alone[owner] = asyncio.create_task(self._try_alone(owner, works))

    async def _try_alone(self, owner: Hashable, works: list[_Work[W, R]]) -> None:
        try:
            _succeed(works, (await self._committed({owner: works}, alone=True)).get(owner))
        except BaseException as error:  # whoever waits for it raises it
            _fail(works, error if isinstance(error, Exception) else Stopped("the commit was cancelled"))
            if not isinstance(error, Exception):
                raise
        finally:
            del self._alone[owner]
            if self._waiting and self._flushing is None:
                self._flushing = asyncio.create_task(self._flush(), context=Context())

    async def _committed(self, batch: Mapping[Hashable, list[_Work[W, R]]], *, alone: bool) -> Mapping[Hashable, R]:
        if self._is_patient:
            return await database.persistently(partial(self._committed_once, batch, alone))
        return await self._committed_once(batch, alone)

    async def _committed_once(self, batch: Mapping[Hashable, list[_Work[W, R]]], alone: bool) -> Mapping[Hashable, R]:
        works = [work for works in batch.values() for work in works if not work.done.done()]
        if not works:
            return {}  # everybody has left meanwhile
        limit_s = database.LIMIT_S + sum(work.size for work in works) / _BYTES_A_SECOND
        async with database.connection(self._pool, limit_s) as connection:
            return await self._commit(connection, [work.content for work in works], alone)


def _is_due(work: _Work[Any, Any]) -> bool:
    """Whether it is to be committed: somebody still waits for it, and what it stands on has not failed."""
    if work.done.done():
        return False
    for before in work.after:
        if before.done() and not before.cancelled() and (error := before.exception()) is not None:
            work.fail(error)
            return False
    return True


def _succeed(works: Sequence[_Work[W, R]], result: R | None) -> None:
    for work in works:
        if not work.done.done():
            work.done.set_result(result)


def _fail(works: Sequence[_Work[Any, Any]], error: BaseException) -> None:
    for work in works:
        work.fail(error)
