"""What a migration file may hold, by its text alone: what PostgreSQL makes of it is apply.py's."""

from __future__ import annotations

import re
from typing import NamedTuple

from .statements import Script, Statement, split

_DIRECTIVE = re.compile(r"--\s*migrate:\s*(.*?)\s*")
# A file without any of these has nothing that `judge` could find, and is not split: a run with nothing to do has to
# read a thousand files in milliseconds.
_TELLING = (
    *("\0", "$", "/*", "\\", "migrate:", "begin", "commit", "end", "abort", "start", "rollback", "prepare"),
    *("copy", "concurrently", "vacuum", "database", "tablespace", "system"),
)
_BEGINS = re.compile(r"(?:\s|--[^\n\r]*[\n\r])*[A-Za-z]")  # comments, then a statement
# A statement; whether in a file that runs in one transaction, None for any; what is wrong with it there.
_WRONG: tuple[tuple[str, bool | None, str], ...] = (
    (r"^ COPY .*(FROM STDIN|TO STDOUT) ", None, "COPY's inline data needs psql: use INSERT"),
    (
        r"^ (BEGIN|COMMIT|END|ABORT|START TRANSACTION|PREPARE TRANSACTION|ROLLBACK(?! ((WORK|TRANSACTION) )?TO )) ",
        True,
        "{0} in a file that runs in one transaction, which the runner opens and ends",
    ),
    (
        r"^ (VACUUM|ALTER SYSTEM|(CREATE|DROP) (DATABASE|TABLESPACE)|REINDEX (.*)?(DATABASE|SYSTEM)"
        r"|(CREATE|DROP|REINDEX|ALTER) .*CONCURRENTLY) ",
        True,
        "{0} {1} cannot run in a transaction: put -- migrate: no-transaction at the file's top",
    ),
    (
        r"^ SET ((SESSION|LOCAL) )?(CLIENT_ENCODING|NAMES) ",
        False,
        "the rest of the file would be read in another encoding: files are UTF-8",
    ),
    (
        r"^ CREATE (UNIQUE )?INDEX CONCURRENTLY ON ",
        False,
        "{0} {1} CONCURRENTLY needs the index's name: what is left of it when it is cut off cannot be found without",
    ),
)
# Known to do the same when run again. REINDEX CONCURRENTLY is not: cut off, it leaves an invalid index of a new name.
_REPEATABLE = re.compile(
    r"^ ((ANALYZE|CLUSTER|COMMENT|GRANT|REFRESH|RESET|REVOKE|SECURITY|SET|TRUNCATE|VACUUM|ALTER SYSTEM) "
    r"|DELETE (?!.* SELECT )|REINDEX (?!.*CONCURRENTLY )"
    r"|CREATE OR REPLACE |CREATE (\w+ ){1,4}IF NOT EXISTS |DROP (\w+ ){1,3}IF EXISTS )"
)
_ALTER = re.compile(r"^ ALTER (TABLE|TYPE|INDEX|SEQUENCE|MATERIALIZED VIEW|VIEW|FOREIGN TABLE) ")
_ONCE = re.compile(
    r" (RENAME|ATTACH|DETACH|SPLIT|MERGE|INHERIT|USING|RESTART|SET SCHEMA|ADD(?! ((COLUMN|VALUE) )?IF NOT EXISTS )"
    r"|DROP(?! ((COLUMN|CONSTRAINT|ATTRIBUTE) )?IF EXISTS | (NOT NULL|DEFAULT|EXPRESSION IF|IDENTITY IF) )) "
)


class File(NamedTuple):
    """One file: its path for messages, its text without a byte order mark, and how it runs."""

    path: str
    text: str
    transactional: bool = True

    @property
    def name(self) -> str:
        """Without its directory."""
        return self.path.rpartition("/")[2]

    def at(self, offset: int) -> str:
        """`path:line:column` of a character."""
        before = unified(self.text[:offset])
        return f"{self.path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def unified(text: str) -> str:
    """The text with LF line ends: for counting lines and comparing. What is run keeps its own, also within strings."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def judge(file: File, findings: list[str]) -> bool:
    """Add what `file` must not hold to `findings`; returns whether it runs in one transaction."""
    if "\0" in file.text:  # libpq would stop reading there
        findings.append(f"{file.at(file.text.index(chr(0)))}: NUL character")
        return True
    script = split(file.text)
    findings += [f"{file.at(offset)}: {message}" for offset, message in script.problems]
    transactional, vouched = _directives(file, script, findings)
    if not script.statements and not script.problems and file.path.endswith(".up.sql"):
        findings.append(f"{file.path}: holds no statement")
    for statement in script.statements:
        if complaint := _complaint(statement, transactional, statement.offset in vouched):
            findings.append(f"{file.at(statement.offset)}: {complaint}")
    return transactional


def suspicious(text: str) -> bool:
    """Whether `judge` may find something; False for most files, and soon: they begin, and no quote is left open."""
    lower = text.lower()
    for telling in _TELLING:
        if telling in lower:
            return True
    return not (_BEGINS.match(text) and text.count("'") % 2 == 0 and text.count('"') % 2 == 0)


def repeatable(sentence: str) -> bool:
    """Whether a statement, as Statement.sentence, is known to be safe to repeat."""
    return bool(_REPEATABLE.search(sentence)) or bool(_ALTER.search(sentence) and not _ONCE.search(sentence))


def _directives(file: File, script: Script, findings: list[str]) -> tuple[bool, set[int]]:
    """Whether the file runs in one transaction, and the offsets of the statements that it vouches for."""
    starts = [statement.offset for statement in script.statements]
    transactional, vouched = True, set[int]()
    found = [(comment.offset, _DIRECTIVE.fullmatch(comment.text)) for comment in script.comments]
    for offset, directive in ((offset, match[1]) for offset, match in found if match):
        following = [start for start in starts if start > offset]
        if directive == "no-transaction" and following == starts:
            transactional = False
        elif directive == "repeatable":
            vouched.update(following[:1])
        else:
            findings.append(
                f"{file.at(offset)}: unknown here: migrate: {directive}; it is no-transaction, above the first"
                " statement, or repeatable, above one statement"
            )
    return transactional, vouched


def _complaint(statement: Statement, transactional: bool, vouched: bool) -> str | None:
    """Why this statement cannot be in this file, None if it can."""
    first, second = (*statement.words, "")[:2]
    for pattern, there, message in _WRONG:
        if there in (None, transactional) and re.search(pattern, statement.sentence):
            return message.format(first, second)
    if transactional or vouched or repeatable(statement.sentence):
        return None
    return (
        f"{first} {second} may not be safe to repeat, and without a transaction a killed run repeats it: write"
        " IF NOT EXISTS, IF EXISTS or OR REPLACE, or vouch for it with -- migrate: repeatable above it"
    )
