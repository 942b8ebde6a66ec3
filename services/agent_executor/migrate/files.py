"""The migration files: NUMBER_words.up.sql and NUMBER_words.down.sql, read and judged before anything connects.

Owns what a file may be called and which there must be; judge.py owns what it may hold.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from .errors import Refused
from .judge import File, judge, suspects

_NAME = re.compile(r"([0-9]{1,18})_([0-9A-Za-z_]+)\.(up|down)\.sql")
_CHUNK = 1 << 14  # bytes; most files take one read


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
    names = _names(directory)
    ups, downs = _by_number(directory, names, "up", findings), _by_number(directory, names, "down", findings)
    findings += _missing(directory, ups, downs)
    prefix = os.path.join(directory, "")  # noqa: PTH118
    there = [_file(prefix + name, findings) for name, match in names.items() if match]
    files = {file.name: file for file in there if file}
    for file in suspects(list(files.values())):
        files[file.name] = file._replace(transactional=judge(file, findings))
    if findings:
        raise Refused("\n".join(findings))
    return [
        Migration(version, match[2], files[match[0]], files[downs[version][0]], _sum(files[match[0]].text))
        for version, match in sorted(ups.items())
    ]


def create(directory: Path, words: str) -> list[Path]:
    """Write the next migration's two files, with a comment in each; returns their paths.

    Raises:
        Refused: no letter or digit in `words`, or findings in the files that are there.
    """
    slug = re.sub(r"[^0-9a-z]+", "_", words.lower()).strip("_")
    if not slug:
        raise Refused("new needs words for the file's name: new add index on jobs")
    there = read(directory) if directory.is_dir() and any(_names(directory).values()) else []
    width = max([3, *(len(each.up.name.split("_")[0]) for each in there)])
    stem = f"{len(there) + 1:0{width}d}_{slug}"
    texts = {"up": "-- Why this change:\n", "down": "-- The way back from the up file; what it cannot restore:\n"}
    paths = [directory / f"{stem}.{way}.sql" for way in texts]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text)
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None
    return paths


def _names(directory: Path) -> dict[str, re.Match[str] | None]:
    """The names that look like a migration's, in order; None for one that is not."""
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - plain calls: a thousand files in milliseconds
    except OSError as error:
        raise Refused(f"{directory}: {error.strerror}; MIGRATION_DIR names the directory") from None
    found = {name: _NAME.fullmatch(name) for name in names}
    return {
        name: match
        for name, match in found.items()
        if match or (name[0] != "." and (".sql" in name.lower() or name[0].isdigit()))
    }


def _by_number(
    directory: Path, names: Mapping[str, re.Match[str] | None], way: str, findings: list[str]
) -> dict[int, re.Match[str]]:
    found: dict[int, re.Match[str]] = {}
    for name, match in names.items():
        if match is None and way == "up":
            findings.append(f"{directory / name}: the name must be NUMBER_words.up.sql or NUMBER_words.down.sql")
        if match is None or match[3] != way:
            continue
        first = found.setdefault(int(match[1]), match)
        if first is not match:
            findings.append(f"{directory / name}: number {int(match[1])} is used by {first[0]} already")
    return found


def _missing(directory: Path, ups: Mapping[int, re.Match[str]], downs: Mapping[int, re.Match[str]]) -> Iterator[str]:
    for number, match in ups.items():
        if number not in downs or downs[number][2] != match[2]:
            yield f"{directory / match[0]}: {match[1]}_{match[2]}.down.sql is missing"
    for number, match in downs.items():
        if number not in ups or ups[number][2] != match[2]:
            yield f"{directory / match[0]}: {match[1]}_{match[2]}.up.sql is missing"
    if not ups:
        yield f"{directory}: no NUMBER_words.up.sql files"
    yield from _gaps(directory, sorted(ups))


def _gaps(directory: Path, numbers: Iterable[int]) -> Iterator[str]:
    for before, after in pairwise([0, *numbers]):
        if after == 0:
            yield f"{directory}: numbers begin at 1, not at 0"
        elif after - before == 2:
            yield f"{directory}: number {before + 1} is missing"
        elif after - before > 2:
            yield f"{directory}: numbers {before + 1} to {after - 1} are missing"


def _file(path: str, findings: list[str]) -> File | None:
    """One file as it will run: without byte order mark, its lines ending in LF; None if it cannot be read."""
    try:
        data = _bytes(path)
        text = data.decode().removeprefix("\ufeff")
    except OSError as error:
        findings.append(f"{path}: {error.strerror}")
        return None
    except UnicodeDecodeError as error:
        before = File(path, data[: error.start].decode("utf-8-sig"))
        findings.append(f"{before.at(len(before.text))}: not UTF-8 at byte {error.start}")
        return None
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return File(path, text)


def _bytes(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)  # half the time of open()
    try:
        data = os.read(descriptor, _CHUNK)
        while len(data) % _CHUNK == 0 and (more := os.read(descriptor, _CHUNK)):
            data += more
        return data
    finally:
        os.close(descriptor)


def _sum(text: str) -> str:
    """Of the text as it is run: line ends and a byte order mark are no edit."""
    return hashlib.sha256(text.encode()).hexdigest()
