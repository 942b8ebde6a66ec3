"""Threads for work that may block: tools, hvac, imports, large documents.

Owns which work that is, and one decision: threads are daemons and one is started per call, so that a tool that never
returns can neither starve the others nor hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


_SMALL_BYTES = 256 * 1024


async def by_size(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)`, in a thread where it reads so many bytes that others would wait for it."""
    if size > _SMALL_BYTES:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)


class DaemonThreads(ThreadPoolExecutor):
    """An executor for `loop.set_default_executor`, which accepts nothing but a ThreadPoolExecutor."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread of its own."""
        future: Future[T] = Future()
        threading.Thread(target=_run, args=(future, fn, args, kwargs), daemon=True, name=f"work {fn!r:.60}").start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing to wait for: what still runs ends with the process."""


def _run(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(fn(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - handed to whoever waits
        future.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - asyncio would let these two end the process
        future.set_exception(RuntimeError(f"{type(error).__name__} in a thread: {error}"))
