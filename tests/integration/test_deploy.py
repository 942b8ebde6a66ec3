"""What deploy/ asks of PostgreSQL: KEDA's query, as the role that docs/deployment.md makes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from tests.integration.fixtures.postgres import ROOT, Database
from tests.manifests import built, one

ROLE = "agent_executor_keda"
JOBS = """
    insert into jobs (job_id, trace_id, body_hash, definition, input, status, due_at, lease_owner, lease_until,
        outcome_id, finished_at)
    select status || name, '', '', '{}', '{}', status, now() + due_in * interval '1 s',
        case when status = 'running' then 'a' end, case when status = 'running' then now() end,
        case when status = 'failed' then status || name end, case when status = 'failed' then now() end
    from (values
        ('queued', ' due', -1), ('queued', ' again', -9), ('queued', ' later', 600), ('running', '', -1),
        ('running', ' later', 600), ('interrupted', '', -1), ('failed', '', -1)
    ) as made (status, name, due_in)
"""


@pytest.fixture
def keda(database: Database) -> Iterator[psycopg.Connection]:
    """A connection of the role, granted what the page says."""
    page = (ROOT / "docs/deployment.md").read_text()
    (grants,) = [block for block in re.findall(r"(?s)```sql\n(.+?)```", page) if ROLE in block]
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute(grants.encode())
        owner.execute(JOBS)
        owner.execute(f"alter role {ROLE} password 'a-password'")
        try:
            dsn = psycopg.conninfo.make_conninfo(
                database.server.dsn(database.name), user=ROLE, password="a-password", application_name=""
            )
            with psycopg.connect(dsn, autocommit=True) as connection:
                yield connection
        finally:
            owner.execute(f"drop owned by {ROLE}")
            owner.execute(f"drop role {ROLE}")


def test_keda_counts_the_jobs_that_are_due_or_running_and_reads_no_more(keda: psycopg.Connection) -> None:
    trigger = one(built("overlays/keda"), "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert trigger["userName"] == ROLE
    assert keda.execute(trigger["query"].encode()).fetchall() == [(4,)]
    for query in ("select job_id from agent_executor.jobs", "select 1 from agent_executor.outbox"):
        with pytest.raises(InsufficientPrivilege):
            keda.execute(query)
    with pytest.raises(InsufficientPrivilege):
        keda.execute("update agent_executor.jobs set status = 'failed'")
