"""sql: the .sql files load, and every query that the code names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent_executor import (
    api_key_command,
    api_keys,
    audit,
    audit_command,
    checkpoint_commits,
    checkpoints,
    leases,
    ledger,
    notify,
    outbox,
    places,
    quotas,
    sql,
    tenant_command,
)

PACKAGE = Path(sql.__file__).parent
USED = re.compile(r'SQL\["(\w+)"\]|_(?:rows|write)\(\s*"(\w+)"')
MODULES = {
    **{"ledger": ledger.SQL, "outbox": outbox.SQL, "leases": leases.SQL, "checkpoints": checkpoints.SQL},
    "checkpoint_commits": checkpoint_commits.SQL,
    **{"api_keys": api_keys.SQL, "api_key_command": api_key_command.SQL},
    **{"audit": audit.SQL, "audit_command": audit_command.SQL},
    **{"quotas": quotas.SQL, "places": places.SQL, "tenant_command": tenant_command.SQL},
}
OF_WORKERS = {
    *("claim_in_turn", "claim", "release", "retry", "interrupt", "finish", "endings"),
    *("silent_for_good", "announce_rejection"),
    *("waiting", "expire_jobs", "expire_outbox", "ping"),
}
"""Queries of the ledger that serve no caller: they see the jobs of all tenants."""
FILES = sorted(path.name for path in PACKAGE.glob("*.sql"))


@pytest.mark.parametrize(("module", "queries"), MODULES.items())
def test_every_query_used_exists_and_every_query_is_used(module: str, queries: dict[str, str]) -> None:
    used = {name for names in USED.findall((PACKAGE / f"{module}.py").read_text()) for name in names if name}
    assert used == queries.keys()


def test_every_file_has_its_module() -> None:
    assert sorted(f"{module}.sql" for module in MODULES) == FILES


@pytest.mark.parametrize("file", FILES)
def test_a_query_is_the_statement_below_its_name(file: str) -> None:
    queries = sql.load(file)
    assert len(queries) == (PACKAGE / file).read_text().count("-- name: ")
    fragments = {"held", *checkpoint_commits.TABLES} if file == "checkpoint_commits.sql" else set()
    assert {name for name, text in queries.items() if not text.strip().endswith(";")} == fragments
    assert not any("-- name:" in text for text in queries.values())


@pytest.mark.parametrize("file", FILES)
def test_percent_signs_are_parameters_only(file: str) -> None:
    """psycopg reads a lone % as the start of a parameter."""
    for text in sql.load(file).values():
        assert "%" not in re.sub(r"%\(\w+\)[sb]", "", text)


def test_what_serves_a_caller_is_bound_to_its_tenant() -> None:
    assert {name for name, text in ledger.SQL.items() if "%(tenant)s" not in text} == OF_WORKERS


@pytest.mark.parametrize("name", sorted(ledger.SQL.keys() - OF_WORKERS - {"accept"}))
def test_a_job_is_looked_up_for_a_caller_within_its_tenant(name: str) -> None:
    """In every condition that finds jobs by what a caller says; to know that a job id is taken is all it may."""
    conditions = re.findall(r"\bwhere\b(?:(?!\bwhere\b|\breturning\b|\border by\b).)+", ledger.SQL[name], re.DOTALL)
    of_callers = [each for each in conditions if re.search(r"\bjob_id = %|%\(before\)s", each)]
    assert of_callers
    assert [each for each in of_callers if not re.search(r"\btenant = %\(tenant\)s", each)] == []


def test_ledger_channels_are_those_of_its_sql() -> None:
    text = "".join(ledger.SQL.values())
    assert set(re.findall(r"pg_notify\('(\w+)'", text)) == {ledger.QUEUED_CHANNEL, ledger.FINISHED_CHANNEL}


def test_the_channel_of_api_keys_is_that_of_its_migration() -> None:
    migration = (PACKAGE.parents[1] / "migrations/005_api_keys.up.sql").read_text()
    assert re.findall(r"pg_notify\('(\w+)'", migration) == [notify.API_KEYS_CHANNEL]
