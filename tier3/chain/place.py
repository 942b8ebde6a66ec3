"""What one chain makes in the Docker engine: a network that leads nowhere else, containers on it, volumes.

All of it carries one label, by which all of it is removed, and names that no other chain has.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import docker
from docker.errors import DockerException, NotFound
from docker.models.containers import Container
from requests.exceptions import RequestException

from tier3.chain.errors import ChainError, NotYet

LABEL = "agent-executor.chain"
_PATIENCE_S = 60.0
_POLL_S = 0.02
_TAIL_LINES = 20
T = TypeVar("T")


class Place:
    """The network and what is on it. A container's name there is its host name, and so is each of its `aliases`."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex[:8]
        self._client: Any = docker.from_env(timeout=300)
        self._labels = {LABEL: self.id}
        self._network = self._name("network")
        self._client.networks.create(self._network, internal=True, labels=self._labels)

    def start(
        self, name: str, image: str, command: Sequence[str] = (), aliases: Sequence[str] = (), **options: Any
    ) -> Container:
        """Start a container."""
        endpoint = self._client.api.create_endpoint_config(aliases=[name, *aliases])
        container: Container = self._client.containers.run(
            image,
            list(command),
            name=self._name(name),
            hostname=name,
            network=self._network,
            networking_config={self._network: endpoint},
            labels=self._labels,
            detach=True,
            **options,
        )
        return container

    def run(self, name: str, image: str, command: Sequence[str] = (), **options: Any) -> str:
        """Run a container to its end, and return its stdout; ChainError where its exit status is not 0."""
        return ended(self.start(name, image, command, **options))

    def volume(self, name: str, image: str, files: Mapping[str, str]) -> str:
        """Make a volume that holds files, with the help of any image; the engine need not see this machine's files."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path, text in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(text.encode()), 0o644
                tar.addfile(entry, io.BytesIO(text.encode()))
        volume = self._name(name)
        self._client.volumes.create(volume, labels=self._labels)
        filler = self._client.containers.create(
            image,
            ["true"],
            labels=self._labels,
            network_mode="none",
            volumes={volume: {"bind": "/files", "mode": "rw"}},
        )
        filler.put_archive("/files", packed.getvalue())
        filler.remove()
        return volume

    def address(self, container: Container) -> str:
        """Its address on the network, which this machine reaches; ChainError once it has ended."""
        container.reload()
        if container.status != "running":
            raise ChainError(f"{container.name} has ended:\n{tail(container)}")
        address: str = container.attrs["NetworkSettings"]["Networks"][self._network]["IPAddress"]
        return address

    def tails(self) -> Iterator[tuple[str, str]]:
        """Of each container the name and its last lines; the newest comes last."""
        for container in reversed(self._containers()):
            with contextlib.suppress(DockerException, RequestException):
                yield f"{container.name} ({container.status})", tail(container)

    def remove(self) -> None:
        """Remove everything; what cannot be removed does not keep the rest. ChainError names it."""
        left: list[str] = []
        with self._keeping(left):
            for container in self._containers():
                with self._keeping(left), contextlib.suppress(NotFound):
                    container.remove(force=True, v=True)
        for kind in (self._client.networks, self._client.volumes):
            with self._keeping(left):
                for each in kind.list(filters={"label": f"{LABEL}={self.id}"}):
                    with self._keeping(left), contextlib.suppress(NotFound):
                        each.remove()
        self._client.close()
        if left:
            raise ChainError(f"not everything could be removed (label {LABEL}={self.id}): {'; '.join(left)}")

    def _name(self, name: str) -> str:
        return f"agent-executor-chain-{self.id}-{name}"

    def _containers(self) -> list[Container]:
        found: list[Container] = self._client.containers.list(all=True, filters={"label": f"{LABEL}={self.id}"})
        return found

    @staticmethod
    @contextlib.contextmanager
    def _keeping(left: list[str]) -> Iterator[None]:
        try:
            yield
        except (DockerException, RequestException) as error:
            left.append(str(error))


def ended(container: Container, within_s: float = 300.0) -> str:
    """Wait for its end and return its stdout; ChainError where its exit status is not 0."""
    try:
        status = container.wait(timeout=within_s)["StatusCode"]
    except RequestException:
        raise ChainError(f"{container.name} has not ended in {within_s:.0f} s:\n{tail(container)}") from None
    if status:
        raise ChainError(f"{container.name} ended with {status}:\n{tail(container, 80)}")
    return container.logs(stderr=False).decode()


def tail(container: Container, lines: int = _TAIL_LINES) -> str:
    """Its last lines, indented."""
    found = container.logs(tail=lines).decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in found)


def until(ask: Callable[[], T | None], what: str, *errors: type[Exception], patience_s: float = _PATIENCE_S) -> T:
    """What `ask` gives as soon as it is something; it is asked again meanwhile, after NotYet and `errors` too."""
    deadline = time.monotonic() + patience_s
    expected: tuple[type[Exception], ...] = (NotYet, *errors)
    said = ""
    while time.monotonic() < deadline:
        try:
            if found := ask():
                return found
        except expected as error:
            said = f": {error}"
        time.sleep(_POLL_S)
    raise ChainError(f"{what} in {patience_s:.0f} s{said}")
