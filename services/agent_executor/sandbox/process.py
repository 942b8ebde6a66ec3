"""One child seen from the service: calls go in, answers come out, limits end it.

Owns what is believed of what a child says: that a frame is one, is no larger than it may be, and answers a call that is
open. A child that says anything else is killed, as is one that a limit stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import SandboxUnavailable, ToolFailed, ToolTimeout
from . import directory, frames
from .nursery import Life, Nursery
from .options import Options

FRAME_OVERHEAD_BYTES = 4096
_LOOK_S = 0.2
_REST = 20
_DYING_S = 5.0
_MOST_UNREAD = 4
_AT_ONCE_BYTES = 2**16
MOST_THREADS = 256
MOST_MESSAGES = 1000

Ask = Callable[[Any, Any], Any]


class Process:
    """A child that lives. `reason` says why it was killed, once it was."""

    def __init__(
        self, nursery: Nursery, life: Life, options: Options, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        self.reason = ""
        self._nursery = nursery
        self._life = life
        self._options = options
        self._reader, self._writer = streams
        self._number = 0
        self._open: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._given_up: set[int] = set()
        self._dead = False
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]

    @classmethod
    async def born(cls, nursery: Nursery, options: Options) -> Process:
        """A new one.

        Raises:
            SandboxUnavailable: there is nobody to start it.
        """
        life = nursery.bear(options.order())
        try:
            return cls(nursery, life, options, await asyncio.open_unix_connection(sock=life.pipe))
        except BaseException:  # cancelled, say: nobody would ever close it
            nursery.kill(life)
            life.pipe.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether calls can still be made."""
        return not self._dead

    async def ask(self, who: str, request: Mapping[str, Any], answer: Ask | None = None) -> dict[str, Any]:
        """Send a request and return what the child says; `answer` is asked what the child asks (`interrupt`).

        Raises:
            ToolTimeout, ToolFailed: a limit ended it, or it ended; `who` is named.
            SandboxUnavailable: it never began.
        """
        self._number += 1
        number = self._number
        self._open[number] = asyncio.Queue()
        if self._dead:
            self._open[number].put_nowait(None)
        limit_s = self._options.timeout_s
        done = False
        try:
            async with asyncio.timeout(limit_s):
                found = await self._asked(who, number, request, answer)
                done = True
        except TimeoutError:
            self.kill("was stopped with its process, since a call beside it took longer than TOOL_TIMEOUT_S")
            raise ToolTimeout(f"{who} took longer than TOOL_TIMEOUT_S ({limit_s:g} s) and was stopped") from None
        finally:
            del self._open[number]
            if not done:
                self._given_up.add(number)
        if found is None:
            raise ToolFailed(f"{who} {await self._why()}")
        return found

    async def _asked(
        self, who: str, number: int, request: Mapping[str, Any], answer: Ask | None
    ) -> dict[str, Any] | None:
        frame: Mapping[str, Any] = {**request, "id": number}
        large = request.get("state") or "scripts" in request
        await self._send(await asyncio.to_thread(_frame, who, frame) if large else _frame(who, frame))
        while (found := await self._open[number].get()) is not None and "interrupt" in found and answer is not None:
            given: dict[str, Any] = {"stop": True}
            try:
                given = {"answer": answer(found["interrupt"], found.get("schema"))}
            finally:
                self._writer.write(_frame(who, {"id": number, **given}))
        return found

    async def _send(self, frame: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(frame)
            await self._writer.drain()

    def kill(self, reason: str) -> None:
        """End it and every call; `reason` continues "the tool ..."."""
        if not self._dead:
            self.reason = reason
            self._dead = True
            self._nursery.kill(self._life)
            for waiting in self._open.values():
                waiting.put_nowait(None)

    async def close(self) -> None:
        """Kill it, wait until it is dead, and remove what it wrote."""
        self.kill("was stopped, since its job has ended")
        for task in self._tasks:
            task.cancel()
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._life.ended)), _DYING_S)
        await asyncio.to_thread(directory.remove, self._life.directory)

    async def _read(self) -> None:
        most = self._options.output_bytes + FRAME_OVERHEAD_BYTES
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(frames.HEADER_BYTES), "big")
                if length > most:
                    self.kill(f"sent more than {self._options.output_name} ({self._options.output_bytes})")
                    return
                body = await self._reader.readexactly(length)
                small = length <= _AT_ONCE_BYTES
                self._take(_load(body) if small else await asyncio.to_thread(_load, body))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.kill("")
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError):  # RecursionError is a RuntimeError
            self.kill("was stopped, since its process broke the protocol of the sandbox")

    def _take(self, frame: dict[str, Any]) -> None:
        number = frame["id"]
        if number in self._given_up:  # once: it answers a call that nobody waits for any more
            self._given_up.remove(number)
        elif self._open[number].qsize() < _MOST_UNREAD:
            self._open[number].put_nowait(frame)
        else:
            raise ValueError("more answers than were asked for")

    async def _watch(self) -> None:
        """Nothing else limits what is in a directory as a whole, or how many threads there are."""
        options, now = self._options, asyncio.get_running_loop().time
        measured_at = now()
        try:
            while not self._dead:
                await asyncio.sleep(_LOOK_S)
                if _threads(self._life.process) > MOST_THREADS:
                    self.kill(f"was stopped: more than {MOST_THREADS} threads")
                elif now() >= measured_at:
                    look = (self._life.directory, options.disk_bytes, options.disk_files)
                    with contextlib.suppress(RuntimeError):  # no thread is to be had; soon there is
                        measured_at = now() + _REST * await asyncio.to_thread(_measure, *look)
        except directory.TooMuch as error:
            self.kill(f"was stopped: {error}")

    async def _why(self) -> str:
        if self.reason:
            return self.reason
        try:
            status = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._life.ended)), _DYING_S)
        except TimeoutError:
            status = None
        if self._life.unborn:
            words = f"the process that runs tools cannot start another one ({self._life.unborn})"
            raise SandboxUnavailable(words, may_pass=True)
        if status is None:
            return "did not end: its process, or the one that starts them, is gone"
        if status >= 0:
            return f"ended its process with status {status}"
        if -status == signal.SIGXCPU:
            return f"used its process's {self._options.cpu_s} s of CPU time and was stopped"
        if -status == signal.SIGKILL:
            return "was killed: out of memory, most likely, or it killed itself"
        return f"crashed its process ({signal.Signals(-status).name})"


def _frame(who: str, content: Mapping[str, Any]) -> bytes:
    try:
        return frames.dump(content)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolFailed(f"{who} cannot be given its arguments and the state: {error}") from None


def _load(body: bytes) -> dict[str, Any]:
    return frames.load(body, at_most=MOST_MESSAGES)


def _measure(root: str, most_bytes: int, most_files: int) -> float:
    """Seconds of CPU time that it took."""
    began = time.thread_time()
    directory.measure(root, most_bytes, most_files)
    return time.thread_time() - began


def _threads(process: int) -> int:
    """How many it has; 0 where that cannot be told."""
    try:
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[17])
    except (OSError, IndexError):
        return 0
