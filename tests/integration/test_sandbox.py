"""sandbox: hostile tools are contained, as whoever runs the worker, and nobody beside them is harmed."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_executor.sandbox import landlock, syscalls
from tests.definitions import adder, agent, tool
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


@pytest.fixture(scope="module", params=["as we are", "as nobody"])
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of all probes: as the user of these tests, and as one without any right."""
    command = [sys.executable]
    if request.param == "as nobody":
        command = without_rights(tmp_path_factory.mktemp("python"))
    return run([*command, str(WORKER), "require"])


def without_rights(directory: Path) -> list[str]:
    """A Python with our packages, run as the pod runs it: no root, no capability, no way to get one."""
    if os.getuid() != 0:
        return ["setpriv", "--no-new-privs", "--inh-caps=-all", sys.executable]
    directory.chmod(0o755)
    for parent in directory.parents:
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *rights]
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        again = ["sh", "-c", f"{python} -c 0"]  # setpriv itself may still execute what that user may not
        if subprocess.run([*drop, *again], check=False, capture_output=True).returncode:
            continue
        place = directory / "lib" / version / "site-packages"
        place.mkdir(parents=True)
        paths = [path for path in sys.path if "site-packages" in path or path.endswith("services")]
        (place / "ours.pth").write_text("\n".join(paths))
        (directory / "bin").mkdir()
        (directory / "bin/python").symlink_to(python)
        (directory / "pyvenv.cfg").write_text(f"home = {Path(python).parent}\n")
        return [*drop, str(directory / "bin/python")]
    pytest.fail(f"no {version} that user {NOBODY} may run")


def run(command: list[str], **options: Any) -> Any:
    """Run the hostile worker and read what it prints."""
    environment = {**os.environ, "SECRET": CANARY}
    done = subprocess.run(
        command, env=environment, timeout=PATIENCE_S, capture_output=True, text=True, check=False, cwd="/", **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


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
    assert len(tried["outcomes"]) == len(PROBES) >= 40


def test_the_probes_do_find_what_is_not_confined(tmp_path: Path) -> None:
    """The same with the sandbox off, as a user without rights; without what would harm this machine."""
    found = run([*without_rights(tmp_path), str(WORKER), "off"])["outcomes"]
    seen = [name for name, each in found.items() if not re.search(PROBES[name].outcome, each["outcome"], re.DOTALL)]
    assert len(seen) > 60
    must = {"fork", "subprocess", "a secret file", "/etc/passwd", "socket AF_INET", "the temporary directory", "10 GB"}
    assert must <= set(seen)
