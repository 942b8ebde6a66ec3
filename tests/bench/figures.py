"""What a benchmark found, and the table it is shown in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """How long something took, each time, or how much it was, in `unit`, and what that was to be compared with."""

    name: str
    runs: Sequence[float] = field(repr=False)
    goal: str = ""
    reached: bool | None = None
    unit: str = "ms"
    more_is_better: bool = False

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.runs)


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
    goal = f"{ratio:.2f} x {what}, at most {at_most:g}"
    return Figure(name, ours, goal, ratio <= at_most)


def table(figures: Sequence[Figure]) -> str:
    """One line a figure."""
    width = max(len(each.name) for each in figures)
    lines = [f"{'':{width}}  {'median':>9}  {'best':>9}  {'worst':>9}"]
    for each in figures:
        low, high = min(each.runs), max(each.runs)
        ends = (high, low) if each.more_is_better else (low, high)
        numbers = "  ".join(f"{number:6.1f} {each.unit}" for number in (each.median, *ends))
        verdict = {None: "", True: "reached: ", False: "MISSED: "}[each.reached]
        lines.append(f"{each.name:{width}}  {numbers}  {verdict}{each.goal}".rstrip())
    return "\n".join(lines) + "\n"
