"""app: what uvicorn is given, and what happens when it can be given nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from agent_executor import app
from agent_executor.settings import Settings


def test_an_incomplete_environment_is_named_whole_and_exits_with_64(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment:
        monkeypatch.delenv(name)
    ended = subprocess.run(
        [sys.executable, "-c", "import agent_executor.app; agent_executor.app.main()"],
        check=False,
        capture_output=True,
        text=True,
    )
    line = json.loads(ended.stdout)
    assert ended.returncode == 64
    assert line["event"] == "cannot_start"
    assert all(name in line["reason"] for name in environment)
    assert ended.stderr == ""


def test_the_application_starts_without_a_service(settings: Settings) -> None:
    made = app.create(settings)
    assert made.state.service is None
    assert made.state.draining is False
    assert made.state.settings is settings


def test_what_answers_health_imports_nothing_heavy() -> None:
    heavy = (
        *("langgraph", "deepagents", "langchain_core", "psycopg", "nats", "hvac", "opentelemetry.sdk", "rich"),
        *("agent_executor.definition", "agent_executor.validation", "redis", "httpx", "prometheus_client", "jwt"),
    )
    code = f"import sys, agent_executor.app; print([name for name in {heavy!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout == "[]\n"


def test_what_a_job_needs_leaves_out_what_nobody_uses() -> None:
    """Providers come with the first definition that names them, keys of tokens with AUTH_MODE=jwt."""
    unused = ("langsmith.types.run", "jwt", "openai", "anthropic", "ollama", "langchain_openai", *app._NEEDLESS)
    code = "import gc, sys, agent_executor.app as app; app._heavy_imports(); print(gc.isenabled(), "
    code += f"gc.get_freeze_count() > 10**5, [name for name in {unused!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout == "True True []\n"


async def test_an_error_nobody_foresaw_ends_the_process_before_it_serves(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    ended = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(os, "_exit", ended.set_result)

    def fail() -> None:
        raise LookupError

    monkeypatch.setattr(app, "_heavy_imports", fail)
    made = app.create(settings)
    async with asyncio.timeout(5), made.router.lifespan_context(made):
        assert await ended == 1
