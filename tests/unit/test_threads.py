"""threads: daemons, one a call at a time, so that no call can hold up another or the end of the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextvars import ContextVar

import pytest

from agent_executor import threads
from agent_executor.threads import DaemonThreads


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=10)


WORD: ContextVar[str] = ContextVar("WORD", default="outside")


@pytest.fixture(autouse=True)
async def executor() -> DaemonThreads:
    executor = DaemonThreads()
    asyncio.get_running_loop().set_default_executor(executor)
    return executor


async def test_a_call_runs_in_a_daemon_thread_of_its_own() -> None:
    together = threading.Barrier(50)

    def call() -> tuple[int, bool]:
        together.wait(10)
        return threading.get_ident(), threading.current_thread().daemon

    found = await asyncio.gather(*(asyncio.to_thread(call) for _ in range(50)))
    assert len({ident for ident, _ in found} - {threading.get_ident()}) == 50
    assert all(daemon for _, daemon in found)


async def test_an_exception_is_raised_where_the_result_is_awaited() -> None:
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 / 0)


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt"])
def test_a_thread_that_exits_does_not_end_the_process(kind: str) -> None:
    """asyncio lets these two out of its loop, whoever awaits them."""
    code = f"""
import asyncio
from agent_executor.threads import DaemonThreads
def leave():
    raise {kind}("from a thread")
async def main():
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    try:
        await asyncio.to_thread(leave)
    except Exception as error:
        print(error)
asyncio.run(main())
"""
    ended = python(code)
    assert ended.returncode == 0
    assert kind in ended.stdout


async def test_context_variables_are_seen_in_the_thread() -> None:
    WORD.set("inside")
    assert await asyncio.to_thread(WORD.get) == "inside"


def test_a_call_that_was_cancelled_before_it_began_does_not_run() -> None:
    future: Future[str] = Future()
    future.cancel()
    threads._run(future, pytest.fail, ("ran",), {})
    assert future.cancelled()


def test_a_blocked_thread_holds_up_neither_the_loops_end_nor_the_process() -> None:
    code = """
import asyncio, threading
from agent_executor.threads import DaemonThreads
async def main():
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    began = threading.Event()
    def block():
        began.set()
        threading.Event().wait()
    asyncio.create_task(asyncio.to_thread(block))
    while not began.is_set():
        await asyncio.sleep(0)
    asyncio.current_task().cancel()
    await asyncio.sleep(0)
try:
    asyncio.run(main())
except asyncio.CancelledError:
    print("ended")
"""
    ended = python(code)
    assert (ended.stdout, ended.returncode) == ("ended\n", 0)


async def test_an_idle_thread_is_used_again(executor: DaemonThreads) -> None:
    first = await asyncio.to_thread(threading.get_ident)
    while not executor._at_rest:  # noqa: ASYNC110 - it happens in the thread
        await asyncio.sleep(0)
    assert await asyncio.to_thread(threading.get_ident) == first


async def test_a_thread_that_nobody_needs_ends(executor: DaemonThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_REST_S", 0.01)
    thread = await asyncio.to_thread(threading.current_thread)
    thread.join(10)
    assert not thread.is_alive()
    assert thread not in executor._at_rest
