"""A graph that waits for ever: what a job costs that is running and does nothing."""

from __future__ import annotations

import asyncio

from tests.bench.plain import State, chain


async def wait(state: State) -> State:
    """Wait for something that never comes."""
    nothing: asyncio.Future[State] = asyncio.get_running_loop().create_future()
    return await nothing


graph = chain(1, wait).compile()
