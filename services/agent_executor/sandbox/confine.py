"""What a child gives up before the first line of a script, in the order in which it can.

Owns the order and the rlimits; `landlock` and `seccomp` own theirs. By ctypes and the standard library alone. What the
kernel does not have is returned by name, for whoever decides whether to go on without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import landlock, seccomp, syscalls

_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS, _AMBIENT = 1, 4, 22, 24, 38, 47
_FILTER, _CLEAR_ALL = 2, 4
_CAPABILITIES_V3 = 0x20080522
_ARENA_MAX = -8
_NICENESS = 5

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """What one child may take."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int
    open_files: int
    network: bool = False


def die_with(parent: int) -> None:
    """Be killed when the process `parent`, which started this one, ends. macOS knows no such thing."""
    if sys.platform == "linux":
        _prctl(_PDEATHSIG, 9)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)


def hide() -> None:
    """Keep what this process knows from others of its user: no environment in `/proc`, no ptrace, no core dump."""
    if sys.platform == "linux":
        _prctl(_DUMPABLE, 0)


def confine(directory: str, limits: Limits) -> list[str]:
    """Give up everything but `directory`; returns what could not be given up, in words, empty if all was.

    Called in a process that has one thread. Nothing of it can be undone.
    """
    missing: list[str] = []

    def step(what: str, do: Callable[[], object]) -> None:
        try:
            do()
        except (OSError, ValueError, AttributeError, KeyError) as error:
            missing.append(f"{what} ({error})")

    step("rlimits", lambda: _limit(limits))
    if sys.platform != "linux":
        return [*missing, f"Landlock and seccomp (they need Linux, and this is {sys.platform})"]
    with contextlib.suppress(OSError):  # the kernel's killer shall find the child before the service
        _prctl(_DUMPABLE, 1)  # else it is root's to write
        Path("/proc/self/oom_score_adj").write_text("1000")
    step("no-new-privileges", lambda: _prctl(_NO_NEW_PRIVS, 1))
    step("capabilities", _drop_capabilities)
    readable = [*landlock.python_paths(), *landlock.SYSTEM, *(landlock.NETWORK if limits.network else ())]
    version = landlock.abi()
    if version:
        step("Landlock", lambda: landlock.restrict(directory, readable, network=limits.network))
    else:
        missing.append("Landlock (not in this kernel, or switched off: Linux 5.13 with lsm=landlock)")
    step("undumpable", hide)
    architecture = syscalls.here()
    if architecture is None:
        missing.append(f"seccomp (no table of system calls for {os.uname().machine})")
    else:
        program = seccomp.program(architecture, network=limits.network, may_truncate=version >= 3)
        step("seccomp", lambda: _filter(program))
    return missing


def _limit(limits: Limits) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        _lower(kind, value)
    _lower(resource.RLIMIT_CPU, limits.cpu_s, spare=1)  # SIGXCPU says what it was; SIGKILL, at the hard limit, does not
    if sys.platform == "linux":  # what the child holds by now is not the script's
        _libc.mallopt(_ARENA_MAX, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + limits.memory_bytes)
        _lower(resource.RLIMIT_MSGQUEUE, 0)
    os.nice(_NICENESS)


def _lower(kind: int, value: int, spare: int = 0) -> None:
    _, most = resource.getrlimit(kind)
    soft, hard = (each if most == resource.RLIM_INFINITY else min(each, most) for each in (value, value + spare))
    resource.setrlimit(kind, (soft, hard))


def _drop_capabilities() -> None:
    """All of them, in every set. Without root there are none, and the bounding set cannot be touched."""
    with contextlib.suppress(OSError):
        for capability in range(64):
            _prctl(_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):
        _prctl(_AMBIENT, _CLEAR_ALL)
    header, none = struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24)
    _checked(_libc.capset(header, none))


def _filter(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _prctl(_SECCOMP, _FILTER, ctypes.c_char_p(header))


def _prctl(option: int, value: int, argument: object = 0) -> None:
    extra = argument if not isinstance(argument, int) else ctypes.c_ulong(argument)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), extra, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
