"""`nox -s run`, without nox: servers, service, reload and end, on a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.test_outages import Steps
from tier3.stack import KINDS, Redis
from tier3.stack.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0

pytestmark = pytest.mark.xdist_group("standard ports")


class Run:
    """A running `python -m tier3.run`."""

    def __init__(self, project: Path, **settings: str) -> None:
        self.project = project
        self.base = f"http://localhost:{(port := free_port())}"
        self.log = project / "run.log"
        named = ("POSTGRES_", "NATS_URL", "REDIS_URL", "VAULT_", "COVERAGE_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(named)}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tier3.run"],
                cwd=project,
                env=environment | {"PORT": str(port), "PYTHONPATH": str(project / "services")} | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Wait until the output matches."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.log.read_text()[after:])):
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no {pattern!r} in\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)
        return found

    def processes(self) -> dict[int, str]:
        """Pids of the embedded servers and of everything else that runs in this project."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
                cwd = (entry / "cwd").readlink()
            except OSError:
                continue
            if str(self.project) in words or cwd.is_relative_to(self.project):
                found[int(entry.name)] = words
        return found

    def servers(self) -> dict[int, str]:
        """Pids of the embedded servers' main processes."""
        words = ("bin/postgres ", "nats-server", "valkey-server", "/bao ")
        return {pid: line for pid, line in self.processes().items() if any(word in line for word in words)}

    def interrupt(self) -> int:
        """What Ctrl-C in a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    for name in ("services", "tier3", "migrations", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("htmlcov", "__pycache__"))
    running = Run(tmp_path, **getattr(request, "param", {}))
    yield running
    if running.process.poll() is None:
        running.interrupt()
    assert running.processes() == {}


def test_the_printed_lines_work_as_they_stand_and_are_there_after_the_next_start(run: Run) -> None:
    submit = run.wait_for(r"(?m)^\s+(curl -s \S+/v1/jobs .*)$")[1]
    follow = run.wait_for(r"(?m)^\s+(curl -sN \S+/events)$")[1]
    answer = subprocess.run(shlex.split(submit), cwd=run.project, capture_output=True, text=True, check=True).stdout
    assert '"status":"queued"' in answer
    events = subprocess.run(shlex.split(follow), capture_output=True, text=True, check=True, timeout=60).stdout
    assert "The Calculator says: 5" in events
    assert "event: end" in events
    assert run.interrupt() == 0
    assert run.processes() == {}
    again = Run(run.project)
    try:
        again.wait_for("Send a job")
        assert httpx.get(f"{again.base}/v1/jobs/adder-1", timeout=PATIENCE_S).json()["status"] == "completed"
        assert httpx.get(f"{again.base}/v1/jobs/adder-1/events", timeout=PATIENCE_S).text == events
    finally:
        again.interrupt()


@pytest.mark.parametrize("run", [{"TOOL_SANDBOX": "off"}], indirect=True, ids=["off"])  # its tool waits for a file
def test_a_reload_finds_the_servers_as_they_were_and_resumes_the_job(run: Run, tmp_path: Path) -> None:
    run.wait_for("Send a job")
    servers = run.servers()
    assert len(servers) == len(KINDS), (run.processes(), run.log.read_text())
    (tmp_path / "steps").mkdir()
    steps = Steps(tmp_path / "steps")
    payload = {"messages": [{"role": "user", "content": "x"}]}
    job = {"job_id": "reloaded", "agent_definition": steps.definition, "input_payload": payload}
    assert httpx.post(f"{run.base}/v1/jobs", json=job).status_code == 202
    _until((tmp_path / "steps" / "lines").exists)
    source = run.project / "services/agent_executor/api_models.py"
    source.write_text(source.read_text().replace('Literal["healthy"]', 'Literal["healthy", "edited"]'))
    _until(lambda: "edited" in httpx.get(f"{run.base}/openapi.json", timeout=PATIENCE_S).text)
    assert run.servers() == servers
    steps.open()
    _until(lambda: httpx.get(f"{run.base}/v1/jobs/reloaded", timeout=PATIENCE_S).json().get("status") == "completed")
    assert steps.counted == 1
    run.process.kill()  # and nothing is left behind
    run.process.wait()
    _until(lambda: run.processes() == {})


def test_the_service_learns_its_secrets_from_vault_as_in_production(run: Run) -> None:
    run.wait_for("Send a job")
    found = [json.loads(line) for line in run.log.read_text().splitlines() if '"secret_found"' in line]
    assert {line["secret"]: line["environment"] for line in found} == {"postgres": [], "redis": [], "nats": []}
    [server] = [pid for pid, words in run.processes().items() if "uvicorn" in words and "--reload" in words]
    names = {each.partition(b"=")[0] for each in Path(f"/proc/{server}/environ").read_bytes().split(b"\0")}
    assert {b"VAULT_ADDR", b"VAULT_ROLE_ID", b"VAULT_SECRET_ID"} <= names
    assert not names & {b"VAULT_TOKEN", b"POSTGRES_PASSWORD", b"REDIS_URL", b"NATS_URL"}


def test_a_server_of_ones_own_is_used_and_needs_no_vault(tmp_path: Path, run: Run) -> None:
    """The rest still comes from Vault."""
    run.wait_for("Send a job")
    run.interrupt()
    with Redis(tmp_path / "own") as redis:
        again = Run(run.project, REDIS_URL=redis.url)
        again.wait_for("Send a job")
        found = [json.loads(line) for line in again.log.read_text().splitlines() if '"secret_found"' in line]
        again.interrupt()
    assert {line["secret"]: line["environment"] for line in found} == {"postgres": [], "redis": ["url"], "nats": []}


@pytest.mark.parametrize("port", ["abc", "0", "65536", ""])
def test_a_port_that_is_none_is_said(port: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-m", "tier3.run"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment | {"PORT": port}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, "run: PORT must be a number from 1 to 65535\n")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
