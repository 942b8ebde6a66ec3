"""Secrets this process knows, and text without them.

Owns the one list of secret values, and the forms in which they show: as they are, escaped as in JSON or in Python,
percent-encoded, and in base64, as the header of a user and a password has them. Whoever reads a secret tells it here;
whoever lets text out (errors, events, logs, traces) has it cleaned here. A provider may echo the key it refused, and a
driver the address it could not reach.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

PLACEHOLDER = "[redacted]"
LONG = 16
"""From this length on a secret is no word that somebody's text may hold by chance."""
_SHORTEST = 6  # a shorter one would tear words of no concern apart
_CALLED_SECRET = re.compile(
    r"(^|[_-])(key|sig|signature|\w*token|\w*secret|secret_id|pass|passwd|\w*password|passphrase|pwd|pat|credentials?)$"
    r"|(api|access|secret|private)key$",
    re.I,
)
_TOKEN_SCHEMES = ("nats", "tls", "ws", "wss")  # of NATS, whose URLs may hold a token where others hold a user
_ESCAPES = 16  # backslashes before a character at most: enough for JSON in JSON in JSON in JSON


_API_KEY = re.compile(r"ae_[a-z0-9]{12}_[A-Za-z0-9]{49}")
"""Our own keys are known by their form, also those that no process has seen."""
_TOKEN = re.compile(r"eyJ[\w-]{4,}\.eyJ[\w-]{4,}\.[\w-]{16,}")


@dataclass(frozen=True)
class _Form:
    """One way in which a secret is written. The needle stands in all of them, and is quickly looked for."""

    length: int
    needle: str
    pattern: re.Pattern[str]


_LATEST = 8
_known: dict[str, list[_Form]] = {}
_latest: dict[str, list[str]] = {}
_forms: tuple[_Form, ...] = ()
_remembering = threading.Lock()


def remember(*secrets: str | None) -> None:
    """Secret values, from now on never to be seen; None and what is too short to be found safely are passed over."""
    global _forms  # noqa: PLW0603 - replaced whole, since threads read it
    with _remembering:
        new = {secret for secret in secrets if secret is not None and len(secret) >= _SHORTEST} - _known.keys()
        if new:
            _known.update({secret: [*_written(secret)] for secret in new})
            _forms = tuple(form for secret in sorted(_known, key=len, reverse=True) for form in _known[secret])


def remember_latest(kind: str, secret: str) -> None:
    """A secret that is replaced again and again: of each kind only the last few are known, or the list would grow."""
    global _forms  # noqa: PLW0603 - as above
    latest = _latest.setdefault(kind, [])
    if secret in latest:
        return
    latest.append(secret)
    remember(secret)
    if len(latest) > _LATEST:
        with _remembering:
            _known.pop(latest.pop(0), None)
            _forms = tuple(form for known in sorted(_known, key=len, reverse=True) for form in _known[known])


def remember_url(url: str | None) -> None:
    """Password or token before a URL's host, and those in its query; of several URLs, separated by commas, in each."""
    for each in {url or "", *(url or "").split(",")}:
        scheme, _, rest = each.partition("://")
        user, colon, password = rest.rpartition("@")[0].partition(":")
        is_token = scheme.lower() in _TOKEN_SCHEMES or len(user) >= LONG
        secret = password if colon else user if is_token else ""
        remember(secret, unquote(secret))
        query = each.partition("?")[2].partition("#")[0]
        remember(*(value for name, value in parse_qsl(query) if len(value) >= LONG or _CALLED_SECRET.search(name)))


def remember_environment(environment: Mapping[str, str]) -> None:
    """Variables that are called like secrets, what stands in URLs, and the headers for OTLP."""
    named = {name.upper(): value for name, value in environment.items()}
    if named.get("POSTGRES_PASSWORD") == named.get("POSTGRES_USER", "postgres"):
        named.pop("POSTGRES_PASSWORD", None)  # as on a developer's machine: a word that logs are full of
    for name, value in named.items():
        if _CALLED_SECRET.search(name):
            remember(value)
        if "://" in value:
            remember_url(value)
        if re.fullmatch(r"OTEL_EXPORTER_OTLP_(\w+_)?HEADERS", name):
            headers = [unquote(header.partition("=")[2]).strip() for header in value.split(",")]
            remember(*headers, *(header.rpartition(" ")[2] for header in headers))


def redact(text: str, shortest: int = 0) -> str:
    """`text` without any known secret of `shortest` characters and more.

    The longest go first, since one may be a part of another.
    """
    for form in _forms:
        if form.length >= shortest and form.needle in text:
            text = form.pattern.sub(PLACEHOLDER, text)
    return _API_KEY.sub(PLACEHOLDER, text) if "ae_" in text else text


def without_tokens(text: str) -> str:
    """`text` without JSON Web Tokens, for logs: a caller may put its own anywhere. A job's data may be made of some."""
    return _TOKEN.sub(PLACEHOLDER, text) if "eyJ" in text else text


def redact_json(document: str, shortest: int = 0) -> str:
    """A JSON document without any known secret in its texts; it stays one, whatever the secret looks like."""
    if "ae_" not in document and not any(form.length >= shortest and form.needle in document for form in _forms):
        return document
    return json.dumps(redact_value(json.loads(document), shortest), ensure_ascii=False)


def redact_value(value: Any, shortest: int = 0) -> Any:
    """A JSON value without any known secret in it, keys included; what holds none comes back as the same object."""
    if isinstance(value, str):
        return redact(value, shortest)
    if isinstance(value, dict):
        clean = {redact_value(key, shortest): redact_value(item, shortest) for key, item in value.items()}
        same = clean.keys() == value.keys() and all(clean[key] is item for key, item in value.items())
        return value if same else clean
    if isinstance(value, list):
        items = [redact_value(item, shortest) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def _written(secret: str) -> Iterator[_Form]:
    for text in (secret, *_in_base64(secret)):
        needle = max(re.findall(r"[A-Za-z0-9]+", text), key=len, default="")
        pattern = "".join(map(_character, re.sub(r"\\+", r"\\", text)))
        yield _Form(len(secret), needle, re.compile(pattern))


def _in_base64(secret: str) -> Iterator[str]:
    """What does not depend on the bytes around it, of which there are 0, 1 or 2 in the group that it begins in."""
    data = secret.encode(errors="surrogatepass")
    for before in range(3):
        first, end = (0, 2, 3)[before], (before + len(data)) * 8 // 6
        inner = base64.b64encode(bytes(before) + data).decode()[first:end]
        yield from {inner, inner.replace("+", "-").replace("/", "_")}


def _character(char: str) -> str:
    """A pattern for one character: itself behind any number of backslashes, or an escape of JSON, Python or URLs."""
    if char.isascii() and char.isalnum():
        return char
    if char == "\\":
        return rf"(?:\\{{1,{_ESCAPES}}}|(?i:%(?:25)*5c)+)"  # several may stand for one, or one for several
    found = [rf"\\{{0,{_ESCAPES}}}" + re.escape(char)]
    if char == " ":
        found.append(r"\+")
    codes = [f"%{byte:02x}" for byte in char.encode(errors="surrogatepass")]
    found += ["(?i:" + "".join(codes).replace("%", "%(?:25)*") + ")", rf"(?i:\\{{1,{_ESCAPES}}}u{ord(char):04x})"]
    for escaped in (json.dumps(char)[1:-1], repr(char)[1:-1]):
        if escaped.startswith("\\"):
            found.append("(?i:" + escaped.replace("\\", rf"\\{{1,{_ESCAPES}}}") + ")")
    return f"(?:{'|'.join(found)})"
