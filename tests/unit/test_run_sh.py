"""run.sh, under every shell that is here: what it asks for, what it becomes, and that a signal reaches that."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)] or ["sh"]
LOGIN = {"VAULT_ADDR": "http://vault.example:8200", "VAULT_ROLE": "agent-executor"}
# In uvicorn's place: says who it is, then waits for its end.
UVICORN = """#!/usr/bin/env python3
import json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(json.dumps({"pid": os.getpid(), "words": sys.argv[1:], "env": dict(os.environ)}), flush=True)
signal.pause()
"""
EITHER = "VAULT_ROLE (or VAULT_TOKEN, or VAULT_ROLE_ID with VAULT_SECRET_ID)"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    """A POSIX shell, and the option that has bash be no more than one."""
    return {"bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}.get(request.param, [request.param])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of programs with another uvicorn in it."""
    program = tmp_path / "uvicorn"
    program.write_text(UVICORN)
    program.chmod(0o755)
    return tmp_path


@contextmanager
def start(
    shell: list[str], place: Path, environment: Mapping[str, str], *words: str
) -> Iterator[subprocess.Popen[str]]:
    path = f"{place}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [*shell, str(ROOT / "run.sh"), *words],
        env={"PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({}, f"VAULT_ADDR, {EITHER}"),
        ({"VAULT_ADDR": "", "VAULT_ROLE": ""}, f"VAULT_ADDR, {EITHER}"),
        ({"VAULT_ADDR": "http://vault"}, EITHER),
        ({"VAULT_ROLE": "r"}, "VAULT_ADDR"),
        ({"VAULT_TOKEN": "t", "VAULT_ROLE_ID": "i"}, "VAULT_ADDR"),
        ({"VAULT_ADDR": "http://vault", "VAULT_ROLE_ID": "i"}, "VAULT_SECRET_ID"),
        ({"VAULT_SECRET_ID": "s"}, "VAULT_ADDR, VAULT_ROLE_ID"),
    ],
)
def test_all_that_is_missing_is_named_in_one_message(
    shell: list[str], place: Path, environment: dict[str, str], missing: str
) -> None:
    with start(shell, place, environment) as process:
        printed, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 64
    assert printed == ""
    assert complaint == f"run.sh: missing environment variables: {missing}\n"


@pytest.mark.parametrize(
    "login",
    [{"VAULT_ROLE": "r"}, {"VAULT_TOKEN": "t"}, {"VAULT_ROLE_ID": "i", "VAULT_SECRET_ID": "s"}],
    ids=["role", "token", "approle"],
)
def test_it_becomes_the_service_which_a_signal_then_reaches(
    shell: list[str], place: Path, login: dict[str, str]
) -> None:
    with start(shell, place, {"VAULT_ADDR": "http://vault.example"} | login) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 7
    assert told["pid"] == process.pid
    assert told["words"][:2] == ["--factory", "agent_executor.app:main"]
    words = " ".join(told["words"])
    assert "--host 0.0.0.0 --port 8080 --proxy-headers --no-access-log" in words
    assert re.search(r"--timeout-graceful-shutdown \d+\b", words)
    assert told["env"]["LOG_LEVEL"] == "info"


def test_port_and_log_level_are_the_environments(shell: list[str], place: Path) -> None:
    with start(shell, place, LOGIN | {"PORT": "9090", "LOG_LEVEL": "debug"}) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
    assert told["words"][told["words"].index("--port") + 1] == "9090"
    assert told["env"]["LOG_LEVEL"] == "debug"


def test_arguments_are_run_in_its_place_and_nothing_is_asked_for(shell: list[str], place: Path) -> None:
    with start(shell, place, {}, "sh", "-c", 'echo "$$ $1"; exit 3', "name", "two words") as process:
        printed, complaint = process.communicate(timeout=PATIENCE_S)
    assert (printed, complaint) == (f"{process.pid} two words\n", "")
    assert process.returncode == 3


def test_uvicorn_takes_its_options() -> None:
    from uvicorn.main import main

    command = re.search(r"exec uvicorn ((?:.*\\\n)*.*)", (ROOT / "run.sh").read_text())
    assert command is not None
    words = command[1].replace("\\\n", " ").replace('"$PORT"', "8080").split()
    parameters = main.make_context("uvicorn", words).params
    assert parameters["host"] == "0.0.0.0"
    assert parameters["access_log"] is False


def test_the_ports_of_the_image_and_of_run_sh_are_one() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    [default] = re.findall(r"PORT:=(\d+)", (ROOT / "run.sh").read_text())
    assert re.findall(r"(?m)^EXPOSE (\d+)$", dockerfile) == [default]
    assert re.findall(r"get\('PORT'\) or '(\d+)'", dockerfile) == [default]
