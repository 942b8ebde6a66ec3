"""The production image: builds with little to do, its size, and containers of it beside a bare FastAPI in the same one.

Left out where no Docker engine answers. Quick, the classic builder is left out.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from tests.bench.figures import Figure, LeftOut, compared, side_by_side, timed
from tests.image.containers import HARDENED, outcome, wait_for
from tier3 import run
from tier3.image import context
from tier3.image.engine import Engine
from tier3.image.errors import BuildError
from tier3.stack import start
from tier3.stack.ports import free_port

ROOT = Path(__file__).parents[2]
BUILDS, STARTS = 5, 7
QUICK_BUILDS, QUICK_STARTS = 1, 1
BUILDERS = (("1", "BuildKit", 1000, 3000), ("0", "the classic builder", 6000, 6000))  # most ms unchanged, and changed
MOST_MB = 220
READY_MS, STOP_MS = 4000, 1000
NO_VAULT = {"VAULT_ADDR": "http://127.0.0.1:9", "VAULT_TOKEN": "none"}
OPEN = {"AUTH_MODE": "none", "AUTH_ALLOW_ANONYMOUS": "true"}
FASTAPI = """
import fastapi, os, uvicorn
app = fastapi.FastAPI()
app.get("/health")(lambda: {"status": "healthy"})
uvicorn.run(app, host="0.0.0.0", port=int(os.environ["PORT"]), access_log=False)
"""


def measure(*, quick: bool = False) -> list[Figure]:
    """Every figure of the image.

    Raises:
        LeftOut: no engine answers.
    """
    try:
        Engine()
    except BuildError as error:
        raise LeftOut(" ".join(str(error).split())) from None
    builders = BUILDERS[:1] if quick else BUILDERS
    builds, starts = (QUICK_BUILDS, QUICK_STARTS) if quick else (BUILDS, STARTS)
    with tempfile.TemporaryDirectory() as directory, _client([each[0] for each in builders]) as client:
        tree = _tree(Path(directory) / "tree")
        return [*_builds(tree, builders, builds), _size(client), *_containers(client, Path(directory), starts)]


@contextmanager
def _client(tags: Sequence[str]) -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    try:
        yield client
    finally:
        for tag in tags:
            client.images.remove(f"localhost/agent-executor:bench-{tag}", noprune=True)
        client.close()


def _tree(place: Path) -> Path:
    """A repository of its own with what a build is given, so that its source can be changed."""
    with tarfile.open(fileobj=io.BytesIO(context.pack(ROOT))) as tar:
        tar.extractall(place, filter="data")
    shutil.copy(ROOT / ".dockerignore", place)
    who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for words in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message=bench")):
        subprocess.run(["git", *words], cwd=place, check=True)
    return place


def _build(tree: Path, buildkit: str) -> float:
    own = {"DOCKER_BUILDKIT": buildkit, "DOCKER_REGISTRY": "localhost", "IMAGE_TAG": f"bench-{buildkit}"}
    kept = {key: value for key, value in os.environ.items() if key not in {"PUSH", "GITHUB_OUTPUT", "BUILD_TARGET"}}
    command = [sys.executable, "-m", "tier3.image"]
    return timed(lambda: subprocess.run(command, cwd=tree, env=kept | own, check=True, capture_output=True))


def _builds(tree: Path, builders: Sequence[tuple[str, str, int, int]], runs: int) -> list[Figure]:
    source = tree / "services/agent_executor/app.py"

    def changed(buildkit: str) -> Callable[[], float]:
        def work() -> float:
            source.write_text(f"{source.read_text()}\n# {uuid.uuid4().hex}\n")
            return _build(tree, buildkit)

        return work

    figures = []
    for buildkit, name, most_unchanged, most_changed in builders:
        found = side_by_side({"unchanged": lambda: _build(tree, buildkit)}, runs)  # noqa: B023 - called at once
        found |= side_by_side({"changed": changed(buildkit)}, runs)
        figures.append(_at_most(f"build by {name}, nothing changed", found["unchanged"], most_unchanged))
        figures.append(_at_most(f"build by {name}, source changed", found["changed"], most_changed))
    return figures


def _size(client: docker.DockerClient) -> Figure:
    """What our layers hold; the rest is the base image's."""
    layers = client.images.get("localhost/agent-executor:bench-1").history()
    ours_mb = sum(layer["Size"] for layer in layers if "/layers/" in layer["CreatedBy"]) / 1e6
    return Figure("the image over its base", [ours_mb], f"at most {MOST_MB} MB", ours_mb <= MOST_MB, unit="MB")


@dataclass
class _Service:
    """Containers of the image, one at a time, and how long each took to stop."""

    client: docker.DockerClient
    environment: Mapping[str, str]
    settle: Callable[[int], object] = lambda port: None
    stops_ms: list[float] = field(default_factory=list)

    def first_200(self, path: str, *command: str) -> float:
        """Milliseconds from `docker run` until `path` answers; the service is let settle, and stopped."""
        port = free_port()
        options: dict[str, Any] = {**HARDENED, "network_mode": "host", "detach": True}
        options["environment"] = {**self.environment, "PORT": str(port)}
        started: list[Container] = []

        def work() -> None:
            started.append(self.client.containers.run("localhost/agent-executor:bench-1", [*command], **options))
            wait_for(f"http://127.0.0.1:{port}{path}", started[0], poll_s=0.005)

        try:
            ms = timed(work)
            self.settle(port)
            stopped_ms = timed(lambda: started[0].stop(timeout=30))
            status = started[0].wait()["StatusCode"]
        finally:
            for container in started:
                container.remove(force=True, v=True)
        if not command:
            self.stops_ms.append(stopped_ms)
            if status != 0:
                raise AssertionError(f"the service ended with exit status {status}")
        return ms


def _containers(client: docker.DockerClient, place: Path, starts: int) -> list[Figure]:
    alone = _Service(client, NO_VAULT | OPEN)
    found = side_by_side(
        {
            "bare": lambda: alone.first_200("/health", "python", "-c", FASTAPI),
            "ours": lambda: alone.first_200("/health"),
        },
        starts,
    )
    place.chmod(0o755)  # the server is another user where we are root
    with start(place / "stack") as stack:
        addresses = run.addresses(stack)
        migrate = ["python", "-m", "agent_executor", "migrate"]
        options: dict[str, Any] = {**HARDENED, "network_mode": "host", "environment": addresses, "remove": True}
        client.containers.run("localhost/agent-executor:bench-1", migrate, **options)
        environment = run.through_vault(OPEN, addresses, stack.vault)
        whole = _Service(client, environment, settle=lambda port: outcome(port, uuid.uuid4().hex))
        found |= side_by_side({"ready": lambda: whole.first_200("/ready")}, starts)
    what = "docker run to the first 200"
    return [
        Figure(f"{what}, a bare FastAPI", found["bare"]),
        compared(f"{what} of /health", found["ours"], found["bare"], "a bare FastAPI in the same image", 1.3),
        _at_most(f"{what} of /ready", found["ready"], READY_MS),
        _at_most("docker stop of a service that has run a job", whole.stops_ms, STOP_MS),
    ]


def _at_most(name: str, runs: list[float], most_ms: float) -> Figure:
    return Figure(name, runs, f"at most {most_ms:g} ms", statistics.median(runs) <= most_ms)
