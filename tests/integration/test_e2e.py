"""`nox -s e2e` as in the test-runner's pod: nothing to install, everything it needs from the environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.integration.fixtures.deployment import CREDENTIALS, PASSWORD
from tests.integration.fixtures.secrets import GuardedNats, GuardedRedis
from tier3.stack import Nats, Stack
from tier3.stack.ports import HOST, free_port

pytestmark = pytest.mark.xdist_group("e2e")
ROOT = Path(__file__).parents[2]
REQUIRED = ["NATS_URL", "TEST_POSTGRES_URI", "TEST_REDIS_URL", "VAULT_ADDR", "VAULT_TOKEN"]
POD = {"NOX_DEFAULT_VENV_BACKEND": "none", "NOX_SCRIPT_MODE": "none", "NO_COLOR": "1"}
WITHIN_S = 30  # of the check's 5 seconds, on a machine that is busy
SECRET = "Canary0Password"


def nox(environment: dict[str, str], artifacts: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the session."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"PATH": path, "HOME": os.environ["HOME"], "ARTIFACTS_DIR": str(artifacts), **POD, **environment}
    command = [sys.executable, "-m", "nox", "-s", "e2e", *(["--", *words] if words else [])]
    return subprocess.run(command, cwd=ROOT, env=variables, check=False, capture_output=True, text=True)


def check(environment: dict[str, str], artifacts: Path, *, tests: str = "tests/e2e") -> list[str]:
    """What keeps the session from running, as its first step tells it."""
    command = [sys.executable, "-m", "tier3.e2e", tests, str(artifacts)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (64 if ended.stdout else 0, "")
    assert SECRET not in ended.stdout
    return [line.strip() for line in ended.stdout.splitlines()[1:]]


def suite(artifacts: Path) -> ET.Element:
    """JUnit's report."""
    found = ET.parse(artifacts / "e2e.xml").getroot().find("testsuite")
    assert found is not None
    return found


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server((HOST, 0)) as server:
        yield f"{HOST}:{server.getsockname()[1]}"


def test_a_deployed_service_passes(deployment: dict[str, str], tmp_path: Path) -> None:
    ended = nox(deployment, tmp_path)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    report = suite(tmp_path)
    assert (report.get("failures"), report.get("errors"), report.get("skipped")) == ("0", "0", "0")
    names = {case.get("name") for case in report.iter("testcase")}
    assert {"test_twenty_jobs_at_once", "test_nobody_is_let_in_without_a_good_key"} <= names
    assert "test_twenty_jobs_at_once" not in ended.stdout
    assert "completed" in (tmp_path / "e2e.log").read_text()


def test_nobody_there_is_a_failure_and_cases_that_are_left_out_are_told(
    own_nats: Nats, deployment: dict[str, str], tmp_path: Path
) -> None:
    there = deployment | {"NATS_URL": own_nats.url, "AGENT_EXECUTOR_URL": "", "E2E_TIMEOUT_S": "1"}
    ended = nox(there, tmp_path, "-k", "twenty")
    assert ended.returncode == 1
    assert "NATS has no stream AGENT_STATUS: no service has started on it" in ended.stdout
    assert "skipped" not in ended.stdout
    written = "".join(path.read_text() for path in tmp_path.glob("e2e.*"))
    assert [each for each in (PASSWORD, CREDENTIALS, deployment["VAULT_TOKEN"]) if each in ended.stdout + written] == []
    said = "7 cases by HTTP were deselected, because AGENT_EXECUTOR_URL is not set"
    assert said in ended.stdout
    assert [each.get("value") for each in suite(tmp_path).iter("property") if each.get("name") == "http"] == [said]


def test_whatever_is_missing_is_named_at_once_and_the_session_fails(tmp_path: Path) -> None:
    ended = nox({"TESTS_PATH": "tests/nowhere", "VAULT_TOKEN": ""}, tmp_path)
    assert ended.returncode == 1
    assert [name for name in REQUIRED if f"{name} is missing" not in ended.stderr] == []
    assert "TESTS_PATH names tests/nowhere, which is not there" in ended.stderr
    assert "skipped" not in ended.stderr


