"""Fixtures of the unit tests: settings that no variable of the shell can change."""

from __future__ import annotations

import pytest

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
