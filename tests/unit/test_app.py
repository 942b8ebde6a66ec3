"""app: what uvicorn is given, and what happens when it can be given nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent_executor import app
from agent_executor.errors import GraphNotLoaded
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


@pytest.mark.parametrize(
    ("error", "status"), [(GraphNotLoaded("graph 'a' cannot be loaded"), 64), (RuntimeError("a bug"), 70)]
)
async def test_a_process_that_can_never_serve_says_so_and_ends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fails(file: str | None) -> Any:
        raise error

    class Exited(BaseException):
        pass

    def leave(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(app, "_heavy_imports", lambda: SimpleNamespace(load_graphs=fails))
    monkeypatch.setattr(os, "_exit", leave)
    with capture_logs() as logged, pytest.raises(Exited) as exited:
        await app._open(app.create(settings), settings, AsyncExitStack())
    assert exited.value.args == (status,)
    assert [(line["event"], str(error) in line["reason"]) for line in logged] == [("cannot_start", True)]


def test_the_application_starts_without_a_service(settings: Settings) -> None:
    made = app.create(settings)
    assert made.state.service is None
    assert made.state.draining is False
    assert made.state.settings is settings


def test_what_answers_health_imports_nothing_heavy() -> None:
    heavy = ("langgraph", "deepagents", "langchain_core", "psycopg", "nats", "hvac", "opentelemetry.sdk")
    code = f"import sys, agent_executor.app; print([name for name in {heavy!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout == "[]\n"
