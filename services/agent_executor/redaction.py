"""Secrets this process knows, and text without them.

Owns the one list of secret values. Whoever reads a secret tells it here; whoever lets text out (errors of jobs, events,
logs) has it cleaned here. A provider may echo the key it refused, and a driver the address it could not reach.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

PLACEHOLDER = "[redacted]"
_SHORTEST = 6  # a shorter one would tear words of no concern apart

_known: set[str] = set()


def remember(*secrets: str | None) -> None:
    """Secret values, from now on never to be seen; None and what is too short to be found safely are passed over."""
    _known.update(secret for secret in secrets if secret is not None and len(secret) >= _SHORTEST)


def remember_url(url: str | None) -> None:
    """The password in a URL; of several, separated by commas, all of them."""
    for each in (url or "").split(","):
        password = urlsplit(each).password
        remember(password, unquote(password) if password else None)


def redact(text: str) -> str:
    """`text` without any known secret; the longest go first, since one may be a part of another."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, PLACEHOLDER)
    return text
