"""Where the database and the files are, and how long to wait: the runner's own few variables and flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .errors import Refused

_SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte that is not UTF-8
DEFAULTS = {
    "POSTGRES_HOST": "postgresql.bizmatters-dev.svc.cluster.local",
    "POSTGRES_PORT": "5432",
    "POSTGRES_DB": "langgraph_dev",
    "POSTGRES_USER": "postgres",
    "POSTGRES_PASSWORD": "",
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
    """Read POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD (required) and MIGRATION_DIR.

    Raises:
        Refused: naming every missing or bad variable.
    """
    found = {name: environment.get(name) or default for name, default in DEFAULTS.items()}
    wrong = [f"{name} is not UTF-8" for name, value in found.items() if _SURROGATE.search(value)]
    wrong += [] if found["POSTGRES_PASSWORD"] else ["POSTGRES_PASSWORD is required"]
    port = found["POSTGRES_PORT"]
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        wrong.append("POSTGRES_PORT must be a number from 1 to 65535")
    if wrong:
        raise Refused("; ".join(wrong))
    host, port, dbname, user, password, place = found.values()
    return Settings(make_conninfo(host=host, port=port, dbname=dbname, user=user, password=password), Path(place))
