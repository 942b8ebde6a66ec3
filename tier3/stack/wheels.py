"""Programs that lie in installed wheels."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from tier3.stack.process import ServerError


def package_dir(package: str) -> Path:
    """Where an installed package lies; it is not imported. ServerError if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise ServerError(f"{package} is not installed: uv sync --group stack")
    return Path(spec.origin).parent


def executable(*candidates: Path) -> Path:
    """The first of the candidates that can be run; ServerError if none can."""
    for path in candidates:
        if os.access(path, os.X_OK):
            return path
    raise ServerError(f"no program at {' or '.join(map(str, candidates))}: uv sync --group stack")
