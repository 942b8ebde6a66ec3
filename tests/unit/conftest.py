"""Fixtures of the unit tests: settings that no variable of the shell can change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent_executor.sandbox.nursery import Nursery
from agent_executor.sandbox.options import Options
from agent_executor.sandbox.pool import Sandbox
from agent_executor.settings import Settings

REQUIRED = {
    "POSTGRES_HOST": "db.example",
    "POSTGRES_PASSWORD": "pg-secret",
    "REDIS_URL": "redis://:redis-secret@cache.example:6379/0",
    "NATS_URL": "nats://user:nats-secret@broker.example:4222",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The smallest environment the service starts with, already set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return dict(REQUIRED)


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    """Settings of that environment."""
    return Settings()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where all tools of these tests come from."""
    started = Nursery()
    started.start()
    yield started
    started.close()


@pytest.fixture
def sandbox(nursery: Nursery) -> Sandbox:
    """Runs tool scripts, confined as well as this machine can."""
    return Sandbox(Options(mode="best-effort", timeout_s=20), nursery)
