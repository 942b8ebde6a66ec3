"""TLS to the servers behind the service: which authority their certificates are checked against, and what is told of a
failure.

A certificate is always checked, and so is the name in it. libpq checks by itself, told how in `migrate.settings`.
"""

from __future__ import annotations

import re
import ssl
import time
from functools import lru_cache
from pathlib import Path

import structlog

_AGAIN_S = 10.0
_OF_LIBPQ = re.compile("certificate|does not support SSL")  # not of a connection that broke while it was in use

_told: dict[str, float] = {}

log = structlog.get_logger()


def trusted(cacert: str | None) -> ssl.SSLContext:
    """What checks a server's certificate against the authorities in a file, by default those the system trusts.

    The file is read again when it has changed. Raises OSError where it cannot be used.
    """
    return _context(cacert, Path(cacert).stat().st_mtime_ns if cacert else 0)


@lru_cache(maxsize=8)
def _context(cacert: str | None, changed: int) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=cacert)


def check_cacert(path: str) -> str:
    """The path; raises ValueError if no certificates can be read there."""
    try:
        trusted(path)
    except OSError as error:
        raise ValueError(f"must name a file with certificates: {error.strerror or type(error).__name__}") from None
    return path


def note(server: str, error: BaseException) -> None:
    """Log why a connection to `server` (postgres, redis, nats) failed, if it was for TLS; not at every attempt."""
    reason = " ".join(str(error).split())[:300]
    if not (isinstance(error, ssl.SSLError) or (server == "postgres" and _OF_LIBPQ.search(reason))):
        return
    if time.monotonic() > _told.get(server, 0) + _AGAIN_S:
        _told[server] = time.monotonic()
        log.error("tls_failed", server=server, setting=f"{server.upper()}_CACERT", reason=reason)
