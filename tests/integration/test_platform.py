"""What a platform asks of the process: health, metrics, logs, API docs, traces."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.definitions import adder, event
from tests.integration.fixtures.http import Receiver
from tests.integration.fixtures.service import Service, Starter

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_health_and_readiness(service: Service) -> None:
    assert service.http.get("/health").json() == {"status": "healthy"}
    ready = service.http.get("/ready")
    assert ready.status_code == 200
    services = {"postgres": True, "dragonfly": True, "nats": True, "vault": True}
    assert ready.json() == {"status": "ready", "services": services}


def test_health_answers_before_the_heavy_imports(start_service: Starter) -> None:
    service = start_service()
    service.until(lambda: service.status("/health") == 200, "the process does not serve")
    assert service.http.get("/ready").status_code == 503
    assert service.http.get("/v1/jobs").json()["error"] == {
        "type": "Unavailable",
        "message": "the service is starting",
        "fields": [],
    }
    service.ready()


@pytest.mark.parametrize("module", ["langgraph", "deepagents", "langchain_core", "psycopg", "redis", "nats", "hvac"])
def test_nothing_heavy_is_imported_before_health_answers(module: str) -> None:
    code = f"import agent_executor.app, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_providers_are_imported_when_they_are_first_used() -> None:
    providers = ("langchain_openai", "langchain_anthropic", "langchain_ollama")
    code = f"import agent_executor.service, sys; sys.exit(any(name in sys.modules for name in {providers}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics(service: Service) -> None:
    service.run(adder(), "metered")
    text = service.http.get("/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['agent_executor_jobs_total{status="completed"}']) >= 1
    assert float(samples["agent_executor_job_duration_seconds_count"]) >= 1
    assert float(samples['agent_executor_redis_publish_total{event_type="end"}']) >= 1
    for name in ("db_connection_errors", "redis_publish_errors", "nats_messages_failed", "vault_auth_failures"):
        assert f"agent_executor_{name}_total" in samples
    assert "agent_executor_nats_messages_processed_total" in samples


def test_every_answer_has_a_schema_errors_included(service: Service) -> None:
    document = service.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/",
        "/health",
        "/metrics",
        "/ready",
        "/v1/definitions/schema",
        "/v1/definitions/validate",
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/cancel",
        "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/redrive",
        "/v1/jobs/{job_id}/resume",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if status == "204":
                    continue
                schemas = [media.get("schema") for media in answer["content"].values()]
                assert all(schemas), f"{method} {path} {status}"
                if int(status) >= 400 and path != "/ready":
                    assert schemas == [{"$ref": "#/components/schemas/ErrorBody"}]
    assert service.http.get("/docs").status_code == 200


def test_logs_are_json_lines_that_name_the_job(service: Service) -> None:
    service.run(adder(), "logged", trace_id="trace-logged")
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if "logged" in line]
    assert {line["event"] for line in lines} >= {"job_started", "job_finished"}
    for line in lines:
        assert {"event", "level", "timestamp", "job_id", "trace_id"} <= set(line)
        assert (line["job_id"], line["trace_id"]) == ("logged", "trace-logged")


def test_the_log_level_rules_all_loggers(start_service: Starter) -> None:
    service = start_service(LOG_LEVEL="warning").ready()
    service.run(adder(), "quiet")
    service.stop()
    assert [line for line in service.log.read_text().splitlines() if '"level": "info"' in line] == []


def test_a_wrong_environment_is_named_at_once_and_ends_the_process(start_service: Starter) -> None:
    service = start_service(POSTGRES_HOST="", VAULT_ADDR="", MAX_CONCURRENT_JOBS="many", LEASE_S="1")
    assert service.process.wait(30) == 64
    reason = json.loads(service.log.read_text().splitlines()[-1])["reason"]
    assert "POSTGRES_HOST" in reason
    assert "MAX_CONCURRENT_JOBS" in reason
    assert "LEASE_S" in reason
    assert "many" not in reason


def test_traces_continue_the_request_through_the_job(start_service: Starter, receiver: Receiver) -> None:
    service = start_service(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url).ready()
    request = event(adder(), job_id="traced", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    headers = {"content-type": "application/cloudevents+json", "Prefer": "wait=30"}
    outgoing = service.http.post("/", content=json.dumps(request), headers=headers).json()
    service.stop()
    spans = b"".join(body for _, body in receiver.received)
    assert spans.count(bytes.fromhex(TRACE)) >= 5  # accept, run, two tools, deliver
    for name in (b"accept job", b"run job", b"tool task", b"tool add_numbers", b"deliver result"):
        assert name in spans
    version, trace, parent, _ = outgoing["traceparent"].split("-")
    assert (version, trace) == ("00", TRACE)
    assert bytes.fromhex(parent) in spans
