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

# Beyond langgraph's own safe list (messages, Command, Send, dates, ...) and the types that a graph's state schema
# declares, both of which langgraph adds by itself in strict mode.
_STATE_TYPES: tuple[tuple[str, str], ...] = ()


def saver(pool: Pool) -> AsyncPostgresSaver:
    """A saver for one job. Savers hold a lock around every call: two jobs must not share one, they share the pool."""
    serializer: Any = JsonPlusSerializer(allowed_msgpack_modules=_STATE_TYPES)
    return AsyncPostgresSaver(pool, serde=serializer)
