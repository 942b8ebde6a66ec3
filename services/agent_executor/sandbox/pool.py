"""The service's side of all tool scripts: one `Sandbox`, of which each job gets a `Box`.

Owns when children live: from the first script or call of a job to its end, and one job each. A child that died is
replaced at the next call. Children are forked in some milliseconds, so none waits for work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import structlog
from langchain_core.tools import BaseTool

from ..definition import ToolDefinition
from ..errors import LimitExceeded, SandboxUnavailable, ToolFailed, ToolScriptError
from . import confine, proxy
from .nursery import Nursery
from .options import Options
from .process import Ask, Process

log = structlog.get_logger()


class Limit(Protocol):
    """A number, and what set it."""

    @property
    def name(self) -> str:
        """What set it."""

    @property
    def value(self) -> float:
        """The number."""


class Sandbox:
    """One per process. The zygote is started by `open`, or by the first job that needs it, and again if it dies."""

    def __init__(self, options: Options, nursery: Nursery | None = None) -> None:
        """`nursery`: one that was started already."""
        self.options = options
        self._nursery = nursery
        self._starting: asyncio.Task[None] | None = None
        self._begun: Nursery | None = None
        self._closed = False

    async def open(self) -> None:
        """Start what children come from, and say in the log how well they are confined."""
        try:
            await self.nursery()
        except SandboxUnavailable as error:
            log.error("sandbox_unavailable", reason=str(error))

    async def close(self) -> None:
        """End all children. What is being started is not waited for."""
        self._closed = True
        starting = self._starting
        if self._begun is not None:
            await asyncio.to_thread(self._begun.close)
        if starting is not None:
            with contextlib.suppress(SandboxUnavailable):
                await asyncio.shield(starting)
        if self._nursery is not None:
            await asyncio.to_thread(self._nursery.close)

    @asynccontextmanager
    async def box(self, definitions: Sequence[ToolDefinition], output_limit: Limit | None = None) -> AsyncIterator[Box]:
        """For one job; tools of its graph that are called inside of it run there."""
        options = self.options
        if output_limit is not None:
            options = replace(options, output_bytes=int(output_limit.value), output_name=output_limit.name)
        box = Box(self, options, definitions)
        token = proxy.current.set(box)
        try:
            yield box
        finally:
            proxy.current.reset(token)
            await box.close()

    async def nursery(self) -> Nursery:
        """Where children come from.

        Raises:
            SandboxUnavailable: it does not start, or this machine cannot confine what is required to be confined.
        """
        if self._starting is None and (self._nursery is None or not self._nursery.is_alive):
            self._starting = asyncio.create_task(self._start())
        if self._starting is not None:
            await asyncio.shield(self._starting)  # who waits may be cancelled; others wait for the same
        assert self._nursery is not None
        if self._nursery.missing and self.options.mode == "require":
            raise SandboxUnavailable(
                "TOOL_SANDBOX is require, and tool scripts cannot be confined here; missing: "
                + ", ".join(self._nursery.missing)
            )
        return self._nursery

    async def _start(self) -> None:
        try:
            if self.options.mode != "off":
                confine.hide()  # before there is anybody to hide from
            begun = self._begun = await asyncio.to_thread(_begun, self._nursery)
            try:
                if self._closed:
                    raise SandboxUnavailable("the service ends")
                await asyncio.to_thread(begun.start)
            except BaseException:
                await asyncio.to_thread(begun.close)
                raise
            self._tell(begun.missing)
            self._nursery = begun
        finally:
            self._starting = self._begun = None

    def _tell(self, missing: list[str]) -> None:
        if self.options.mode == "off":
            log.warning("sandbox_off")
        elif missing and self.options.mode == "best-effort":
            log.warning("sandbox_weakened", missing=missing)
        if self.options.network == "allow":
            log.warning("tool_network_allowed")


class Box:
    """One job's child and its tools."""

    def __init__(self, sandbox: Sandbox, options: Options, definitions: Sequence[ToolDefinition]) -> None:
        self._sandbox = sandbox
        self._options = options
        self._scripts = {each.name: each.runtime.script for each in definitions}
        self._specs: list[Any] = []
        self._process: Process | None = None
        self._starting = asyncio.Lock()

    async def tools(self) -> dict[str, BaseTool]:
        """The tools that the scripts make, by name. Runs the scripts.

        Raises:
            ToolScriptError, ToolFailed, ToolTimeout: a script makes no tool of its name, or no end.
            SandboxUnavailable: scripts cannot be run here.
        """
        if not self._scripts:
            return {}
        await self._child()
        made = {tool.name: tool for tool in map(proxy.tool, self._specs)}
        if made.keys() != self._scripts.keys():
            raise ToolScriptError("scripts describe other tools than those they make")
        return made

    async def call(self, tool: str, request: Mapping[str, Any], answer: Ask) -> dict[str, Any]:
        """Have the child call a tool.

        Raises:
            ToolFailed, ToolTimeout: it did not come to an end.
            SandboxUnavailable: scripts cannot be run here.
        """
        reply = await (await self._child()).ask(f"tool {tool!r}", request, answer)
        if "limit" in reply:
            raise self._exceeded(f"tool {tool!r}", reply["limit"])
        return reply

    async def close(self) -> None:
        """End the child, whatever it does."""
        if self._process is not None:
            await asyncio.shield(asyncio.create_task(self._process.close()))

    async def _child(self) -> Process:
        async with self._starting:
            if self._process is None or not self._process.is_alive:
                if self._process is not None:
                    log.warning("tool_process_lost", reason=self._process.reason)
                    await self._process.close()
                self._process = await Process.born(await self._sandbox.nursery(), self._options)
                self._specs = await self._load(self._process)
            return self._process

    async def _load(self, process: Process) -> list[Any]:
        who = "the script of tool " + ", ".join(map(repr, self._scripts))
        reply = await process.ask(who, {"scripts": self._scripts})
        if isinstance(specs := reply.get("specs"), list) and all(isinstance(each, dict) for each in specs):
            return specs
        if "limit" in reply:
            raise self._exceeded(who, reply["limit"])
        raise ToolScriptError(str(reply.get("script_error") or "a script answers for another"))

    def _exceeded(self, who: str, limit: Any) -> Exception:
        options = self._options
        if limit == "TOOL_OUTPUT_BYTES":
            return LimitExceeded(f"{who} returned more than {options.output_name} ({options.output_bytes})")
        return ToolFailed(f"{who} needs more than TOOL_MEMORY_BYTES ({options.memory_bytes})")


def _begun(last: Nursery | None) -> Nursery:
    if last is not None:
        last.close()
    return Nursery()
