"""What a migration file may hold, by its text alone: what PostgreSQL makes of it is apply.py's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from .repeatable import repeatable
from .statements import Script, Statement, split

_DIRECTIVE = re.compile(r"--\s*migrate:\s*(.*?)\s*")
# A file without any of these has nothing that `judge` could find, and is not split: a run with nothing to do has to
# read a thousand files in milliseconds.
_TELLING: tuple[str, ...] = (
    "\0",
    "$",
    "/*",
    "\\",
    "migrate:",
    "begin",
    "commit",
    "end",
    "abort",
    "start",
    "rollback",
    "prepare",
)
_TELLING += ("copy", "concurrently", "vacuum", "database", "tablespace", "system")
_BEGINS = re.compile(r"(?:\s|--[^\n]*\n)*[A-Za-z]")  # comments, then a statement
_NO_TRANSACTION = (
    re.compile(r"^ (VACUUM|ALTER SYSTEM|(CREATE|DROP) (DATABASE|TABLESPACE)|REINDEX (.*)?(DATABASE|SYSTEM)) "),
    re.compile(r"^ (CREATE|DROP|REINDEX|ALTER) .*CONCURRENTLY "),
)
_ENDS_TRANSACTION = re.compile(
    r"^ (BEGIN|COMMIT|END|ABORT|START TRANSACTION|PREPARE TRANSACTION|ROLLBACK(?! ((WORK|TRANSACTION) )?TO )) "
)
_INLINE_COPY = re.compile(r"^ COPY .*(FROM STDIN|TO STDOUT) ")


class File(NamedTuple):
    """One file: its path for messages, its text with LF line ends and no byte order mark, and how it runs."""

    path: str
    text: str
    transactional: bool = True

    @property
    def name(self) -> str:
        """Without its directory."""
        return self.path.rpartition("/")[2]

    def at(self, offset: int) -> str:
        """`path:line:column` of a character."""
        line = self.text.count("\n", 0, offset) + 1
        return f"{self.path}:{line}:{offset - self.text.rfind(chr(10), 0, offset)}"


def judge(file: File, findings: list[str]) -> bool:
    """Add what `file` must not hold to `findings`; returns whether it runs in one transaction."""
    if "\0" in file.text:  # libpq would stop reading there
        findings.append(f"{file.at(file.text.index(chr(0)))}: NUL character")
        return True
    script = split(file.text)
    findings += [f"{file.at(offset)}: {message}" for offset, message in script.problems]
    vouched: set[int] = set()
    transactional = True
    for offset, directive in _directives(script):
        following = next((each.offset for each in script.statements if each.offset > offset), len(file.text))
        if (
            directive == "no-transaction"
            and following == (script.statements or [Statement(following, "", ())])[0].offset
        ):
            transactional = False
        elif directive == "repeatable":
            vouched.add(following)
        else:
            findings.append(
                f"{file.at(offset)}: unknown here: migrate: {directive}; it is no-transaction, above the first"
                " statement, or repeatable, above one statement"
            )
    if not script.statements and not script.problems and file.path.endswith(".up.sql"):
        findings.append(f"{file.path}: holds no statement")
    for statement in script.statements:
        if complaint := _complaint(statement, transactional, statement.offset in vouched):
            findings.append(f"{file.at(statement.offset)}: {complaint}")
    return transactional


def suspects(files: Sequence[File]) -> list[File]:
    """The files in which `judge` may find something, found by halves: mostly there are few, and often none."""
    text = "\n".join([file.text for file in files]).lower()
    if len(files) > 1 and any(telling in text for telling in _TELLING):
        middle = len(files) // 2
        return suspects(files[:middle]) + suspects(files[middle:])
    if len(files) == 1 and any(telling in text for telling in _TELLING):
        return list(files)
    return [file for file in files if not _plain(file.text)]


def _plain(text: str) -> bool:
    """Whether a text without telling words has nothing to be found: a statement, and no quote left open."""
    return _BEGINS.match(text) is not None and text.count("'") % 2 == 0 and text.count('"') % 2 == 0


def _directives(script: Script) -> list[tuple[int, str]]:
    found = [(comment.offset, _DIRECTIVE.fullmatch(comment.text)) for comment in script.comments]
    return [(offset, match[1]) for offset, match in found if match]


def _complaint(statement: Statement, transactional: bool, vouched: bool) -> str | None:
    """Why this statement cannot be in this file, None if it can."""
    sentence = statement.sentence
    first = " ".join(statement.tokens[:2])
    if _INLINE_COPY.search(sentence):
        return "COPY's inline data needs psql: use INSERT"
    if transactional and _ENDS_TRANSACTION.search(sentence):
        return f"{statement.tokens[0]} in a file that runs in one transaction, which the runner opens and ends"
    if transactional and any(pattern.search(sentence) for pattern in _NO_TRANSACTION):
        return f"{first} cannot run in a transaction: put -- migrate: no-transaction at the file's top"
    if not transactional and not vouched and not repeatable(sentence):
        return (
            f"{first} may not be safe to repeat, and without a transaction a killed run repeats it: write"
            " IF NOT EXISTS, IF EXISTS or OR REPLACE, or vouch for it with -- migrate: repeatable above it"
        )
    return None
