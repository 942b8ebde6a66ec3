"""sandbox: its frames, what is believed of a child, its directory, and the filter of each architecture."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.types import Command
from structlog.testing import capture_logs

from agent_executor.definition import Runtime, ToolDefinition
from agent_executor.errors import SandboxUnavailable, ToolFailed, ToolScriptError, ToolTimeout
from agent_executor.retries import may_pass
from agent_executor.sandbox import directory, frames, proxy, seccomp, syscalls
from agent_executor.sandbox import process as process_module
from agent_executor.sandbox.nursery import Life, Nursery
from agent_executor.sandbox.options import Options
from agent_executor.sandbox.pool import Sandbox
from agent_executor.sandbox.process import FRAME_OVERHEAD_BYTES, MOST_MESSAGES, Process
from agent_executor.sandbox.zygote import Zygote

# frames


MARK = b"0123456789abcdef"


def through(value: Any) -> Any:
    frame = frames.dump(value)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return frames.load(frame[4:])


@pytest.mark.parametrize(
    "value",
    [
        *({"a": [1, 2.5, None, True, "ä\0\ud800"]}, {"deep": {"messages": []}}, {"big": 2**80}),
        *({"m": [HumanMessage("x", id="1"), AIMessage("", tool_calls=[{"name": "t", "args": {"a": 1}, "id": "c"}])]},),
        *({"m": ToolMessage("x", tool_call_id="c", artifact={"a": 1}, status="error")}, {"m": RemoveMessage(id="1")}),
        *({"$message": "hello"}, {"$bytes": "eA=="}, {"a": {"$message": {"type": "human", "data": {"content": "x"}}}}),
        *({"b": b"\0\xff"}, {"d": Document("x", metadata={"a": 1}, id="1")}),
        {"m": ToolMessage("x", tool_call_id="c", artifact={"a": [Document("x"), HumanMessage("y"), b"z"]})},
    ],
)
def test_what_is_sent_arrives_with_its_messages(value: dict[str, Any]) -> None:
    assert through(value) == value


def test_what_has_a_json_form_of_its_own_is_sent_as_that() -> None:
    from dataclasses import dataclass
    from datetime import date

    from pydantic import BaseModel

    @dataclass
    class Point:
        x: int

    class Model(BaseModel):
        y: int

    assert through({"v": [Point(1), Model(y=2), {3}, (4,), date(2026, 1, 2)]}) == {
        "v": [{"x": 1}, {"y": 2}, [3], [4], "2026-01-02"]
    }
    assert through({"v": [UUID(int=1), Decimal("1.50"), Path("/a")]}) == {"v": [str(UUID(int=1)), "1.50", "/a"]}
    with pytest.raises(TypeError, match=r"builtins\.object has no JSON form"):
        frames.dump({"v": object()})


def test_what_was_in_one_frame_means_nothing_in_another() -> None:
    frame = json.loads(frames.dump({"m": HumanMessage("x")})[4 + len(MARK) :])
    assert through(frame) == frame


async def test_what_cannot_be_given_to_a_tool_is_told_with_its_name(says: Says) -> None:
    birth: Any = Birth()
    process = await Process.born(birth, Options(timeout_s=5))
    with pytest.raises(ToolFailed, match=r"tool 'one' cannot be given .*: builtins\.object has no JSON"):
        await process.ask("tool 'one'", {"tool": "one", "state": {"a": object()}})
    await process.close()
    with pytest.raises(ToolFailed, match="tool 'one' cannot be given its arguments"):
        await says(frames.dump({"id": 1, "interrupt": 1}), answer=lambda value, schema: object())


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"nope", MARK, b"\xff" * 16 + b"{}", b"\x80\x04N."),
        *(MARK + body for body in (b"nope", b"[]", b'"x"', b"[" * 100_000, b'{"a":' * 100_000)),
        MARK + b'{"n": ' + b"9" * 10_000 + b"}",
        *(
            MARK + b'{"%b": %b}' % (MARK, content)
            for content in (
                *(b"1", b"[]", b'"x"', b'["message"]', b'["message", 1]', b'["nothing", 1]', b'["bytes", "x"]'),
                *(b'["message", {"type": "os.system", "data": {}}]', b'["message", {"type": "human"}]'),
                *(b'["message", {"type": "tool", "data": {"content": "x"}}]', b'["document", {"page_content": 1}]'),
                *(b'["document", []]', b'["bytes", {}]', b"{}", b"null"),
            )
        ),
    ],
)
def test_what_is_no_frame_is_an_error_of_few_kinds(body: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, RecursionError, AttributeError)):
        frames.load(body)


def test_a_frame_may_arrive_in_pieces() -> None:
    pieces = [bytes([each]) for each in frames.dump({"a": "b"})]
    assert frames.receive(lambda _: pieces.pop(0) if pieces else b"") == {"a": "b"}
    assert frames.receive(lambda _: b"") is None
    cut = [b"\0\0\0\x09{"]
    assert frames.receive(lambda n: cut.pop(0)[:n] if cut else b"") is None


# what is believed of a child


class Birth:
    """Stands for a nursery whose child is the test."""

    def __init__(self) -> None:
        self.killed = 0
        self.child: socket.socket

    def bear(self, order: Any) -> Life:
        ours, self.child = socket.socketpair()
        self.life = Life(1, ours, "/nowhere")
        return self.life

    def kill(self, life: Life) -> None:
        self.killed += 1
        self.child.close()
        if not life.ended.done():
            life.ended.set_result(-9)


Says = Callable[..., Awaitable[Any]]


@pytest.fixture
def says() -> Says:
    """What the service makes of a call whose child says this."""

    async def says(said: bytes, *, limit_s: float = 5, answer: Any = None, output_bytes: int = 1024) -> Any:
        birth: Any = Birth()
        process = await Process.born(birth, Options(timeout_s=limit_s, output_bytes=output_bytes))
        sending = asyncio.create_task(asyncio.to_thread(birth.child.sendall, said))  # more than a pipe holds
        try:
            return await process.ask("tool 'one'", {"tool": "one"}, answer)
        finally:
            await process.close()
            await asyncio.gather(sending, return_exceptions=True)
            assert birth.killed == 1

    return says


async def test_an_answer_is_taken(says: Says) -> None:
    assert await says(frames.dump({"id": 1, "result": 5})) == {"id": 1, "result": 5}


@pytest.mark.parametrize(
    "said",
    [
        *(
            b"\0\0\0\4nope",
            b"\0\0\0\x12" + MARK + b"[]",
            frames.dump({"id": 2, "result": 1}),
            frames.dump({"result": 1}),
            frames.dump({"id": [1]}),
        ),
        *(frames.dump({"id": None}), frames.dump({"id": 1, "interrupt": 1}) * 9),
    ],
    ids=range(7),  # what is said holds the process's own mark
)
async def test_a_child_that_breaks_the_protocol_is_killed(says: Says, said: bytes) -> None:
    with pytest.raises(ToolFailed, match="tool 'one' was stopped, since its process broke the protocol"):
        await says(said, answer=lambda value, schema: None)


@pytest.mark.parametrize("count", [MOST_MESSAGES, MOST_MESSAGES + 1])
async def test_a_frame_has_so_many_messages_and_no_more(says: Says, count: int) -> None:
    answer = frames.dump({"id": 1, "result": [HumanMessage("x")] * count})
    if count <= MOST_MESSAGES:
        assert len((await says(answer, output_bytes=2**20))["result"]) == count
    else:
        with pytest.raises(ToolFailed, match="broke the protocol"):
            await says(answer, output_bytes=2**20)


async def test_a_large_frame_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    loaded_in = set()
    load = frames.load

    def noted(*arguments: Any, **named: Any) -> Any:
        loaded_in.add(threading.current_thread())
        return load(*arguments, **named)

    monkeypatch.setattr(frames, "load", noted)
    await says(frames.dump({"id": 1, "result": "x" * 2**17}), output_bytes=2**20)
    assert threading.main_thread() not in loaded_in
    await says(frames.dump({"id": 1, "result": "x"}))
    assert threading.main_thread() in loaded_in


async def test_a_child_that_is_dead_already_is_not_waited_for() -> None:
    birth: Any = Birth()
    process = await Process.born(birth, Options(timeout_s=60))
    process.kill("was stopped for the test")
    with pytest.raises(ToolFailed, match="tool 'one' was stopped for the test"):
        await process.ask("tool 'one'", {"tool": "one"})
    await process.close()


async def test_a_frame_that_is_too_large_is_not_even_read(says: Says) -> None:
    with pytest.raises(ToolFailed, match=r"sent more than TOOL_OUTPUT_BYTES \(1024\)"):
        await says((1024 + FRAME_OVERHEAD_BYTES + 1).to_bytes(4, "big"))


async def test_a_child_that_says_nothing_is_killed_at_the_limit(says: Says) -> None:
    with pytest.raises(ToolTimeout, match=r"tool 'one' took longer than TOOL_TIMEOUT_S \(0.05 s\) and was stopped"):
        await says(b"\0\0", limit_s=0.05)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "ended its process with status 3"),
        (-9, "was killed: out of memory"),
        (-11, r"crashed its process \(SIGSEGV\)"),
        (-24, "301 s of CPU time"),
        (None, "is gone"),
    ],
)
async def test_a_child_that_ends_is_told_why(status: int | None, words: str) -> None:
    birth: Any = Birth()
    process = await Process.born(birth, Options(timeout_s=5))
    birth.life.ended.set_result(status)
    birth.child.close()
    with pytest.raises(ToolFailed, match=f"tool 'one' .*{words}"):
        await process.ask("tool 'one'", {"tool": "one"})
    assert not process.is_alive
    await process.close()


async def test_the_late_answer_of_a_call_that_was_given_up_is_passed_over_once() -> None:
    birth: Any = Birth()
    process = await Process.born(birth, Options(timeout_s=5))
    given_up = asyncio.create_task(process.ask("tool 'one'", {"tool": "one"}))
    await asyncio.sleep(0.01)
    given_up.cancel()
    await asyncio.wait([given_up])
    birth.child.sendall(frames.dump({"id": 1, "result": 1}) + frames.dump({"id": 2, "result": 2}))
    assert (await process.ask("tool 'one'", {"tool": "one"}))["result"] == 2
    birth.child.sendall(frames.dump({"id": 1, "result": 1}))
    await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(birth.life.ended)), 5)
    assert "broke the protocol" in process.reason
    await process.close()


# proxies

SPEC = {"name": "one", "description": "D.", "schema": {"type": "object", "properties": {}}, "state": []}


@pytest.mark.parametrize(
    "change", [{"name": 1}, {"description": None}, {"schema": []}, {"schema": "x"}, {"state": "all"}, {"state": 0}]
)
def test_a_spec_that_describes_no_tool_is_refused(change: dict[str, Any]) -> None:
    made = proxy.tool(SPEC)
    assert isinstance(made, StructuredTool)
    assert (made.name, made.description, made.return_direct) == ("one", "D.", False)
    with pytest.raises(ToolScriptError):
        proxy.tool(SPEC | change)


def bomb(levels: int) -> dict[str, Any]:
    """A schema that doubles with each level when it is inlined."""
    found: dict[str, Any] = {"level0": {"type": "string"}}
    for level in range(1, levels):
        below = {"$ref": f"#/$defs/level{level - 1}"}
        found[f"level{level}"] = {"type": "object", "properties": {"x": below, "y": below}}
    return {"type": "object", "properties": {"p": {"$ref": f"#/$defs/level{levels - 1}"}}, "$defs": found}


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        found = {"anyOf": [found]}
    return {"type": "object", "properties": {"p": found}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (bomb(18), r"has a \$ref"),
        ({"properties": {"p": {"anyOf": [{"$ref": "#/nowhere"}]}}}, r"has a \$ref"),
        (nested(30), "more than 50 levels"),
        (nested(400), "more than 50 levels"),
        ({"properties": {f"p{n}": {"description": "x" * 100} for n in range(1000)}}, r"of \d+ bytes, of 65536"),
        ({"properties": 1}, "has properties that are none"),
        ({"properties": []}, "has properties that are none"),
        ({"properties": {"p": None}}, "has properties that are none"),
    ],
)
def test_a_schema_that_others_could_not_walk_through_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ToolScriptError, match=f"tool 'one'.*{words}"):
        proxy.tool(SPEC | {"schema": schema})


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"type": "string"}, {"title": {}, "required": 5}, nested(20)]
)
def test_an_odd_schema_is_harmless(schema: dict[str, Any]) -> None:
    made = proxy.tool(SPEC | {"schema": schema})
    assert convert_to_openai_tool(made)["function"]["name"] == "one"
    assert made.args == schema.get("properties", {})


@pytest.mark.parametrize(
    "result",
    [
        *(1, "x", None, {}, [1], {"message": "x"}, {"message": HumanMessage("x")}, {"command": {}}, {"command": 1}),
        *(
            {"command": {"update": [], "goto": [], "graph": None}},
            {"command": {"update": {}, "goto": 1, "graph": None}},
        ),
        *({"command": {"update": {}, "goto": [{"node": "x"}], "graph": None}},),
        *({"command": {"update": {}, "goto": [], "graph": "another"}},),
    ],
)
def test_what_is_no_result_is_refused(result: Any) -> None:
    with pytest.raises(ToolFailed, match="tool 'one' returned what is no result"):
        proxy._result("one", {"result": result})


def test_a_command_is_rebuilt_from_its_parts() -> None:
    parts: Any = {"update": {"a": 1}, "goto": ["x"], "graph": Command.PARENT}
    assert proxy._result("one", {"result": [{"command": parts}]}) == [Command(**parts)]


@pytest.mark.parametrize("error", [{"type": "not a name", "message": "x"}, {"type": "E" * 200, "message": "x"}, {}])
def test_what_is_no_error_is_refused(error: dict[str, str]) -> None:
    with pytest.raises(ToolFailed, match="raised what is no error"):
        proxy._result("one", {"error": error})


# directory


def test_a_directory_is_measured_within_its_limits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_bytes(bytes(100_000))
    (tmp_path / "link").symlink_to("/")
    assert 100_000 <= directory.measure(str(tmp_path), 10**6, 10) < 200_000
    with pytest.raises(directory.TooMuch, match="more than 50000 bytes"):
        directory.measure(str(tmp_path), 50_000, 10)
    with pytest.raises(directory.TooMuch, match="more than 2 files"):
        directory.measure(str(tmp_path), 10**6, 2)
    assert directory.measure(str(tmp_path / "nowhere"), 1, 1) == 0


async def test_a_directory_that_takes_long_to_measure_is_measured_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def measure(*_: Any) -> int:
        looks.append(time.thread_time())
        while time.thread_time() < looks[-1] + 0.02:
            pass
        return 0

    monkeypatch.setattr(directory, "measure", measure)
    monkeypatch.setattr(process_module, "_LOOK_S", 0.01)
    birth: Any = Birth()
    process = await Process.born(birth, Options())
    await asyncio.sleep(0.7)
    await process.close()
    assert 1 <= len(looks) < 4


def test_what_no_measure_finds_is_bounded() -> None:
    """Deleted files that are open."""
    assert Options().file_bytes * Options().open_files <= 2 * 2**30


def deep(root: Path, levels: int) -> None:
    here = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 50, dir_fd=here)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_directory_deeper_than_any_path_is_too_much_and_can_be_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "outside"
    outside.write_text("stays")
    (root / "link").symlink_to(tmp_path)
    (root / "dead").symlink_to("nowhere")
    deep(root, 2000)
    os.mkfifo(root / "fifo")
    (root / "shut").mkdir(0)
    with pytest.raises(directory.TooMuch):
        directory.measure(str(root), 10**9, 10**6)
    directory.remove(str(root))
    assert not root.exists()
    assert outside.read_text() == "stays"
    directory.remove(str(root))  # twice does no harm


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary directories are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_what_nobody_uses_is_removed_and_nothing_else(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, held = directory.held_root()
    abandoned, dropped = directory.held_root()
    os.close(dropped)
    deep(Path(abandoned), 100)
    other = temporary / "agent-executor-tools-other"
    other.mkdir()
    (temporary / "agent-executor-tools-link.locked").symlink_to(other)
    (temporary / "agent-executor-tools-file.locked").write_text("x")
    directory.remove_abandoned()
    assert not Path(abandoned).exists()
    assert len([*temporary.iterdir()]) == 4
    os.close(held)
    monkeypatch.setattr("os.getuid", lambda: -1)
    directory.remove_abandoned()
    assert Path(used).exists()


def test_what_killed_processes_left_is_removed_by_the_next(temporary: Path) -> None:
    killed, living = Nursery(), Nursery()
    killed.start()
    assert len([*temporary.iterdir()]) == 2
    killed._process.kill()
    killed._process.wait()
    Nursery().close()
    assert [str(each) for each in temporary.iterdir()] == [living.directory]
    living.close()
    killed.close()


# the filter


def answer(program: bytes, architecture: int, number: int, *arguments: int) -> str:
    """Run the program as the kernel would."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", *struct.unpack("=i", struct.pack("=I", number)), architecture, 0, *words)
    steps = list(struct.iter_unpack("=HBBI", program))
    position, value = 0, 0
    while True:
        code, yes, no, k = steps[position]
        position += 1
        if code == 0x20:
            [value] = struct.unpack_from("=I", data, k)
        elif code == 0x54:
            value &= k
        elif code == 0x06:
            kinds = {0x7FFF0000: "allowed", 0x80000000: "killed"}
            return kinds.get(k) or (errno.errorcode[k & 0xFFFF] if k & 0xFFFF else "pretended")
        else:
            position += yes if (value == k if code == 0x15 else value >= k) else no


