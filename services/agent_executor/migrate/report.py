"""What a run prints: one line a file, a bar on a terminal when there are many, and never the password."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TextIO

_BAR_FROM = 20
_BAR_WIDTH = 30
_LONG = 8
_HIDDEN = re.compile("\0+")


class Report:
    """Prints to `out`, or to nobody once `out` is closed: a run is not to stop half way over that."""

    def __init__(self, secret: str = "", out: TextIO | None = None) -> None:
        self._secret = _pattern(secret)
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._bar = ""
        if isinstance(self._out, io.TextIOWrapper):
            self._out.reconfigure(errors="backslashreplace")

    def hide(self, text: str) -> str:
        """The text with NULs for the secret, as many as it has characters: places keep their numbers.

        To be used before a text is cut, since half a secret is not found again.
        """
        return self._secret.sub(lambda match: "\0" * len(match[0]), text)

    def say(self, text: str) -> None:
        """A line, or several; above the bar where there is one."""
        self._print(text, self._bar)

    def file(self, what: str, name: str, ms: float, number: int, total: int) -> None:
        """A file was applied or taken back, the `number`-th of `total`."""
        filled = _BAR_WIDTH * number // total
        bar = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {number}/{total}"
        wanted = self._terminal and total > _BAR_FROM and number < total
        self._print(f"{what} {name} in {ms:.0f} ms", bar if wanted else "")

    def end(self) -> None:
        """Leave the bar behind."""
        if self._bar:
            self._write("\n")
        self._bar = ""

    def _print(self, text: str, bar: str) -> None:
        erase = "\r\x1b[K" if self._bar else ""
        self._write(f"{erase}{masked(self.hide(text))}\n{bar}")
        self._bar = bar

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())


def masked(text: str) -> str:
    """What `hide` made, for people, who are not to know how long the secret is."""
    return _HIDDEN.sub("***", text)


def _pattern(secret: str) -> re.Pattern[str]:
    """Finds a secret, in SQL strings too; a short one as a word only, since its gaps in many words would tell it."""
    if not secret:
        return re.compile(r"(?!)")
    exact = re.escape(secret).replace("'", "'+")
    return re.compile(exact if len(secret) >= _LONG else rf"(?<!\w){exact}(?!\w)")
