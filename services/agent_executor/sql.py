"""SQL that lives in .sql files beside the code: each query follows a line `-- name: words_of_the_name`."""

from __future__ import annotations

import re
from importlib import resources


def load(file: str) -> dict[str, str]:
    """The queries of `file` (a name in this package), by name."""
    assert __package__ is not None
    text = resources.files(__package__).joinpath(file).read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))
