"""What a benchmark finds, and how things are measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """How long something took, each time, or how much it was, in `unit`, and what that was to be compared with.

    `ratio` is to `of`; `cpu_ms` is of CPU a job. A figure whose name begins with `panel` is drawn there, and called by
    what is left of its name.
    """

    name: str
    runs: Sequence[float] = field(repr=False)
    goal: str = ""
    reached: bool | None = None
    unit: str = "ms"
    more_is_better: bool = False
    ratio: float | None = None
    of: str = ""
    cpu_ms: float | None = None
    panel: str = ""
    ours: bool = False

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.runs)


class LeftOut(Exception):
    """A part cannot be measured here; the message says in one line why."""


def side_by_side(contenders: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Milliseconds by name. In turns, so that all are disturbed alike.

    A first turn, which fills caches, is not kept.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, contender in contenders.items():
            ms = contender()
            if turn:
                found[name].append(ms)
    return found


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that `work` took."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def compared(name: str, ours: Sequence[float], theirs: Sequence[float], what: str, at_most: float) -> Figure:
    """Our figure with its goal: the median at most so many times theirs."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    return Figure(name, ours, f"at most {at_most:g} x", ratio <= at_most, ratio=ratio, of=what)
