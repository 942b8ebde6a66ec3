"""Is the process alive, and may it get work.

Owns the two answers: `/health` says that the process serves; `/ready` asks every service and is 503 only while starting
or draining, or without PostgreSQL. The other booleans report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum

Probe = Callable[[], Awaitable[bool]]

PROBE_TIMEOUT_S = 2.0


class Phase(StrEnum):
    """Where a process is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"


class Services:
    """What a process depends on, by name, and how to ask it."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self._asking: asyncio.Task[dict[str, bool]] | None = None

    async def ask(self) -> dict[str, bool]:
        """Ask all at once; one that fails or takes longer than `PROBE_TIMEOUT_S` is False.

        Who comes while they are being asked shares the answers: strangers may call, and are not to have the database
        asked as often as they like.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> dict[str, bool]:
        answers = await asyncio.gather(*(_answer(probe) for probe in self._probes.values()))
        return dict(zip(self._probes, answers, strict=True))


async def _answer(probe: Probe) -> bool:
    try:
        return await asyncio.wait_for(probe(), PROBE_TIMEOUT_S)
    except Exception:  # noqa: BLE001 - whatever the client library raises, the service does not answer
        return False
