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


async def ask(probes: Mapping[str, Probe]) -> dict[str, bool]:
    """Ask all services at once; one that fails or takes longer than `PROBE_TIMEOUT_S` is False."""
    answers = await asyncio.gather(*(_answer(probe) for probe in probes.values()))
    return dict(zip(probes, answers, strict=True))


async def _answer(probe: Probe) -> bool:
    try:
        return await asyncio.wait_for(probe(), PROBE_TIMEOUT_S)
    except Exception:  # noqa: BLE001 - whatever the client library raises, the service does not answer
        return False
