"""Processes of the services that the benchmarks measure."""

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
_READY_S, _END_S = 60.0, 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def services(stack: Stack, dsn: str, count: int, **more: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that serve the graph `plain` on a database of `stack`, ready; `more` is their environment's."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as running:
        config = Path(directory, "langgraph.json")
        config.write_text(json.dumps({"graphs": {"plain": f"{ROOT}/tests/bench/plain.py:graph"}}))
        environment = _environment(stack, dsn) | {"LANGGRAPH_CONFIG": str(config)} | more
        processes = []
        for _ in range(count):
            port = free_port()
            words = ["-m", "uvicorn", "--factory", "agent_executor.app:main", "--port", str(port), "--no-access-log"]
            flags = ["--http", "agent_executor.connections:Connection", "--ws", "none", "--no-server-header"]
            command = [sys.executable, *words, *flags]
            url = f"http://127.0.0.1:{port}/ready"
            processes.append(running.enter_context(served(command, environment, ROOT, url, _has_all)))
        yield processes


@contextlib.contextmanager
def served(
    command: Sequence[str],
    environment: Mapping[str, str],
    place: Path,
    url: str,
    is_ready: Callable[[Any], bool] = lambda said: True,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs in `place`, once `url` answers with JSON that says so; it is ended in the end."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, cwd=place, stdout=log, stderr=log)
        try:
            _until_ready(process, url, is_ready, Path(log.name))
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def port_of(process: subprocess.Popen[bytes]) -> int:
    """Where a process of `services` listens."""
    words: Any = process.args
    return int(words[words.index("--port") + 1])


def cpu_s(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """CPU seconds that these and their children have used, in themselves and in the system."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))  # with those of children that have ended
    family = {process.pid for process in processes}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[pid] for pid in family) / _TICKS


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


def _has_all(said: Any) -> bool:
    return bool(said["services"]["nats"] and said["services"]["dragonfly"])


def _until_ready(process: subprocess.Popen[bytes], url: str, is_ready: Callable[[Any], bool], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if is_ready(json.load(answer)):
                return
        time.sleep(0.05)
    raise RuntimeError(f"{url} is not ready\n" + "\n".join(log.read_text().splitlines()[-20:]))