@pytest.mark.parametrize("name", syscalls.ARCHITECTURES)
@pytest.mark.parametrize("network", [False, True])
def test_the_filter_of_each_architecture(name: str, network: bool) -> None:
    machine = syscalls.ARCHITECTURES[name]
    program = seccomp.program(machine, network=network, may_truncate=False)
    assert len(program) // 8 < 4096

    def asked(call: str, *arguments: int) -> str:
        number = syscalls.number(call, machine)
        assert number is not None
        return answer(program, machine.audit, number, *arguments)

    refused = [call for call in seccomp.REFUSED.split() if syscalls.number(call, machine) is not None]
    assert len(refused) > 90
    assert {asked(call) for call in [*refused, "truncate"]} == {"EPERM"}
    assert {"inotify_init1", "inotify_add_watch"} <= {*refused}
    assert {asked(call) for call in seccomp.ABSENT.split()} == {"ENOSYS"}
    assert asked("fchmodat") == asked("utimensat") == "pretended"
    inet = "allowed" if network else "EPERM"
    assert [asked("socket", family) for family in (2, 10, 1, 16, 17, 40)] == [inet, inet, *["EPERM"] * 4]
    assert {asked(call) for call in seccomp.SOCKETS.split()} == {inet}
    assert [asked("socketpair", 1, kind) for kind in (1, 1 | 0o2000000, 2, 5)] == [
        "allowed",
        "allowed",
        "EPERM",
        "EPERM",
    ]
    assert asked("socketpair", 2, 1) == "EPERM"
    threads = 0x3D0F00
    assert asked("clone", threads) == "allowed"
    assert [asked("clone", flags) for flags in (17, 0, threads | 0x10000000, threads | 0x40000000)] == ["EPERM"] * 4
    assert [asked("clone", threads & ~shared) for shared in (0x100, 0x200, 0x400, 0x800, 0x10000)] == ["EPERM"] * 5
    assert [asked("close_range", 3, 9, flags) for flags in (0, 4, 2, 6, 8)] == ["allowed"] * 2 + ["EPERM"] * 3
    for call in ("kill", "tgkill"):
        assert [asked(call, process) for process in (os.getpid(), 1, 0, 2**32 - 1)] == ["allowed", *["EPERM"] * 3]
    assert [asked("prlimit64", process) for process in (0, os.getpid(), 1)] == ["allowed", "allowed", "EPERM"]
    assert [asked("prctl", option) for option in (15, 16, 1, 4, 22, 38)] == ["allowed"] * 2 + ["EPERM"] * 4
    assert [asked("fcntl", 3, command) for command in (1, 3, 4, 8, 10, 15)] == ["allowed"] * 3 + ["EPERM"] * 3
    assert [asked("ioctl", 3, command) for command in (0x5401, 0x8901, 0x5412)] == ["allowed", "EPERM", "EPERM"]
    usual = {"x86_64": (0, 1, 202, 257), "aarch64": (63, 64, 98, 56)}[name]  # read, write, futex, openat
    assert {answer(program, machine.audit, number) for number in usual} == {"allowed"}
    assert [answer(program, machine.audit, number) for number in (470, 2**29)] == ["ENOSYS"] * 2
    assert answer(program, machine.audit, 0x40000000 | 39) == "killed"
    others = {each.audit for each in syscalls.ARCHITECTURES.values()} - {machine.audit} | {0x40000003, 0x40000028}
    assert {answer(program, other, 39) for other in others} == {"killed"}


