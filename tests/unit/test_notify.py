"""notify: waiting for what others did to the ledger."""

from __future__ import annotations

import asyncio

import pytest

from agent_executor.notify import Listener, wait


async def test_wait_returns_when_it_is_told_and_forgets_it() -> None:
    event = asyncio.Event()
    event.set()
    await wait(event, 60)
    assert not event.is_set()


async def test_wait_returns_when_nobody_tells_it() -> None:
    event = asyncio.Event()
    await wait(event, 0.001)
    assert not event.is_set()


@pytest.mark.parametrize("turns", range(4))
async def test_being_cancelled_wins_over_being_told(turns: int) -> None:
    """asyncio.wait_for of Python 3.11 swallows a cancellation that comes together with the result."""
    event = asyncio.Event()

    async def part() -> None:
        while True:
            await wait(event, 60)

    running = asyncio.create_task(part())
    await asyncio.sleep(0.001)
    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    ended, _ = await asyncio.wait([running], timeout=0.1)
    running.cancel()
    assert ended


async def test_whoever_waits_for_a_job_has_an_event_of_its_own() -> None:
    listener = Listener("host=nowhere.invalid")
    with listener.finished("a") as first, listener.finished("a") as second, listener.finished("b") as other:
        assert len({id(each) for each in (first, second, other)}) == 3
        assert listener._waiting["a"] == {first, second}


async def test_nobody_is_remembered_who_waits_no_longer() -> None:
    listener = Listener("host=nowhere.invalid")
    with listener.finished("a"):
        with listener.finished("a"):
            pass
        assert len(listener._waiting["a"]) == 1
    assert dict(listener._waiting) == {}
