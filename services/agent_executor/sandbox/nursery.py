"""The zygote seen from the service: starts it, orders children, has them killed, hears how they ended.

A thread listens to it, so that any event loop can wait for what it hears. `start` and `close` block, the others take no
longer than a few system calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SandboxUnavailable
from .directory import held_root, remove, remove_abandoned

# Isolated, since PYTHONPATH and the working directory are nothing for tools to import from; so it is told where we are.
_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from agent_executor.sandbox.zygote import main; main()"
_SERVICES = str(Path(__file__).parents[2])
_START_S = 60
_END_S = 5


@dataclass(eq=False)
class Life:
    """One child: our end of its pipe, and in the end its exit code (negative: a signal; None: nobody can tell).

    `process` is 0 until it is known; `unborn` says why there never was one.
    """

    number: int
    pipe: socket.socket
    directory: str
    process: int = 0
    unborn: str = ""
    ended: Future[int | None] = field(default_factory=Future)


class Nursery:
    """One zygote, from `start` to `close`."""

    def __init__(self) -> None:
        """Start the process.

        Raises:
            SandboxUnavailable: the system does not start it.
        """
        self.missing: list[str] = []
        self.threads = 0
        self._lives: dict[int, Life] = {}
        self._number = 0
        self._lock = threading.Lock()
        self._ready: Future[Mapping[str, Any]] = Future()
        remove_abandoned()
        self._root, held = held_root()
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-c", _PROGRAM, _SERVICES, str(theirs.fileno()), self._root]
        quiet = subprocess.DEVNULL
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno(), held], env={}, cwd="/", stdin=quiet, stdout=quiet, stderr=quiet
                )
        except OSError as error:
            self._control.close()
            remove(self._root)
            raise SandboxUnavailable(f"the process that runs tools does not start: {error.strerror}") from None
        finally:
            os.close(held)  # it is the zygote's now
        threading.Thread(target=self._listen, daemon=True, name="sandbox").start()

    @property
    def is_alive(self) -> bool:
        """Whether the zygote still runs."""
        return self._process.poll() is None

    @property
    def directory(self) -> str:
        """Where the children's directories are."""
        return self._root

    @property
    def process_id(self) -> int:
        """The zygote's."""
        return self._process.pid

    def start(self) -> None:
        """Wait until the zygote has imported what tools need: about a second. `missing` is known then.

        Raises:
            SandboxUnavailable: it does not start; the message has its own words.
        """
        try:
            found = self._ready.result(_START_S)
        except TimeoutError:
            raise SandboxUnavailable(f"the process that runs tools was not ready within {_START_S} s") from None
        self.missing, self.threads = found["missing"], found["threads"]

    def bear(self, order: Mapping[str, Any]) -> Life:
        """A new child, which is confined and then serves its pipe. `order`: mode, limits, output_bytes.

        Raises:
            SandboxUnavailable: the zygote has ended.
        """
        pipe, theirs = socket.socketpair()
        with theirs, self._lock:
            self._number += 1
            place = Path(self._root) / uuid.uuid4().hex  # a name that no other job can guess
            life = self._lives[self._number] = Life(self._number, pipe, str(place))
            try:
                place.mkdir(0o700)
                line = json.dumps({**order, "bear": life.number, "directory": life.directory}).encode() + b"\n"
                socket.send_fds(self._control, [line], [theirs.fileno()])
            except OSError as error:
                pipe.close()
                self._end(life.number, None)
                raise SandboxUnavailable(f"the process that runs tools has ended ({error.strerror})") from None
        return life

    def kill(self, life: Life) -> None:
        """Kill a child and all it started; one that has ended is left alone."""
        with contextlib.suppress(OSError), self._lock:
            self._control.sendall(json.dumps({"kill": life.number}).encode() + b"\n")

    def close(self) -> None:
        """End the zygote, which kills all children and removes what they wrote; one that still imports has none."""
        if not self._ready.done():
            self._process.kill()
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        remove(self._root)

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._control.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                if "born" in said:
                    self._lives[said["born"]].process = said["process"]
                elif "died" in said:
                    self._lives[said["died"]].unborn = said.get("unborn", "")
                    self._end(said["died"], said["status"])
                elif "failed" in said:
                    self._fail(said["failed"])
                else:
                    self._ready.set_result(said)
        self._fail("it has ended")
        for number in [*self._lives]:
            self._end(number, None)
        self._control.close()

    def _fail(self, words: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(SandboxUnavailable(f"the process that runs tools does not start: {words}"))

    def _end(self, number: int, status: int | None) -> None:
        life = self._lives.pop(number, None)
        if life is not None:
            life.ended.set_result(status)
