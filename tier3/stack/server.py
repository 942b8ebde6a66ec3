"""What the four servers have in common: a port, a data directory, a log, and being ready only when they answer.

A subclass says how it is called, which command it is, and how to ask it whether it is ready.
"""

from __future__ import annotations

import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import ClassVar, Self

from tier3.stack.ports import free_port, is_free
from tier3.stack.process import OWN_UID, POLL_S, Process, ServerError, exclusive, lock_of

START_S = 30.0
ATTEMPTS = 3
PORT_TAKEN = "address already in use"


class Server(ABC):
    """One server on 127.0.0.1. It keeps its port and its data over stop() and start().

    It ends with our process, however that ends.
    `port` fixes the port; `standard_port` takes the protocol's own if it is free; otherwise a free one is found.
    `durable` lets it survive a loss of power as far as it can. `watcher` replaces Linux's parent-death signal by a
    watching process, as on other systems. The log is fresh for each start, the former one is kept beside it as `.1`.
    """

    name: ClassVar[str]
    usual_port: ClassVar[int]
    stop_steps: ClassVar[Sequence[tuple[Signals, float]]] = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
    orphan_signal: ClassVar[Signals] = signal.SIGKILL

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        standard_port: bool = False,
        durable: bool = False,
        log_dir: Path | None = None,
        watcher: bool = sys.platform != "linux",
    ) -> None:
        self.data = data.absolute() / self.name
        self.log = (log_dir or data).absolute() / f"{self.name}.log"
        self.durable = durable
        self._watcher = watcher
        self._fixed_port = port
        self._standard_port = standard_port
        self._port: int | None = port
        self._process: Process | None = None
        self._attempts_left = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """How clients reach it."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The program and its arguments; called when the port is known and the data directory exists."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers its protocol and is ours; False or OSError while it does not."""

    @property
    def port(self) -> int:
        """The port it listens on; ServerError before the first start."""
        if self._port is None:
            raise ServerError(f"{self.name} was not started")
        return self._port

    @property
    def pid(self) -> int:
        """Its process id; ServerError if it was not started or was stopped."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.status() is None

    def start(self) -> Self:
        """Start it and return it when it is ready. ServerError with the log's last lines if it cannot start."""
        self.spawn()
        self.wait_ready()
        return self

    def spawn(self) -> None:
        """Start it without waiting until it is ready; `wait_ready` has to follow."""
        if self.running:
            raise ServerError(f"{self.name} already runs, with pid {self.pid}")
        self._attempts_left = ATTEMPTS
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.data.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(lock_of(self.data), self.name):
                if self.log.exists():
                    self.log.replace(self.log.with_suffix(".log.1"))
                self.prepare()
            self._launch()
        except OSError as error:
            raise ServerError(f"{self.name} cannot use its data directory {self.data}: {error}") from error

    def wait_ready(self) -> None:
        """Return when the spawned server answers. ServerError if it ends before, or takes longer than START_S."""
        deadline = time.monotonic() + START_S
        while not self._ready():
            status = self._running().status()
            if status is not None:
                self._relaunch(status)
            elif time.monotonic() > deadline:
                error = self._running().failure(f"did not answer within {START_S:.0f} s")
                self.stop()
                raise error
            time.sleep(POLL_S)
        self._fixed_port = self._port

    def ask_to_stop(self) -> None:
        """Send the first signal of a stop and return at once; `stop` has to follow."""
        if self._process:
            self._process.send(self.stop_steps[0][0])

    def stop(self) -> None:
        """Stop it and everything it forked; return when all are gone. Does nothing if it does not run."""
        process, self._process = self._process, None
        if process:
            process.stop(self.stop_steps)

    def kill(self) -> None:
        """End it as a crash would, with SIGKILL; return when it and everything it forked are gone."""
        process, self._process = self._process, None
        if process:
            process.stop([(signal.SIGKILL, 5.0)])

    def restart(self) -> None:
        """Stop it and start it again on its port, with its data."""
        self.stop()
        self.start()

    def prepare(self) -> None:
        """Make the data directory; called before each start, under the lock on it."""
        self.data.mkdir(exist_ok=True)

    def run_as(self) -> int:
        """The uid the server shall run as, OWN_UID for ours."""
        return OWN_UID

    def spawn_process(self, command: Sequence[str | Path], directory: Path) -> Process:
        """Spawn a program of this server's, with its log and its uid, working in and locking `directory`."""
        return Process(
            command,
            name=self.name,
            directory=directory,
            log=self.log,
            end_signal=self.orphan_signal,
            uid=self.run_as(),
            watcher=self._watcher,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> Process:
        if self._process is None:
            raise ServerError(f"{self.name} does not run")
        return self._process

    def _ready(self) -> bool:
        try:
            return self.answers()
        except OSError:
            return False

    def _launch(self) -> None:
        self._port = self._port or self._choose_port()
        self._attempts_left -= 1
        self._process = self.spawn_process(self.command(), self.data)

    def _relaunch(self, status: int) -> None:
        """Try again on another port if somebody was faster on this one; otherwise raise the failure."""
        failure = self._running().failure(f"ended with {describe(status)} before it was ready")
        self._process = None
        if self._fixed_port or not self._attempts_left or PORT_TAKEN not in str(failure).lower():
            raise failure
        self._port = None
        self._launch()

    def _choose_port(self) -> int:
        if self._standard_port and is_free(self.usual_port):
            return self.usual_port
        return free_port()


def describe(status: int) -> str:
    """An exit status in words."""
    return f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
