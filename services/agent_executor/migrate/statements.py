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

# Letters are all but ASCII's others, since PostgreSQL takes every byte above 127 for one.
_LEXEMES = r"""(?P<space>\s+)
    | (?P<comment>--[^\n]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|''|'\s*\n\s*')*')      # E'a' continued on the next line stays an E string
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<dollar>\$(?:[^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]*)?\$)
    | (?P<word>[^\x00-@\[-^`{-\x7f][^\x00-#%-/:-@\[-^`{-\x7f]*)
    | (?P<number>[0-9][A-Za-z0-9_.]*)
    | (?P<other>.)"""
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_META = re.compile(r"\\[^\n]*")
_COPY_END = re.compile(r"^\\\.[ \t]*$", re.MULTILINE)
_STRINGS, _STRING = ("string", "escaped"), "''"
_UNTERMINATED = {"'": "quoted string", '"': "quoted identifier"}


class Token(NamedTuple):
    """A piece of a statement, or a comment."""

    kind: str
    text: str
    offset: int


class Problem(NamedTuple):
    """What cannot be split, and where."""

    offset: int
    message: str


@dataclass(frozen=True)
class Statement:
    """One statement without its semicolon: its text, where it begins, and its tokens.

    Among the tokens, words are in upper case and strings are empty.
    """

    offset: int
    text: str
    tokens: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The tokens with a space on either side of each, for searching."""
        return f" {' '.join(self.tokens)} "


@dataclass
class Script:
    """What `split` found."""

    statements: list[Statement] = field(default_factory=list)
    comments: list[Token] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def split(text: str) -> Script:
    """The statements of `text`, its comments outside statements' strings, and what no server would understand."""
    script = Script()
    tokens: list[Token] = []
    parentheses = 0
    for token in _tokens(text, script):
        if token.text == ";" and parentheses == 0 and not _inside_atomic(tokens):
            _finish(text, tokens, script)
            tokens = []
            continue
        parentheses = max(0, parentheses + {"(": 1, ")": -1}.get(token.text, 0))
        tokens.append(token)
    _finish(text, tokens, script)
    return script


def _finish(text: str, tokens: list[Token], script: Script) -> None:
    if tokens:
        start, last = tokens[0].offset, tokens[-1]
        words = tuple(_STRING if t.kind in _STRINGS else t.text.upper() if t.kind == "word" else t.text for t in tokens)
        script.statements.append(Statement(start, text[start : last.offset + len(last.text)], words))


@cache
def _tokenizer() -> re.Pattern[str]:
    """Compiled when it is needed, which in a run with nothing to do is never."""
    return re.compile(_LEXEMES, re.VERBOSE | re.DOTALL)


def _tokens(text: str, script: Script) -> Iterator[Token]:
    """Tokens of statements; comments and problems go to `script`. COPY's inline data is passed over."""
    token = _tokenizer()
    at = 0
    words: list[str] = []  # of the statement under way: the first, and after COPY all
    while match := token.match(text, at):
        kind, word, start = str(match.lastgroup), match[0], at
        at = match.end()
        if kind == "block":
            at = _end_of_comment(text, at, script, start)
            script.comments.append(Token("comment", text[start:at], start))
        elif kind == "comment":
            script.comments.append(Token(kind, word, start))
        elif kind == "dollar":
            end = text.find(word, at)
            if end < 0:
                script.problems.append(Problem(start, f"unterminated dollar-quoted string {word}"))
            at = len(text) if end < 0 else end + len(word)
            yield Token("string", text[start:at], start)
        elif word == "\\":
            line = _META.match(text, start)
            assert line
            script.problems.append(Problem(start, f"psql meta-command {line[0].split()[0]}: only SQL can be run"))
            at = line.end()
        elif word in _UNTERMINATED:
            script.problems.append(Problem(start, f"unterminated {_UNTERMINATED[word]}"))
            at = len(text)
        elif kind != "space":
            yield Token(kind, word, start)
            if word == ";":
                at = _end_of_data(text, at) if words[:1] == ["COPY"] and "STDIN" in words else at
                words = []
            elif kind == "word" and words[:1] in ([], ["COPY"]):
                words.append(word.upper())


def _end_of_data(text: str, at: int) -> int:
    end = _COPY_END.search(text, at)
    return end.end() if end else at


def _end_of_comment(text: str, at: int, script: Script, start: int) -> int:
    """Where the block comment that began at `start` ends; comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if not edge:
            script.problems.append(Problem(start, "unterminated /* comment"))
            return len(text)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at


def _inside_atomic(tokens: list[Token]) -> bool:
    """Whether a semicolon here is inside CREATE FUNCTION ... BEGIN ATOMIC ... END. psqlscan.l counts the same way."""
    words = [token.text.upper() for token in tokens if token.kind == "word"]
    if words[:1] != ["CREATE"] or not {"FUNCTION", "PROCEDURE"} & set(words[1:4]):
        return False
    depth = 0
    for word in words:
        if word == "BEGIN" or (word == "CASE" and depth):
            depth += 1
        elif word == "END" and depth:
            depth -= 1
    return depth > 0
