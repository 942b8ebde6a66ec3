"""A server's error as a person wants to read it: place, SQLSTATE, the statement with a caret, the server's advice."""

from __future__ import annotations

from .judge import File
from .server import ServerError
from .statements import split

_ABOVE, _BELOW = 4, 2
_WIDTH = 160


def explain(file: File, error: ServerError) -> str:
    """`path:line:column: message (SQLSTATE ...)`, then the statement's text and the server's notes.

    `error.position` counts in the file's text. The first line holds what matters, for logs that show no more.
    """
    if error.position is None:
        return "\n".join([f"{file.path}: {error.message} (SQLSTATE {error.sqlstate})", *error.notes])
    offset = min(error.position - 1, len(file.text))
    first = f"{file.at(offset)}: {error.message} (SQLSTATE {error.sqlstate})"
    return "\n".join([first, *_excerpt(file.text, offset), *error.notes])


def _excerpt(text: str, offset: int) -> list[str]:
    """The statement around `offset`, some lines of a long one, with a caret below its line."""
    start, end = _around(text, offset)
    number = text.count("\n", 0, offset)
    lines = text.split("\n")
    first = max(text.count("\n", 0, start), number - _ABOVE)
    last = min(text.count("\n", 0, end), number + _BELOW)
    column = offset - text.rfind("\n", 0, offset) - 1
    cut = max(0, column - _WIDTH // 2)
    shown = [f"{each + 1:6} | {lines[each][cut : cut + _WIDTH]}".rstrip() for each in range(first, last + 1)]
    margin = "".join("\t" if character == "\t" else " " for character in lines[number][cut:column])
    shown.insert(number - first + 1, f"       | {margin}^")
    return shown


def _around(text: str, offset: int) -> tuple[int, int]:
    for statement in split(text).statements:
        end = statement.offset + len(statement.text)
        if statement.offset <= offset <= end:
            return statement.offset, end
    return offset, offset
