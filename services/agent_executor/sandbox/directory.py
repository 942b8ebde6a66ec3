"""Directories of children, seen from outside: where they are, how much is in one, and how it goes.

Whoever fills it is no friend: names may be longer than a path can be, links may lead anywhere, rights may be taken
away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from pathlib import Path

DEEPEST = 32
_PREFIX, _SUFFIX = "agent-executor-tools-", ".locked"


class TooMuch(Exception):
    """The directory holds more than it may; the message says what of."""


def held_root() -> tuple[str, int]:
    """Where one zygote's children have their directories, and a descriptor; as long as that is open, it is in use."""
    while True:
        root = tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX)
        with contextlib.suppress(FileNotFoundError):
            held = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_EX)
            if Path(root).exists():  # it was not taken for one that nobody uses before it was locked
                return root, held
            os.close(held)


def remove_abandoned() -> None:
    """Delete those of this user that nobody uses, since service and zygote were killed together."""
    for root in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            found = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(found).st_uid == os.getuid():
                    fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(str(root))
            finally:
                os.close(found)


def measure(root: str, most_bytes: int, most_entries: int) -> int:
    """Bytes in all files below `root`.

    Raises:
        TooMuch: more bytes, entries or levels than are allowed, or what cannot be looked into.
    """
    total = entries = 0
    waiting = [(root, 0)]
    while waiting:
        path, depth = waiting.pop()
        for entry in _listed(path, most_entries):
            entries += 1
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth + 1))
            if total > most_bytes:
                raise TooMuch(f"more than {most_bytes} bytes in its directory")
            if entries > most_entries or depth > DEEPEST:
                raise TooMuch(f"more than {most_entries} files or {DEEPEST} levels in its directory")
    return total


def _listed(path: str, most_entries: int) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return [entry for entry, _ in zip(found, range(most_entries + 1), strict=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TooMuch(f"a directory that cannot be looked into ({error.strerror})") from None


def remove(root: str) -> None:
    """Delete it all. Whoever filled it is dead. No level costs a descriptor or a stack frame, however deep it goes."""
    with contextlib.suppress(OSError):
        number, token = 0, uuid.uuid4().hex
        while subdirectories := [entry.path for entry in _emptied(root)]:
            for path in subdirectories:
                for below in _emptied(path):
                    number += 1
                    os.chmod(below.path, 0o700)  # noqa: PTH101 - without it, it cannot be moved
                    os.rename(below.path, f"{root}/{token}-{number}")  # noqa: PTH104
                Path(path).rmdir()
        Path(root).rmdir()
    if Path(root).exists():
        shutil.rmtree(root, ignore_errors=True)


def _emptied(path: str) -> list[os.DirEntry[str]]:
    """Delete the files in a directory and return the directories in it."""
    os.chmod(path, 0o700)  # noqa: PTH101
    with os.scandir(path) as found:
        entries = list(found)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            Path(entry.path).unlink()
    return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
