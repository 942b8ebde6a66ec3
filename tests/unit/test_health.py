"""health: every service is asked, and none of them holds up the answer."""

from __future__ import annotations

import asyncio

import pytest

from agent_executor import health


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


async def broken() -> bool:
    raise LookupError("whatever a client library raises")


async def deaf() -> bool:
    await asyncio.Event().wait()
    return True


async def test_each_answers_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.01)
    answers = await health.ask({"yes": yes, "no": no, "broken": broken, "deaf": deaf})
    assert answers == {"yes": True, "no": False, "broken": False, "deaf": False}


async def test_all_are_asked_at_once() -> None:
    together = asyncio.Barrier(3)

    async def probe() -> bool:
        await together.wait()
        return True

    assert await health.ask(dict.fromkeys("abc", probe)) == dict.fromkeys("abc", True)


async def test_nothing_to_ask() -> None:
    assert await health.ask({}) == {}
