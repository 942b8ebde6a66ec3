"""Real servers for every test here; one fixture file per server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.fixtures.nats import own_nats
from tests.integration.fixtures.postgres import database, own_postgres, shared_database, template
from tests.integration.fixtures.redis import own_redis
from tests.integration.fixtures.service import place, service, start_service
from tier3.stack import Stack, start

__all__ = [
    "database",
    "own_nats",
    "own_postgres",
    "own_redis",
    "place",
    "service",
    "shared_database",
    "stack",
    "start_service",
    "template",
]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All four servers, with throw-away data, for the whole session."""
    with start(tmp_path_factory.mktemp("stack")) as running:
        yield running
