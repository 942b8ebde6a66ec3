"""Named points at which a test has this process die, as a power cut would: no cleanup, no last words.

Owns the points' names, which `CRASH_AT` chooses from. Nothing happens at any of them unless one was armed.
"""

from __future__ import annotations

import os
import signal
from typing import Literal, get_args

Point = Literal[
    "after_fetch",
    "after_accept",
    "after_ack",
    "after_claim",
    "after_run",
    "before_commit",
    "after_commit",
    "after_publish",
    "before_interrupt",
    "after_interrupt",
    "after_resume",
]
POINTS: tuple[str, ...] = get_args(Point)

_armed: str | None = None


def arm(name: str | None) -> None:
    """Die at the point of this name, from now on."""
    global _armed  # noqa: PLW0603
    _armed = name


def point(name: Point) -> None:
    """Die here, if this point is armed."""
    if name == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
