"""Real servers that tests here may cut, freeze and kill, and the figures they print in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fixtures.journal import Journal
from tests.faults.fixtures.proxy import Proxy, proxy
from tests.integration.fixtures.nats import own_nats
from tests.integration.fixtures.postgres import database, own_postgres, template
from tests.integration.fixtures.redis import own_redis
from tests.integration.fixtures.service import place, start_service
from tier3.stack import Postgres, Stack, start

__all__ = ["database", "own_nats", "own_postgres", "own_redis", "place", "start_service", "template"]

Figure = Callable[[str, Any], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --soak and --long."""
    parser.addoption("--soak", type=float, default=0, metavar="SECONDS", help="keep the soak going for so long")
    parser.addoption("--long", action="store_true", help="also absences of minutes")


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark of tests that --long adds."""
    config.addinivalue_line("markers", "long: takes minutes; only with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count as deselected, what takes minutes."""
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that tests have recorded."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    figures = [pair for report in reports if report.when == "call" for pair in report.user_properties]
    if figures:
        terminalreporter.section("figures")
        for name, value in figures:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture
def figure(record_property: Figure) -> Figure:
    """Record a figure by name, to be printed in the end."""
    return record_property


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The servers that no test here harms."""
    with start(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server of one's own, started, with throw-away data."""
    data: Path = tmp_path_factory.mktemp("server")
    with Postgres(data) as server:
        yield server


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def postgres_proxy(place: dict[str, str]) -> Iterator[Proxy]:
    """Between services that are started from now on and PostgreSQL."""
    with proxy(int(place["POSTGRES_PORT"])) as made:
        place["POSTGRES_PORT"] = str(made.port)
        yield made


@pytest.fixture
def nats_proxy(place: dict[str, str]) -> Iterator[Proxy]:
    with proxy(int(place["NATS_URL"].rpartition(":")[2])) as made:
        place["NATS_URL"] = f"nats://127.0.0.1:{made.port}"
        yield made


@pytest.fixture
def redis_proxy(place: dict[str, str]) -> Iterator[Proxy]:
    address = place["REDIS_URL"]
    with proxy(int(address.rpartition(":")[2].partition("/")[0])) as made:
        place["REDIS_URL"] = f"redis://127.0.0.1:{made.port}"
        yield made