def test_may_truncate_where_landlock_looks_after_it() -> None:
    machine = syscalls.ARCHITECTURES["x86_64"]
    program = seccomp.program(machine, network=False, may_truncate=True)
    assert answer(program, machine.audit, 76) == "allowed"


def test_a_machine_without_a_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert syscalls.here() is None


# where children come from


async def test_what_is_missing_refuses_scripts_where_it_is_required() -> None:
    lacking: Any = Nursery.__new__(Nursery)
    lacking.missing = ["Landlock (not here)"]
    lacking._process = type("Alive", (), {"poll": staticmethod(lambda: None)})()
    required = Sandbox(Options(mode="require"), lacking)
    definitions = [ToolDefinition(name="one", runtime=Runtime(script="1"))]
    async with required.box(definitions) as box:
        with pytest.raises(SandboxUnavailable, match=r"TOOL_SANDBOX is require.*missing: Landlock \(not here\)"):
            await box.tools()
    async with required.box([]) as box:
        assert await box.tools() == {}


def test_a_zygote_that_cannot_start_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_executor.sandbox.nursery._SERVICES", "/nowhere")
    monkeypatch.setattr(
        "agent_executor.sandbox.nursery._PROGRAM",
        "import sys, socket, json; s = socket.socket(fileno=int(sys.argv[2]));"
        "s.sendall(json.dumps({'failed': 'ImportError: none'}).encode() + b'\\n')",
    )
    nursery = Nursery()
    with pytest.raises(SandboxUnavailable, match="does not start: ImportError: none"):
        nursery.start()
    nursery.close()


