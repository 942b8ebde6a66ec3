"""A job that is cancelled or run again, from the outside."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.definitions import agent, tool
from tests.integration.fixtures.nats import messages
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service

FLAKY = """
import pathlib
from langchain_core.tools import tool

@tool
def flaky() -> str:
    "Fails until its file is there."
    if not pathlib.Path({sign!r}).exists():
        raise ValueError("not yet")
    return "now"
"""


def events(service: Service, job_id: str) -> list[dict[str, Any]]:
    """What Server-Sent Events give from the beginning, until the stream ends."""
    lines = service.http.get(f"/v1/jobs/{job_id}/events").text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def test_a_running_job_is_cancelled(service: Service) -> None:
    service.submit(agent([{"text": "never", "delay_ms": 600_000}]), "cancelled")
    service.until(lambda: service.job("cancelled")["status"] == "running", "it does not start")
    answer = service.http.post("/v1/jobs/cancelled/cancel")
    assert (answer.status_code, answer.json()) == (200, {"job_id": "cancelled", "status": "cancelled"})
    cancelled = service.job("cancelled")
    assert cancelled["error"] == {
        "message": "job cancelled was cancelled",
        "type": "Cancelled",
        "stack_trace": "",
    }
    [(announced, _)] = await messages(
        service.environment["NATS_URL"], "AGENT_STATUS", "agent.status.failed", '"cancelled"'
    )
    assert announced["data"] == {"job_id": "cancelled", "error": cancelled["error"]}
    last = await asyncio.to_thread(events, service, "cancelled")
    assert [each["event_type"] for each in last[-2:]] == ["error", "end"]
    assert last[-1]["data"] == {"status": "cancelled"}
    assert service.http.post("/v1/jobs/cancelled/cancel").status_code == 200


@pytest.mark.parametrize("action", ["cancel", "redrive"])
def test_what_is_not_there_or_has_ended_is_not_touched(service: Service, action: str) -> None:
    assert service.http.post(f"/v1/jobs/nowhere/{action}").json()["error"]["type"] == "NotFound"
    service.run(agent([{"text": "x"}]), f"ended-{action}")
    refused = service.http.post(f"/v1/jobs/ended-{action}/{action}")
    assert refused.status_code == 409
    assert "completed" in refused.json()["error"]["message"]
    assert service.job(f"ended-{action}")["status"] == "completed"


async def test_a_failed_job_is_run_again_from_its_last_checkpoint(service: Service, tmp_path: Any) -> None:
    """Its events begin anew, and its new outcome has an id of its own."""
    sign = tmp_path / "sign"
    source = FLAKY.format(sign=str(sign))
    replies: list[dict[str, Any]] = [{"tool_calls": [{"name": "flaky"}]}, {"text": "{last}"}]
    failed = await asyncio.to_thread(service.run, agent(replies, tools=[tool("flaky", source)]), "redriven")
    assert (failed["status"], failed["error"]["type"]) == ("failed", "ValueError")
    nats_url = service.environment["NATS_URL"]
    [(first, _)] = await messages(nats_url, "AGENT_STATUS", "agent.status.failed", "redriven")
    sign.touch()
    answer = service.http.post("/v1/jobs/redriven/redrive")
    assert (answer.status_code, answer.json()) == (202, {"job_id": "redriven", "status": "queued"})
    done = await asyncio.to_thread(service.ended, "redriven")
    assert (done["status"], done["result"]["output"], done["error"]) == ("completed", "now", None)
    [(second, _)] = await messages(nats_url, "AGENT_STATUS", "agent.status.completed", "redriven")
    assert second["id"] != first["id"]
    seen = await asyncio.to_thread(events, service, "redriven")
    assert [each["event_type"] for each in seen].count("end") == 1
    assert seen[-1]["data"] == {"status": "completed"}
    assert {each["id"].split("-")[0] for each in seen} == {"2"}
    stored = stored_events(service.environment["REDIS_URL"], "redriven")
    assert not [
        each for each in stored if each["event_type"] == "on_llm_stream" and each["data"].get("tool_call_chunks")
    ]


async def test_a_result_that_nats_does_not_take_goes_by_reference(service: Service) -> None:
    text = "x" * (2**20 + 1)
    done = await asyncio.to_thread(service.run, agent([{"text": text}]), "large")
    assert len(done["result"]["output"]) == len(text)
    [(announced, headers)] = await messages(
        service.environment["NATS_URL"], "AGENT_STATUS", "agent.status.completed", '"large"'
    )
    assert announced["dataref"] == "/v1/jobs/large"
    assert announced["data"] == {"job_id": "large", "result": {"output": None, "status": "completed"}}
    assert headers["Nats-Msg-Id"] == announced["id"]
    assert service.http.get(announced["dataref"]).json()["result"]["output"] == text
