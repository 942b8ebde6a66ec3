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

from tier3.stack import Stack
from tier3.stack.ports import free_port

ROOT = Path(__file__).parents[2]
PLAIN = {"plain": "tests/bench/plain.py:graph"}
_READY_S, _END_S, _POLL_S = 60.0, 30.0, 0.01
_TICKS = os.sysconf("SC_CLK_TCK")
_FLAGS = ("--no-access-log", "--ws", "none", "--no-server-header")
_SERVICE = ("--factory", "agent_executor.app:main", "--http", "agent_executor.connections:Connection")


class Process(subprocess.Popen[bytes]):
    """One that listens at `port`, and prints to `log`."""

    port: int
    log: Path


@contextlib.contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], port: int, place: Path = ROOT) -> Iterator[Process]:
    """A process that has just been started in `place` and will listen at `port`; it is ended in the end."""
    with tempfile.NamedTemporaryFile() as log:
        process = Process(command, env=dict(environment), cwd=place, stdout=log, stderr=log)
        process.port, process.log = port, Path(log.name)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def python(module: str, *words: str, environment: Mapping[str, str]) -> Iterator[Process]:
    """`python -m module words`, and a free port, just started."""
    port = free_port()
    with started([sys.executable, "-m", module, *words, str(port)], environment, port) as process:
        yield process


@contextlib.contextmanager
def uvicorn(*words: str, environment: Mapping[str, str]) -> Iterator[Process]:
    """uvicorn with the flags of run.sh, just started."""
    with python("uvicorn", *words, *_FLAGS, "--port", environment=environment) as process:
        yield process


@contextlib.contextmanager
def service(stack: Stack, dsn: str, graphs: Mapping[str, str] = PLAIN, **more: str) -> Iterator[Process]:
    """A process of the service that has just been started, for `graphs`; `more` is its environment's."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "langgraph.json")
        config.write_text(json.dumps({"graphs": {name: f"{ROOT}/{place}" for name, place in graphs.items()}}))
        environment = environment_of(stack, dsn) | {"LANGGRAPH_CONFIG": str(config)} | more
        with uvicorn(*_SERVICE, environment=environment) as process:
            yield process


@contextlib.contextmanager
def services(
    stack: Stack, dsn: str, count: int, graphs: Mapping[str, str] = PLAIN, **more: str
) -> Iterator[list[Process]]:
    """So many such processes, ready."""
    with contextlib.ExitStack() as running:
        processes = []
        for _ in range(count):
            process = running.enter_context(service(stack, dsn, graphs, **more))
            until_ready(process)
            processes.append(process)
        yield processes


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


def until_ready(process: Process) -> None:
    """Wait until `/ready` says that all but Vault is there."""

    def is_ready(text: str) -> bool:
        found = json.loads(text)["services"]
        return bool(found["nats"] and found["dragonfly"])

    until_200(process, "/ready", is_ready)


def until_200(process: Process, path: str, is_enough: Callable[[str], bool] = bool, poll_s: float = _POLL_S) -> None:
    """Wait until `path` answers 200, with something that is enough."""
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{process.port}{path}", timeout=2) as answer,
        ):
            if is_enough(answer.read().decode()):
                return
        time.sleep(poll_s)
    raise RuntimeError(f"{path} is not 200\n" + "\n".join(process.log.read_text().splitlines()[-20:]))


def cpu_s(processes: Sequence[subprocess.Popen[bytes] | int]) -> float:
    """CPU seconds that these processes or ids, and their children, have used, in themselves and in the system."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))  # with those of children that have ended
    family = {each if isinstance(each, int) else each.pid for each in processes}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[pid] for pid in family) / _TICKS
