"""Processes of the service that the benchmarks measure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tier3.stack import Stack
from tier3.stack.ports import free_port

ROOT = Path(__file__).parents[2]
_READY_S = 60.0
_POLL_S = 0.01
_TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def services(stack: Stack, dsn: str, count: int, **more: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that serve the graphs `plain` and `waiting`, ready; `more` is their environment's."""
    with contextlib.ExitStack() as running:
        processes = []
        for _ in range(count):
            process, port, log = running.enter_context(service(stack, dsn, **more))
            processes.append(process)
            until_ready(port, log)
        yield processes


@contextlib.contextmanager
def service(stack: Stack, dsn: str, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """One such process that has just been started: it, its port, and the file with what it prints."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "langgraph.json")
        graphs = {name: f"{ROOT}/tests/bench/{name}.py:graph" for name in ("plain", "waiting")}
        config.write_text(json.dumps({"graphs": graphs}))
        environment = environment_of(stack, dsn) | {"LANGGRAPH_CONFIG": str(config)} | more
        flags = ("--factory", "--http", "agent_executor.connections:Connection")
        with serving("agent_executor.app:main", *flags, environment=environment) as started:
            yield started


@contextlib.contextmanager
def serving(
    app: str, *flags: str, environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """A process of uvicorn that has just been started, with the flags of run.sh."""
    with tempfile.TemporaryDirectory() as directory:
        port, log = free_port(), Path(directory, "service.log")
        words = ["-m", "uvicorn", app, "--port", str(port), "--no-access-log", "--ws", "none", "--no-server-header"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *words, *flags], env={**environment}, cwd=ROOT, stdout=output, stderr=output
            )
        try:
            yield process, port, log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def cpu_s(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """CPU seconds that these have used, in themselves and in the system."""
    stats = (Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split() for process in processes)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / _TICKS


def environment_of(stack: Stack, dsn: str) -> dict[str, str]:
    """Of a process of the service."""
    server = stack.postgres
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ},
        "POSTGRES_HOST": server.host,
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_DB": dsn.rpartition("/")[2],
        "POSTGRES_USER": server.user,
        "POSTGRES_PASSWORD": server.password,
        "NATS_URL": stack.nats.url,
        "REDIS_URL": stack.redis.url,
        "AUTH_MODE": "none",
        "TOOL_SANDBOX": "off",
    }


def until_ready(port: int, log: Path) -> None:
    """Wait until `/ready` says that all but Vault is there."""

    def is_ready(text: str) -> bool:
        found = json.loads(text)["services"]
        return bool(found["nats"] and found["dragonfly"])

    until_200(port, "/ready", log, is_ready)


def until_200(
    port: int, path: str, log: Path, is_enough: Callable[[str], bool] = bool, poll_s: float = _POLL_S
) -> None:
    """Wait until `path` answers 200, with something that is enough."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer,
        ):
            if is_enough(answer.read().decode()):
                return
        time.sleep(poll_s)
    raise RuntimeError(f"{path} is not 200\n" + "\n".join(log.read_text().splitlines()[-20:]))
