"""A deployed service, by its public edges: NATS, HTTP, Redis, LangGraph's checkpoints in PostgreSQL, Vault.

Every id is new in each run, and nothing durable is made: runs disturb neither each other nor anybody else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from redis.asyncio import Redis

from tests.e2e.broker import Broker, Message
from tests.e2e.conftest import Listen
from tests.e2e.definitions import RESUME, adder, echo, event, failing, job, looking, new_id, payer
from tests.e2e.events import check_end, check_order, is_taken_over, stored
from tests.e2e.http import Http

SUM = {"output": "The Calculator says: 5", "status": "completed"}
APPROVE = {"decisions": [{"type": "approve"}]}
CALLED = [
    ("on_tool_start", "task"),
    ("on_tool_start", "add_numbers"),
    ("on_tool_end", "add_numbers"),
    ("on_tool_end", "task"),
]
JOBS = 20
EVENT = {"content-type": "application/cloudevents+json"}

Checkpoints = Callable[[str], list[str]]


def tools(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["event_type"], each["data"]["name"]) for each in events if "_tool_" in each["event_type"]]


def check_adder(events: list[dict[str, Any]]) -> None:
    """The events of an adder. A job that was taken over goes on after its checkpoint, and calls no tool again."""
    check_end(events, "completed")
    if not is_taken_over(events):
        assert tools(events) == CALLED
    [*_, state] = [each["data"] for each in events if each["event_type"] == "on_state_update"]
    assert [message["role"] for message in state["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert state["messages"][-1]["content"] == SUM["output"]


def test_the_token_reads_the_secret(api_key: str) -> None:
    assert api_key.strip()


async def test_a_job_with_a_tool_and_a_subagent(
    broker: Broker, redis: Redis, listen: Listen, checkpoints: Checkpoints
) -> None:
    job_id = new_id()
    async with listen(job_id) as listener:
        await broker.publish(event(job(adder(), job_id)))
        heard = await listener.until("end")
    check_adder(heard)
    outcome = await broker.outcome(job_id)
    assert (outcome["type"], outcome["data"]["result"]) == ("dev.my-platform.agent.completed", SUM)
    assert await stored(redis, job_id) == heard
    written = checkpoints(job_id)
    assert len({each.partition("/")[0] for each in written}) >= 2, "of the orchestrator and of its specialist"


async def test_a_job_that_fails(broker: Broker, redis: Redis, listen: Listen) -> None:
    job_id = new_id()
    async with listen(job_id) as listener:
        await broker.publish(event(job(failing(), job_id)))
        heard = await listener.until("end")
    check_end(heard, "failed")
    assert heard[-2]["event_type"] == "error"
    assert heard[-2]["data"] == {"message": "no luck", "type": "ValueError"}
    outcome = await broker.outcome(job_id)
    assert outcome["type"] == "dev.my-platform.agent.failed"
    error = outcome["data"]["error"]
    assert (error["type"], error["message"]) == ("ValueError", "no luck")
    assert isinstance(error["stack_trace"], str)
    assert await stored(redis, job_id) == heard


async def test_a_job_that_is_sent_twice_runs_once(broker: Broker, redis: Redis, checkpoints: Checkpoints) -> None:
    job_id = new_id()
    for request in (event(job(adder(), job_id)), event(job(adder(), job_id))):
        await broker.publish(request)
    await broker.announcements(job_id)
    await broker.publish(again := event(job(adder(), job_id)))
    before = checkpoints(job_id)

    def repeated() -> list[Message]:
        return [each for each in broker.announced(job_id) if each.headers["Nats-Msg-Id"].endswith(again["id"])]

    messages = await broker.announcements(job_id, 2)
    while not repeated():  # the second request may have come after the end as well
        messages = await broker.announcements(job_id, len(messages) + 1)
    first = messages[0].event
    assert [each.event for each in messages] == [first] * len(messages)
    assert repeated()[0].headers["Nats-Msg-Id"] == f"{first['id']}:{again['id']}"
    assert checkpoints(job_id) == before
    check_adder(await stored(redis, job_id))


async def test_another_body_under_the_same_id_is_refused(broker: Broker, redis: Redis) -> None:
    job_id = new_id()
    await broker.publish(event(job(echo(), job_id, "mine")))
    assert (await broker.outcome(job_id))["data"]["result"]["output"] == "mine"
    other = json.dumps(event(job(echo(), job_id, "other"))).encode()
    await broker.publish(other)
    letter = await broker.dead(other)
    assert letter.subject == "agent.dead.conflict"
    assert job_id in letter.headers["Agent-Error"]
    assert (await broker.outcome(job_id))["data"]["result"]["output"] == "mine"
    check_end(await stored(redis, job_id), "completed")


async def test_what_is_no_event_is_kept(broker: Broker) -> None:
    body = f"{{{new_id()}".encode()
    await broker.publish(body)
    letter = await broker.dead(body)
    assert letter.subject == "agent.dead.invalid"
    assert letter.headers["Agent-Error"]


async def test_a_malformed_event_is_kept_and_announced(broker: Broker, checkpoints: Checkpoints) -> None:
    job_id = new_id()
    body = json.dumps(event(job({"nodes": []}, job_id))).encode()
    await broker.publish(body)
    letter = await broker.dead(body)
    assert letter.subject == "agent.dead.invalid"
    assert "agent_definition.nodes" in letter.headers["Agent-Error"]
    outcome = await broker.outcome(job_id)
    assert outcome["type"] == "dev.my-platform.agent.failed"
    assert outcome["data"]["error"]["message"]
    assert checkpoints(job_id) == []


async def test_twenty_jobs_at_once(broker: Broker, redis: Redis, checkpoints: Checkpoints) -> None:
    sent = {new_id(): f"job {number}" for number in range(JOBS)}
    await asyncio.gather(*(broker.publish(event(job(echo(100), job_id, text))) for job_id, text in sent.items()))
    outcomes = await asyncio.gather(*map(broker.outcome, sent))
    assert [each["data"].get("result", each["data"]) for each in outcomes] == [
        {"output": text, "status": "completed"} for text in sent.values()
    ]
    assert len({each["id"] for each in outcomes}) == JOBS
    for job_id in sent:
        assert checkpoints(job_id)
        check_order(await stored(redis, job_id))  # a worker that is killed just then leaves no `end` in Redis


async def test_an_interrupted_job_goes_on_when_it_is_answered(
    broker: Broker, redis: Redis, listen: Listen, checkpoints: Checkpoints
) -> None:
    job_id = new_id()
    async with listen(job_id) as listener:
        await broker.publish(event(job(payer(), job_id)))
        asked = (await listener.until("on_interrupt"))[-1]["data"]
        announced = (await broker.announcements(job_id))[-1]
        assert announced.subject == "agent.status.interrupted"
        assert [each["id"] for each in announced.event["data"]["interrupts"]] == [asked["id"]]
        assert asked["value"]["action_requests"][0]["args"] == {"to": "Ann", "amount": 50}
        before = checkpoints(job_id)
        await broker.publish(event({"job_id": job_id, "value": APPROVE, "interrupt_id": asked["id"]}, RESUME))
        heard = await listener.until("end")
    check_end(heard, "completed")
    outcome = await broker.outcome(job_id)
    assert outcome["data"]["result"] == {"output": "paid 50 to Ann", "status": "completed"}
    assert await stored(redis, job_id) == heard
    assert set(before) < set(checkpoints(job_id))


async def test_no_secret_comes_out(broker: Broker, redis: Redis, secrets: list[str]) -> None:
    job_id = new_id()
    await broker.publish(event(job(looking(), job_id)))
    outcome = await broker.outcome(job_id)
    seen = outcome["data"]["result"]["output"]
    assert "HOME" in seen
    assert [name for name in ("POSTGRES_PASSWORD", "REDIS_URL", "NATS_URL", "VAULT_TOKEN") if name in seen] == []
    told = json.dumps([outcome, await stored(redis, job_id)])
    assert [number for number, secret in enumerate(secrets) if secret in told] == []


async def test_nobody_is_let_in_without_a_good_key(http: Http, stranger: Http) -> None:
    body = job(echo(), new_id())
    for headers in ({}, {"authorization": "Bearer ae_nobody"}):
        answer = await stranger.ask("POST", "/v1/jobs", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "Unauthenticated")
    assert (await http.ask("GET", f"/v1/jobs/{body['job_id']}")).status_code == 404


async def test_a_job_by_http_and_its_events(http: Http, broker: Broker, checkpoints: Checkpoints) -> None:
    job_id = new_id()
    answer = await http.ask("POST", "/v1/jobs", json=job(adder(), job_id))
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job_id}")
    events = await http.follow(job_id)
    check_adder(events)
    shown = (await http.ask("GET", f"/v1/jobs/{job_id}")).json()
    assert (shown["status"], shown["result"]) == ("completed", SUM)
    assert (await broker.outcome(job_id))["data"]["result"] == SUM
    assert checkpoints(job_id)


async def test_events_are_replayed_after_the_last_one_seen(http: Http) -> None:
    job_id = new_id()
    await http.ask("POST", "/v1/jobs", json=job(adder(), job_id))
    events = await http.follow(job_id)
    middle = len(events) // 2
    assert await http.follow(job_id, events[middle]["id"]) == events[middle + 1 :]
    seen = {"last-event-id": events[-1]["id"]}
    assert (await http.ask("GET", f"/v1/jobs/{job_id}/events", headers=seen)).status_code == 204


async def test_whoever_waits_gets_the_outgoing_event(http: Http, broker: Broker) -> None:
    job_id = new_id()
    outcome = await http.result(event(job(adder(), job_id)))
    assert outcome["data"] == {"job_id": job_id, "result": SUM}
    assert outcome == (await broker.announcements(job_id))[0].event


async def test_a_conflict_by_http(http: Http) -> None:
    job_id = new_id()
    assert (await http.ask("POST", "/v1/jobs", json=job(echo(), job_id, "mine"))).status_code == 202
    other = job(echo(), job_id, "other")
    refused = await http.ask("POST", "/v1/jobs", json=other)
    assert (refused.status_code, refused.json()["error"]["type"]) == (409, "Conflict")
    refused = await http.ask("POST", "/", content=json.dumps(event(other)), headers=EVENT)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "Conflict")


async def test_a_malformed_job_by_http(http: Http) -> None:
    answer = await http.ask("POST", "/v1/jobs", json=job({"nodes": []}, new_id()))
    assert answer.status_code == 400
    assert [each["field"] for each in answer.json()["error"]["fields"]] == ["agent_definition.nodes"]


async def test_an_interrupted_job_is_answered_by_http(http: Http) -> None:
    job_id = new_id()
    await http.ask("POST", "/v1/jobs", json=job(payer(), job_id))
    asked = (await http.follow(job_id, until="on_interrupt"))[-1]["data"]
    path, answer = f"/v1/jobs/{job_id}/resume", {"interrupt_id": asked["id"]}
    wrong = await http.ask("POST", path, json={**answer, "value": {"decisions": [{"type": "maybe"}]}})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "InvalidInput")
    assert (await http.ask("GET", f"/v1/jobs/{job_id}")).json()["status"] == "interrupted"
    assert (await http.ask("POST", path, json={**answer, "value": APPROVE})).status_code == 202
    check_end(await http.follow(job_id), "completed")
    shown = (await http.ask("GET", f"/v1/jobs/{job_id}")).json()
    assert shown["result"]["output"] == "paid 50 to Ann"
    assert httpx.codes.is_success((await http.ask("POST", path, json={**answer, "value": APPROVE})).status_code)
