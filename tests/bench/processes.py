"""Processes that the benchmarks measure: those of the service, and what stands beside it."""

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
from typing import Any

from tier3.stack import Stack
from tier3.stack.ports import free_port

ROOT = Path(__file__).parents[2]
_READY_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
_FLAGS = ("--http", "agent_executor.connections:Connection", "--ws", "none", "--no-server-header")
PLAIN = {"plain": "tests/bench/plain.py:graph"}


class Process(subprocess.Popen[bytes]):
    """One that serves HTTP at `port`."""

    port: int


@contextlib.contextmanager
def services(
    stack: Stack, dsn: str, count: int, graphs: Mapping[str, str] = PLAIN, **more: str
) -> Iterator[list[Process]]:
    """So many processes that serve `graphs` on a database of `stack`, ready; `more` is their environment's."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as running:
        config = Path(directory, "langgraph.json")
        config.write_text(json.dumps({"graphs": {name: f"{ROOT}/{place}" for name, place in graphs.items()}}))
        environment = _environment(stack, dsn) | {"LANGGRAPH_CONFIG": str(config)} | more
        words = ["uvicorn", "--factory", "agent_executor.app:main", "--no-access-log", *_FLAGS, "--port"]
        yield [running.enter_context(serving(words, environment, _is_connected)) for _ in range(count)]


@contextlib.contextmanager
def serving(
    words: Sequence[str], environment: Mapping[str, str], is_ready: Callable[[Any], bool] = lambda _: True
) -> Iterator[Process]:
    """`python -m` these words and a free port, once GET /ready answers, and its answer `is_ready`."""
    with tempfile.NamedTemporaryFile() as log:
        port = free_port()
        command = [sys.executable, "-m", *words, str(port)]
        process = Process(command, env=dict(environment), cwd=ROOT, stdout=log, stderr=log)
        process.port = port
        try:
            _until_ready(port, Path(log.name), is_ready)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def cpu_s(processes: Sequence[subprocess.Popen[bytes] | int]) -> float:
    """CPU seconds that these, or those with these ids, have used, in themselves and in the system."""
    pids = (each if isinstance(each, int) else each.pid for each in processes)
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / _TICKS


def _environment(stack: Stack, dsn: str) -> dict[str, str]:
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


def _is_connected(answer: Any) -> bool:
    return bool(answer["services"]["nats"] and answer["services"]["dragonfly"])


def _until_ready(port: int, log: Path, is_ready: Callable[[Any], bool]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer,
        ):
            if is_ready(json.load(answer)):
                return
        time.sleep(0.05)
    raise RuntimeError("the process is not ready\n" + "\n".join(log.read_text().splitlines()[-20:]))
