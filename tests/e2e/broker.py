"""NATS as a caller uses it: sends events, and hears what is announced and what is refused while it listens.

Its consumers are ephemeral: they end with the connection, and nothing durable is made.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy
from nats.js.errors import NotFoundError

from tier3.e2e import nats_server

SUBJECT = "agent.execute.e2e"
HEARD = {"AGENT_STATUS": "agent.status.*", "AGENT_DEAD": "agent.dead.*"}
_CONNECT_S = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """What was heard."""

    subject: str
    headers: dict[str, str]
    data: bytes

    @property
    def event(self) -> Any:
        """The CloudEvent in it; an announcement always is one."""
        return json.loads(self.data)


class Broker:
    """One connection. Waiting ends after `patience_s` with a failure that says what was heard instead."""

    def __init__(self, js: JetStreamContext, patience_s: float) -> None:
        self._js = js
        self._patience_s = patience_s
        self._heard: list[Message] = []
        self._news = asyncio.Condition()

    async def publish(self, event: Any) -> None:
        """Send an event as JSON, or bytes as they are; sent again until it is stored, and stored once."""
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        headers = {"Nats-Msg-Id": str(uuid4())}
        deadline = asyncio.get_running_loop().time() + self._patience_s
        while True:
            try:
                await self._js.publish(SUBJECT, data, headers=headers)
            except (nats.errors.Error, TimeoutError):
                if asyncio.get_running_loop().time() > deadline:
                    raise
            else:
                log.info("published %s bytes", len(data))
                return

    async def hear(self, message: Msg) -> None:
        """Keep a message; for subscriptions."""
        async with self._news:
            self._heard.append(Message(message.subject, dict(message.headers or {}), message.data))
            self._news.notify_all()

    def announced(self, job_id: str) -> list[Message]:
        """What has been announced of a job so far."""
        about = [each for each in self._heard if each.subject.startswith("agent.status.")]
        return [each for each in about if each.event["subject"] == job_id]

    async def announcements(self, job_id: str, count: int = 1) -> list[Message]:
        """Wait until so much is announced of a job, and return all that is."""
        return await self._until(lambda: self.announced(job_id), count, f"announcements of job {job_id}")

    async def outcome(self, job_id: str) -> dict[str, Any]:
        """Wait for the one outcome of a job. It may be announced again, as a service does that is killed meanwhile."""

        def found() -> list[Message]:
            return [each for each in self.announced(job_id) if each.subject != "agent.status.interrupted"]

        messages = await self._until(found, 1, f"outcome of job {job_id}")
        [first, *more] = [check_cloudevent(message, job_id) for message in messages]
        log.info("job %s: %s", job_id, first["type"])
        assert more == [first] * len(more)
        return first

    async def dead(self, body: bytes) -> Message:
        """Wait for the dead letter that holds these bytes."""

        def found() -> list[Message]:
            return [each for each in self._heard if each.subject.startswith("agent.dead.") and each.data == body]

        return (await self._until(found, 1, "dead letter"))[0]

    async def _until(self, look: Callable[[], list[Message]], count: int, what: str) -> list[Message]:
        try:
            async with asyncio.timeout(self._patience_s), self._news:
                await self._news.wait_for(lambda: len(look()) >= count)
        except TimeoutError:
            told = [each.subject for each in look()] or "nothing"
            pytest.fail(f"no {what} within {self._patience_s:g} s: {told}, of {len(self._heard)} messages in all")
        return look()


def check_cloudevent(message: Message, job_id: str) -> dict[str, Any]:
    """The announcement, whose attributes are as the contract has them."""
    event: dict[str, Any] = message.event
    state = message.subject.rpartition(".")[2]
    assert event["type"] == f"dev.my-platform.agent.{state}"
    assert (event["specversion"], event["source"]) == ("1.0", "agent-executor-service")
    assert (event["subject"], event["data"]["job_id"]) == (job_id, job_id)
    assert message.headers["Nats-Msg-Id"].split(":")[0] == event["id"]
    return event


@asynccontextmanager
async def connected(url: str, patience_s: float) -> AsyncIterator[Broker]:
    """A connection that hears everything from now on."""
    client = await nats.connect(
        **nats_server(url), name="agent-executor-e2e", connect_timeout=_CONNECT_S, max_reconnect_attempts=-1
    )
    js = client.jetstream(timeout=5)
    broker = Broker(js, patience_s)
    subscriptions: list[Any] = []
    try:
        for stream, subject in HEARD.items():
            try:
                one = await js.subscribe(
                    subject, stream=stream, cb=broker.hear, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
                )
            except NotFoundError:
                pytest.fail(f"NATS has no stream {stream}: no service has started on it")
            subscriptions.append(one)
        yield broker
    finally:
        for each in subscriptions:
            await each.unsubscribe()
        await client.close()
