"""The Docker engine: whether it is there, a build by the better of its two builders, a push."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import docker
from docker.errors import DockerException, ImageNotFound
from docker.utils import kwargs_from_env
from requests.exceptions import RequestException

from tier3.image import progress
from tier3.image.errors import BuildError

_ASK_S, _WORK_S = 10, 600
_BLOCK_BYTES = 2**20
_BUILDKIT_SINCE = (1, 39)


@dataclass(frozen=True)
class Build:
    """What is to be built, and under which name."""

    name: str
    target: str
    context: bytes
    labels: Mapping[str, str]
    build_args: Mapping[str, str]
    network: str | None = None
    buildkit: bool = True
    cached: bool = True


class Engine:
    """The engine that DOCKER_HOST names, else that of this machine."""

    def __init__(self) -> None:
        try:
            self._api: Any = docker.APIClient(**kwargs_from_env(), version="auto", timeout=_ASK_S)
            self._about = self._api.version()
        except (DockerException, RequestException) as error:
            host = os.environ.get("DOCKER_HOST") or "its default socket"
            raise BuildError(f"no Docker engine answers at {host} (DOCKER_HOST names another): {error}") from None
        self._api.timeout = _WORK_S

    def __str__(self) -> str:
        """Its version, for people."""
        return f"Docker {self._about.get('Version', '?')}"

    @property
    def has_buildkit(self) -> bool:
        """Whether BuildKit is built into the engine: since 18.09, and not on Windows."""
        version = tuple(int(part) for part in self._about.get("ApiVersion", "0").split("."))
        return version >= _BUILDKIT_SINCE and self._about.get("Os") == "linux"

    def has(self, name: str) -> bool:
        """Whether it has an image of this name."""
        with _as_build_error():
            return bool(self._api.images(name))

    def fetch(self, name: str) -> None:
        """Have it have an image of this name, pulled if it is not there.

        BuildKit would pull it itself, but has to ask who it may do so as (moby/buildkit, session/auth), and the SDK
        leaves that unanswered.
        """
        with _as_build_error():
            try:
                self._api.inspect_image(name)
            except ImageNotFound:
                began = time.monotonic()
                for event in self._api.pull(name, stream=True, decode=True):
                    if "error" in event:
                        raise BuildError(event["error"]) from None
                progress.step(time.monotonic() - began, "pulled", name)

    def build(self, build: Build) -> str:
        """Build, and return the image's id; BuildError with the engine's words, after the step's output."""
        by = progress.BuildKit() if build.buildkit and self.has_buildkit else progress.Classic()
        with self._builder(2 if isinstance(by, progress.BuildKit) else 1), _as_build_error():
            for event in self._api.build(
                fileobj=io.BytesIO(build.context),
                custom_context=True,
                decode=True,
                tag=build.name,
                target=build.target,
                labels=dict(build.labels),
                buildargs=dict(build.build_args),
                network_mode=build.network,
                nocache=not build.cached,
                rm=True,
                forcerm=True,
            ):
                by.take(event)
        if isinstance(by, progress.Classic):
            by.end()
        if not by.image_id:
            raise BuildError("the engine ended the build and named no image")
        return by.image_id

    def push(self, name: str) -> str:
        """Push, and return the digest that the registry knows it by."""
        repository, _, tag = name.rpartition(":")
        taken = progress.Push()
        with _as_build_error():
            events: Iterable[progress.Event] = self._api.push(repository, tag=tag, stream=True, decode=True)
            for event in events:
                taken.take(event)
        if not taken.digest:
            raise BuildError("the registry named no digest: whether the image has arrived is not known")
        return taken.digest

    def take_in(self, files: IO[bytes], name: str) -> str:
        """Make an image of a tar of its root, and return its id."""
        repository, _, tag = name.rpartition(":")
        blocks = iter(lambda: files.read(_BLOCK_BYTES), b"")  # a file would be sent line by line
        with _as_build_error():
            answer = self._api.import_image_from_stream(blocks, repository=repository, tag=tag)
        *_, last = map(json.loads, answer.splitlines())
        if "error" in last:
            raise BuildError(last["error"])
        return str(last["status"])

    @contextlib.contextmanager
    def _builder(self, number: int) -> Iterator[None]:
        """Choose the builder, which the SDK has no word for: a parameter of every request meanwhile."""
        self._api.params = {"version": str(number)}
        try:
            yield
        finally:
            self._api.params = {}


@contextlib.contextmanager
def _as_build_error() -> Iterator[None]:
    try:
        yield
    except (DockerException, RequestException) as error:
        raise BuildError(str(error)) from None
