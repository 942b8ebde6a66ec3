"""What is around a session: its table, and the boundary that turns every failure into one line and an exit status."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tier3.vault.errors import SessionError

_WIDE = 200  # where nobody looks at a terminal, so that no cell is folded
_STYLES = {
    **dict.fromkeys(("made", "works", "present"), "green"),
    **dict.fromkeys(("changed", "would make", "would change", "not set"), "yellow"),
    **dict.fromkeys(("failed", "denied", "missing"), "red"),
}


def run(name: str, work: Callable[[], int]) -> int:
    """Call `work` and return its exit status, or that of its failure, which is told on stderr; 128 + a signal.

    An unexpected failure is told by its type and place alone, since its message and its frames may hold a secret.
    """
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return work()
    except KeyboardInterrupt as error:
        said, status = (
            "interrupted; run it again and it goes on",
            128 + (signal.SIGTERM if error.args else signal.SIGINT),
        )
        print(file=sys.stderr)  # a prompt may stand on this line
    except SessionError as error:
        said, status = str(error), error.exit_status
    except Exception as error:  # noqa: BLE001 - the outermost boundary
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said, status = f"unexpected: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}", 1
    print(f"{name}: {said}", file=sys.stderr, flush=True)
    return status


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Words that say how it went have a colour on a terminal, unless NO_COLOR is set."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    console.print(table)


def _terminated(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)
