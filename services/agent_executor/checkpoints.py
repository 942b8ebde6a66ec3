"""LangGraph checkpoints in PostgreSQL.

Owns the choice of saver and what it may deserialise. The tables are made by our migrations; the saver's own `setup()`
is never called (it races, and needs CREATE rights even when there is nothing to do).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg import AsyncCursor
from psycopg.rows import DictRow

from .database import Pool, answering


class Saver(AsyncPostgresSaver):
    """LangGraph's saver, for one job: it holds a lock around every call, so jobs share the pool and never a saver.

    It makes objects of langgraph's own safe types (messages, Command, Send, dates, ...); in strict mode langgraph adds
    those that the state schema of the graph at hand declares. Everything else comes back as plain data. An outage of
    PostgreSQL is Unavailable, which can be told from a job's own errors.
    """

    def __init__(self, pool: Pool) -> None:
        serializer: Any = JsonPlusSerializer(allowed_msgpack_modules=None)
        super().__init__(pool, serde=serializer)

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Every read and write of the saver goes through here."""
        with answering():
            async with super()._cursor(pipeline=pipeline) as cursor:
                yield cursor
