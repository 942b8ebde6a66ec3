"""Threads for work that may block: tools, hvac, imports, large documents.

Owns which work that is, and one decision: threads are daemons, and one is started for each call that finds no idle one,
so that a tool that never returns can neither starve the others nor hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Work = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_SMALL_BYTES = 256 * 1024
_REST_S = 10.0


async def by_size(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)`, in a thread where it reads so many bytes that others would wait for it."""
    if size > _SMALL_BYTES:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)


class DaemonThreads(ThreadPoolExecutor):
    """An executor for `loop.set_default_executor`, which accepts nothing but a ThreadPoolExecutor."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # of its own it starts none, since nothing is submitted to it
        self._at_rest: list[_Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` at once, in a thread that does nothing else meanwhile."""
        future: Future[T] = Future()
        work = (future, fn, args, kwargs)
        try:
            self._at_rest.pop().works.put(work)
        except IndexError:
            _Thread(work, self._at_rest).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing to wait for: what still runs ends with the process."""


class _Thread(threading.Thread):
    """Works, then rests where the next who has work finds it, and ends when nobody comes."""

    def __init__(self, work: _Work, at_rest: list[_Thread]) -> None:
        super().__init__(daemon=True, name="work")
        self.works: SimpleQueue[_Work] = SimpleQueue()
        self.works.put(work)
        self._at_rest = at_rest

    def run(self) -> None:
        while True:
            try:
                _run(*self.works.get(timeout=_REST_S))
            except Empty:
                try:
                    self._at_rest.remove(self)
                except ValueError:  # somebody has just found it
                    continue
                return
            self._at_rest.append(self)


def _run(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(fn(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - handed to whoever waits
        future.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - asyncio would let these two end the process
        future.set_exception(RuntimeError(f"{type(error).__name__} in a thread: {error}"))
