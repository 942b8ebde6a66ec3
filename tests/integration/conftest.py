"""Real servers for every test here; one fixture file per server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.fixtures.deployment import deployment
from tests.integration.fixtures.http import receiver
from tests.integration.fixtures.issuer import issuer
from tests.integration.fixtures.nats import own_nats
from tests.integration.fixtures.operator import gate, operator
from tests.integration.fixtures.postgres import database, own_postgres, shared_database, template
from tests.integration.fixtures.redis import own_redis
from tests.integration.fixtures.service import place, service, start_service
from tests.integration.fixtures.tenants import tenants
from tier3.stack import Stack, start

__all__ = [
    "database",
    "deployment",
    "gate",
    "issuer",
    "operator",
    "own_nats",
    "own_postgres",
    "own_redis",
    "place",
    "receiver",
    "service",
    "shared_database",
    "stack",
    "start_service",
    "template",
    "tenants",
]


EXTERNAL = ("POSTGRES_HOST", "POSTGRES_DB", "POSTGRES_PASSWORD", "NATS_URL", "REDIS_URL", "VAULT_ADDR", "VAULT_TOKEN")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --external."""
    parser.addoption("--external", action="store_true", help=f"use the empty servers that {', '.join(EXTERNAL)} name")


def pytest_configure(config: pytest.Config) -> None:
    """Name every variable that --external misses."""
    missing = [name for name in EXTERNAL if not os.environ.get(name)]
    if config.getoption("external") and missing:
        raise pytest.UsageError(f"--external needs {', '.join(missing)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --external leave out, and count as deselected, the tests that start or stop servers of their own."""
    if not config.getoption("external"):
        return
    kept = [
        item for item in items if {"service", "model_server"} & set(getattr(item, "fixturenames", ())) == {"service"}
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All four servers, with throw-away data, for the whole session."""
    with start(tmp_path_factory.mktemp("stack")) as running:
        yield running
