"""stream: events to Redis in order and in batches, whatever Redis does meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from agent_executor import metrics, stream
from agent_executor.stream import Event, Publisher


class FakeRedis:
    """Stands for Redis: streams that refuse ids out of order, channels, and failures to order.

    Beside it runs the real one: tests/integration/test_events.py.
    """

    def __init__(self) -> None:
        self.streams: dict[str, list[str]] = {}
        self.published: list[tuple[str, bytes]] = []
        self.expiring: dict[str, int] = {}
        self.batches: list[int] = []
        self.failures: list[Exception] = []
        self.refusals: dict[str, Any] = {}
        self.odd: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    def pipeline(self, *, transaction: bool) -> FakePipeline:
        assert not transaction
        return FakePipeline(self)


class FakePipeline:
    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis
        self._commands: list[Callable[[], Any]] = []
        self._added = 0

    def eval(self, script: str, keys: int, key: str, *words: Any) -> None:
        assert (script, keys) == (stream._STORE_AND_PUBLISH, 1)
        maxlen, kept_s, channel, *of_events = words
        assert maxlen == stream.KEPT_EVENTS
        events = list(zip(of_events[::3], of_events[1::3], of_events[2::3], strict=True))
        self._added += len(events)
        self._commands.append(lambda: self._store_all(key, kept_s, channel, events))

    async def execute(self, *, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        self._redis.entered.set()
        if self._redis.gate is not None:
            await self._redis.gate.wait()
        if self._redis.failures:
            raise self._redis.failures.pop(0)
        self._redis.batches.append(self._added)
        return [command() for command in self._commands]

    def _store_all(self, key: str, kept_s: int, channel: str, events: list[tuple[str, str, bytes]]) -> Any:
        if key in self._redis.refusals:
            return self._redis.refusals[key]
        refused: list[Any] = []
        for number, (event_id, _, body) in enumerate(events):
            if (reason := self._store(key, event_id, channel, body)) is not None:
                refused += [number, reason]
        self._redis.expiring[key] = kept_s
        return refused

    def _store(self, key: str, event_id: str, channel: str, body: bytes) -> bytes | None:
        if event_id in self._redis.odd:
            return b"ERR odd"
        stored = self._redis.streams.setdefault(key, [])
        if stored and _order(event_id) <= _order(stored[-1]):
            return b"ERR The ID specified in XADD is equal or smaller than the target stream top item"
        stored.append(event_id)
        self._redis.published.append((channel, body))
        return None


def _order(event_id: str) -> list[int]:
    return [int(part) for part in event_id.split("-")]


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> FakeRedis:
    monkeypatch.setattr(stream, "_PAUSE_S", 0)
    return FakeRedis()


@pytest.fixture
async def publisher(redis: FakeRedis) -> AsyncIterator[Publisher]:
    publisher = Publisher(redis)  # type: ignore[arg-type]
    running = asyncio.create_task(publisher.run())
    yield publisher
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def errors_counted() -> float:
    return float(metrics.redis_publish_errors._value.get())


def sent_counted(event_type: str) -> float:
    return float(metrics.redis_publish.labels(event_type)._value.get())


async def test_an_event_is_published_and_stored(redis: FakeRedis, publisher: Publisher) -> None:
    publisher.channel("job-1", 3, "trace-1").emit("on_tool_start", {"name": "ä"})
    await publisher.flush(5)
    [(channel, body)] = redis.published
    event = json.loads(body)
    assert channel == "langgraph:stream:job-1"
    assert (event["event_type"], event["data"]) == ("on_tool_start", {"name": "ä"})
    assert (event["id"], event["trace_id"]) == ("3-1", "trace-1")
    assert event["time"].endswith("+00:00")
    assert redis.streams == {"langgraph:events:job-1": ["3-1"]}
    assert redis.expiring == {"langgraph:events:job-1": 24 * 3600}


async def test_events_keep_their_order_and_go_in_batches(redis: FakeRedis, publisher: Publisher) -> None:
    first, second = publisher.channel("a", 1, "t"), publisher.channel("b", 1, "t")
    for _ in range(stream._BATCH):
        first.emit("x", None)
        second.emit("x", None)
    await publisher.flush(5)
    wanted = [f"1-{number}" for number in range(1, stream._BATCH + 1)]
    assert redis.streams == {"langgraph:events:a": wanted, "langgraph:events:b": wanted}
    assert redis.batches == [stream._BATCH, stream._BATCH]
    assert [json.loads(body)["id"] for channel, body in redis.published if channel.endswith(":a")] == wanted


async def test_events_emitted_while_a_batch_is_under_way_go_with_the_next(
    redis: FakeRedis, publisher: Publisher
) -> None:
    redis.gate = asyncio.Event()
    channel = publisher.channel("a", 1, "t")
    channel.emit("x", None)
    await redis.entered.wait()
    channel.emit("x", None)
    channel.emit("x", None)
    redis.gate.set()
    await publisher.flush(5)
    assert redis.batches == [1, 2]
    assert redis.streams["langgraph:events:a"] == ["1-1", "1-2", "1-3"]


@pytest.mark.parametrize(("turn_s", "is_first"), [(0.0, True), (0.003, False)])
async def test_events_let_the_step_that_follows_go_first_but_not_for_long(
    redis: FakeRedis, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, turn_s: float, is_first: bool
) -> None:
    monkeypatch.setattr(stream, "_BEHIND_S", 0.002 if turn_s else 60.0)
    publisher.channel("a", 1, "t").emit("x", None)
    for _ in range(20):
        time.sleep(turn_s)  # noqa: ASYNC251 - a step that takes the loop's time
        await asyncio.sleep(0)
    assert redis.entered.is_set() is not is_first
    await publisher.flush(5)
    assert redis.batches == [1]


@pytest.mark.parametrize("failure", [RedisConnectionError("away"), TimeoutError(), ConnectionResetError()])
async def test_nothing_is_lost_while_redis_is_away(redis: FakeRedis, publisher: Publisher, failure: Exception) -> None:
    before = errors_counted()
    redis.failures = [failure] * 3
    channel = publisher.channel("a", 1, "t")
    for _ in range(5):
        channel.emit("x", None)
    await publisher.flush(5)
    assert redis.streams["langgraph:events:a"] == [f"1-{number}" for number in range(1, 6)]
    assert errors_counted() > before


async def test_a_batch_that_arrived_although_it_failed_is_stored_once(
    redis: FakeRedis, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = FakePipeline.execute
    answers = [TimeoutError()]

    async def lost_answer(pipeline: FakePipeline, *, raise_on_error: bool) -> list[Any]:
        replies = await execute(pipeline, raise_on_error=raise_on_error)
        if answers:
            raise answers.pop()
        return replies

    monkeypatch.setattr(FakePipeline, "execute", lost_answer)
    channel = publisher.channel("a", 1, "t")
    channel.emit("x", None)
    channel.emit("x", None)
    await publisher.flush(5)
    assert redis.streams["langgraph:events:a"] == ["1-1", "1-2"]


async def test_what_a_worker_that_lost_its_job_still_sends_is_not_stored(
    redis: FakeRedis, publisher: Publisher
) -> None:
    before = sent_counted("late")
    old, new = publisher.channel("a", 1, "t"), publisher.channel("a", 2, "t")
    old.emit("x", None)
    new.emit("x", None)
    old.emit("late", None)
    new.emit("x", None)
    await publisher.flush(5)
    assert redis.streams["langgraph:events:a"] == ["1-1", "2-1", "2-2"]
    assert sent_counted("late") == before


async def test_what_is_sent_is_counted_by_type(redis: FakeRedis, publisher: Publisher) -> None:
    before = sent_counted("end")
    publisher.channel("a", 1, "t").emit("end", {"status": "completed"})
    await publisher.flush(5)
    assert sent_counted("end") == before + 1


async def test_an_event_that_is_refused_costs_no_other(redis: FakeRedis, publisher: Publisher) -> None:
    before, sent = errors_counted(), sent_counted("odd")
    redis.odd = {"1-2"}
    channel = publisher.channel("a", 1, "t")
    for _ in range(3):
        channel.emit("odd", None)
    await publisher.flush(5)
    assert redis.streams["langgraph:events:a"] == ["1-1", "1-3"]
    assert (errors_counted(), sent_counted("odd")) == (before + 1, sent + 2)


async def test_a_job_whose_events_are_refused_costs_other_jobs_none(redis: FakeRedis, publisher: Publisher) -> None:
    before = errors_counted()
    redis.refusals = {"langgraph:events:a": ResponseError("no permission")}
    refused, stored = publisher.channel("a", 1, "t"), publisher.channel("b", 1, "t")
    for channel in (refused, stored, refused, stored):
        channel.emit("x", None)
    await publisher.flush(5)
    assert redis.streams == {"langgraph:events:b": ["1-1", "1-2"]}
    assert errors_counted() == before + 2


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (ReadOnlyError("You can't write against a read only replica."), b"READONLY You can't write against it."),
        (OutOfMemoryError("command not allowed"), b"OOM command not allowed"),
    ],
)
async def test_a_redis_that_takes_no_writes_for_now_is_as_good_as_away(
    redis: FakeRedis, publisher: Publisher, whole: Exception, reason: bytes
) -> None:
    redis.refusals["langgraph:events:a"] = whole
    publisher.channel("a", 1, "t").emit("x", None)
    publisher.channel("b", 1, "t").emit("x", None)
    async with asyncio.timeout(5):
        while len(redis.batches) < 3:  # noqa: ASYNC110 - it is tried again
            await asyncio.sleep(0)
        redis.refusals["langgraph:events:a"] = [0, reason]
        while len(redis.batches) < 6:  # noqa: ASYNC110 - also where single events were refused
            await asyncio.sleep(0)
    redis.refusals.clear()
    await publisher.flush(5)
    assert redis.streams == {"langgraph:events:a": ["1-1"], "langgraph:events:b": ["1-1"]}


async def test_large_events_go_in_smaller_batches(
    redis: FakeRedis, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_BATCH_BYTES", 2500)
    channel = publisher.channel("a", 1, "t")
    for size in (1000, 1000, 3000, 10, 10):
        channel.emit("x", "x" * size)
    await publisher.flush(5)
    assert redis.batches == [2, 1, 2]
    assert redis.streams["langgraph:events:a"] == [f"1-{number}" for number in range(1, 6)]


async def test_a_buffer_is_full_of_bytes_too(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_BUFFERED_BYTES", 2500)
    publisher, before = Publisher(redis), errors_counted()  # type: ignore[arg-type]
    channel = publisher.channel("a", 1, "t")
    for size in (1000, 1000, 1000, 9000, 1000, 1000):
        channel.emit("x", "x" * size)
    running = asyncio.create_task(publisher.run())
    await publisher.flush(5)
    assert errors_counted() == before + 4
    assert redis.streams["langgraph:events:a"] == ["1-5", "1-6"]
    channel.emit("x", "x" * 9000)
    await publisher.flush(5)
    assert redis.streams["langgraph:events:a"] == ["1-5", "1-6", "1-7"]  # alone, it is let through
    running.cancel()


async def test_a_full_buffer_drops_the_oldest_and_counts_them(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_BUFFERED_EVENTS", 3)
    publisher, before = Publisher(redis), errors_counted()  # type: ignore[arg-type]
    channel = publisher.channel("a", 1, "t")
    for _ in range(5):
        channel.emit("x", None)
    assert errors_counted() == before + 2
    running = asyncio.create_task(publisher.run())
    await publisher.flush(5)
    running.cancel()
    assert redis.streams["langgraph:events:a"] == ["1-3", "1-4", "1-5"]


async def test_events_dropped_from_a_batch_under_way_cost_no_others(
    redis: FakeRedis, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_BUFFERED_EVENTS", 2)
    redis.gate = asyncio.Event()
    channel = publisher.channel("a", 1, "t")
    channel.emit("x", None)
    await redis.entered.wait()
    for _ in range(3):
        channel.emit("x", None)
    redis.gate.set()
    await publisher.flush(5)
    assert redis.streams["langgraph:events:a"] == ["1-1", "1-3", "1-4"]


async def test_flushing_gives_up_in_time(redis: FakeRedis) -> None:
    publisher = Publisher(redis)  # type: ignore[arg-type]
    publisher.channel("a", 1, "t").emit("x", None)
    await publisher.flush(0.01)
    assert redis.published == []


async def test_flushing_nothing_returns_at_once(redis: FakeRedis) -> None:
    await Publisher(redis).flush(60)  # type: ignore[arg-type]


class FakeReader:
    """Stands for Redis' reading side, in the shapes of RESP2 and of RESP3."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    async def xread(self, streams: dict[str, str], *, count: int, block: int) -> Any:
        assert list(streams.values()) == ["1-1"]
        return self._reply

    async def xrange(self, key: str, *, count: int) -> Any:
        assert (key, count) == ("langgraph:events:a", 1)
        return self._reply


