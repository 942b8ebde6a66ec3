"""metrics: the names that the contract promises are exported."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from agent_executor import metrics


def exported() -> str:
    metrics.jobs.labels("completed")
    metrics.redis_publish.labels("end")
    return generate_latest(metrics.registry).decode()


@pytest.mark.parametrize(
    "sample",
    [
        'jobs_total{status="completed"}',
        "job_duration_seconds_count",
        'job_duration_seconds_bucket{le="+Inf"}',
        "db_connection_errors_total",
        'redis_publish_total{event_type="end"}',
        "redis_publish_errors_total",
        "nats_messages_processed_total",
        "nats_messages_failed_total",
        "vault_auth_failures_total",
    ],
)
def test_the_names_of_the_contract(sample: str) -> None:
    assert f"\nagent_executor_{sample} " in exported()


def test_every_metric_has_the_prefix_and_a_description() -> None:
    for family in metrics.registry.collect():
        assert family.name.startswith("agent_executor_")
        assert family.documentation
