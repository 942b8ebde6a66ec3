"""The image as `nox -s build` makes it, containers of it, and servers on this machine that they reach.

Nothing is skipped: whoever runs these tests has a Docker engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from tests.image.containers import HARDENED, Finish, Start
from tier3 import run
from tier3.stack import Stack, start

ROOT = Path(__file__).parents[2]
TESTS = "agent-executor.tests"

Build = Callable[..., Any]


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    """The engine."""
    found = docker.from_env(timeout=120)
    yield found
    found.close()


@pytest.fixture(scope="session")
def build(client: docker.DockerClient) -> Iterator[Build]:
    """Builds images as the session does, under names of their own, which go in the end; their layers stay."""
    names: list[str] = []

    def build_one(*words: str, **environment: str) -> Any:
        kept = {key: value for key, value in os.environ.items() if key not in {"PUSH", "GITHUB_OUTPUT", "PR_NUMBER"}}
        own = {"DOCKER_REGISTRY": "localhost", "IMAGE_TAG": f"test-{uuid.uuid4().hex[:12]}"}
        command = [sys.executable, "-m", "tier3.image", *words]
        shell = kept | own | environment
        ended = subprocess.run(command, cwd=ROOT, env=shell, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        names.append(ended.stdout.removesuffix("\n"))
        return client.images.get(names[-1])

    yield build_one
    for name in names:
        client.images.remove(name, noprune=True)


@pytest.fixture(scope="session")
def image(build: Build) -> Any:
    """The production image of this tree."""
    return build()


@pytest.fixture(scope="session")
def test_runner(build: Build) -> Any:
    """The image whose pod runs the tests of a deployed service."""
    return build(BUILD_TARGET="test-runner")


@pytest.fixture
def start_container(client: docker.DockerClient, image: Any) -> Iterator[Start]:
    """Starts containers, and removes them in the end."""
    started: list[Container] = []

    def start_one(*command: str, environment: dict[str, str] | None = None, of: Any = None, **more: Any) -> Container:
        options = {**HARDENED, "environment": environment or {}, "labels": [TESTS], **more}
        started.append(client.containers.run((of or image).id, [*command], detach=True, **options))
        return started[-1]

    yield start_one
    for container in started:
        container.remove(force=True, v=True)


@pytest.fixture
def run_container(start_container: Start) -> Finish:
    """Runs containers to their ends."""

    def run_one(
        *command: str, environment: dict[str, str] | None = None, of: Any = None, **more: Any
    ) -> tuple[int, str]:
        container = start_container(*command, environment=environment, of=of, **more)
        return container.wait()["StatusCode"], container.logs().decode()

    return run_one


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers on this machine."""
    with start(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def addresses(stack: Stack) -> dict[str, str]:
    """The variables that lead to them."""
    return run.addresses(stack)


@pytest.fixture(scope="session")
def environment(stack: Stack, addresses: dict[str, str]) -> dict[str, str]:
    """How the service finds its servers in production: through Vault. Everybody may call."""
    return run.through_vault({"AUTH_MODE": "none", "AUTH_ALLOW_ANONYMOUS": "true"}, addresses, stack.vault)
