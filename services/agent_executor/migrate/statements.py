"""Splits SQL into statements the way PostgreSQL's lexer and psql do; knows nothing of migrations.

Strings, quoted names, dollar quotes, nested comments, parentheses (a rule's actions) and BEGIN ATOMIC bodies may all
hold semicolons. https://www.postgresql.org/docs/current/sql-syntax-lexical.html; psql's own rules are in psqlscan.l.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

# Letters are all but ASCII's others, since PostgreSQL takes every byte above 127 for one. A string goes on after a line
# end, comments or not, and E'a' stays an E string then.
_LEXEMES = r"""(?P<space>\s+)
    | (?P<comment>--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|''|'(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:\s|--[^\n\r]*[\n\r])*')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<dollar>\$(?:[^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]*)?\$)
    | (?P<word>[^\x00-@\[-^`{-\x7f][^\x00-#%-/:-@\[-^`{-\x7f]*)
    | (?P<number>[0-9][A-Za-z0-9_.]*)
    | (?P<meta>\\[^\n\r]*)
    | (?P<other>.)"""
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_STRINGS, _STRING = ("string", "escaped"), "''"
_OPENING = {"'": "quoted string", '"': "quoted identifier", "dollar": "dollar-quoted string", "block": "/* comment"}


class Token(NamedTuple):
    """A piece of a statement, or a comment."""

    kind: str
    text: str
    offset: int

    @property
    def word(self) -> str:
        """For comparing: a word in upper case, a string without what is in it."""
        return _STRING if self.kind in _STRINGS else self.text.upper() if self.kind == "word" else self.text


@dataclass(frozen=True)
class Statement:
    """One statement without its semicolon: where it begins, its text, its tokens, and their words."""

    offset: int
    text: str
    tokens: list[Token]
    words: list[str]

    @property
    def sentence(self) -> str:
        """The words with a space on either side of each, for searching."""
        return f" {' '.join(self.words)} "


@dataclass
class Script:
    """What `split` found; a problem is an offset and a message."""

    statements: list[Statement] = field(default_factory=list)
    comments: list[Token] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def add(self, text: str, tokens: list[Token]) -> None:
        """Note the statement of these tokens, if there are any."""
        if tokens:
            start, end = tokens[0].offset, tokens[-1].offset + len(tokens[-1].text)
            self.statements.append(Statement(start, text[start:end], tokens, [token.word for token in tokens]))


def split(text: str) -> Script:
    """The statements of `text`, its comments outside statements' strings, and what no server would understand.

    Ends at the inline data of a COPY, which is no SQL.
    """
    script = Script()
    tokens: list[Token] = []
    parentheses = atomic = 0
    for token in _tokens(text):
        if token.kind == "comment":
            script.comments.append(token)
        elif token.kind == "problem":
            script.problems.append((token.offset, token.text))
        elif token.text == ";" and parentheses == 0 and atomic == 0:
            script.add(text, tokens)
            if tokens and tokens[0].word == "COPY" and "STDIN" in script.statements[-1].words:
                return script
            tokens = []
        else:
            parentheses = max(0, parentheses + {"(": 1, ")": -1}.get(token.text, 0))
            if parentheses == 0:
                atomic = _atomic(atomic, tokens, token.word)
            tokens.append(token)
    script.add(text, tokens)
    return script


def _atomic(depth: int, before: list[Token], word: str) -> int:
    """How deep a function's BEGIN ATOMIC ... END is after `word`. CASE ends with END too."""
    if word == "ATOMIC" and before and before[-1].word == "BEGIN" and before[0].word == "CREATE":
        return 1
    return depth + {"CASE": 1, "END": -1}.get(word, 0) if depth else 0


@cache
def _tokenizer() -> re.Pattern[str]:
    """Compiled when it is needed, which in a run with nothing to do is never."""
    return re.compile(_LEXEMES, re.VERBOSE | re.DOTALL | re.ASCII)


def _tokens(text: str) -> Iterator[Token]:
    """Everything but white space; what cannot be read as a token of kind "problem", whose text says why."""
    at = 0
    while match := _tokenizer().match(text, at):
        kind, word, start = str(match.lastgroup), match[0], at
        at = match.end()
        if kind == "meta":
            yield Token("problem", f"psql meta-command {word.split()[0]}: only SQL can be run", start)
        elif kind in _OPENING or word in _OPENING:
            at = _end(kind, word, text, at)
            if at < 0:
                what = f"{_OPENING.get(word) or _OPENING[kind]}{f' {word}' if kind == 'dollar' else ''}"
                yield Token("problem", f"unterminated {what}", start)
                return
            yield Token("comment" if kind == "block" else "string", text[start:at], start)
        elif kind != "space":
            yield Token(kind, word, start)


def _end(kind: str, word: str, text: str, at: int) -> int:
    """Where what `word` opens ends, -1 if nowhere. Comments nest."""
    if kind == "dollar":
        end = text.find(word, at)
        return end + len(word) if end >= 0 else -1
    depth = 1 if kind == "block" else 0
    while depth and (edge := _COMMENT_EDGE.search(text, at)):
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at if kind == "block" and not depth else -1
