"""The production image, in containers that may do as little as a strict pod's."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from tests.image.conftest import Build
from tests.image.containers import Finish, Start, outcome, wait_for
from tests.unit.test_docs import section, table
from tier3.image import context
from tier3.stack.ports import free_port

ROOT = Path(__file__).parents[2]
NO_VAULT = {"VAULT_ADDR": "http://127.0.0.1:9", "VAULT_TOKEN": "none"}
# Bytecode that is checked against nothing: PEP 552, flags 0b01 after the magic number.
BYTECODE = """
import importlib.util, pathlib, struct, sys
import agent_executor.service, langchain_anthropic, langchain_ollama, langchain_openai, uvicorn.main
sources = {str(path) for path in pathlib.Path("/app/service").rglob("*.py")}
loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
sources |= {path for path in loaded if path.endswith(".py")}
caches = {source: pathlib.Path(importlib.util.cache_from_source(source)) for source in sources}
print(len(sources), sorted(source for source, cache in caches.items() if not cache.exists()))
ours = [cache for source, cache in caches.items() if source.startswith("/app") and cache.exists()]
print(sorted({struct.unpack("<I", cache.read_bytes()[4:8])[0] for cache in ours}))
"""
LARGE = """
import importlib.metadata, importlib.util, os
for distribution in importlib.metadata.distributions():
    paths = {str(file.locate()) for file in distribution.files}
    paths |= {importlib.util.cache_from_source(path) for path in paths if path.endswith(".py")}
    if sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) > 5e6:
        print(distribution.name)
