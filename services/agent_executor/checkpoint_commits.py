"""What the savers of checkpoints write, in one statement for many jobs.

Owns which rows go to which table (`checkpoint_commits.sql`) and the fence: each claim is asserted in the same
statement, so that a worker that lost its job can write nothing, and one that freezes holds no lock. What stands in the
rows is `checkpoints`' concern; who waits with whom, `group_commit`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from . import sql
from .arrays import Bigints, Blobs, Ints, Texts
from .database import Pool
from .group_commit import GroupCommit

SQL = sql.load("checkpoint_commits.sql")
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
class Rows:
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


def joined(several: Sequence[Rows]) -> Rows:
    """What several calls of a saver write, as one."""
    rows = {table: [row for each in several for row in getattr(each, table)] for table in _COLUMNS}
    return Rows(several[0].claim, **rows)


Group = GroupCommit[Rows, bool]


async def commit(connection: AsyncConnection[DictRow], works: Sequence[Rows], alone: bool) -> Mapping[Hashable, bool]:
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
    cursor = await connection.execute(statement(tuple(tables), alone=alone), parameters, binary=True)
    return {(row["job_id"], row["fence"]): True for row in await cursor.fetchall()}


@cache
def statement(tables: tuple[str, ...], *, alone: bool) -> str:
    """What writes to these tables only, since every one that it names takes time."""
    held = SQL["held"].replace(" skip locked", "") if alone else SQL["held"]
    return f"with {', '.join([held, *map(TABLES.__getitem__, tables)])}" + SQL["commit"]


def savers_of(pool: Pool) -> Group:
    """Where the savers of one process meet."""
    return GroupCommit(pool, commit, is_patient=True)
