"""event_stream: replay, live events, one `end`; and what a reader is told when events are gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import psycopg
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from agent_executor import event_stream
from agent_executor.errors import InvalidInput, Unavailable
from agent_executor.event_stream import BEGINNING, Streams, first_position, follow
from agent_executor.ledger import FINISHED_CHANNEL
from agent_executor.notify import Listener

CANARY = "canary-4711"


class FakeService:
    """Stands for service.Service with its Redis (`events`) and its `ledger`."""

    def __init__(self, *ids: str, status: str = "running") -> None:
        self.events = self.ledger = self
        self.listener = Listener("host=nowhere.invalid")
        self.streams = Streams()
        self.stored = [(each, "x") for each in ids]
        self.status = status
        self.interrupts: list[dict[str, Any]] | None = None
        self.away = False
        self.looks = 0
        self.counts: list[int] = []
        self.looked = asyncio.Event()

    def store(self, event_id: str, event_type: str = "x") -> None:
        self.stored.append((event_id, event_type))

    async def xread(self, streams: dict[str, str], *, count: int, block: int) -> Any:
        await asyncio.sleep(0)
        self.counts.append(count)
        if self.away:
            raise RedisConnectionError
        [(key, after)] = streams.items()
        with suppress(TimeoutError):
            async with asyncio.timeout(block / 1000):
                while not self._after(after):  # noqa: ASYNC110 - a list has no event
                    await asyncio.sleep(0)
        entries = self._after(after)
        return [[key, entries[:count]]] if entries else []

    def _after(self, position: str) -> list[Any]:
        return [
            (event_id.encode(), {b"type": kind.encode(), b"event": json.dumps({"event_type": kind}).encode()})
            for event_id, kind in self.stored
            if _order(event_id) > _order(position)
        ]

    async def xrange(self, key: str, *, count: int) -> Any:
        assert key == "langgraph:events:job-1"
        if self.away:
            raise RedisConnectionError
        return [
            (event_id.encode(), {b"type": kind.encode(), b"event": b"{}"}) for event_id, kind in self.stored[:count]
        ]

    async def xrevrange(self, key: str, *, count: int) -> Any:
        return (await self.xrange(key, count=len(self.stored)))[::-1][:count]

    async def job(self, job_id: str, tenant: str) -> dict[str, Any]:
        assert (job_id, tenant) == ("job-1", "tenant-1")
        self.looks += 1
        self.looked.set()
        return {"status": self.status, "interrupts": self.interrupts}


def _order(event_id: str) -> list[int]:
    return [int(part) for part in event_id.split("-")]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream._next, "__defaults__", (1,))


class Received(NamedTuple):
    """One Server-Sent Event."""

    id: str | None
    event: str
    data: str


async def following(
    service: FakeService, position: str = BEGINNING, holds: Callable[[], bool] = lambda: True
) -> AsyncIterator[Received]:
    """What a reader gets."""
    async for piece in follow(service, "job-1", "tenant-1", position, holds):  # type: ignore[arg-type]
        assert piece.endswith(b"\n\n")
        for block in piece.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            yield Received(fields.get("id"), fields["event"], fields["data"])


async def heard(service: FakeService, position: str = BEGINNING) -> list[tuple[str | None, str]]:
    """(id, event) of all that a reader gets."""
    async with asyncio.timeout(5):
        return [(each.id, each.event) async for each in following(service, position)]


@pytest.mark.parametrize("given", [None, "", " "])
def test_without_a_last_event_id_a_reader_starts_at_the_beginning(given: str | None) -> None:
    assert first_position(given) == BEGINNING


@pytest.mark.parametrize("given", ["1-1", " 12-345 ", "0-0"])
def test_a_last_event_id_is_a_position(given: str) -> None:
    assert first_position(given) == given.strip()


@pytest.mark.parametrize("given", [CANARY, "1", "1-", "-1", "1-1-1", "1-x", "$", "+", "1" * 19 + "-1", "\u0661-1"])
def test_a_last_event_id_that_is_none_of_ours_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match="last-event-id") as raised:
        first_position(given)
    assert CANARY not in str(raised.value)


async def test_a_finished_job_is_replayed_to_its_end() -> None:
    service = FakeService("1-1", "1-2", status="completed")
    service.store("1-3", "end")
    service.store("1-4")
    assert await heard(service) == [("1-1", "x"), ("1-2", "x"), ("1-3", "end")]


async def test_a_reader_whose_credential_ends_is_told_nothing_more() -> None:
    service = FakeService("1-1", "1-2")
    looks = iter([True, False])
    async with asyncio.timeout(5):
        assert [each.id async for each in following(service, holds=lambda: next(looks))] == ["1-1", "1-2"]


async def test_data_is_what_was_published() -> None:
    service = FakeService()
    service.store("1-1", "end")
    [event] = [each async for each in following(service)]
    assert json.loads(event.data) == {"event_type": "end"}


async def test_a_reader_goes_on_after_the_last_id_it_saw() -> None:
    service = FakeService("1-1", "1-2", "2-3")
    service.store("2-4", "end")
    assert await heard(service, "1-2") == [("2-3", "x"), ("2-4", "end")]


async def test_live_events_follow_the_replay() -> None:
    service = FakeService("1-1")
    reading = asyncio.create_task(heard(service))
    await service.looked.wait()
    service.store("1-2")
    service.store("1-3", "end")
    assert await reading == [("1-1", "x"), ("1-2", "x"), ("1-3", "end")]


async def test_a_long_replay_is_read_in_batches_without_a_gap() -> None:
    service = FakeService(*(f"1-{number}" for number in range(1, 651)))
    service.store("1-651", "end")
    assert [each for each, _ in await heard(service)] == [f"1-{number}" for number in range(1, 652)]
    assert service.counts == [25, 250, 250, 250]


async def test_many_small_events_are_sent_at_once_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "_PIECE_BYTES", 100)
    service = FakeService(*(f"1-{number}" for number in range(1, 5)))
    service.store("1-5", "end" * 50)
    service.store("1-6", "end")
    pieces = [piece async for piece in follow(service, "job-1", "tenant-1", BEGINNING)]  # type: ignore[arg-type]
    assert [piece.count(b"id: ") for piece in pieces] == [3, 2, 1]
    assert pieces[2] == b'id: 1-6\nevent: end\ndata: {"event_type": "end"}\n\n'


@pytest.mark.parametrize(
    ("ids", "position"),
    [
        (["1-5"], BEGINNING),
        (["1-5"], "1-3"),
        (["3-5"], "1-3"),
        ([], "1-3"),
    ],
    ids=["trimmed", "trimmed-after-position", "trimmed-over-a-takeover", "expired"],
)
async def test_a_gap_is_announced_once_and_the_rest_follows(ids: list[str], position: str) -> None:
    service = FakeService(*ids, status="completed")
    service.store("3-6", "end")
    if not ids:
        service.stored.clear()
    found = await heard(service, position)
    assert [kind for _, kind in found] == ["warning", *("x" for _ in ids), "end"]
    assert found[0][0] is None


@pytest.mark.parametrize(
    ("ids", "position"),
    [(["1-1"], BEGINNING), (["1-5"], "1-4"), (["1-5"], "1-5"), (["1-1", "2-1"], "1-1"), (["2-1"], BEGINNING)],
)
async def test_where_nothing_is_missing_nobody_is_warned(ids: list[str], position: str) -> None:
    service = FakeService(*ids)
    service.store("9-9", "end")
    assert "warning" not in [kind for _, kind in await heard(service, position)]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_a_finished_job_whose_events_are_gone_ends_by_the_ledger(status: str) -> None:
    found = [each async for each in following(FakeService(status=status))]
    assert [each.event for each in found] == ["warning", "end"]
    assert json.loads(found[1].data) == {"event_type": "end", "data": {"status": status}}


async def test_a_finished_job_ends_by_the_ledger_while_redis_is_away() -> None:
    service = FakeService("1-1", status="completed")
    service.away = True
    assert [kind for _, kind in await heard(service)] == ["warning", "end"]


QUESTIONS: list[dict[str, Any]] = [{"id": "one", "value": "how?"}, {"id": "two", "value": 2}]


async def listened(service: FakeService, position: str, idle_s: float = 0.2) -> list[Any]:
    """The events, as (id, event, data), of a reader that goes away after so long."""
    found = []

    async def read() -> None:
        async for each in following(service, position):
            found.append((each.id, each.event, json.loads(each.data).get("data")))

    reading = asyncio.create_task(read())
    await asyncio.sleep(idle_s)
    reading.cancel()
    return found


@pytest.mark.parametrize("position", [BEGINNING, "1-7"])
async def test_a_job_that_waits_and_whose_events_are_gone_asks_by_the_ledger(position: str) -> None:
    service = FakeService(status="interrupted")
    service.interrupts = QUESTIONS
    warning, *asked = await listened(service, position)
    assert warning[:2] == (None, "warning")
    assert asked == [(None, "on_interrupt", each) for each in QUESTIONS]


async def test_a_reader_that_has_seen_what_is_asked_is_not_told_again() -> None:
    service = FakeService("1-1", status="interrupted")
    service.interrupts = QUESTIONS
    service.store("1-2", "on_interrupt")
    found = await listened(service, BEGINNING, 0.05)
    assert [each[:2] for each in found] == [("1-1", "x"), ("1-2", "on_interrupt")]
    assert await listened(service, "1-2", 0.05) == []


async def test_who_reads_on_while_the_events_expire_is_told_nothing() -> None:
    service = FakeService(status="interrupted")
    service.interrupts = QUESTIONS
    service.store("1-1", "on_interrupt")
    reading = asyncio.create_task(listened(service, BEGINNING))
    await service.looked.wait()
    service.stored.clear()
    assert [kind for _, kind, _ in await reading] == ["on_interrupt"]


async def test_a_job_whose_events_are_gone_goes_on_when_it_is_answered() -> None:
    service = FakeService(status="interrupted")
    service.interrupts = QUESTIONS[:1]
    reading = asyncio.create_task(heard(service))
    await asyncio.sleep(0.1)
    service.status = "running"
    service.store("2-1")
    service.store("2-2", "end")
    assert await reading == [(None, "warning"), (None, "on_interrupt"), ("2-1", "x"), ("2-2", "end")]


async def test_an_end_that_arrives_between_two_looks_is_not_missed() -> None:
    service = FakeService("1-1")

    async def job(job_id: str, tenant: str) -> dict[str, Any]:
        if "end" not in [kind for _, kind in service.stored]:
            service.store("1-2", "end")
        return {"status": "completed"}

    service.job = job  # type: ignore[method-assign]
    assert await heard(service) == [("1-1", "x"), ("1-2", "end")]


async def test_an_end_that_is_still_on_its_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is committed first, its `end` is sent then."""
    monkeypatch.setattr(event_stream._next, "__defaults__", (100,))
    service = FakeService("1-1")

    async def job(job_id: str, tenant: str) -> dict[str, Any]:
        asyncio.get_running_loop().call_later(0.02, service.store, "1-2", "end")
        return {"status": "completed"}

    service.job = job  # type: ignore[method-assign]
    assert await heard(service) == [("1-1", "x"), ("1-2", "end")]


