"""What a run of the benchmarks came to: its parts, the table on the terminal, and what is written.

A part that fails, or cannot be measured here, is told of beside the figures of the others.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.figures import Figure, LeftOut


@dataclass(frozen=True)
class Part:
    """One part of a run of the benchmarks: its figures, or why there are none."""

    name: str
    took_s: float
    figures: Sequence[Figure] = ()
    failed: str = ""
    left_out: str = ""


def measured(name: str, measure: Callable[[bool], list[Figure]], *, quick: bool) -> Part:
    """One part, whatever comes of it."""
    sys.stderr.write(f"{name} ...\n")
    started = time.monotonic()
    try:
        figures, why, failed = measure(quick), "", ""
    except LeftOut as error:
        figures, why, failed = [], str(error), ""
    except Exception as error:  # noqa: BLE001 - the others' figures are kept
        traceback.print_exc()
        figures, why, failed = [], "", f"{type(error).__name__}: {error}".splitlines()[0]
    return Part(name, time.monotonic() - started, figures, failed, why)


def results(parts: Sequence[Part], *, quick: bool) -> dict[str, Any]:
    """What bench.json holds."""
    return {
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()},
        "quick": quick,
        "parts": {
            part.name: {"took_s": part.took_s, "failed": part.failed, "left_out": part.left_out} for part in parts
        },
        "figures": [
            {"part": part.name, "median": each.median, **asdict(each)} for part in parts for each in part.figures
        ],
    }


_HEAD = ("median", "min - max", "ratio", "CPU a job", "goal")


def table(parts: Sequence[Part]) -> str:
    """A heading for each part, and one line a figure."""
    rows = [_row(figure) for part in parts for figure in part.figures]
    widths = [max(map(len, column)) for column in zip(("", *_HEAD), *rows, strict=True)]
    lines = [_line(("", *_HEAD), widths)]
    for part in parts:
        lines.append(f"{part.name}, {part.took_s:.0f} s")
        if part.left_out:
            lines.append(f"  left out: {part.left_out}")
        if part.failed:
            lines.append(f"  FAILED: {part.failed}")
        lines += [_line(_row(figure), widths) for figure in part.figures]
    return "\n".join(lines) + "\n"


def _row(figure: Figure) -> tuple[str, ...]:
    verdict = {None: "", True: "reached: ", False: "MISSED: "}[figure.reached]
    return (
        f"  {figure.name}",
        f"{number(figure.median)} {figure.unit}",
        f"{number(min(figure.runs))} - {number(max(figure.runs))}",
        "" if figure.ratio is None else f"{number(figure.ratio)} x {figure.of}",
        "" if figure.cpu_ms is None else f"{number(figure.cpu_ms)} ms",
        f"{verdict}{figure.goal}",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, median, ends, ratio, cpu, goal = (
        cell.ljust(width) if place in {0, 3, 5} else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((name, median, ends, ratio, cpu, goal)).rstrip()


def number(value: float) -> str:
    """With as many places as say something."""
    size = abs(value)
    places = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 or not size else 4
    return f"{value:.{places}f}"
