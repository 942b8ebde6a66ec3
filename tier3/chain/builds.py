"""The images, as a script makes them: `image=$(nox -s build)`, several at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tier3.chain.errors import ChainError

ROOT = Path(__file__).parents[2]
_KEPT_LINES = 60
_OTHERS = {"PUSH", "GITHUB_OUTPUT", "IMAGE_TAG", "BUILD_TARGET"}


class Build:
    """A run of the session that has begun."""

    def __init__(self, target: str, base_image: str, environment: Mapping[str, str], directory: Path) -> None:
        self.target = target
        self._log = directory / f"{target}.log"
        shell = {name: value for name, value in environment.items() if name not in _OTHERS}
        # Environments of their own, since two sessions at once would make the same one.
        command = [sys.executable, "-m", "nox", "--envdir", str(directory / target), "-s", "build"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**shell, "BASE_IMAGE": base_image, "BUILD_TARGET": target},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def name(self) -> str:
        """Wait for the image, and return its name; ChainError with the end of what the session told."""
        printed, _ = self._process.communicate()
        if self._process.returncode:
            told = "\n".join(self._log.read_text(errors="replace").splitlines()[-_KEPT_LINES:])
            raise ChainError(f"nox -s build failed for {self.target}:\n{told}")
        return printed.decode().removesuffix("\n")

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it and its children, if it still runs."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()


@contextlib.contextmanager
def begun(*targets: str, base_image: str, environment: Mapping[str, str], directory: Path) -> Iterator[list[Build]]:
    """Begin them; those that still run in the end are stopped."""
    builds: list[Build] = []
    try:
        for target in targets:
            builds.append(Build(target, base_image, environment, directory))
        yield builds
    finally:
        for build in builds:
            build.stop()
