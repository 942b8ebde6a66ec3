"""Landlock: which files a child may read and write, and nothing else of the file system.

Owns the kernel's interface and the list of what Python needs to read. docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_GET_ABI, _PATH_BENEATH = 1, 1

_WRITE, _READ, _LIST, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # how many bits of file rights are known since which ABI
_EXECUTE, _CHARACTER, _SOCKET, _BLOCK, _IOCTL = 1 << 0, 1 << 6, 1 << 9, 1 << 11, 1 << 15
_BIND_AND_CONNECT = 0b11  # TCP, since ABI 4
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # since ABI 6

SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime"),
    *("/usr/share/zoneinfo", "/usr/share/locale", "/usr/share/ca-certificates", "/etc/ssl/certs", "/etc/pki/tls/certs"),
    *("/etc/mime.types", "/etc/os-release", "/dev/zero", "/dev/urandom", "/dev/random"),
)
NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols")

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The kernel's version of Landlock, 0 where it has none or it is switched off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_ABI)))


def python_paths() -> list[str]:
    """What this Python reads when it imports: its own files and everything on `sys.path`."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    places = [f"{prefix}/{part}" for prefix in prefixes for part in ("lib", "lib64", "share", "bin", "pyvenv.cfg")]
    found = {*sys.path, *places, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return sorted(path for path in found if path and Path(path).exists() and os.path.realpath(path) != "/")


def restrict(directory: str, readable: Iterable[str], *, network: bool) -> None:
    """Leave the calling thread, and those it starts, only these: `directory` to write, `readable` to read.

    Raises:
        OSError: the kernel refuses.
    """
    version = abi()
    rights = (1 << max(bits for since, bits in _RIGHTS.items() if since <= version)) - 1
    tcp = _BIND_AND_CONNECT if version >= 4 and not network else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    attributes = struct.pack("=QQQ", rights, tcp, scopes)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        _allow(ruleset, directory, rights & ~(_EXECUTE | _CHARACTER | _SOCKET | _BLOCK | _IOCTL))
        _allow(ruleset, "/dev/null", (_READ | _WRITE | _TRUNCATE) & rights)
        for path in readable:
            _allow(ruleset, path, _READ | _LIST)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # what is not there, or not for us anyway
        return
    try:
        rights &= -1 if Path(path).is_dir() else ~_LIST
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, opened), 0)
    finally:
        os.close(opened)


def _call(number: int, *arguments: object) -> int:
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    found = int(_libc.syscall(ctypes.c_long(number), *words))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
