"""A server's error as a person wants to read it: place, SQLSTATE, the statement with a caret, the server's advice."""

from __future__ import annotations

from collections.abc import Callable

from .judge import File, unified
from .report import masked
from .server import ServerError
from .statements import split

_ABOVE, _BELOW = 4, 2
_WIDTH = 160


def explain(file: File, error: ServerError, hide: Callable[[str], str]) -> str:
    """`path:line:column: message (SQLSTATE ...)`, then the statement's text and the server's notes, without the secret.

    `error.position` counts in the file's text. The first line holds what matters, for logs that show no more.
    """
    place, excerpt = file.path, list[str]()
    if error.position is not None:
        offset = min(error.position - 1, len(file.text))
        place, excerpt = file.at(offset), _excerpt(hide(file.text), offset)
    first = f"{place}: {error.message} (SQLSTATE {error.sqlstate})"
    return masked(hide("\n".join([first, *excerpt, *_notes(error, hide)])))


def _notes(error: ServerError, hide: Callable[[str], str]) -> list[str]:
    diag = error.diag
    notes = {"DETAIL": diag.message_detail, "HINT": diag.message_hint, "CONTEXT": diag.context}
    query = []  # what the file's statement ran in turn, and where in it the error is
    if diag.internal_query:
        query = ["QUERY:", *_excerpt(hide(diag.internal_query), int(diag.internal_position or 1) - 1)]
    return query + [f"{label}: {text}" for label, text in notes.items() if text]


def _excerpt(text: str, offset: int) -> list[str]:
    """The statement around `offset`, some lines of a long one, with a caret below its line."""
    text, offset = unified(text), len(unified(text[:offset]))
    spans = [(each.offset, each.offset + len(each.text)) for each in split(text).statements]
    start, end = next((span for span in spans if span[0] <= offset <= span[1]), (offset, offset))
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
