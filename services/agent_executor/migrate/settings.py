"""Where the database and the files are, and how long to wait: the runner's own few variables and flags."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .errors import Refused

_SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte that is not UTF-8
VERIFIED = "verify-full"
SSL_MODES = ("disable", "prefer", "require", VERIFIED)
DEFAULTS = {
    "POSTGRES_HOST": "postgresql.bizmatters-dev.svc.cluster.local",
    "POSTGRES_PORT": "5432",
    "POSTGRES_DB": "langgraph_dev",
    "POSTGRES_USER": "postgres",
    "POSTGRES_PASSWORD": "",
    "POSTGRES_SSLMODE": "",
    "POSTGRES_CACERT": "",
    "MIGRATION_DIR": "migrations",
}


@dataclass(frozen=True)
class Settings:
    """All that a run needs to know."""

    dsn: str
    directory: Path
    wait_s: float = 0.0
    """For the database to answer, and to come back when it goes away."""
    lock_timeout_s: float = 5.0
    """How long one statement waits for a table's lock, with everybody else queued behind it; 0 is without end."""
    lock_wait_s: float = 60.0
    """For another run to end."""
    allow_edited: bool = False

    @property
    def secret(self) -> str:
        """The password, which is to appear nowhere; empty if everybody may read the word anyway."""
        address = conninfo_to_dict(self.dsn)
        password = str(address.pop("password", None) or "")
        return "" if password in map(str, address.values()) else password


def settings(environment: Mapping[str, str]) -> Settings:
    """Read POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD (required), _SSLMODE, _CACERT and MIGRATION_DIR.

    Raises:
        Refused: naming every missing or bad variable.
    """
    found = {name: environment.get(name) or default for name, default in DEFAULTS.items()}
    wrong = [f"{name} is not UTF-8" for name, value in found.items() if _SURROGATE.search(value)]
    wrong += [] if found["POSTGRES_PASSWORD"] else ["POSTGRES_PASSWORD is required"]
    port = found["POSTGRES_PORT"]
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        wrong.append("POSTGRES_PORT must be a number from 1 to 65535")
    host, port, dbname, user, password, mode, cacert, place = found.values()
    if mode and mode not in SSL_MODES:
        wrong.append(f"POSTGRES_SSLMODE must be one of {', '.join(SSL_MODES)}")
    elif mode and cacert and mode != VERIFIED:
        wrong.append(f"POSTGRES_SSLMODE must be {VERIFIED} with POSTGRES_CACERT")
    if wrong:
        raise Refused("; ".join(wrong))
    where = {"host": host, "port": port, "dbname": dbname, "user": user, "password": password}
    return Settings(make_conninfo(**where, **encryption(mode or None, cacert or None)), Path(place))


def encryption(mode: str | None, cacert: str | None) -> dict[str, str]:
    """libpq's parameters for a POSTGRES_SSLMODE and a POSTGRES_CACERT. Without both, libpq's own PGSSLMODE decides.

    https://www.postgresql.org/docs/current/libpq-ssl.html
    """
    mode = mode or (VERIFIED if cacert else None)
    if mode is None:
        return {}
    found = {"sslmode": mode, "gssencmode": "disable"}  # which libpq would try first, and not verify
    if mode == VERIFIED:  # our libpq is not built for this system, and does not know where its authorities are
        found["sslrootcert"] = cacert or ssl.get_default_verify_paths().cafile or "system"
    return found
