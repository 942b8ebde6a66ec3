"""What cannot be accepted: a clear answer that names the field, and nothing lost or left behind."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from tests.definitions import adder, agent, event
from tests.integration.fixtures.nats import jetstream, messages, publish
from tests.integration.fixtures.service import Service

STRUCTURED = {"content-type": "application/cloudevents+json"}


def refused(answer: httpx.Response, status: int = 400) -> dict[str, str]:
    """The findings of a refusal, by field."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "fields"}
    assert "\n" not in error["message"]
    for finding in error["fields"]:
        assert finding["field"] in error["message"]
    return {finding["field"]: finding["message"] for finding in error["fields"]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"type": "something.else"}, "type"),
        ({"source": " "}, "source"),
        ({"id": None}, "id"),
        ({"traceparent": "00-0-0-00"}, "traceparent"),
        ({"data": []}, "data"),
    ],
)
def test_each_clause_of_a_cloud_event(service: Service, change: dict[str, Any], field: str) -> None:
    answer = service.http.post("/", content=json.dumps(event(adder(), job_id="bad-event") | change), headers=STRUCTURED)
    assert field in refused(answer)
    assert service.http.get("/v1/jobs/bad-event").status_code == 404


@pytest.mark.parametrize("field", ["job_id", "trace_id", "agent_definition", "input_payload"])
@pytest.mark.parametrize("value", ["", {}, None])
def test_each_field_of_the_data(service: Service, field: str, value: Any) -> None:
    request = event(adder(), job_id="bad-data")
    request["data"][field] = value
    assert f"data.{field}" in refused(service.http.post("/", content=json.dumps(request), headers=STRUCTURED))


def test_a_definition_without_nodes(service: Service) -> None:
    assert "agent_definition.nodes" in refused(service.submit({"nodes": []}, "no-nodes"))
    assert "data.agent_definition.nodes" in refused(
        service.http.post("/", content=json.dumps(event({"name": "x"}, job_id="no-nodes")), headers=STRUCTURED)
    )
    assert service.http.get("/v1/jobs/no-nodes").status_code == 404


def test_a_definition_that_names_an_unknown_tool(service: Service) -> None:
    definition = agent([{"text": "x"}])
    definition["nodes"][0]["config"]["tools"] = ["nowhere"]
    assert "agent_definition.nodes[0].config.tools[0]" in refused(service.submit(definition, "no-tool"))


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/definitions/validate"])
def test_a_large_wrong_definition_gets_a_short_answer(service: Service, path: str) -> None:
    definition: dict[str, Any] = {"nodes": [{}] * 2_000_000, "edges": [{}] * 100_000}
    body = definition if "validate" in path else {"agent_definition": definition, "input_payload": {"a": 1}}
    answer = service.http.post(path, content=json.dumps(body, separators=(",", ":")))
    assert len(answer.content) < 10_000
    assert "nodes" in answer.text


def test_a_definition_whose_model_cannot_be_made(service: Service) -> None:
    definition = agent([])
    definition["nodes"][0]["config"]["model"]["base_url"] = "http://elsewhere.example"
    place = "agent_definition.nodes[0].config.model"
    assert refused(service.submit(definition, "no-model")).keys() == {f"{place}.base_url", f"{place}.replies"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\u0000"}',
        b'{"a": "\\ud800"}',
        b'{"a": 1, "a": 2}',
        b'{"a": 123456789012345678901234567890}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"\xff\xfe",
        b"[]",
        b"null",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", ["/", "/v1/jobs"])
def test_a_body_that_is_no_acceptable_json(service: Service, path: str, body: bytes) -> None:
    assert refused(service.http.post(path, content=body, headers=STRUCTURED))


def test_a_cloud_event_without_its_content_type(service: Service) -> None:
    answer = service.http.post("/", content=json.dumps(event(adder())), headers={"content-type": "application/json"})
    assert "content-type" in refused(answer)


def test_a_body_that_says_it_is_too_large(service: Service) -> None:
    answer = service.http.post("/v1/jobs", content=b" " * (8 * 2**20 + 1))
    assert "8388608" in answer.json()["error"]["message"]
    assert answer.status_code == 413


def test_a_body_without_a_length_is_refused_before_it_ends(service: Service) -> None:
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(8 * 2**20 // 2**16 + 1):
            connection.sendall(chunk)
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?status=lost", "status"),
        ("/v1/jobs?cursor=x", "cursor"),
        ("/?wait=-1", "wait"),
    ],
)
def test_a_bad_query(service: Service, path: str, field: str) -> None:
    method = "POST" if path.startswith("/?") else "GET"
    assert field in refused(service.http.request(method, path, content=json.dumps(event(adder())), headers=STRUCTURED))


@pytest.mark.parametrize("path", ["/v1/jobs/nobody", "/v1/jobs/nobody/events", "/v1/jobs/%00", "/nowhere"])
def test_what_is_not_there_is_404(service: Service, path: str) -> None:
    answer = service.http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{not json", "malformed JSON"),
        (json.dumps(event(adder(), job_id="dead-1") | {"specversion": "2"}).encode(), "specversion"),
        (json.dumps(event({"nodes": []}, job_id="dead-2")).encode(), "data.agent_definition.nodes"),
    ],
    ids=["json", "event", "definition"],
)
async def test_a_bad_message_is_kept_with_its_reason(service: Service, body: bytes, words: str) -> None:
    nats_url = service.environment["NATS_URL"]
    await publish(nats_url, body)
    async with jetstream(nats_url) as js:
        subscription = await js.subscribe("agent.dead.invalid", stream="AGENT_DEAD", ordered_consumer=True)
        while True:
            message = await subscription.next_msg(timeout=30)
            if message.data == body:
                break
    assert words in (message.headers or {})["Agent-Error"]
    assert (message.headers or {})["Agent-Subject"] == "agent.execute.test"


async def test_a_bad_message_that_names_a_job_announces_its_failure(service: Service) -> None:
    nats_url = service.environment["NATS_URL"]
    await publish(nats_url, event({"nodes": []}, job_id="dead-3"))
    [(announced, _)] = await messages(nats_url, "AGENT_STATUS", "agent.status.failed", "dead-3")
    assert announced["subject"] == "dead-3"
    assert announced["data"]["error"]["type"] == "InvalidInput"
    assert service.http.get("/v1/jobs/dead-3").status_code == 404


async def test_a_bad_message_announces_nothing_for_a_job_that_exists(service: Service) -> None:
    nats_url = service.environment["NATS_URL"]
    service.run(adder(), "dead-4")
    await publish(nats_url, event({"nodes": []}, job_id="dead-4", id="bad-dead-4"))
    await publish(nats_url, event({"nodes": []}, job_id="dead-4-next", id="bad-dead-4-next"))
    await messages(nats_url, "AGENT_STATUS", "agent.status.failed", "dead-4-next")
    async with jetstream(nats_url) as js:
        subscription = await js.subscribe("agent.status.failed", stream="AGENT_STATUS", ordered_consumer=True)
        info = await js.stream_info("AGENT_STATUS", subjects_filter="agent.status.failed")
        failed = (info.state.subjects or {})["agent.status.failed"]
        subjects = [json.loads((await subscription.next_msg(timeout=30)).data)["subject"] for _ in range(failed)]
    assert "dead-4" not in subjects
