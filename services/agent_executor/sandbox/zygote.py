"""The program that children are forked from: it has imported all that tools need, and knows no secret.

Started by `nursery` with the words FD DIRECTORY, isolated, and with an empty environment. One thread, so that forking
is safe; it runs no script. Owns its children's lives: forks, kills, reaps and reports. When the pipe to the service
ends, because the service did, it kills them and removes DIRECTORY.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from .. import imports
from . import confine
from .directory import remove

_NEEDED = ("langchain.tools", "langchain_core.tools", "langgraph.prebuilt", "langgraph.types", f"{__package__}.child")
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
_BUG = 70


class Zygote:
    """One process, from its first frame to the end of its pipe."""

    def __init__(self, control: socket.socket, directory: str) -> None:
        self._control = control
        self._directory = directory
        self._children: dict[int, int] = {}  # process -> the number it was ordered under
        self._buffer = b""
        self._pipes: list[int] = []

    def run(self) -> None:
        """Until the service has ended."""
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self._control.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
            self._reap()
            if self._control.fileno() in ready and not self._read():
                return

    def end(self) -> None:
        """Leave nothing."""
        for process in self._children:
            _kill(process)
        remove(self._directory)

    def say(self, **words: Any) -> None:
        """Tell the service; one line of JSON."""
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(words).encode() + b"\n")

    def _read(self) -> bool:
        found, pipes, _, _ = socket.recv_fds(self._control, 65536, 8)
        self._pipes += pipes
        *lines, self._buffer = (self._buffer + found).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "kill" in order:
                for process in [process for process, number in self._children.items() if number == order["kill"]]:
                    _kill(process)
            else:
                self._bear(order)
        return bool(found)

    def _bear(self, order: dict[str, Any]) -> None:
        number, pipe, parent = order["bear"], self._pipes.pop(0), os.getpid()
        try:
            process = os.fork()
        except OSError as error:  # as many processes and threads as there may be
            os.close(pipe)
            self.say(died=number, status=None, unborn=error.strerror)
            return
        if process == 0:
            with contextlib.suppress(BaseException):
                self._control.close()
                _live(pipe, parent, order)
            os._exit(_BUG)
        os.close(pipe)
        self._children[process] = number
        self.say(born=number, process=process)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                process, status = os.waitpid(-1, os.WNOHANG)
                if process == 0:
                    return
                if process in self._children:
                    self.say(died=self._children.pop(process), status=os.waitstatus_to_exitcode(status))


def _kill(process: int) -> None:
    """It, and where it could start processes, those of its session."""
    with contextlib.suppress(OSError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGKILL)


def _live(pipe: int, parent: int, order: dict[str, Any]) -> None:
    """In the child: become one, serve, and end."""
    from .child import Child

    confine.die_with(parent)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.umask(0o077)
    if pipe != 3:
        os.dup2(pipe, 3)
    os.closerange(4, 65536)
    directory = order["directory"]
    os.environ.clear()
    os.environ.update(_ENVIRONMENT, HOME=directory, TMPDIR=directory)
    os.chdir(directory)
    sys.dont_write_bytecode = True
    if order["mode"] != "off":
        missing = confine.confine(directory, confine.Limits(**order["limits"]))
        if missing and order["mode"] == "require":
            return
    Child(socket.socket(fileno=3), order["output_bytes"]).serve()
    os._exit(0)


def _missing(directory: str) -> list[str]:
    """What this machine cannot give, found by confining a child that does nothing else."""
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            limits = confine.Limits(memory_bytes=2**30, cpu_s=60, file_bytes=2**20, open_files=64)
            os.write(writes, json.dumps(confine.confine(directory, limits)).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as answer:
        found = answer.read()
    os.waitpid(process, 0)
    result: list[str] = json.loads(found) if found else ["a confined process (it dies)"]
    return result


def main() -> None:
    """Import, tell what the machine cannot give, and serve."""
    confine.hide()
    zygote = Zygote(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the service, which drains
    try:
        gc.disable()  # what is imported stays, and so it is in its children
        imports.defer(*imports.UNUSED)
        for name in _NEEDED:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()
        gc.enable()
        zygote.say(missing=_missing(zygote._directory), threads=len(list(Path("/proc/self/task").glob("*"))) or 1)
        zygote.run()
    except BaseException:  # noqa: BLE001 - there is nobody else to tell
        zygote.say(failed=traceback.format_exc())
    finally:
        zygote.end()
