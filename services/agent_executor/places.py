"""The places that a process holds for its event streams, of those that a tenant may have in all processes together.

A place is a row that expires, so that those of a process that died become free; those that are held are renewed in one
statement. Reads the sizes that tenants' bodies may have on the way, since a body is judged before anything is asked.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import structlog

from . import sql
from .database import Pool, connection
from .errors import Unavailable
from .notify import wait
from .quotas import Allowance, too_many

EXPIRY_S = 30.0
RENEW_S = 10.0
_RETRY_S = 1.0

SQL = sql.load("places.sql")

log = structlog.get_logger()


class Places:
    """One per process. `run` has to run beside."""

    def __init__(self, pool: Pool, allowance: Allowance, max_body_bytes: int) -> None:
        self._pool = pool
        self._allowance = allowance
        self._max_body_bytes = max_body_bytes
        self._bodies: Mapping[str, int] = {}
        self._held: dict[str, str] = {}
        self._left: list[str] = []
        self._due = asyncio.Event()

    def body_limit(self, tenant: str) -> int:
        """The largest body of a tenant in bytes, as it was at most `RENEW_S` ago."""
        return min(self._max_body_bytes, self._bodies.get(tenant, self._max_body_bytes))

    async def take(self, tenant: str) -> AbstractContextManager[None]:
        """A place for one more stream of a tenant; it is given back at the end of its `with` block.

        Raises:
            TooManyRequests: the tenant has as many as it may.
        """
        place = uuid.uuid4().hex
        asked = {"id": place, "tenant": tenant, "expiry_s": EXPIRY_S, **self._allowance.parameters()}
        async with connection(self._pool) as taken:
            async with taken.pipeline():  # one transaction, which ends without us: a turn is never kept
                await taken.execute(SQL["in_turn"], asked)
                cursor = await taken.execute(SQL["take"], asked)
            found = await cursor.fetchone()
        assert found is not None
        if not found["is_taken"]:
            raise too_many("max_open_streams", found["max_open_streams"])
        self._held[place] = tenant
        return self._until_left(place)

    @contextmanager
    def _until_left(self, place: str) -> Iterator[None]:
        try:
            yield
        finally:
            del self._held[place]
            self._left.append(place)
            self._due.set()

    async def run(self) -> None:
        """Renew what is held and delete what was given back, until cancelled."""
        renew_at = 0.0
        while True:
            try:
                await self._give_back()
                if time.monotonic() >= renew_at:
                    await self._renew()
                    renew_at = time.monotonic() + RENEW_S
            except Unavailable as error:
                log.warning("places_not_renewed", reason=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            await wait(self._due, max(0.0, renew_at - time.monotonic()))

    async def _give_back(self) -> None:
        left = list(self._left)
        if left:
            async with connection(self._pool) as taken:
                await taken.execute(SQL["give_back"], {"ids": left})
            del self._left[: len(left)]

    async def _renew(self) -> None:
        held = {"ids": list(self._held), "tenants": list(self._held.values()), "expiry_s": EXPIRY_S}
        async with connection(self._pool) as taken:
            await taken.execute(SQL["renew"], held)
            rows = await (await taken.execute(SQL["body_limits"])).fetchall()
        self._bodies = {row["tenant"]: row["max_body_bytes"] for row in rows}
