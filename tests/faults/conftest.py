"""A PostgreSQL for each test here, which may kill it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tier3.stack import Postgres


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server of one's own, started, with throw-away data."""
    data: Path = tmp_path_factory.mktemp("server")
    with Postgres(data) as server:
        yield server
