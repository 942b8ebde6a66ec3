"""sql: the .sql files load, and every query that the code names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent_executor import ledger, outbox, sql

PACKAGE = Path(sql.__file__).parent
USED = re.compile(r'SQL\["(\w+)"\]|_rows\(\s*"(\w+)"')


@pytest.mark.parametrize(("module", "queries"), [("ledger", ledger.SQL), ("outbox", outbox.SQL)])
def test_every_query_used_exists_and_every_query_is_used(module: str, queries: dict[str, str]) -> None:
    used = {one or other for one, other in USED.findall((PACKAGE / f"{module}.py").read_text())}
    assert used == queries.keys()


@pytest.mark.parametrize("file", ["ledger.sql", "outbox.sql"])
def test_a_query_is_the_statement_below_its_name(file: str) -> None:
    queries = sql.load(file)
    assert len(queries) == (PACKAGE / file).read_text().count("-- name: ")
    assert all(text.strip().endswith(";") and text.count(";") >= 1 for text in queries.values())
    assert not any("-- name:" in text for text in queries.values())


@pytest.mark.parametrize("file", ["ledger.sql", "outbox.sql"])
def test_percent_signs_are_parameters_only(file: str) -> None:
    """psycopg reads a lone % as the start of a parameter."""
    for text in sql.load(file).values():
        assert "%" not in re.sub(r"%\(\w+\)s", "", text)


def test_ledger_channels_are_those_of_its_sql() -> None:
    text = "".join(ledger.SQL.values())
    assert set(re.findall(r"pg_notify\('(\w+)'", text)) == {ledger.QUEUED_CHANNEL, ledger.FINISHED_CHANNEL}