def test_a_zygote_that_the_system_does_not_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="does not start: No such file or directory"):
        Nursery()
    assert [*tmp_path.iterdir()] == []


def test_no_job_can_guess_anothers_directory(nursery: Nursery) -> None:
    lives = [nursery.bear(Options(mode="best-effort").order()) for _ in range(2)]
    names = {Path(life.directory).name for life in lives}
    for life in lives:
        nursery.kill(life)
        life.pipe.close()
        life.ended.result(5)
        directory.remove(life.directory)
    assert len(names) == 2
    assert {len(name) for name in names} == {32}


@pytest.mark.skipif(sys.platform != "linux", reason="what hides is Linux's")
def test_a_process_that_hides_belongs_to_root() -> None:
    program = (
        "import ctypes; from agent_executor.sandbox import confine; confine.hide(); print(ctypes.CDLL(None).prctl(3))"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert shown == "0\n"


def test_the_zygote_has_one_thread_so_that_it_may_fork(nursery: Nursery) -> None:
    assert nursery.threads == 1


def test_a_child_that_cannot_be_forked_leaves_the_zygote_and_its_other_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    control, theirs = socket.socketpair()
    ours, pipe = socket.socketpair()
    with control, theirs, ours:
        socket.send_fds(control, [b'{"bear": 7}\n'], [pipe.fileno()])
        pipe.close()
        monkeypatch.setattr("os.fork", fork)
        assert Zygote(theirs, "/nowhere")._read()
        assert json.loads(control.recv(1000)) == {"died": 7, "status": None, "unborn": os.strerror(errno.EAGAIN)}
        assert ours.recv(1) == b""


async def test_a_child_that_never_lived_may_live_when_it_is_tried_again() -> None:
    birth: Any = Birth()
    process = await Process.born(birth, Options(timeout_s=5))
    birth.life.unborn = "no room"
    birth.life.ended.set_result(None)
    birth.child.close()
    with pytest.raises(SandboxUnavailable, match=r"cannot start another one \(no room\)") as raised:
        await process.ask("tool 'one'", {"tool": "one"})
    assert may_pass(raised.value)
    await process.close()


async def test_what_is_missing_is_told_though_who_asked_first_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_alive = True
        missing: ClassVar[list[str]] = []
        closed = False

        def start(self) -> None:
            time.sleep(0.1)
            self.missing = ["Landlock (not here)"]  # type: ignore[misc]

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("agent_executor.sandbox.pool.Nursery", Slow)
    sandbox = Sandbox(Options(mode="best-effort"))
    with capture_logs() as logs:
        asked = [asyncio.create_task(sandbox.nursery()) for _ in range(3)]
        await asyncio.sleep(0.02)
        asked[0].cancel()
        assert await asked[1] is await asked[2] is await sandbox.nursery()
    assert [each["event"] for each in logs] == ["sandbox_weakened"]
    assert logs[0]["missing"] == ["Landlock (not here)"]
    await sandbox.close()


async def test_a_sandbox_that_is_closed_while_it_starts_leaves_nothing() -> None:
    sandbox = Sandbox(Options(mode="best-effort"))
    asked = asyncio.create_task(sandbox.open())
    while (begun := sandbox._begun) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    asked.cancel()
    await sandbox.close()
    assert sandbox._nursery is None  # nobody waited for it
    assert not begun.is_alive
    assert not Path(begun.directory).exists()  # noqa: ASYNC240


async def test_a_sandbox_that_is_closed_before_it_starts_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Nursery] = []
    going = threading.Event()

    class Slow(Nursery):
        def __init__(self) -> None:
            going.wait(5)
            super().__init__()
            made.append(self)

    monkeypatch.setattr("agent_executor.sandbox.pool.Nursery", Slow)
    sandbox = Sandbox(Options(mode="best-effort"))
    asked = asyncio.create_task(sandbox.open())
    while sandbox._starting is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    asked.cancel()
    closing = asyncio.create_task(sandbox.close())
    await asyncio.sleep(0)
    going.set()
    await closing
    [nursery] = made
    assert not nursery.is_alive
    assert not Path(nursery.directory).exists()  # noqa: ASYNC240


async def test_a_sandbox_starts_another_zygote_when_one_has_died() -> None:
    sandbox = Sandbox(Options(mode="best-effort"))
    first = await sandbox.nursery()
    os.kill(first.process_id, 9)
    first._process.wait()
    second = await sandbox.nursery()
    assert second is not first
    assert second.is_alive
    await sandbox.close()
    assert not second.is_alive
    assert not Path(first.directory).exists()  # noqa: ASYNC240
    assert not Path(second.directory).exists()  # noqa: ASYNC240
