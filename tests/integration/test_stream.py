"""Publisher against Redis: events that it does not take for now are kept, and sent once it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from agent_executor import stream
from agent_executor.stream import Publisher
from tier3.stack import start


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of its own, since it is made unfit for others."""
    directory: Path = tmp_path_factory.mktemp("redis")
    with start(directory, kinds=["redis"]) as stack:
        yield stack.redis.url


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    client = stream.connect(url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.mark.parametrize(
    ("unfit", "fit"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["full", "a replica"],
)
async def test_events_wait_for_a_redis_that_takes_no_writes(
    redis: Any, monkeypatch: pytest.MonkeyPatch, unfit: Any, fit: Any
) -> None:
    monkeypatch.setattr(stream, "_PAUSE_S", 0.05)
    publisher = Publisher(redis)
    running = asyncio.create_task(publisher.run())
    await redis.execute_command(*unfit)
    try:
        publisher.channel("a", 1, "t").emit("x", None)
        await publisher.flush(0.3)
        assert await redis.xlen(stream.key("a")) == 0
    finally:
        await redis.execute_command(*fit)
    await publisher.flush(10)
    assert await redis.xlen(stream.key("a")) == 1
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
