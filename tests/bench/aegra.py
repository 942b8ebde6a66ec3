"""Aegra, a service that runs LangGraph graphs behind HTTP, as its documentation says that it is run in production.

Owns the environment that it is installed in (what aegra.txt pins, on a Python that it supports, in artifacts/) and how
its server is started: https://docs.aegra.dev/guides/worker-architecture.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import LeftOut
from tests.bench.processes import ROOT, Process, started, until_200
from tier3.stack import Stack
from tier3.stack.ports import free_port

PINS = Path(__file__).with_name("aegra.txt")
PLACE = ROOT / "artifacts" / "aegra"
OLDEST, PYTHONS = (3, 12), ("python3.12", "python3.13", "python3.14")
INSTALL_S = 60


def installed() -> Path:
    """The Python of its environment, made where it is missing, and brought in step with the pins.

    Raises:
        LeftOut: it cannot be had here.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise LeftOut("Aegra needs an environment of its own, and there is no uv to make one")
    python = PLACE / "bin" / "python"
    if _version(str(python)) < OLDEST:
        _run(uv, "venv", "--quiet", "--clear", f"--python={_python()}", str(PLACE))
    _run(uv, "pip", "sync", "--quiet", "--compile-bytecode", f"--python={python}", str(PINS))
    return python


@contextlib.contextmanager
def serving(python: Path, stack: Stack, dsn: str, at_once: int) -> Iterator[Process]:
    """A server of the graph `plain` that runs `at_once` jobs at once, ready.

    Runs go through Redis to workers in its process, which is its production mode. What is not set has its default.
    """
    port, workers = free_port(), max(at_once // 16, 1)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "DATABASE_URL": dsn,
        "REDIS_BROKER_ENABLED": "true",
        "REDIS_URL": stack.redis.url,
        "ENV_MODE": "PRODUCTION",
        "WORKER_COUNT": str(workers),
        "N_JOBS_PER_WORKER": str(at_once // workers),
    }
    with tempfile.TemporaryDirectory() as directory:
        config = {"graphs": {"plain": f"{ROOT}/tests/bench/plain.py:graph"}}
        Path(directory, "aegra.json").write_text(json.dumps(config))
        words = [str(python), "-m", "uvicorn", "aegra_api.main:app", "--port", str(port), "--no-access-log"]
        with started(words, environment, port, Path(directory)) as process:
            until_200(process, "/health")
            yield process


def _python() -> str:
    """One that is new enough: this one, one on the PATH, or one of pyenv's."""
    for each in (sys.executable, *PYTHONS, _pyenvs()):
        if _version(each) >= OLDEST:
            return each
    raise LeftOut("Aegra needs Python 3.12, and there is none on the PATH")


def _pyenvs() -> str:
    """pyenv shows on the PATH only what is selected."""
    if not shutil.which("pyenv"):
        return ""
    said = subprocess.run(["pyenv", "prefix", "3.12"], capture_output=True, text=True, check=False)
    return f"{said.stdout.strip()}/bin/python"


def _version(python: str) -> tuple[int, ...]:
    """Of a Python that works; () of any other."""
    if not shutil.which(python):
        return ()
    words = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    return tuple(map(int, said.stdout.split())) if said.returncode == 0 else ()


def _run(*words: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise LeftOut(f"Aegra was not installed within {INSTALL_S} s") from None
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.split())
        raise LeftOut(f"Aegra cannot be installed: {why:.200}") from None
