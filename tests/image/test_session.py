"""`nox -s build` as scripts call it: what is on stdout, and what became of the image."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.image.registry import Registry, registry
from tier3.image.engine import Engine

ROOT = Path(__file__).parents[2]
UNSET = {"PUSH", "GITHUB_OUTPUT", "PR_NUMBER", "IMAGE_TAG", "DOCKER_REGISTRY", "BUILD_TARGET", "PYTHONPATH"}


def session(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nox", *options, "-s", "build"]
    shell = {key: value for key, value in os.environ.items() if key not in UNSET} | environment
    return subprocess.run(command, cwd=ROOT, env=shell, capture_output=True, text=True, check=False)


@pytest.fixture
def place(client: docker.DockerClient) -> Iterator[Registry]:
    """Where images are pushed to; their names in the engine go in the end."""
    with registry() as server:
        yield server
    for image in client.images.list(filters={"reference": f"{server.address}/*"}):
        for name in image.tags:
            if name.startswith(server.address):
                client.images.remove(name, noprune=True)


@pytest.mark.parametrize("first", [True, False], ids=["first run", "again"])
def test_stdout_is_the_name_and_nothing_else(
    image: Any, client: docker.DockerClient, place: Registry, tmp_path: Path, first: bool
) -> None:
    options = ["-v", "--forcecolor", *(["--envdir", str(tmp_path)] if first else [])]
    output = tmp_path / "github"
    output.write_text("before=1\n")
    ended = session(*options, DOCKER_REGISTRY=place.address, PR_NUMBER="7", GITHUB_OUTPUT=str(output))
    assert ended.returncode == 0, ended.stderr
    sha = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
    assert re.fullmatch(rf"{re.escape(place.address)}/agent-executor:pr-7-{sha[:7]}(-dirty)?\n", ended.stdout)
    assert client.images.get(ended.stdout.strip()).attrs["RootFS"] == image.attrs["RootFS"]
    assert output.read_text() == f"before=1\nimage={ended.stdout}"
    assert place.manifests == {}


@pytest.mark.parametrize(
    "bad",
    [{"DOCKER_HOST": "unix:///nowhere/docker.sock"}, {"IMAGE_TAG": "a b"}, {"BASE_IMAGE": "localhost:9/none"}],
    ids=["no engine", "no tag", "no base image"],
)
def test_a_failure_leaves_stdout_empty(bad: dict[str, str]) -> None:
    ended = session("-v", "--forcecolor", **bad)
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert "build: " in ended.stderr


def test_a_push_tells_the_digest_that_the_registry_knows(place: Registry) -> None:
    small = io.BytesIO()
    with tarfile.open(fileobj=small, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    small.seek(0)
    engine = Engine()
    engine.take_in(small, f"{place.address}/agent-executor:small")
    digest = engine.push(f"{place.address}/agent-executor:small")
    assert digest == f"sha256:{hashlib.sha256(place.manifests['agent-executor:small']).hexdigest()}"


def test_a_push_that_is_refused_is_a_failure(image: Any, place: Registry) -> None:
    place.deny = True
    ended = session(DOCKER_REGISTRY=place.address, IMAGE_TAG="refused", PUSH="true")
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert "not today" in ended.stderr or "denied" in ended.stderr
