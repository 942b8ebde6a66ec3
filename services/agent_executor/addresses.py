"""What may stand in an address that the environment or Vault gives, before a client complains of it by repeating it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

REDIS = ("redis", "rediss", "unix")
NATS = ("nats", "tls", "ws", "wss")


def check_redis(url: Any) -> None:
    """Raises ValueError, without the URL, if it is none."""
    check_text(url)
    _check_url(url, REDIS)
    asked = parse_qs(urlsplit(url).query)
    if asked.get("ssl_cert_reqs", ["required"]) != ["required"] or "ssl_check_hostname" in asked:
        raise ValueError("must not turn the check of the server's certificate off")


def check_nats(urls: Any) -> None:
    """The same for NATS: several, separated by commas, and the scheme may be left out."""
    check_text(urls)
    for url in urls.split(","):
        _check_url(url if "://" in url else f"nats://{url}", NATS)


def check_text(value: Any) -> None:
    """Raises ValueError for what is no text."""
    if not isinstance(value, str):
        raise ValueError("must be text")


def check_word(value: Any) -> None:
    """Raises ValueError for what is neither a text of one line nor a number."""
    if not (isinstance(value, str) and value.isprintable()) and not (isinstance(value, int) and value is not True):
        raise ValueError("must be text in one line")


def _check_url(url: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        found = parts.scheme in schemes and "@" not in f"{parts.path}{parts.query}{parts.fragment}" and parts.port != 0
    except ValueError:
        found = False
    if not found:
        raise ValueError(f"must be a URL ({', '.join(schemes)}) with / ? # and @ in a password percent-encoded")
