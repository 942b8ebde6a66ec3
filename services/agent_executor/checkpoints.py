"""LangGraph checkpoints in PostgreSQL.

Owns the choice of saver and what it may deserialise. The tables are made by our migrations; the saver's own `setup()`
is never called (it races, and needs CREATE rights even when there is nothing to do).
"""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]


def saver(pool: Pool) -> AsyncPostgresSaver:
    """A saver for one job. Savers hold a lock around every call: two jobs must not share one, they share the pool.

    It makes objects of langgraph's own safe types (messages, Command, Send, dates, ...); in strict mode langgraph adds
    those that the state schema of the graph at hand declares. Everything else comes back as plain data.
    """
    serializer: Any = JsonPlusSerializer(allowed_msgpack_modules=None)
    return AsyncPostgresSaver(pool, serde=serializer)
