"""Following a job by Server-Sent Events: live, replayed, resumed, and when events are gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any, NamedTuple

import pytest
from redis import Redis as RedisClient

from agent_executor import metrics, stream
from tests.definitions import adder, agent
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service, Starter
from tier3.stack import Redis

WORDS = " ".join(f"word{number}" for number in range(200))


class Received(NamedTuple):
    """One Server-Sent Event."""

    id: str | None
    event: str
    data: dict[str, Any]


def follow(service: Service, job_id: str, after: str | None = None, stop_after: int | None = None) -> list[Received]:
    """Read the stream to its end, or hang up after `stop_after` events."""
    headers = {} if after is None else {"Last-Event-ID": after}
    received: list[Received] = []
    fields: dict[str, str] = {}
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif "event" in fields:
                received.append(Received(fields.get("id"), fields["event"], json.loads(fields["data"])))
                fields = {}
                if len(received) == stop_after:
                    break
    return received


def test_a_finished_job_is_replayed_as_it_was_published(service: Service) -> None:
    service.run(adder(), "replay")
    received = follow(service, "replay")
    stored = stored_events(service.environment["REDIS_URL"], "replay")
    assert [each.data for each in received] == stored
    assert [each.id for each in received] == [each["id"] for each in stored]
    assert [each.event for each in received] == [each["event_type"] for each in stored]


def test_a_reader_that_is_cut_off_misses_and_repeats_nothing(service: Service) -> None:
    service.submit(agent([{"text": WORDS, "token_delay_ms": 2}]), "resumed")
    first = follow(service, "resumed", stop_after=50)
    second = follow(service, "resumed", after=first[-1].id, stop_after=70)
    third = follow(service, "resumed", after=second[-1].id)
    whole = first + second + third
    assert [each.data for each in whole] == stored_events(service.environment["REDIS_URL"], "resumed")
    assert "".join(each.data["data"]["content"] for each in whole if each.event == "on_llm_stream") == WORDS
    assert [each.event for each in whole].count("end") == 1
    assert whole[-1].event == "end"


def test_a_reader_that_saw_the_end_is_told_to_come_back_no_more(service: Service) -> None:
    service.run(adder(), "seen")
    before_end, end = follow(service, "seen")[-2:]
    assert follow(service, "seen", after=before_end.id) == [end]
    assert service.http.get("/v1/jobs/seen/events", headers={"Last-Event-ID": str(end.id)}).status_code == 204


def test_events_that_are_gone_are_announced_and_the_end_comes_from_the_ledger(service: Service) -> None:
    service.run(adder(), "gone")
    with RedisClient.from_url(service.environment["REDIS_URL"]) as client:
        client.delete("langgraph:events:gone")
    warning, end = follow(service, "gone")
    assert (warning.event, warning.data["data"]["about"]) == ("warning", "gone")
    assert (end.event, end.data["data"]) == ("end", {"status": "completed"})


def test_events_that_were_trimmed_are_announced_once(service: Service) -> None:
    service.run(adder(), "trimmed")
    with RedisClient.from_url(service.environment["REDIS_URL"]) as client:
        client.xtrim("langgraph:events:trimmed", maxlen=3, approximate=False)
    received = follow(service, "trimmed")
    assert received[0].event == "warning"
    assert [each.event for each in received].count("warning") == 1
    assert len(received) == 4
    assert received[-1].event == "end"


@pytest.mark.parametrize("position", ["x", "1", "1-1-1", "-", "1-99999999999999999999"])
def test_a_position_that_is_none_is_refused(service: Service, position: str) -> None:
    answer = service.http.get("/v1/jobs/any/events", headers={"Last-Event-ID": position})
    assert answer.status_code == 400
    assert answer.json()["error"]["fields"][0]["field"] == "last-event-id"


def test_subscribers_hear_each_event_once_though_a_batch_was_sent_twice(
    start_service: Starter, own_redis: Redis
) -> None:
    service = start_service().ready()
    heard: list[dict[str, Any]] = []
    with RedisClient.from_url(own_redis.url) as client, client.pubsub() as pubsub:
        pubsub.subscribe("langgraph:stream:twice")
        service.submit(agent([{"text": WORDS, "token_delay_ms": 5}]), "twice")
        service.until(lambda: stored_events(own_redis.url, "twice"), "no event arrives")
        os.kill(own_redis.pid, signal.SIGSTOP)  # what is sent now arrives, and is answered too late
        service.until(lambda: "events_delayed" in service.log.read_text(), "the service does not notice")
        os.kill(own_redis.pid, signal.SIGCONT)
        while not heard or heard[-1]["event_type"] != "end":
            message = pubsub.get_message(ignore_subscribe_messages=True, timeout=30)
            heard += [json.loads(message["data"])] if message else []
    assert heard == stored_events(own_redis.url, "twice")


async def test_events_of_a_batch_are_stored_and_published_each_for_itself(own_redis: Redis) -> None:
    """A batch of two jobs, in which a worker that lost its job sends too, and an event goes to what is no stream."""
    refused = metrics.redis_publish_errors._value.get()
    async with stream.connect(own_redis.url) as client, client.pubsub() as pubsub:
        await client.set("langgraph:events:taken", "by a text")
        await pubsub.psubscribe("langgraph:stream:*")
        publisher = stream.Publisher(client)
        old, new = (publisher.channel("job", fence, "t") for fence in (1, 2))
        for channel in (old, new, publisher.channel("taken", 1, "t"), old, new, publisher.channel("other", 1, "t")):
            channel.emit("x", {"ä": 1})
        running = asyncio.create_task(publisher.run())
        await publisher.flush(10)
        running.cancel()
        heard: list[tuple[str, Any]] = []
        async with asyncio.timeout(10):
            while len(heard) < 4:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=10)
                if message:
                    heard.append((message["channel"].decode().rpartition(":")[2], json.loads(message["data"])))
        assert await pubsub.get_message(timeout=0) is None
        kept_s = [await client.ttl(stream.key(job_id)) for job_id in ("job", "other")]
    assert [(job_id, event["id"]) for job_id, event in heard] == [
        ("job", "1-1"),
        ("job", "2-1"),
        ("job", "2-2"),
        ("other", "1-1"),
    ]
    assert [event for job_id, event in heard if job_id == "job"] == stored_events(own_redis.url, "job")
    assert all(0 < each <= stream.KEPT_S for each in kept_s)
    assert metrics.redis_publish_errors._value.get() == refused + 1


def test_redis_stopped_during_a_job_costs_events_and_not_the_job(start_service: Starter, own_redis: Redis) -> None:
    service = start_service().ready()
    service.submit(agent([{"text": WORDS, "token_delay_ms": 5}]), "no-redis")
    service.until(lambda: stored_events(own_redis.url, "no-redis"), "no event arrives")
    own_redis.stop()
    assert service.ended("no-redis")["status"] == "completed"
    assert [each.event for each in follow(service, "no-redis")] == ["warning", "end"]
    assert "redis_publish_errors_total 0.0" not in service.http.get("/metrics").text
    assert service.http.get("/ready").json()["services"]["dragonfly"] is False
    own_redis.start()
    service.until(lambda: service.http.get("/ready").json()["services"]["dragonfly"], "redis is not found again")
    service.run(adder(), "redis-again")
    assert [each.event for each in follow(service, "redis-again")][-1] == "end"
