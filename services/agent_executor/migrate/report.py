"""What a run prints: one line a file, a bar on a terminal when there are many, and never the password."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TextIO

_BAR_FROM = 20
_LONG = 8
_BAR_WIDTH = 30


class Report:
    """Prints to `out`. `secret` is replaced wherever it appears; `public` names what everybody may read anyway."""

    def __init__(self, secret: str = "", public: Sequence[str] = (), out: TextIO | None = None) -> None:
        self._secret = _pattern("" if secret in public else secret)
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._bar = ""

    def say(self, text: str) -> None:
        """A line, or several; above the bar where there is one."""
        text = self._secret.sub("***", text)
        erase = "\r\x1b[K" if self._bar else ""
        self._out.write(f"{erase}{text}\n{self._bar}")
        self._out.flush()

    def file(self, what: str, name: str, ms: float, number: int, total: int) -> None:
        """A file was applied or taken back, the `number`-th of `total`."""
        before = self._bar
        if self._terminal and total > _BAR_FROM and number < total:
            filled = _BAR_WIDTH * number // total
            self._bar = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {number}/{total}"
        else:
            self._bar = ""
        self._out.write("\r\x1b[K" if before else "")
        self._out.write(f"{what} {name} in {ms:.0f} ms\n{self._bar}")
        self._out.flush()

    def end(self) -> None:
        """Leave the bar behind."""
        if self._bar:
            self._out.write("\n")
        self._bar = ""


def _pattern(secret: str) -> re.Pattern[str]:
    """Finds a secret; a short one as a word only, since it may be a part of many, whose gaps would tell it."""
    if not secret:
        return re.compile(r"(?!)")
    exact = re.escape(secret)
    return re.compile(exact if len(secret) >= _LONG else rf"(?<!\w){exact}(?!\w)")


class Silence(Report):
    """Prints nothing: for callers that only want the work done."""

    def __init__(self) -> None:
        super().__init__(out=sys.stdout)

    def say(self, text: str) -> None:
        """Nothing."""

    def file(self, what: str, name: str, ms: float, number: int, total: int) -> None:
        """Nothing."""
