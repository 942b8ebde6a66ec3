"""Prometheus metrics, prefix `agent_executor_`. Owns the registry and every metric's name; counts nothing itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

registry = CollectorRegistry()
_PREFIX = "agent_executor_"

jobs = Counter(f"{_PREFIX}jobs", "Jobs that reached an outcome, or were interrupted", ["status"], registry=registry)
job_duration = Histogram(
    f"{_PREFIX}job_duration_seconds",
    "Time from claim to recorded outcome",
    registry=registry,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600),
)
jobs_running = Gauge(f"{_PREFIX}jobs_running", "Jobs this process runs now", registry=registry)
jobs_waiting = Gauge(f"{_PREFIX}jobs_waiting", "Jobs in the queue that are due", registry=registry)
results_waiting = Gauge(f"{_PREFIX}results_waiting", "Results that are not delivered yet", registry=registry)
jobs_retried = Counter(f"{_PREFIX}jobs_retried", "Failures after which a job is tried again", registry=registry)
leases_lost = Counter(f"{_PREFIX}leases_lost", "Jobs that were dropped because their lease was lost", registry=registry)
db_connection_errors = Counter(f"{_PREFIX}db_connection_errors", "Failed database operations", registry=registry)
redis_publish = Counter(f"{_PREFIX}redis_publish", "Events stored and published", ["event_type"], registry=registry)
redis_publish_errors = Counter(f"{_PREFIX}redis_publish_errors", "Events delayed or dropped", registry=registry)
nats_processed = Counter(f"{_PREFIX}nats_messages_processed", "Messages accepted as jobs or answers", registry=registry)
nats_failed = Counter(f"{_PREFIX}nats_messages_failed", "Messages refused or put back", registry=registry)
access_refused = Counter(
    f"{_PREFIX}access_refused", "Requests refused for their credential", ["reason"], registry=registry
)
audit_overflow = Counter(
    f"{_PREFIX}audit_overflow", "Refusals that the audit does not tell apart, or not at all", registry=registry
)
limited = Counter(f"{_PREFIX}limited", "Times that a limit of a tenant was reached", ["limit"], registry=registry)
intake_paused = Gauge(
    f"{_PREFIX}intake_paused", "1 while messages from NATS wait for a limit of their tenant", registry=registry
)
http_refused = Counter(
    f"{_PREFIX}http_refused", "HTTP requests refused before they were read whole", ["status"], registry=registry
)
vault_auth_failures = Counter(f"{_PREFIX}vault_auth_failures", "Refused by Vault", registry=registry)
