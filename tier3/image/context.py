"""What a build is given: a tar of the files that .dockerignore lets in, the same bytes for the same content.

Names are sorted, times and owners fixed, and of the modes only the executable bit is kept, so that no clone, umask or
clock changes a layer. USTAR with whole seconds, since BuildKit refuses other forms of an uploaded context.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from docker.utils.build import exclude_paths

from tier3.image.errors import BuildError

CA = "build-ca.pem"
_TIME_S = 315532800  # 1980-01-01, the first that every archive can hold


def names(root: Path) -> list[str]:
    """Paths below `root` of the files that enter a build, sorted."""
    lines = [line.strip() for line in (root / ".dockerignore").read_text().splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    found = exclude_paths(str(root), patterns)
    return sorted(Path(name).as_posix() for name in found if not _is_directory(root / name) and name != ".dockerignore")


def pack(root: Path, extra: Mapping[str, bytes] | None = None) -> bytes:
    """The tar of `root`, with the files `extra` beside or in place of those there are."""
    contents = {name: _content(root / name) for name in names(root)} | dict(extra or {})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for directory in sorted({str(parent) for name in contents for parent in _parents(name)}):
            tar.addfile(_entry(directory, tarfile.DIRTYPE, 0o755))
        for name, content in sorted(contents.items()):
            entry = _entry(name, tarfile.REGTYPE, 0o755 if os.access(root / name, os.X_OK) else 0o644)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _parents(name: str) -> Iterator[PurePosixPath]:
    return (parent for parent in PurePosixPath(name).parents if parent.name)


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, _TIME_S
    return entry


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _content(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():  # a link could let in what .dockerignore keeps out
        raise BuildError(f"{path} is no regular file, and no other enters an image")
    return path.read_bytes()
