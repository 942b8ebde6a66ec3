"""sandbox: hostile tools are contained, as whoever runs the worker, and nobody beside them is harmed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.definitions import adder, agent, tool
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service, Starter
from tests.integration.hostile.probes import CANARY, OPTIONS, PROBES

WORKER = Path(__file__).parent / "hostile/worker.py"
NOBODY = 65532
PATIENCE_S = 300
LIMIT_S = OPTIONS["timeout_s"]
MOST_GROWN_MIB = 20

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="what confines is Linux's"),
    pytest.mark.xdist_group("sandbox"),
]


@pytest.fixture(scope="module")
def without_rights() -> Iterator[list[str]]:
    """A Python with our packages, run as the pod runs it: no root, no capability, no way to get one."""
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are for nobody else
        Path(directory).chmod(0o755)
        yield _without_rights(Path(directory))


@pytest.fixture(scope="module", params=["as we are", "without rights"])
def tried(request: pytest.FixtureRequest, without_rights: list[str]) -> Any:
    """What came of all probes: as the user of these tests, and as one without any right."""
    command = without_rights if request.param == "without rights" else [sys.executable]
    return run([*command, str(WORKER), "require"])


def _without_rights(directory: Path) -> list[str]:
    """As NOBODY, where that user may read the project and a Python; else as root, owner of both, without any right."""
    if os.getuid() != 0:
        return ["setpriv", "--no-new-privs", "--inh-caps=-all", sys.executable]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *rights]
    place = directory / "lib" / version / "site-packages"
    place.mkdir(parents=True)
    paths = [path for path in sys.path if "site-packages" in path or path.endswith("services")]
    (place / "ours.pth").write_text("\n".join(paths))
    ours = directory / "bin/python"
    ours.parent.mkdir()
    reads = f"import agent_executor; open({str(WORKER)!r})"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        ours.unlink(missing_ok=True)
        ours.symlink_to(python)
        (directory / "pyvenv.cfg").write_text(f"home = {Path(python).parent}\n")
        again = ["sh", "-c", f"cd / && {ours} -c {shlex.quote(reads)}"]  # setpriv may execute what that user may not
        if subprocess.run([*drop, *again], check=False, capture_output=True).returncode == 0:
            return [*drop, str(ours)]
    return ["setpriv", *rights, sys.executable]


def run(command: list[str], **options: Any) -> Any:
    """Run the hostile worker and read what it prints."""
    environment = {**os.environ, "SECRET": CANARY}
    done = subprocess.run(
        command, env=environment, timeout=PATIENCE_S, capture_output=True, text=True, check=False, cwd="/", **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index('{"outcomes"') :])  # after lines of the log


@pytest.mark.parametrize("name", PROBES)
def test_a_hostile_tool_is_contained(tried: dict[str, Any], name: str) -> None:
    found = tried["outcomes"][name]
    assert re.search(PROBES[name].outcome, found["outcome"], re.DOTALL), found
    assert CANARY not in found["outcome"]
    assert found["left"] == 0, "a process is left"
    assert found["neighbour"] == """returned '["mine"]'""", "another job was harmed"
    assert found["closed"] < LIMIT_S + 1
    assert found["grown_mib"] < MOST_GROWN_MIB


def test_nothing_is_left_over(tried: dict[str, Any]) -> None:
    assert tried["intact"], "a file of the worker was changed"
    assert tried["left_over"] == []
    assert tried["gone"]
    assert tried["first_to_go"], "the kernel would kill others before a child"
    assert len(tried["outcomes"]) == len(PROBES) >= 40


def test_the_probes_do_find_what_is_not_confined(without_rights: list[str]) -> None:
    """The same with the sandbox off, as a user without rights; without what would harm this machine."""
    made = Path("/tmp/of-a-hostile-tool")
    made.unlink(missing_ok=True)  # another user's would be denied for another reason
    found = run([*without_rights, str(WORKER), "off"])["outcomes"]
    made.unlink(missing_ok=True)
    seen = [name for name, each in found.items() if not re.search(PROBES[name].outcome, each["outcome"], re.DOTALL)]
    assert len(seen) > 50
    must = {"fork", "subprocess", "a secret file", "/etc/passwd", "socket AF_INET", "the temporary directory", "10 GB"}
    assert must <= set(seen)


def test_a_kernel_without_landlock_runs_no_script_unless_it_may(tmp_path: Path) -> None:
    launch = [sys.executable, str(WORKER.with_name("without_landlock.py")), str(WORKER)]
    refused = subprocess.run([*launch, "require", "fork"], check=False, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "SandboxUnavailable: TOOL_SANDBOX is require, and tool scripts cannot be confined here" in refused.stderr
    assert "missing: Landlock (not in this kernel" in refused.stderr
    weakened = subprocess.run(
        [*launch, "best-effort", "fork", "/etc/passwd"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert "sandbox_weakened" in weakened
    outcomes = json.loads(weakened[weakened.index('{"outcomes"') :])["outcomes"]
    assert outcomes["fork"]["outcome"].startswith("PermissionError")
    assert outcomes["/etc/passwd"]["outcome"].startswith("returned 'root:")


def test_without_landlock_the_worker_still_hides_what_it_knows(without_rights: list[str]) -> None:
    launch = [*without_rights, str(WORKER.with_name("without_landlock.py")), str(WORKER), "best-effort"]
    names = ["the worker's environment", "the parent's environment", "the worker's memory", "where the worker works"]
    if any(word.startswith("--reuid") for word in launch):  # root may list what is root's, though not look behind it
        names.append("the worker's descriptors")
    outcomes = run([*launch, *names])["outcomes"]
    assert [name for name in names if not re.search(PROBES[name].outcome, outcomes[name]["outcome"])] == []


HEAD = "import os, time\nfrom langchain_core.tools import tool\n"
SLEEP = HEAD + "@tool\ndef sleep(seconds: float) -> str:\n    'S.'\n    time.sleep(seconds)\n    return 'slept'\n"


def sleeper(seconds: float) -> dict[str, Any]:
    replies: list[dict[str, Any]] = [{"tool_calls": [{"name": "sleep", "args": {"seconds": seconds}}]}]
    return agent([*replies, {"text": "{last}"}], tools=[tool("sleep", SLEEP)])


def descendants(process: int) -> list[int]:
    """Processes below one, children before theirs."""
    try:
        words = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    threads = [path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")]
    found = [int(each) for each in {*words, *(word for thread in threads for word in thread)}]
    return [*found, *(each for child in found for each in descendants(child))]


def started(service: Service, job_id: str) -> None:
    """Wait until a tool of the job runs."""
    redis_url = service.environment["REDIS_URL"]
    service.until(
        lambda: "on_tool_start" in [each["event_type"] for each in stored_events(redis_url, job_id)], "no tool starts"
    )


def test_a_confined_service_runs_jobs_and_ends_tools_at_their_limit(start_service: Starter) -> None:
    service = start_service(TOOL_SANDBOX="require", TOOL_TIMEOUT_S="1.5").ready()
    assert service.run(adder(), "confined")["result"]["output"] == "The Calculator says: 5"
    service.submit(sleeper(600), "late")
    assert service.run(sleeper(0.1), "in-time")["result"]["output"] == "slept"
    late = service.ended("late")
    assert (late["status"], late["attempt"]) == ("failed", 1)
    assert late["error"] == {
        "message": "tool 'sleep' took longer than TOOL_TIMEOUT_S (1.5 s) and was stopped",
        "type": "ToolTimeout",
        "stack_trace": "",
    }
    service.until(lambda: len(descendants(service.process.pid)) == 1, "a tool's process is left")
    source = HEAD + "@tool\ndef look() -> dict:\n    'L.'\n    return dict(os.environ)\n"
    replies: list[dict[str, Any]] = [{"tool_calls": [{"name": "look"}]}, {"text": "{last}"}]
    shown = service.run(agent(replies, tools=[tool("look", source)]), "looks")["result"]["output"]
    assert sorted(json.loads(shown)) == ["HOME", "LANG", "PATH", "TMPDIR"]


def test_a_missing_dependency_is_refused_at_submission_and_no_script_is_run(start_service: Starter) -> None:
    service = start_service(TOOL_SANDBOX="require").ready()
    definition = agent([{"text": "x"}], tools=[tool("one", "while True: pass")])
    definition["tool_definitions"][0]["runtime"]["dependencies"] = ["langchain-core", "no-such-thing"]
    refused = service.submit(definition, "lacks")
    assert refused.status_code == 400
    assert refused.json()["error"]["fields"] == [
        {
            "field": "agent_definition.tool_definitions[0].runtime.dependencies[1]",
            "message": "is not installed here",
        }
    ]
    assert len(descendants(service.process.pid)) <= 1


def test_a_cancelled_jobs_tool_is_ended(start_service: Starter) -> None:
    service = start_service(TOOL_SANDBOX="require").ready()
    service.submit(sleeper(600), "cancelled-tool")
    started(service, "cancelled-tool")
    assert len(descendants(service.process.pid)) == 2
    service.http.post("/v1/jobs/cancelled-tool/cancel")
    service.until(lambda: len(descendants(service.process.pid)) == 1, "the tool goes on")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_workers_end_is_that_of_its_tools_and_their_files(start_service: Starter, how: Any, tmp_path: Path) -> None:
    service = start_service(TOOL_SANDBOX="require", SHUTDOWN_GRACE_S="0.1", TMPDIR=str(tmp_path)).ready()
    service.submit(sleeper(600), "orphan")
    started(service, "orphan")
    processes = descendants(service.process.pid)
    assert len(processes) == 2
    assert [*tmp_path.glob("agent-executor-tools-*/*")] != []
    service.stop(how)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{each}").exists() for each in processes) or [*tmp_path.glob("agent-executor-tools-*")]:
        assert time.monotonic() < deadline, "a process or a directory is left"
        time.sleep(0.02)


def test_the_zygotes_end_fails_its_calls_and_another_one_is_started(start_service: Starter) -> None:
    service = start_service(TOOL_SANDBOX="require").ready()
    service.submit(sleeper(600), "cut")
    started(service, "cut")
    os.kill(descendants(service.process.pid)[0], signal.SIGKILL)
    failed = service.ended("cut")
    assert failed["error"]["type"] == "ToolFailed"
    assert service.run(sleeper(0), "after")["result"]["output"] == "slept"


def test_the_network_may_be_allowed_and_nothing_else(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "local"))
        local.listen()
        probe = (
            f"found = socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2); found.close()\n"
            "result = refused(lambda: socket.socket(socket.AF_UNIX), lambda: socket.socket(socket.AF_NETLINK, 3),"
            " lambda: open('/etc/passwd'), os.fork)"
        )
        outcomes = run([sys.executable, str(WORKER), "require", "--allow", probe])["outcomes"]
        denied = run([sys.executable, str(WORKER), "require", "--none", probe])["outcomes"]
    assert outcomes[probe]["outcome"] == "returned '[]'"
    assert denied[probe]["outcome"].startswith("PermissionError")
