"""A job's events as a reader of Redis has them: heard on the channel, and found in the stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import pytest
from redis.asyncio import Redis

Event = dict[str, Any]


class Listener:
    """One subscription to the channel of one job."""

    def __init__(self, pubsub: Any, patience_s: float) -> None:
        self._pubsub = pubsub
        self._patience_s = patience_s
        self.heard: list[Event] = []

    async def until(self, event_type: str) -> list[Event]:
        """Wait for an event of this type; returns everything heard."""
        try:
            async with asyncio.timeout(self._patience_s):
                while not self.heard or self.heard[-1]["event_type"] != event_type:
                    message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
                    if message is not None:
                        self.heard.append(json.loads(message["data"]))
        except TimeoutError:
            pytest.fail(f"no {event_type} within {self._patience_s:g} s: heard {types(self.heard) or 'nothing'}")
        return self.heard


@asynccontextmanager
async def listening(redis: Redis, job_id: str, patience_s: float) -> AsyncIterator[Listener]:
    """Subscribed to the job's channel: nothing that is published from now on is missed."""
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(f"langgraph:stream:{job_id}")
        await pubsub.get_message(timeout=patience_s)  # what confirms it
        yield Listener(pubsub, patience_s)


async def stored(redis: Redis, job_id: str) -> list[Event]:
    """The events of a job that Redis keeps."""
    entries: Any = await redis.xrange(f"langgraph:events:{job_id}")
    return [json.loads(fields[b"event"]) for _, fields in entries]


def types(events: Sequence[Event]) -> list[str]:
    """Their types, in order, a run of the same one once."""
    return [kind for kind, _ in groupby(each["event_type"] for each in events)]


def check_order(events: Sequence[Event]) -> None:
    """Ids grow; a worker's events count from 1 without a gap; nothing follows `end`.

    An `end` without an id is from the ledger: Server-Sent Events have one where a worker was killed before its own.
    """
    assert {each["event_type"] for each in events if "id" not in each} <= {"end"}
    ids = [tuple(int(part) for part in each["id"].split("-")) for each in events if "id" in each]
    for _, of_one in groupby(ids, key=lambda each: each[0]):
        numbers = [number for _, number in of_one]
        assert numbers == [*range(1, len(numbers) + 1)], ids
    assert ids == sorted(set(ids))
    assert "end" not in [each["event_type"] for each in events[:-1]]


def check_end(events: Sequence[Event], status: str) -> None:
    """In order, with exactly one `end`, the last, of this status."""
    check_order(events)
    assert events[-1]["event_type"] == "end", types(events)
    assert events[-1]["data"] == {"status": status}


def is_taken_over(events: Sequence[Event]) -> bool:
    """Whether more than one worker had the job: what the first did not send before it was killed is missing then."""
    return len({each["id"].partition("-")[0] for each in events if "id" in each}) > 1
