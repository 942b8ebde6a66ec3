"""Pull against NATS: messages come as soon as they are there, by one request for many."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError

from agent_executor.pull import Pull
from tier3.stack import Nats

LONG_S = 30.0


@dataclass
class House:
    js: JetStreamContext
    pull: Pull

    async def publish(self, *bodies: bytes) -> None:
        for body in bodies:
            await self.js.publish("jobs", body)

    async def fetch(self, batch: int = 10, expiry_s: float = LONG_S) -> list[bytes]:
        messages = await self.pull.fetch(batch, expiry_s)
        for message in messages:
            await message.ack()
        return [message.data for message in messages]

    async def standing(self) -> int:
        """How many requests wait at the server."""
        return (await self.js.consumer_info("JOBS", "workers")).num_waiting or 0


@pytest.fixture
async def house(own_nats: Nats) -> AsyncIterator[House]:
    client = await nats.connect(own_nats.url)
    js = client.jetstream()
    await js.add_stream(name="JOBS", subjects=["jobs"])
    await js.add_consumer("JOBS", ConsumerConfig(durable_name="workers"))
    yield House(js, Pull(client, "JOBS", "workers"))
    await client.close()


async def test_messages_come_one_by_one_by_the_request_that_stands(house: House) -> None:
    for body in (b"1", b"2", b"3"):
        await house.publish(body)
        assert await house.fetch() == [body]
        assert await house.standing() == 1
    assert house.pull._requests == 1


async def test_no_more_come_than_were_asked_for(house: House) -> None:
    await house.publish(b"1", b"2", b"3")
    assert len(await house.fetch(2)) + len(await house.fetch(2)) == 3
    first = house.pull._requests
    assert first <= 2


async def test_nothing_comes_of_a_request_whose_time_is_over(house: House) -> None:
    assert await house.fetch(expiry_s=0.05) == []
    assert house.pull.is_over
    await house.publish(b"1")
    assert await house.fetch() == [b"1"]


async def test_what_comes_yet_is_taken_without_another_request(house: House) -> None:
    assert house.pull.is_over
    await house.publish(b"1")
    assert await house.fetch(expiry_s=0.2) == [b"1"]
    await house.publish(b"2", b"3")
    rest: list[bytes] = []
    while not house.pull.is_over:
        rest += [message.data for message in await house.pull.rest()]
    assert (rest, house.pull._requests) == ([b"2", b"3"], 1)
    assert house.pull.left() == []


async def test_a_request_that_the_server_forgot_is_made_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_executor.pull._GRACE_S", 0.05)
    monkeypatch.setattr(house.pull, "_next", "nobody")  # who hears of nobody would be told
    sent = await house.pull.client.subscribe("nobody")
    assert await house.fetch(expiry_s=0.05) == []
    assert (await sent.next_msg()).data
    monkeypatch.undo()
    await house.publish(b"1")
    assert await house.fetch() == [b"1"]


async def test_a_request_that_the_consumer_refuses_is_an_error(house: House) -> None:
    config = {"durable_name": "workers", "ack_policy": "explicit", "max_batch": 5}
    request = json.dumps({"stream_name": "JOBS", "config": config}).encode()
    await house.pull.client.request("$JS.API.CONSUMER.DURABLE.CREATE.JOBS.workers", request)
    with pytest.raises(APIError, match="MaxRequestBatch"):
        await house.fetch(10)
    await house.publish(b"1")
    assert await house.fetch(5) == [b"1"]


async def test_a_consumer_that_is_gone_is_an_error(house: House) -> None:
    await house.js.delete_consumer("JOBS", "workers")
    with pytest.raises(APIError):
        await house.fetch()
