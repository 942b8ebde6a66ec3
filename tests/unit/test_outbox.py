"""outbox: what a delivery looks like, and what counts as one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from agent_executor.outbox import to_nats, to_sink

EVENT: dict[str, Any] = {"specversion": "1.0", "id": "id-1", "subject": "job-1", "data": {"word": "ä"}}
SUBJECT = "agent.status.completed"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class FakeBroker:
    """Stands for broker.Broker and its JetStream."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.js = self.client = self
        self.max_payload = 2**20
        self.sent: list[tuple[str, Any, dict[str, str]]] = []

    async def publish(self, subject: str, payload: bytes, *, headers: dict[str, str]) -> None:
        self.sent.append((subject, json.loads(payload), headers))


async def test_to_nats_with_a_message_id() -> None:
    broker = FakeBroker()
    broker.ready.set()
    await to_nats(broker)("id-1:again", SUBJECT, EVENT)  # type: ignore[arg-type]
    [(subject, event, headers)] = broker.sent
    assert (subject, event) == (SUBJECT, EVENT)
    assert headers == {"Nats-Msg-Id": "id-1:again", "Content-Type": "application/cloudevents+json"}


async def test_to_nats_continues_the_trace() -> None:
    broker = FakeBroker()
    broker.ready.set()
    await to_nats(broker)("id-1", SUBJECT, EVENT | {"traceparent": TRACEPARENT})  # type: ignore[arg-type]
    assert broker.sent[0][2]["traceparent"] == TRACEPARENT


async def test_to_nats_sends_what_is_too_large_by_reference() -> None:
    broker = FakeBroker()
    broker.max_payload = 4096
    broker.ready.set()
    large = EVENT | {"data": {"job_id": "job-1", "result": {"output": "x" * 4000, "status": "completed"}}}
    await to_nats(broker)("id-1", SUBJECT, large)  # type: ignore[arg-type]
    [(_, event, headers)] = broker.sent
    assert event["dataref"] == "/v1/jobs/job-1"
    assert event["data"] == {"job_id": "job-1", "result": {"output": None, "status": "completed"}}
    assert headers["Nats-Msg-Id"] == "id-1"


async def test_to_nats_says_in_a_header_why_a_letter_is_dead() -> None:
    broker = FakeBroker()
    broker.ready.set()
    await to_nats(broker)("id-1", "agent.dead.attempts", EVENT | {"agenterror": "T: one\r\nline"})  # type: ignore[arg-type]
    assert broker.sent[0][2]["Agent-Error"] == "T: one line"


async def test_to_nats_waits_for_the_connection() -> None:
    broker = FakeBroker()
    delivery = asyncio.create_task(to_nats(broker)("id-1", SUBJECT, EVENT))  # type: ignore[arg-type,var-annotated]
    await asyncio.sleep(0)
    assert not broker.sent
    broker.ready.set()
    await delivery
    assert len(broker.sent) == 1


class Sink:
    """Stands for what K_SINK names."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self.status, headers={"location": "http://elsewhere.example"})


async def deliver(status: int) -> Sink:
    sink = Sink(status)
    async with httpx.AsyncClient(transport=httpx.MockTransport(sink)) as client:
        await to_sink(client, "http://sink.example/in")("id-1:sink", SUBJECT, EVENT)
    return sink


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_to_sink(status: int) -> None:
    [request] = (await deliver(status)).requests
    assert (request.method, str(request.url)) == ("POST", "http://sink.example/in")
    assert request.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(request.content) == EVENT


@pytest.mark.parametrize("status", [302, 400, 404, 409, 429, 500, 503])
async def test_whatever_a_sink_answers_but_2xx_is_a_failure(status: int) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        await deliver(status)