def test_what_cannot_be_parsed_is_told_from_what_cannot_be_used(deployment: dict[str, str], tmp_path: Path) -> None:
    nowhere = free_port()
    bad = {
        "NATS_URL": f"http://user:{SECRET}@nats:4222",
        "TEST_POSTGRES_URI": f"postgresql://postgres:{SECRET}@{HOST}:{nowhere}/e2e",
        "TEST_REDIS_URL": f"redis://:{SECRET}%zz@redis:port/0",
        "VAULT_TOKEN": SECRET,
        "AGENT_EXECUTOR_URL": "service",
        "E2E_TIMEOUT_S": "soon",
    }
    (tmp_path / "file").touch()
    assert check(deployment | bad, tmp_path / "file" / "artifacts") == [
        "NATS_URL cannot be parsed: it must be like nats://user:password@host:4222",
        "TEST_REDIS_URL cannot be parsed: it must be like redis://:password@host:6379/0",
        "AGENT_EXECUTOR_URL cannot be parsed: it must be like https://agent-executor.example",
        "E2E_TIMEOUT_S cannot be parsed: it must be a number of seconds",
        f"ARTIFACTS_DIR names {tmp_path / 'file' / 'artifacts'}, where nothing can be written",
        f"TEST_POSTGRES_URI is unreachable: {HOST}:{nowhere}: Connection refused",
        f"VAULT_TOKEN is refused: {deployment['VAULT_ADDR'][7:]}: wrong, revoked or expired",
    ]


def test_servers_that_do_not_answer_cost_five_seconds_in_all(silent: str, tmp_path: Path) -> None:
    urls = {
        "NATS_URL": f"nats://a:{SECRET}@{silent}",
        "TEST_POSTGRES_URI": f"postgresql://a:{SECRET}@{silent}/b",
        "TEST_REDIS_URL": f"redis://:{SECRET}@{silent}/0",
        "VAULT_ADDR": f"http://{silent}",
        "VAULT_TOKEN": "",
    }
    begun = time.monotonic()
    said = check(urls, tmp_path)
    assert time.monotonic() - begun < WITHIN_S
    assert [each.split(f": {silent}: ")[0] for each in said] == [
        "VAULT_TOKEN is missing",
        *(f"{name} is unreachable" for name in REQUIRED[:4]),
    ]


def test_servers_that_refuse_are_told_apart(deployment: dict[str, str], stack: Stack, tmp_path: Path) -> None:
    with GuardedNats(tmp_path) as nats, GuardedRedis(tmp_path) as redis:
        wrong = {
            "NATS_URL": f"nats://someone:{SECRET}@{HOST}:{nats.port}",
            "TEST_POSTGRES_URI": stack.postgres.dsn("nowhere"),
            "TEST_REDIS_URL": f"redis://:{SECRET}@{HOST}:{redis.port}/0",
            "VAULT_PATH": "elsewhere",
        }
        assert check(deployment | wrong, tmp_path) == [
            f"NATS_URL is refused: {HOST}:{nats.port}: wrong user, password or token",
            f'TEST_POSTGRES_URI is refused: {HOST}:{stack.postgres.port}: database "nowhere" does not exist',
            f"TEST_REDIS_URL is refused: {HOST}:{redis.port}: wrong user or password",
            f"VAULT_TOKEN is refused: {stack.vault.addr[7:]}: it may not read secret/data/elsewhere/e2e",
        ]
    empty = {"VAULT_TOKEN": stack.vault.token, "VAULT_PATH": "elsewhere"}
    assert check(deployment | empty, tmp_path) == [
        f"VAULT_ADDR cannot be used: {stack.vault.addr[7:]}: there is no secret secret/data/elsewhere/e2e"
    ]
