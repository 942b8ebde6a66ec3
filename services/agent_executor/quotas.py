"""What a tenant may use: queued jobs, running jobs, submits per minute, open event streams, the size of a body.

Owns the words in which a limit is named, and the count of queued jobs when a tenant's room is used up. Whether a job is
taken in, and which is claimed, is decided in the ledger's own queries, which look at the same tables: all state is in
PostgreSQL, so that limits hold over all processes. Streams have `places`; what one running job may use is in `limits`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from . import metrics, sql
from .errors import Finding, PayloadTooLarge, TooManyRequests

_AGAIN_S = 5.0
_SETTINGS = {
    "max_queued_jobs": "TENANT_MAX_QUEUED_JOBS",
    "max_submits_per_minute": "TENANT_MAX_SUBMITS_PER_MINUTE",
    "max_open_streams": "TENANT_MAX_OPEN_STREAMS",
    "max_body_bytes": "MAX_BODY_BYTES",
}

SQL = sql.load("quotas.sql")


@dataclass(frozen=True)
class Allowance:
    """What each tenant may that has no limits of its own in `tenant_limits`. 0 is without a limit."""

    max_queued_jobs: int = 0
    max_running_jobs: int = 0
    max_submits_per_minute: int = 0
    max_open_streams: int = 0

    def parameters(self) -> dict[str, int]:
        """For the queries, by name."""
        return asdict(self)


UNLIMITED = Allowance()


def too_many(limit: str, most: int, retry_after_s: float = _AGAIN_S) -> TooManyRequests:
    """The refusal that names a limit, counted."""
    metrics.limited.labels(limit).inc()
    setting = _SETTINGS[limit]
    return TooManyRequests(
        f"the tenant is at its limit {setting}: {most}", Finding(setting, f"at most {most}"), retry_after_s
    )


def too_large(most: int) -> PayloadTooLarge:
    """The refusal of a body, counted. `most` is in bytes."""
    metrics.limited.labels("max_body_bytes").inc()
    limit = Finding(_SETTINGS["max_body_bytes"], f"at most {most}")
    return PayloadTooLarge(f"the body is larger than {most} bytes", [limit])


async def make_room(connection: AsyncConnection[DictRow], tenant: str, allowance: Allowance) -> None:
    """Give the tenant the room that has become free since its queued jobs were last counted, within a transaction.

    Raises:
        TooManyRequests: there is none, or it has submitted as much as it may for now.
    """
    found = await _counted(connection, tenant, allowance)
    if 0 < found["max_queued_jobs"] <= found["queued"]:
        raise too_many("max_queued_jobs", found["max_queued_jobs"])
    if found["submit_in_s"] > 0:
        raise too_many("max_submits_per_minute", found["max_submits_per_minute"], found["submit_in_s"])


async def check_room(connection: AsyncConnection[DictRow], tenant: str, allowance: Allowance) -> None:
    """As `make_room`, after a job was put into the queue in the same transaction; submits do not count."""
    found = await _counted(connection, tenant, allowance)
    if 0 < found["max_queued_jobs"] < found["queued"]:
        raise too_many("max_queued_jobs", found["max_queued_jobs"])


async def _counted(connection: AsyncConnection[DictRow], tenant: str, allowance: Allowance) -> DictRow:
    of_tenant = {"tenant": tenant, **allowance.parameters()}
    await connection.execute(SQL["lock_usage"], of_tenant)
    found = await (await connection.execute(SQL["make_room"], of_tenant)).fetchone()
    assert found is not None
    return found
