"""The migration files: NUMBER_words.up.sql and NUMBER_words.down.sql, read and judged before anything connects.

Owns what a file may be called and which there must be; judge.py owns what it may hold.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from .errors import Refused
from .judge import File, judge, suspicious, unified

_NAME = re.compile(r"([0-9]{1,18})_([0-9A-Za-z_]+)\.(up|down)\.sql")
_Numbered = dict[int, re.Match[str]]


class Migration(NamedTuple):
    """A change and its way back."""

    version: int
    name: str
    up: File
    down: File
    sha256: str


def read(directory: Path) -> list[Migration]:
    """The migrations of `directory` in the order of their numbers.

    Names that begin with a dot are passed over (a ConfigMap's mount has some), and so is what does not look like SQL.

    Raises:
        Refused: with every finding in every file, one a line.
    """
    findings: list[str] = []
    numbered: dict[str, _Numbered] = {"up": {}, "down": {}}
    files: dict[str, File] = {}
    prefix = os.path.join(directory, "")  # noqa: PTH118 - plain calls: a thousand files in milliseconds
    for name, match in _names(directory):
        if not match:
            findings.append(f"{prefix}{name}: the name must be NUMBER_words.up.sql or NUMBER_words.down.sql")
            continue
        first = numbered[match[3]].setdefault(int(match[1]), match)
        if first is not match:
            findings.append(f"{prefix}{name}: number {int(match[1])} is used by {first[0]} already")
        if file := _file(prefix + name, findings):
            files[name] = file._replace(transactional=judge(file, findings)) if suspicious(file.text) else file
    ups, downs = numbered.values()
    findings += [*_missing(prefix, numbered, "up", "down"), *_missing(prefix, numbered, "down", "up")]
    findings += _gaps(directory, sorted(ups))
    if findings:
        raise Refused("\n".join(findings))
    return [
        Migration(number, match[2], files[match[0]], files[downs[number][0]], _sum(files[match[0]].text))
        for number, match in sorted(ups.items())
    ]


def create(directory: Path, words: str) -> list[Path]:
    """Write the next migration's two files, with a comment in each; returns their paths. Judges no other file.

    Raises:
        Refused: no letter or digit in `words`, or the files cannot be written.
    """
    slug = re.sub(r"[^0-9a-z]+", "_", words.lower()).strip("_")
    if not slug:
        raise Refused("new needs words for the file's name: new add index on jobs")
    numbers = [match[1] for _, match in (_names(directory) if directory.is_dir() else ()) if match]
    width = max([3, *map(len, numbers)])
    stem = f"{max(map(int, numbers), default=0) + 1:0{width}d}_{slug}"
    texts = {"up": "-- Why this change:\n", "down": "-- The way back from the up file; what it cannot restore:\n"}
    paths = [directory / f"{stem}.{way}.sql" for way in texts]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text)
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None
    return paths


def _names(directory: Path) -> Iterator[tuple[str, re.Match[str] | None]]:
    """The names that look like a migration's, in order; with None one that is not."""
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208
    except OSError as error:
        raise Refused(f"{directory}: {error.strerror}; MIGRATION_DIR names the directory") from None
    for name in names:
        match = _NAME.fullmatch(name)
        if match or (name[0] != "." and (".sql" in name.lower() or name[0].isdigit())):
            yield name, match


def _missing(prefix: str, numbered: dict[str, _Numbered], way: str, other: str) -> Iterator[str]:
    for number, match in numbered[way].items():
        if (found := numbered[other].get(number)) is None or found[2] != match[2]:
            yield f"{prefix}{match[0]}: {match[0].removesuffix(f'.{way}.sql')}.{other}.sql is missing"


def _gaps(directory: Path, numbers: Sequence[int]) -> Iterator[str]:
    if not numbers:
        yield f"{directory}: no NUMBER_words.up.sql files"
    for before, after in pairwise([0, *numbers]):
        if after == 0:
            yield f"{directory}: numbers begin at 1, not at 0"
        elif after - before == 2:
            yield f"{directory}: number {before + 1} is missing"
        elif after - before > 2:
            yield f"{directory}: numbers {before + 1} to {after - 1} are missing"


def _file(path: str, findings: list[str]) -> File | None:
    """One file as it will run, without byte order mark; None if it cannot be read."""
    try:
        data = _bytes(path)
        return File(path, data.decode().removeprefix("\ufeff"))
    except OSError as error:
        findings.append(f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        before = File(path, data[: error.start].decode("utf-8-sig"))
        findings.append(f"{before.at(len(before.text))}: not UTF-8 at byte {error.start}")
    return None


def _bytes(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # half the time of open(); nor does a pipe block it
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a file")
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _sum(text: str) -> str:
    """Of the text with unified line ends: neither those nor a byte order mark are an edit."""
    return hashlib.sha256(unified(text).encode()).hexdigest()
