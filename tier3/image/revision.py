"""The commit that an image is made of, as git tells it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tier3.image.errors import BuildError


@dataclass(frozen=True)
class Revision:
    """A commit, and whether the tree differs from it."""

    sha: str
    dirty: bool
    committed_at: str
    source: str | None

    def labels(self, version: str) -> dict[str, str]:
        """The OCI annotations of an image; `created` is the commit's time, so that a commit makes one image only."""
        found = {
            "revision": f"{self.sha}{'-dirty' if self.dirty else ''}",
            "version": version,
            "created": self.committed_at,
            **({"source": self.source} if self.source else {}),
        }
        return {f"org.opencontainers.image.{key}": value for key, value in found.items()}


def problem(root: Path) -> str | None:
    """Why no revision can be told of `root`, if so."""
    if shutil.which("git") is None:
        return "git is not installed"
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    if found.returncode:
        return f"no commit to build: {' '.join(found.stderr.split()) or 'git says nothing'}"
    return None


def read(root: Path) -> Revision:
    """The commit of `root`; BuildError with git's own words where there is none."""
    sha, committed_at = _git(root, "log", "-1", "--format=%H %cI").split()
    return Revision(
        sha=sha,
        dirty=bool(_git(root, "status", "--porcelain")),
        committed_at=committed_at,
        source=web_address(_git(root, "config", "--default=", "--get", "remote.origin.url")),
    )


def web_address(remote: str) -> str | None:
    """Where others find the source, without credentials; None for a directory of this machine."""
    if "://" not in remote:
        host, colon, path = remote.rpartition("@")[2].partition(":")  # git@host:path
        return f"https://{host}/{path.removesuffix('.git').lstrip('/')}" if colon and "/" not in host else None
    parts = urlsplit(remote)
    if parts.scheme == "file" or not parts.hostname:
        return None
    if parts.scheme in {"http", "https"}:
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.removesuffix(".git"), "", ""))
    return f"https://{parts.hostname}{parts.path.removesuffix('.git')}"


def _git(root: Path, *words: str) -> str:
    found = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if found.returncode:
        raise BuildError(f"git {words[0]}: {' '.join(found.stderr.split())}")
    return found.stdout.strip()
