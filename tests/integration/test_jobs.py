"""A job from the outside: in by HTTP and by NATS, watched in Redis, found in PostgreSQL, announced on NATS."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.definitions import adder, agent, event, specialist, tool
from tests.integration.fixtures.nats import messages, publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def check_traces_of_the_adder(job_id: str, service: Service, database: Database) -> None:
    """What a finished adder job leaves in PostgreSQL and in Redis."""
    with psycopg.connect(database.dsn) as connection:
        threads = connection.execute("select count(*) from checkpoints where thread_id = %s", [job_id]).fetchone()
        namespaces = connection.execute(
            "select count(distinct checkpoint_ns) from checkpoints where thread_id = %s", [job_id]
        ).fetchone()
        row = connection.execute("select status, fence from jobs where job_id = %s", [job_id]).fetchone()
    assert threads is not None
    assert threads[0] >= 5
    assert namespaces == (2,)  # the root, and the specialist inside its `task` call
    assert row == ("completed", 1)
    events = stored_events(service.environment["REDIS_URL"], job_id)
    types = [each["event_type"] for each in events]
    assert [each["id"] for each in events] == [f"1-{number}" for number in range(1, len(events) + 1)]
    assert types.count("end") == 1
    assert types[-1] == "end"
    tools = [(each["event_type"], each["data"]["name"]) for each in events if "tool" in each["event_type"]]
    assert tools == [
        ("on_tool_start", "task"),
        ("on_tool_start", "add_numbers"),
        ("on_tool_end", "add_numbers"),
        ("on_tool_end", "task"),
    ]
    tokens = [each["data"] for each in events if each["event_type"] == "on_llm_stream"]
    assert "".join(each["content"] for each in tokens if each["path"] == ["Calculator"]) == "5"
    last_state = [each["data"] for each in events if each["event_type"] == "on_state_update"][-1]
    assert [message["role"] for message in last_state["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert last_state["messages"][-1]["content"] == "The Calculator says: 5"


async def test_a_job_by_http_with_subagent_and_tool(service: Service, shared_database: Database) -> None:
    done = service.run(adder(), "http-adder")
    assert done["status"] == "completed"
    assert done["result"] == {"output": "The Calculator says: 5", "status": "completed"}
    assert done["trace_id"] == "t-1"
    assert done["error"] is None
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    check_traces_of_the_adder("http-adder", service, shared_database)
    [(announced, headers)] = await messages(
        service.environment["NATS_URL"], "AGENT_STATUS", "agent.status.completed", "http-adder"
    )
    assert headers["Nats-Msg-Id"] == announced["id"]
    assert announced["data"] == {"job_id": "http-adder", "result": done["result"]}


async def test_a_job_by_nats_with_its_trace_continued(service: Service, shared_database: Database) -> None:
    nats_url = service.environment["NATS_URL"]
    await publish(nats_url, event(adder(), job_id="nats-adder", traceparent=TRACEPARENT))
    [(announced, headers)] = await messages(nats_url, "AGENT_STATUS", "agent.status.completed", "nats-adder")
    assert announced["type"] == "dev.my-platform.agent.completed"
    assert announced["source"] == "agent-executor-service"
    assert announced["specversion"] == "1.0"
    assert announced["subject"] == "nats-adder"
    assert announced["traceparent"].split("-")[1] == TRACEPARENT.split("-")[1]
    assert announced["data"]["result"] == {"output": "The Calculator says: 5", "status": "completed"}
    assert headers["traceparent"] == announced["traceparent"]
    assert service.ended("nats-adder")["result"]["output"] == "The Calculator says: 5"
    check_traces_of_the_adder("nats-adder", service, shared_database)


async def test_the_same_events_are_published_and_stored(service: Service) -> None:
    from redis.asyncio import Redis

    redis_url, heard = service.environment["REDIS_URL"], []
    async with Redis.from_url(redis_url) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe("langgraph:stream:pubsub-1")
        await asyncio.to_thread(service.submit, adder(), "pubsub-1")
        async with asyncio.timeout(30):
            async for message in pubsub.listen():
                if message["type"] == "message":
                    heard.append(json.loads(message["data"]))
                    if heard[-1]["event_type"] == "end":
                        break
    assert heard == stored_events(redis_url, "pubsub-1")


@pytest.mark.parametrize("by", ["structured", "binary"])
def test_a_cloud_event_by_http(service: Service, by: str) -> None:
    request = event(adder(), job_id=f"event-{by}", id=f"event-{by}")
    if by == "structured":
        headers = {"content-type": "application/cloudevents+json; charset=utf-8"}
        answer = service.http.post("/", content=json.dumps(request), headers=headers)
    else:
        data = request.pop("data")
        headers = {f"ce-{name}": value for name, value in request.items()} | {"content-type": "application/json"}
        answer = service.http.post("/", content=json.dumps(data), headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/event-{by}"
    assert service.ended(f"event-{by}")["status"] == "completed"


@pytest.mark.parametrize(("headers", "query"), [({"Prefer": "wait=30"}, ""), ({}, "?wait=30")])
def test_whoever_waits_is_answered_with_the_outgoing_event(
    service: Service, headers: dict[str, str], query: str
) -> None:
    job_id = f"wait{query.replace('?', '-')}"
    request = event(adder(), job_id=job_id, id=job_id)
    headers |= {"content-type": "application/cloudevents+json"}
    answer = service.http.post(f"/{query}", content=json.dumps(request), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/cloudevents+json")
    assert answer.json()["data"]["result"]["output"] == "The Calculator says: 5"


def test_whoever_waits_too_short_gets_a_location(service: Service) -> None:
    slow = agent([{"text": "late", "delay_ms": 2000}])
    request = event(slow, job_id="wait-short", id="wait-short")
    headers = {"content-type": "application/cloudevents+json", "Prefer": "respond-async, wait=0.1"}
    answer = service.http.post("/", content=json.dumps(request), headers=headers)
    assert answer.status_code == 202
    assert service.ended("wait-short")["result"]["output"] == "late"


async def test_a_failing_tool_fails_the_job(service: Service) -> None:
    source = (
        "from langchain_core.tools import tool\n@tool\ndef boom() -> str:\n    'Fails.'\n"
        "    raise ValueError('no luck')\n"
    )
    failing = agent([{"tool_calls": [{"name": "boom"}]}, {"text": "never"}], tools=[tool("boom", source)])
    done = service.run(failing, "boom")
    assert done["status"] == "failed"
    assert (done["error"]["type"], done["error"]["message"]) == ("ValueError", "no luck")
    assert "<tool boom>" in done["error"]["stack_trace"]
    events = stored_events(service.environment["REDIS_URL"], "boom")
    assert [each["event_type"] for each in events[-3:]] == ["on_tool_end", "error", "end"]
    assert events[-3]["data"]["error"] == {"message": "no luck", "type": "ValueError"}
    assert events[-2]["data"] == {"message": "no luck", "type": "ValueError"}
    assert events[-1]["data"] == {"status": "failed"}
    [(announced, _)] = await messages(service.environment["NATS_URL"], "AGENT_STATUS", "agent.status.failed", "boom")
    assert announced["type"] == "dev.my-platform.agent.failed"
    assert announced["data"] == {"job_id": "boom", "error": done["error"]}


@pytest.mark.parametrize("where", ["script", "tool"])
def test_a_tool_that_exits_fails_its_job_and_not_the_service(service: Service, where: str) -> None:
    source = (
        "import sys\nfrom langchain_core.tools import tool\n@tool\n"
        "def leave() -> str:\n    'Leaves.'\n    sys.exit(3)\n"
    )
    source += "sys.exit(3)\n" if where == "script" else ""
    done = service.run(agent([{"tool_calls": [{"name": "leave"}]}], tools=[tool("leave", source)]), f"left-{where}")
    assert done["status"] == "failed"
    assert "SystemExit" in done["error"]["message"]
    assert service.run(adder(), f"next-{where}")["status"] == "completed"


def test_a_model_that_calls_an_unknown_tool_is_told_so(service: Service) -> None:
    done = service.run(agent([{"tool_calls": [{"name": "nowhere"}]}, {"text": "{last}"}]), "unknown-tool")
    assert done["status"] == "completed"
    assert "nowhere is not a valid tool" in done["result"]["output"]


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ({"provider": "openai", "model": "x"}, "ModelUnavailable", "OPENAI_API_KEY"),
        ({"provider": "ollama", "model": "x", "temperature": "hot"}, "InvalidInput", "model.temperature"),
        ({"provider": "scripted", "model": "x", "replies": [{"error": "overloaded"}]}, "ScriptedError", "overloaded"),
    ],
    ids=["key", "options", "failure"],
)
def test_a_model_that_cannot_be_had_fails_the_job(
    service: Service, model: dict[str, Any], kind: str, words: str
) -> None:
    definition = agent([{"text": "x"}])
    definition["nodes"][0]["config"]["model"] = model
    done = service.run(definition, f"model-{kind}-{words}".replace(" ", "-"))
    assert done["status"] == "failed"
    assert done["attempt"] == 1
    assert done["error"]["type"] == kind
    assert words in done["error"]["message"]


def test_what_cannot_be_stored_is_repaired_with_a_warning(service: Service) -> None:
    source = (
        "from langchain_core.tools import tool\n@tool\ndef odd() -> str:\n    'Odd.'\n"
        "    return 'a' + chr(0) + 'b' + chr(0xD800) + 'c'\n"
    )
    helper = specialist("Helper", [{"tool_calls": [{"name": "odd"}]}, {"text": "{last}"}], ["odd"])
    task = {"name": "task", "args": {"subagent_type": "Helper", "description": "x"}}
    definition = agent([{"tool_calls": [task]}, {"text": "{last}"}], tools=[tool("odd", source)], specialists=[helper])
    done = service.run(definition, "odd")
    assert done["status"] == "completed", done["error"]
    assert done["result"]["output"] == "a\ufffdb\ufffdc"
    events = stored_events(service.environment["REDIS_URL"], "odd")
    warnings = [each["data"] for each in events if each["event_type"] == "warning"]
    assert {each["about"] for each in warnings} == {"tool odd"}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_tool_that_blocks_does_not_hold_up_the_service(service: Service, tmp_path: Path, kind: str) -> None:
    gate = tmp_path / "gate"
    source = (
        "import pathlib, time\nfrom langchain_core.tools import tool\n@tool\n"
        f"{kind} block() -> str:\n    'Blocks.'\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n        time.sleep(0.01)\n    return 'went on'\n"
    )
    job_id = f"block-{kind.replace(' ', '-')}"
    blocking = agent([{"tool_calls": [{"name": "block"}]}, {"text": "{last}"}], tools=[tool("block", source)])
    service.submit(blocking, job_id)
    service.until(
        lambda: any(
            e["event_type"] == "on_tool_start" for e in stored_events(service.environment["REDIS_URL"], job_id)
        ),
        "the tool does not start",
    )
    assert service.http.get("/health").json() == {"status": "healthy"}
    assert service.run(adder(), f"{job_id}-neighbour")["status"] == "completed"
    gate.touch()
    assert service.ended(job_id)["result"]["output"] == "went on"


async def test_a_repeated_request_publishes_the_outcome_again(service: Service) -> None:
    nats_url = service.environment["NATS_URL"]
    service.run(adder(), "again")
    await publish(nats_url, event(adder(), job_id="again", id="request-2"))
    first, second = await messages(nats_url, "AGENT_STATUS", "agent.status.completed", "again", count=2)
    assert first[0] == second[0]
    assert first[1]["Nats-Msg-Id"] == first[0]["id"]
    assert second[1]["Nats-Msg-Id"].startswith(f"{first[0]['id']}:")
    assert service.job("again")["attempt"] == 1


async def test_another_body_under_the_same_id_is_refused(service: Service) -> None:
    nats_url = service.environment["NATS_URL"]
    service.run(adder(), "taken")
    assert service.submit(agent([{"text": "x"}]), "taken").status_code == 409
    other = event(agent([{"text": "x"}]), job_id="taken", id="taken-2")
    headers = {"content-type": "application/cloudevents+json"}
    assert service.http.post("/", content=json.dumps(other), headers=headers).status_code == 400
    await publish(nats_url, other)
    [(buried, headers_)] = await messages(nats_url, "AGENT_DEAD", "agent.dead.conflict", "taken")
    assert buried == other
    assert "taken" in headers_["Agent-Error"]
    assert service.job("taken")["status"] == "completed"


def test_an_id_may_hold_slashes_and_spaces(service: Service) -> None:
    answer = service.submit(agent([{"text": "x"}]), "a b/c?d#ü")
    assert service.http.get(answer.headers["location"]).json()["job_id"] == "a b/c?d#ü"
    assert "event: end" in service.http.get(f"{answer.headers['location']}/events").text


def test_jobs_are_listed_newest_first_page_by_page(service: Service) -> None:
    for number in range(3):
        service.run(agent([{"text": "x"}]), f"list-{number}")
    first = service.http.get("/v1/jobs", params={"limit": 2, "status": "completed"}).json()
    assert [each["job_id"] for each in first["jobs"]] == ["list-2", "list-1"]
    second = service.http.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert second["jobs"][0]["job_id"] == "list-0"
