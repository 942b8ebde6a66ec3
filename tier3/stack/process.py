"""One child process of ours: spawned with a log and a lock, stopped with everything it forked.

Owns the process and its files, not what it serves (`server.py`) nor what happens inside the child (`launch.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import Signals

LAUNCH = Path(__file__).with_name("launch.py")
POLL_S = 0.005
TAIL_LINES = 20
CHILDREN_GRACE_S = 10.0
OWN_UID = -1
# PR_SET_PDEATHSIG watches the thread that spawned, not its process: all are spawned by one that lives as long as we do.
SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


class ServerError(Exception):
    """A server that did not start, ended early or cannot be used; the message ends with its log's last lines."""


class Process:
    """A child process in a session of its own, which ends when our process ends.

    Linux's PR_SET_PDEATHSIG does this, or else (`watcher`) a second small process that holds a pipe from us. Processes
    that only fork, and never exec, inherit this pipe and keep the watcher waiting until they end as well.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        name: str,
        directory: Path,
        log: Path,
        end_signal: Signals = signal.SIGKILL,
        uid: int = OWN_UID,
        watcher: bool = False,
    ) -> None:
        """Spawn `command` in `directory`, its output appended to `log`, as `uid` if that is not OWN_UID.

        The child starts with a lock on `directory` (`<directory>.lock`), which all of its own children inherit: it is
        free again when the last of them has gone. ServerError if it is not free within CHILDREN_GRACE_S.
        """
        self.name, self.log = name, log
        self._lock = lock_of(directory)
        with exclusive(self._lock, name) as lock, log.open("ab") as output:
            self._log_start = output.tell()
            launch = [LAUNCH, os.getpid(), end_signal.value, uid, int(watcher)]
            self._popen = SPAWNER.submit(
                subprocess.Popen[bytes],
                [sys.executable, "-I", "-S", *map(str, launch), *map(str, command)],
                cwd=directory,
                env={"PATH": os.defpath, "HOME": str(directory), "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.PIPE if watcher else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
                start_new_session=True,
            ).result()

    @property
    def pid(self) -> int:
        """The child's process id, which is also its session's."""
        return self._popen.pid

    def status(self) -> int | None:
        """The exit status (negative: a signal), None while it runs."""
        status = self._popen.poll()
        if status is not None:
            self._dismiss_watcher()
        return status

    def wait(self, timeout_s: float) -> int | None:
        """The exit status, None if it still runs after `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        return self.status()

    def send(self, what: Signals) -> None:
        """Send a signal, if it still runs; a stopped process is continued, so that it can obey."""
        self._popen.send_signal(what)
        self._popen.send_signal(signal.SIGCONT)

    def stop(self, steps: Sequence[tuple[Signals, float]]) -> None:
        """Send each step's signal and wait its seconds until the process has ended; then wait for its children.

        ServerError if something still runs in the end.
        """
        for what, seconds in steps:
            if self.status() is not None:
                break
            self.send(what)
            self.wait(seconds)
        with exclusive(self._lock, self.name):
            pass  # nobody holds it any more: the last child is gone

    def failure(self, what: str) -> ServerError:
        """The error that says `what` went wrong with this process, where its log is, and how the log ends."""
        return ServerError(f"{self.name} {what}; the last lines of {self.log}:\n{self.tail() or '    (it is empty)'}")

    def tail(self) -> str:
        """The last lines that this process has written to its log, indented."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])

    def _dismiss_watcher(self) -> None:
        if self._popen.stdin and not self._popen.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.write(b"q")
                self._popen.stdin.close()


def lock_of(directory: Path) -> Path:
    """The file whose lock says that processes work in `directory`."""
    return directory.with_name(f"{directory.name}.lock")


@contextlib.contextmanager
def exclusive(lock: Path, name: str) -> Iterator[int]:
    """Hold the lock, waiting CHILDREN_GRACE_S for its last holders; yields its descriptor. ServerError when in vain.

    flock(2) locks belong to the open file, so those who inherited this descriptor still hold it after we closed ours.
    """
    deadline = time.monotonic() + CHILDREN_GRACE_S
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerError(f"{name}: another process still uses {lock.with_suffix('')}") from None
                time.sleep(POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)
