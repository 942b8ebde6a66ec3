"""broker: what is absent is made, what is there is compared and corrected."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError
from structlog.testing import capture_logs

from agent_executor.broker import Broker, _form, server


class Found:
    """What JetStream answers when it is asked for a stream or a consumer."""

    def __init__(self, config: Any) -> None:
        self.config = config


class FakeJetStream:
    """Stands for JetStream: keeps configurations; refuses to change the storage of a stream, as the real one does."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamConfig] = {}
        self.consumers: dict[tuple[str, str], ConsumerConfig] = {}
        self.calls: list[str] = []

    async def stream_info(self, name: str) -> Found:
        return Found(copy.deepcopy(self._found(self.streams, name)))

    async def add_stream(self, config: StreamConfig) -> None:
        self.calls.append(f"add {config.name}")
        self.streams[str(config.name)] = config

    async def update_stream(self, config: StreamConfig) -> None:
        self.calls.append(f"update {config.name}")
        if config.storage is not self.streams[str(config.name)].storage:
            raise APIError(code=400, err_code=10052, description="stream configuration update can not change storage")
        self.streams[str(config.name)] = config

    async def consumer_info(self, stream: str, name: str) -> Found:
        return Found(copy.deepcopy(self._found(self.consumers, (stream, name))))

    async def add_consumer(self, stream: str, config: ConsumerConfig) -> None:
        self.calls.append(f"consumer {config.durable_name}")
        self.consumers[stream, str(config.durable_name)] = config

    def _found(self, kept: dict[Any, Any], key: Any) -> Any:
        if key not in kept:
            raise NotFoundError
        return kept[key]


class Prepared(Broker):
    """A broker whose connection is a fake."""

    is_closed = False

    def __init__(self, fake: FakeJetStream) -> None:
        super().__init__("nats://nowhere.invalid", stream="JOBS", consumer="workers")
        self._client = self  # type: ignore[assignment]
        self.fake = fake

    def jetstream(self, timeout: float) -> FakeJetStream:
        return self.fake


@pytest.fixture
def js() -> FakeJetStream:
    return FakeJetStream()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


async def prepared(broker: Broker) -> None:
    """Run it until it is ready."""
    running = asyncio.create_task(broker.run())
    async with asyncio.timeout(5):
        await broker.ready.wait()
    running.cancel()
    await asyncio.wait([running])


async def test_what_is_absent_is_made(js: FakeJetStream) -> None:
    broker = Prepared(js)
    await prepared(broker)
    assert broker.ready.is_set()
    assert js.streams.keys() == {"JOBS", "AGENT_STATUS", "AGENT_DEAD"}
    jobs = js.streams["JOBS"]
    assert jobs.subjects == ["agent.execute.*"]
    assert (jobs.storage, jobs.retention, jobs.max_age) == (StorageType.FILE, RetentionPolicy.LIMITS, 24 * 3600)
    assert js.streams["AGENT_STATUS"].subjects == ["agent.status.*"]
    assert js.streams["AGENT_DEAD"].subjects == ["agent.dead.*"]
    assert all((each.duplicate_window or 0) >= 3600 for each in js.streams.values())
    consumer = js.consumers["JOBS", "workers"]
    assert consumer.ack_policy is AckPolicy.EXPLICIT


