"""How a build and a push go: one line a step on stderr, with its seconds, and of a step that failed its output as well.

Each class takes the events of one kind of stream and keeps what the caller asks for in the end. BuildError where the
engine reports an error.
"""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

from tier3.image import buildkit
from tier3.image.errors import BuildError

Event = Mapping[str, Any]
_KEPT_LINES = 60


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def step(seconds: float, name: str, note: str = "") -> None:
    """The line of a step that is done."""
    say(f"{seconds:7.1f} s  {' '.join(name.split())}{f'  ({note})' if note else ''}")


def _show(output: Iterable[str]) -> None:
    for line in output:
        say(f"           | {line}")


class BuildKit:
    """The stream of a build by BuildKit."""

    def __init__(self) -> None:
        self.image_id = ""
        self._told: set[str] = set()
        self._output: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_KEPT_LINES))

    def take(self, event: Event) -> None:
        """One event."""
        if event.get("id") == "moby.image.id":
            self.image_id = event["aux"]["ID"]
        elif event.get("id") == "moby.buildkit.trace":
            for each in buildkit.read(event["aux"]):
                self._take(each)
        if "error" in event:
            raise BuildError(event["error"])

    def _take(self, each: buildkit.Vertex | buildkit.Output) -> None:
        if isinstance(each, buildkit.Output):
            self._output[each.digest].extend(each.text.splitlines())
        elif each.seconds is not None and each.digest not in self._told:
            self._told.add(each.digest)
            if each.error:
                _show(self._output[each.digest])
            if each.error or not each.name.startswith("[internal]"):
                step(each.seconds, each.name, "failed" if each.error else "cached" if each.cached else "")


class Classic:
    """The stream of a build by the classic builder, which says when a step begins, and not when it ends."""

    def __init__(self) -> None:
        self.image_id = ""
        self._name = ""
        self._began = time.monotonic()
        self._cached = False
        self._output: deque[str] = deque(maxlen=_KEPT_LINES)

    def take(self, event: Event) -> None:
        """One event."""
        text = str(event.get("stream", ""))
        if "error" in event:
            _show(self._output)
            self.end("failed")
            raise BuildError(event["error"])
        if found := re.match(r"Step (\d+/\d+) : (.*)", text, re.DOTALL):
            self.end()
            self._name, self._began = f"[{found[1]}] {found[2]}", time.monotonic()
        elif text.startswith(" ---> Using cache"):
            self._cached = True
        elif not text.startswith((" ---> ", "Removing intermediate", "Successfully ")):
            self._output.extend(text.splitlines())
        self.image_id = event.get("aux", {}).get("ID", self.image_id)

    def end(self, note: str = "") -> None:
        """The step that runs is done."""
        if self._name:
            step(time.monotonic() - self._began, self._name, note or ("cached" if self._cached else ""))
        self._name, self._cached = "", False
        self._output.clear()


class Push:
    """The stream of a push."""

    def __init__(self) -> None:
        self.digest = ""
        self._began = time.monotonic()

    def take(self, event: Event) -> None:
        """One event."""
        if "error" in event:
            raise BuildError(event["error"])
        status, layer = str(event.get("status", "")), event.get("id")
        if layer and (status in {"Pushed", "Layer already exists"} or status.startswith("Mounted from")):
            step(time.monotonic() - self._began, f"layer {layer}: {status}")
        self.digest = (event.get("aux") or {}).get("Digest", self.digest)
