"""Servers that go and come back, and a service that is told to go, in the middle of a job."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.definitions import adder, agent, event, tool
from tests.integration.fixtures.http import Receiver
from tests.integration.fixtures.nats import messages, publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service, Starter
from tier3.stack import Nats, Postgres, Stack, Vault

COUNTING = """
import pathlib
from langchain_core.tools import tool

@tool
def count() -> str:
    "Leaves a line, then waits for the gate."
    with open({lines!r}, "a") as file:
        file.write("called\\n")
    return "counted"

@tool
def gate() -> str:
    "Waits."
    import time
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
    return "opened"
"""


class Steps:
    """A job that counts once, then waits at a gate: `counted` tells how often its first step ran."""

    def __init__(self, directory: Path) -> None:
        self._lines, self._gate = directory / "lines", directory / "gate"
        source = COUNTING.format(lines=str(self._lines), gate=str(self._gate))
        replies: list[dict[str, Any]] = [
            {"tool_calls": [{"name": "count"}]},
            {"tool_calls": [{"name": "gate"}]},
            {"text": "{last}"},
        ]
        self.definition = agent(replies, tools=[tool("count", source), tool("gate", source)])

    @property
    def counted(self) -> int:
        """How often the first tool ran."""
        return self._lines.read_text().count("called")

    def open(self) -> None:
        """Let the job go on."""
        self._gate.touch()


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


def waits_at_the_gate(service: Service, job_id: str) -> bool:
    """Whether the job's second tool has started."""
    events = stored_events(service.environment["REDIS_URL"], job_id)
    return any(each["event_type"] == "on_tool_start" and each["data"]["name"] == "gate" for each in events)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_ends_within_the_grace_is_finished(
    start_service: Starter, steps: Steps, how: signal.Signals
) -> None:
    service = start_service().ready()
    service.submit(steps.definition, "short")
    service.until(lambda: waits_at_the_gate(service, "short"), "the job does not start")
    service.process.send_signal(how)
    service.until(lambda: service.http.get("/ready").status_code == 503, "the service does not drain")
    assert service.http.get("/health").status_code == 200
    assert service.submit(adder(), "late").status_code == 202
    steps.open()
    service.process.wait(30)
    assert [each["event_type"] for each in stored_events(service.environment["REDIS_URL"], "short")][-1] == "end"
    successor = start_service().ready()
    assert successor.job("short")["status"] == "completed"
    assert successor.job("short")["attempt"] == 1
    assert successor.ended("late")["status"] == "completed"
    assert steps.counted == 1


def test_a_job_that_does_not_is_resumed_by_the_next_process(start_service: Starter, steps: Steps) -> None:
    service = start_service(SHUTDOWN_GRACE_S="0.1").ready()
    service.submit(steps.definition, "long")
    service.until(lambda: waits_at_the_gate(service, "long"), "the job does not start")
    service.stop()
    successor = start_service().ready()
    steps.open()
    done = successor.ended("long")
    assert (done["status"], done["result"]["output"], done["attempt"]) == ("completed", "opened", 1)
    assert steps.counted == 1
    fences = {each["id"].split("-")[0] for each in stored_events(successor.environment["REDIS_URL"], "long")}
    assert fences == {"1", "2"}


def test_a_killed_worker_loses_no_job(start_service: Starter, steps: Steps) -> None:
    service = start_service(LEASE_S="3").ready()
    service.submit(steps.definition, "killed")
    service.until(lambda: waits_at_the_gate(service, "killed"), "the job does not start")
    service.stop(signal.SIGKILL)
    steps.open()
    done = start_service(LEASE_S="3").ready().ended("killed")
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert steps.counted == 1


async def test_an_open_event_stream_does_not_hold_up_the_end(start_service: Starter, steps: Steps) -> None:
    service = start_service(SHUTDOWN_GRACE_S="0.1").ready()
    service.submit(steps.definition, "streamed")
    with service.http.stream("GET", "/v1/jobs/streamed/events") as response:
        lines = response.iter_lines()
        next(lines)
        await asyncio.to_thread(service.stop)
        list(lines)  # ends, instead of hanging


def test_postgres_restarted_fails_no_job(start_service: Starter, steps: Steps, stack: Stack, place: Any) -> None:
    service = start_service().ready()
    service.submit(steps.definition, "through")
    service.until(lambda: waits_at_the_gate(service, "through"), "the job does not start")
    stack.postgres.restart()
    steps.open()
    assert service.ended("through")["status"] == "completed"
    assert service.run(adder(), "after")["status"] == "completed"


@pytest.mark.parametrize("length", ["renew_failed", "release_failed"])
def test_an_outage_of_postgres_during_a_step_is_no_failure_and_no_attempt(
    own_postgres: Database, start_service: Starter, steps: Steps, length: str
) -> None:
    """Shorter than the lease, it is waited for; longer, the run is stopped, and taken up again afterwards."""
    service = start_service(**own_postgres.environment, LEASE_S="3").ready()
    service.submit(steps.definition, "outage")
    service.until(lambda: waits_at_the_gate(service, "outage"), "the job does not start")
    server = own_postgres.server
    assert isinstance(server, Postgres)
    server.kill()
    steps.open()
    service.until(lambda: length in service.log.read_text(), "the job does not notice")
    server.start()
    done = service.ended("outage")
    assert (done["status"], done["result"]["output"], done["attempt"]) == ("completed", "opened", 1)
    assert steps.counted == 1