ENTRY = (b"1-2", {b"type": b"end", b"event": b"{}"})


@pytest.mark.parametrize(
    "reply",
    [
        [[b"langgraph:events:a", [ENTRY]]],
        {b"langgraph:events:a": [[ENTRY]]},
        {b"langgraph:events:a": [ENTRY]},
    ],
    ids=["resp2", "resp3", "resp3-flat"],
)
async def test_reading(reply: Any) -> None:
    found = await stream.read(FakeReader(reply), "a", "1-1", 1)  # type: ignore[arg-type]
    assert found == [Event("1-2", "end", b"{}")]


@pytest.mark.parametrize(("sizes", "count"), [([10], stream._BATCH), ([2**18], 4), ([2**17] * 2, 8), ([2**22], 1)])
def test_large_events_are_read_few_at_once(sizes: list[int], count: int) -> None:
    assert stream.fitting([Event("1-1", "x", bytes(size)) for size in sizes]) == count


@pytest.mark.parametrize("reply", [None, [], {}])
async def test_reading_nothing(reply: Any) -> None:
    assert await stream.read(FakeReader(reply), "a", "1-1", 1) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("reply", "found"), [([ENTRY], "1-2"), ([], None)])
async def test_the_oldest_event_that_is_still_there(reply: Any, found: str | None) -> None:
    assert await stream.first_id(FakeReader(reply), "a") == found  # type: ignore[arg-type]