async def test_a_reader_is_not_cut_off_while_the_database_is_away() -> None:
    service = FakeService("1-1")
    failures = [Unavailable("away")] * 2

    async def job(job_id: str, tenant: str) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        service.store("1-2", "end")
        return {"status": "running"}

    service.job = job  # type: ignore[method-assign]
    assert await heard(service) == [("1-1", "x"), ("1-2", "end")]


async def test_a_reader_waits_while_redis_is_away_and_the_job_runs() -> None:
    service = FakeService("1-1")
    service.away = True
    reading = asyncio.create_task(heard(service))
    await service.looked.wait()
    service.store("1-2", "end")
    service.away = False
    assert await reading == [("1-1", "x"), ("1-2", "end")]


async def test_a_reader_that_has_seen_the_end_is_not_told_that_events_are_gone() -> None:
    """EventSource comes back by itself with the id of `end`."""
    service = FakeService("1-1", status="completed")
    service.store("1-2", "end")
    assert "warning" not in [kind for _, kind in await heard(service, "1-2")]


@pytest.mark.parametrize("status", ["running", "interrupted", "queued"])
async def test_who_waits_for_events_does_not_ask_the_ledger_all_the_time(status: str) -> None:
    service = FakeService("1-1", status=status)
    await listened(service, BEGINNING)
    assert service.looks == 1


