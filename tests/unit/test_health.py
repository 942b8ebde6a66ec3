"""health: every service is asked, and none of them holds up the answer."""

from __future__ import annotations

import asyncio

import pytest

from agent_executor import health
from agent_executor.health import Services


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
    answers = await Services({"yes": yes, "no": no, "broken": broken, "deaf": deaf}).ask()
    assert answers == {"yes": True, "no": False, "broken": False, "deaf": False}


async def test_all_are_asked_at_once() -> None:
    together = asyncio.Barrier(3)

    async def probe() -> bool:
        await together.wait()
        return True

    assert await Services(dict.fromkeys("abc", probe)).ask() == dict.fromkeys("abc", True)


async def test_nothing_to_ask() -> None:
    assert await Services({}).ask() == {}


async def test_who_asks_meanwhile_shares_the_answers_and_who_comes_later_does_not() -> None:
    asked, hold = 0, asyncio.Event()

    async def probe() -> bool:
        nonlocal asked
        asked += 1
        await hold.wait()
        return True

    services = Services({"a": probe})
    first, *others = (asyncio.create_task(services.ask()) for _ in range(50))
    await asyncio.sleep(0)
    first.cancel()  # whoever began it may go
    hold.set()
    assert await asyncio.gather(*others) == [{"a": True}] * 49
    assert asked == 1
    await services.ask()
    assert asked == 2