async def test_an_outage_of_vault_is_no_failure(start_service: Starter, tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.start()
    service = start_service(VAULT_ADDR=vault.addr).ready()
    vault.stop()
    definition = agent([{"text": "x"}])
    definition["nodes"][0]["config"]["model"] = {"provider": "openai", "model": "x"}
    service.submit(definition, "no-vault")
    service.until(lambda: "job_postponed" in service.log.read_text(), "the job does not notice")
    assert service.job("no-vault")["status"] in ("queued", "running")
    vault.start()
    done = service.ended("no-vault")
    assert done["error"]["type"] == "ModelUnavailable"  # Vault answers that it has no key
    vault.stop()


async def test_nats_restarted_is_listened_to_again(start_service: Starter, own_nats: Nats) -> None:
    service = start_service().ready()
    await asyncio.to_thread(own_nats.stop)
    assert service.http.get("/ready").json()["services"]["nats"] is False
    assert service.run(adder(), "meanwhile")["status"] == "completed"
    await asyncio.to_thread(own_nats.start)
    await messages(own_nats.url, "AGENT_STATUS", "agent.status.completed", "meanwhile")
    await publish(own_nats.url, event(adder(), job_id="afterwards"))
    await messages(own_nats.url, "AGENT_STATUS", "agent.status.completed", "afterwards")


async def test_a_nats_that_lost_everything_gets_its_streams_again(start_service: Starter, own_nats: Nats) -> None:
    service = start_service().ready()
    await asyncio.to_thread(own_nats.kill)
    shutil.rmtree(own_nats.data)
    await asyncio.to_thread(own_nats.start)
    service.until(lambda: service.log.read_text().count("consumer_created") == 2, "the consumer is not made again")
    await publish(own_nats.url, event(adder(), job_id="anew"))
    await messages(own_nats.url, "AGENT_STATUS", "agent.status.completed", "anew")


async def test_jobs_wait_in_nats_for_a_service_that_starts_later(start_service: Starter, own_nats: Nats) -> None:
    start_service().ready().stop()
    await publish(own_nats.url, event(adder(), job_id="early"))
    start_service()
    await messages(own_nats.url, "AGENT_STATUS", "agent.status.completed", "early")


async def test_streams_that_differ_are_corrected_and_named(start_service: Starter, own_nats: Nats) -> None:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig

    client = await nats.connect(own_nats.url)
    js = client.jetstream()
    await js.add_stream(name="AGENT_EXECUTION", subjects=["agent.execute.*"], max_age=60)
    narrow: dict[str, Any] = {"max_deliver": 2, "filter_subject": "agent.execute.only", "headers_only": True}
    consumer = ConsumerConfig(durable_name="agent-executor-workers", ack_policy=AckPolicy.EXPLICIT, **narrow)
    await js.add_consumer("AGENT_EXECUTION", consumer)
    service = start_service().ready()
    service.until(lambda: "nats_ready" in service.log.read_text(), "NATS is not prepared")
    assert (await js.stream_info("AGENT_EXECUTION")).config.max_age == 24 * 3600
    found = (await js.consumer_info("AGENT_EXECUTION", "agent-executor-workers")).config
    assert found.max_deliver in (None, -1)
    assert not found.filter_subject
    assert not found.headers_only
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    [stream] = [line for line in lines if line["event"] == "stream_differs"]
    assert stream["max_age"] == "is 60.0, should be 86400.0"
    [consumer_line] = [line for line in lines if line["event"] == "consumer_differs"]
    assert consumer_line["max_deliver"] == "is 2, should be None"
    await client.close()


def test_a_service_without_its_servers_says_so_and_waits(start_service: Starter, postgres_later: Postgres) -> None:
    service = start_service(
        POSTGRES_PORT=str(postgres_later.port), NATS_URL="nats://127.0.0.1:9", REDIS_URL="redis://127.0.0.1:9"
    )
    service.until(lambda: service.status("/health") == 200, "the process does not serve")
    service.until(lambda: service.http.get("/ready").json()["services"]["vault"], "it does not start")
    ready = service.http.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["services"] == {"postgres": False, "dragonfly": False, "nats": False, "vault": True}
    answer = service.submit(adder(), "x")
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "Unavailable"
    assert "Retry-After" in answer.headers


@pytest.fixture
def postgres_later(tmp_path: Path) -> Postgres:
    """A server whose port is known, and which does not run."""
    server = Postgres(tmp_path)
    server.start()
    server.stop()
    return server


def test_a_result_goes_to_the_sink_until_it_is_taken(start_service: Starter, receiver: Receiver) -> None:
    receiver.answers = [500]
    service = start_service(K_SINK=f"{receiver.url}/results").ready()
    service.run(adder(), "sunk")
    service.until(lambda: len(receiver.received) == 2, "the result is not delivered again")
    (headers, first), (_, second) = receiver.received
    assert headers["content-type"] == "application/cloudevents+json"
    assert first == second
    assert json.loads(first)["subject"] == "sunk"
    assert json.loads(first)["data"]["result"]["output"] == "The Calculator says: 5"