"""
PRESENT = """
import importlib.util, shutil
programs = [name for name in ("uv", "nox", "pytest", "gcc", "cc", "make", "git") if shutil.which(name)]
modules = ("nox", "pytest", "uv", "tests", "tier3", "docker")
print(programs, [name for name in modules if importlib.util.find_spec(name)])
"""


def test_every_module_has_its_bytecode_and_none_is_checked_at_a_start(run_container: Finish) -> None:
    status, printed = run_container("python", "-c", BYTECODE)
    assert status == 0, printed
    modules, flags = printed.splitlines()
    number, _, missing = modules.partition(" ")
    assert int(number) > 1500
    assert missing == "[]"
    assert flags == "[1]"


def test_every_large_dependency_is_in_the_docs_with_its_reason(run_container: Finish) -> None:
    status, printed = run_container("python", "-c", LARGE)
    assert status == 0, printed
    found = table(section((ROOT / "docs/image.md").read_text(), "## Sizes"))
    assert [name for name in printed.split() if not found.get(name, [""])[-1]] == []
    assert {"openai", "cryptography"} <= set(printed.split())


def test_it_is_no_larger_than_it_may_be(image: Any) -> None:
    layers = [layer["Size"] for layer in image.history() if "/layers/" in layer["CreatedBy"]]
    assert len(layers) == 2
    assert sum(layers) <= 220e6


def test_it_holds_no_tests_and_no_tools_of_a_build(run_container: Finish) -> None:
    assert run_container("python", "-c", PRESENT) == (0, "[] []\n")
    assert run_container("find", "/app", "-name", "tests", "-o", "-name", "htmlcov", "-o", "-name", ".env") == (0, "")
    assert run_container("sh", "-c", "ls -A / | grep -x -e build -e layers; ls -A /app")[1].split() == [
        *(".venv", "LICENSE", "migrations", "run.sh", "service")
    ]


def test_everything_in_it_is_roots_and_nobody_else_can_write_it(run_container: Finish) -> None:
    assert run_container("id", "-u") == (0, "65532\n")
    assert run_container("find", "/app", "-writable", read_only=False) == (0, "")
    assert run_container("find", "/app", "!", "-user", "0", "-o", "!", "-group", "0") == (0, "")


def test_it_says_what_it_is(image: Any) -> None:
    config = image.attrs["Config"]
    sha, created = subprocess.check_output(["git", "log", "-1", "--format=%H %cI"], cwd=ROOT, text=True).split()
    found = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    assert found["revision"].removesuffix("-dirty") == sha
    assert found["created"] == created
    assert found["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert config["User"].partition(":")[0].isdecimal()
    assert config["Entrypoint"] == ["/app/run.sh"]
    assert config["ExposedPorts"] == {"8080/tcp": {}}


def test_it_keeps_nothing_of_how_it_was_built(image: Any) -> None:
    history = json.dumps(image.history()) + json.dumps(image.attrs)
    assert "INDEX_URL" not in history
    assert context.CA not in history


def test_an_environment_that_is_not_whole_ends_it(run_container: Finish) -> None:
    status, printed = run_container(environment={"VAULT_ROLE_ID": "id"})
    assert status == 64
    assert printed == "run.sh: missing environment variables: VAULT_ADDR, VAULT_SECRET_ID\n"


def test_it_serves_is_healthy_and_stops_when_it_is_told(image: Any, start_container: Start) -> None:
    port = free_port()
    serving = start_container(environment=NO_VAULT | {"PORT": str(port)}, network_mode="host")
    wait_for(f"http://127.0.0.1:{port}/health", serving)
    check = image.attrs["Config"]["Healthcheck"]["Test"][1:]
    assert serving.exec_run(check).exit_code == 0
    serving.stop(timeout=30)
    assert serving.wait()["StatusCode"] == 0, serving.logs().decode()
    sleeping = start_container("sleep", "60", init=True)
    assert sleeping.exec_run(check).exit_code != 0


def test_it_migrates_a_database_and_runs_a_job(
    run_container: Finish, start_container: Start, environment: dict[str, str], addresses: dict[str, str]
) -> None:
    status, printed = run_container(
        "python", "-m", "agent_executor", "migrate", environment=addresses, network_mode="host"
    )
    assert status == 0, printed
    port = free_port()
    serving = start_container(environment=environment | {"PORT": str(port)}, network_mode="host")
    wait_for(f"http://127.0.0.1:{port}/ready", serving)
    assert outcome(port, "job-in-image")["data"] == {
        "job_id": "job-in-image",
        "result": {"output": "The Calculator says: 5", "status": "completed"},
    }
    serving.stop(timeout=30)
    assert serving.wait()["StatusCode"] == 0, serving.logs().decode()


def test_the_same_input_makes_the_same_layers(image: Any, build: Build) -> None:
    assert build("--no-cache").attrs["RootFS"]["Layers"] == image.attrs["RootFS"]["Layers"]


def test_the_classic_builder_makes_it_too(image: Any, build: Build, run_container: Finish) -> None:
    classic = build(DOCKER_BUILDKIT="0")
    kept = ("User", "Entrypoint", "Env", "Labels", "Healthcheck", "WorkingDir", "ExposedPorts")
    assert {key: classic.attrs["Config"][key] for key in kept} == {key: image.attrs["Config"][key] for key in kept}
    assert run_container("python", "-c", "import agent_executor.app", of=classic) == (0, "")


def test_the_tests_image_needs_no_network_to_say_what_is_missing(run_container: Finish, test_runner: Any) -> None:
    artifacts = {"/app/artifacts": ""}  # and nothing else that it could write to
    status, printed = run_container(of=test_runner, network_mode="none", tmpfs=artifacts)
    assert status != 0
    missing = re.findall(r"(?m)^  (\w+) is missing$", printed)
    assert missing == ["NATS_URL", "TEST_POSTGRES_URI", "TEST_REDIS_URL", "VAULT_ADDR", "VAULT_TOKEN"], printed


def test_the_tests_image_holds_nothing_of_the_service(run_container: Finish, test_runner: Any) -> None:
    status, printed = run_container("python", "-c", PRESENT.replace('"tests"', '"agent_executor"'), of=test_runner)
    assert (status, printed) == (0, "['nox', 'pytest'] ['nox', 'pytest', 'tier3']\n")
    assert run_container("sh", "-c", "ls -A /app /app/tests", of=test_runner)[1].split() == [
        *("/app:", ".venv", "noxfile.py", "pyproject.toml", "tests", "tier3"),
        *("/app/tests:", "__init__.py", "e2e"),
    ]
