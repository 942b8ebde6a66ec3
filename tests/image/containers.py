"""Containers as a strict pod runs them, and what is asked of them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any, Protocol

from docker.models.containers import Container

from tests.definitions import adder, event

PATIENCE_S = 60.0
HARDENED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}


class Start(Protocol):
    """Starts a hardened container of an image, by default the production image."""

    def __call__(
        self, *command: str, environment: dict[str, str] | None = None, of: Any = None, **more: Any
    ) -> Container: ...


class Finish(Protocol):
    """Runs such a container to its end: its exit status, and what it printed."""

    def __call__(
        self, *command: str, environment: dict[str, str] | None = None, of: Any = None, **more: Any
    ) -> tuple[int, str]: ...


def wait_for(url: str, container: Container, *, poll_s: float = 0.02) -> None:
    """Return when `url` answers 200; AssertionError with the container's log when it ends or never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not _answers(url):
        container.reload()
        if container.status == "exited" or time.monotonic() > deadline:
            raise AssertionError(f"{url} does not answer\n{container.logs(tail=20).decode()}")
        time.sleep(poll_s)


def outcome(port: int, job_id: str) -> Any:
    """The outgoing event of a job with a tool, run by the service on this machine's `port`."""
    body = json.dumps(event(adder(), job_id=job_id)).encode()
    headers = {"Content-Type": "application/cloudevents+json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/?wait=30", body, headers)
    with urllib.request.urlopen(request, timeout=40) as response:
        return json.load(response)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