async def test_a_reader_is_told_at_once_that_the_job_has_ended() -> None:
    service = FakeService("1-1")
    reading = asyncio.create_task(heard(service))
    await service.looked.wait()
    service.status = "failed"
    service.listener._heard(psycopg.Notify(FINISHED_CHANNEL, "job-1", 1))
    assert await reading == [("1-1", "x"), (None, "end")]


async def test_an_end_that_nobody_was_told_of_is_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "_LOOK_S", 0.05)
    service = FakeService("1-1")
    reading = asyncio.create_task(heard(service))
    await service.looked.wait()
    service.status = "failed"
    assert await reading == [("1-1", "x"), (None, "end")]


async def test_a_reader_looks_after_a_gap_in_what_it_is_told() -> None:
    service = FakeService("1-1")
    reading = asyncio.create_task(heard(service))
    await service.looked.wait()
    service.status = "failed"
    service.listener._after_gap()
    assert await reading == [("1-1", "x"), (None, "end")]


async def test_streams_end_when_the_process_goes_down() -> None:
    service = FakeService("1-1")
    reading = asyncio.create_task(heard(service))
    await service.looked.wait()
    await service.streams.end()
    assert reading.done()
    assert await reading == [("1-1", "x")]


async def test_ending_no_streams_takes_no_time() -> None:
    async with asyncio.timeout(0.5):
        await Streams().end()