async def test_what_is_there_as_wanted_is_left_alone(js: FakeJetStream, logged: list[Any]) -> None:
    await prepared(Prepared(js))
    js.calls.clear()
    logged.clear()
    await prepared(Prepared(js))
    assert js.calls == []
    assert [line["event"] for line in logged] == ["nats_ready"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_age", 60.0, "is 60.0, should be 86400.0"),
        ("subjects", ["old.*"], "is ['old.*'], should be ['agent.execute.*']"),
        ("duplicate_window", 120.0, "is 120.0, should be 3600.0"),
    ],
)
async def test_a_stream_that_differs_is_named_and_corrected(
    js: FakeJetStream, logged: list[Any], name: str, value: Any, said: str
) -> None:
    await prepared(Prepared(js))
    wanted = getattr(js.streams["JOBS"], name)
    setattr(js.streams["JOBS"], name, value)
    js.streams["JOBS"].max_msgs = 12345
    await prepared(Prepared(js))
    differs = next(line for line in logged if line["event"] == "stream_differs")
    assert (differs["stream"], differs[name]) == ("JOBS", said)
    assert getattr(js.streams["JOBS"], name) == wanted
    assert js.streams["JOBS"].max_msgs == 12345  # an operator's own setting stays
    assert js.calls.count("update JOBS") == 1


async def test_what_jetstream_will_not_change_is_reported_and_the_service_starts(
    js: FakeJetStream, logged: list[Any]
) -> None:
    await prepared(Prepared(js))
    js.streams["JOBS"].storage = StorageType.MEMORY
    broker = Prepared(js)
    await prepared(broker)
    assert broker.ready.is_set()
    refused = next(line for line in logged if line["event"] == "stream_not_corrected")
    assert refused["stream"] == "JOBS"
    assert "storage" in refused["reason"]


@pytest.mark.parametrize(("name", "value"), [("ack_wait", 5.0), ("max_ack_pending", 5), ("max_deliver", 3)])
async def test_a_consumer_that_differs_is_named_and_corrected(
    js: FakeJetStream, logged: list[Any], name: str, value: Any
) -> None:
    await prepared(Prepared(js))
    consumer = js.consumers["JOBS", "workers"]
    wanted = getattr(consumer, name)
    setattr(consumer, name, value)
    await prepared(Prepared(js))
    differs = next(line for line in logged if line["event"] == "consumer_differs")
    assert name in differs
    assert getattr(js.consumers["JOBS", "workers"], name) == wanted


async def test_a_default_that_the_server_spells_out_is_no_difference(js: FakeJetStream, logged: list[Any]) -> None:
    await prepared(Prepared(js))
    js.consumers["JOBS", "workers"].max_deliver = -1
    js.consumers["JOBS", "workers"].deliver_subject = ""
    await prepared(Prepared(js))
    assert "consumer_differs" not in [line["event"] for line in logged]


async def test_closing_what_was_never_open() -> None:
    broker = Broker("nats://nowhere.invalid", stream="JOBS", consumer="workers")
    assert not broker.connected
    await broker.close()


@pytest.mark.parametrize(
    ("now", "credentials", "closes"),
    [
        ("nats://user:rotated@h:1", None, False),  # asked for at the next connection anyway
        ("nats://user:first@elsewhere:1", None, True),
        ("nats://token@h:1", None, True),
        ("nats://h:1", None, True),
        ("nats://user:first@h:1", "a .creds file", True),
    ],
)
async def test_another_way_to_connect_is_taken_at_once(now: str, credentials: str | None, closes: bool) -> None:
    said: list[Any] = ["nats://user:first@h:1", None]
    broker = Broker(lambda: said[0], stream="JOBS", consumer="workers", credentials=lambda: said[1])
    closed: list[bool] = []

    class Connected:
        async def close(self) -> None:
            closed.append(True)

    broker._client = Connected()  # type: ignore[assignment]
    broker._form = _form(broker._server())
    said[:] = [now, credentials]
    await broker.renew()
    assert closed == [True] * closes


async def test_what_a_url_holds_is_decoded_and_asked_for_again() -> None:
    said = ["nats://us%40er:p%2Fw@h:1,nats://us%40er:p%2Fw@i:2"]
    found = server(lambda: said[0], lambda: None)
    assert found["servers"] == ["nats://h:1", "nats://i:2"]
    assert (found["user"](), found["password"]()) == ("us@er", "p/w")
    said[0] = "nats://u:rotated@h:1"
    assert found["password"]() == "rotated"
