"""`nox -s chain`, without an engine: containers may do what the manifests say, failures are told, nothing is left."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from tests.manifests import built, containers, one, pods
from tier3.chain import accounts, builds, pod, steps, token_reviews
from tier3.chain.errors import ChainError, NotYet
from tier3.chain.place import Place, until

ROOT = Path(__file__).parents[2]
UNITS = {"Ki": "k", "Mi": "m", "Gi": "g"}
PODS = [("overlays/keda", pod.SERVICE), ("migrations", pod.MIGRATION), ("test-job", pod.TESTS)]


def size(text: str) -> str:
    """Kubernetes' words for a size in Docker's."""
    return text[:-2] + UNITS[text[-2:]]


@pytest.mark.parametrize(("manifest", "profile"), PODS, ids=[name for name, _ in PODS])
def test_a_container_may_do_what_its_pod_may(manifest: str, profile: Mapping[str, Any]) -> None:
    (container,), (spec,) = containers(built(manifest)), pods(built(manifest))
    security, limits = container["securityContext"], container["resources"]["limits"]
    assert profile["user"] == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert profile["read_only"] is security["readOnlyRootFilesystem"]
    assert profile["cap_drop"] == security["capabilities"]["drop"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert profile["security_opt"] == ["no-new-privileges"]
    assert profile["mem_limit"] == size(limits["memory"])
    assert profile.get("nano_cpus", 0) == int(limits.get("cpu", 0)) * 10**9
    volumes = {each["name"]: each.get("emptyDir") for each in spec["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
    assert profile["tmpfs"] == {path: f"size={size(each['sizeLimit'])}" for path, each in mounts.items() if each}


def test_the_service_is_told_what_its_config_map_says() -> None:
    assert pod.settings() == one(built("overlays/keda"), "ConfigMap")["data"]


def test_the_service_account_is_the_one_that_vault_init_binds() -> None:
    defaults = re.findall(r'"(SERVICE_ACCOUNT|K8S_NAMESPACE|VAULT_K8S_AUDIENCE)": "(.+)"', page("tier3/vault_init.py"))
    assert dict(defaults) == {
        "SERVICE_ACCOUNT": token_reviews.ACCOUNT,
        "K8S_NAMESPACE": token_reviews.NAMESPACE,
        "VAULT_K8S_AUDIENCE": token_reviews.AUDIENCE,
    }
    claims = json.loads(base64.urlsafe_b64decode(token_reviews.service_account_token().split(".")[1] + "=="))
    assert claims["sub"] == f"system:serviceaccount:{token_reviews.NAMESPACE}:{token_reviews.ACCOUNT}"


def page(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_tests_have_the_rights_of_the_docs_and_no_others() -> None:
    rows = dict(re.findall(r"(?m)^\| (NATS|Redis|the API key) \| (.*) \|$", page("docs/testing.md")))
    rights = accounts.nats("")["permissions"]
    assert {*re.findall("`(.+?)`", rows["NATS"])} == {*rights["publish"], *rights["subscribe"]}
    assert re.findall("`(.+?)`", rows["the API key"]) == accounts.SCOPES.split(",")
    said = set(rows["Redis"].replace("\\|", "|").replace("`", "").split())
    given: list[str] = []
    accounts.redis(Recorder(given), "")
    assert {each for each in given if each[0] in "+~&"} == {each for each in said if each[0] in "+~&"}


class Recorder:
    """Redis, as far as it is told something."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def execute_command(self, *words: str) -> None:
        self._told += words


def test_without_an_engine_it_says_so_and_nothing_else() -> None:
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    command = [sys.executable, "-m", "tier3.chain"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 69
    (line,) = ended.stderr.splitlines()
    assert line.startswith("chain: no Docker engine answers at unix:///nowhere/docker.sock")


def test_the_summary_is_that_of_pytest() -> None:
    assert steps.summary("x\n============ 17 passed in 8.07s ============\nnox > Session") == "17 passed in 8.07s"
    with pytest.raises(ChainError, match="nothing of their success"):
        steps.summary("========= 1 failed in 1s ==========")


def test_waiting_ends_with_what_was_said_last() -> None:
    answers = iter([OSError("nobody there"), NotYet("somebody is busy")])

    def ask() -> bool:
        raise next(answers, NotYet("somebody is asleep"))

    with pytest.raises(ChainError, match=r"it does not answer in 0 s: somebody is asleep"):
        until(ask, "it does not answer", OSError, patience_s=0.1)
    assert until(lambda: "found", "it does not answer") == "found"


def test_a_build_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "nox.py").write_text("import sys; sys.exit('no session today')")  # stands before the installed one
    with (
        builds.begun("runtime", base_image="b", environment=environment, directory=tmp_path) as (build,),
        pytest.raises(ChainError, match=r"(?s)nox -s build failed for runtime:.*no session today"),
    ):
        build.name()


def test_builds_that_still_run_are_stopped(tmp_path: Path) -> None:
    (tmp_path / "nox.py").write_text("import time; time.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        builds.begun("runtime", "test-runner", base_image="b", environment=environment, directory=tmp_path) as begun,
    ):
        raise KeyboardInterrupt
    assert [build.status for build in begun] == [-9, -9]
    assert time.monotonic() - began < 50


class Engine:
    """The engine, in which some things cannot be removed."""

    def __init__(self, *stuck: str) -> None:
        self.there = {"container", "network", "volume"}
        self.stuck = stuck
        self.containers, self.networks, self.volumes = (Kind(self, name) for name in ("container", "network", "volume"))

    def close(self) -> None:
        """Nothing."""


class Kind:
    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name

    def create(self, *_: Any, **__: Any) -> None:
        """It is there already."""

    def list(self, **_: Any) -> list[Kind]:
        return [self] if self.name in self._engine.there else []

    def remove(self, **_: Any) -> None:
        if self.name in self._engine.stuck:
            raise APIError(f"{self.name} is in use")
        self._engine.there.remove(self.name)


def place(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("docker.from_env", lambda **_: engine)
    return Place()


def test_what_was_made_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    place(engine, monkeypatch).remove()
    assert engine.there == set()


def test_what_cannot_be_removed_is_named_and_does_not_keep_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("container")
    with pytest.raises(ChainError, match="container is in use"):
        place(engine, monkeypatch).remove()
    assert engine.there == {"container"}
