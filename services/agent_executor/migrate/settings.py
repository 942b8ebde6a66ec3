"""Where the database and the files are, and how long to wait: the runner's own few variables and flags."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .errors import Refused


@dataclass(frozen=True)
class Settings:
    """All that a run needs to know."""

    dsn: str
    directory: Path
    wait_s: float = 0.0
    """For the database to answer, and to come back when it goes away."""
    lock_timeout_s: float = 5.0
    """How long one statement waits for a table's lock, with everybody else queued behind it."""
    lock_wait_s: float = 60.0
    """For another run to end."""
    allow_edited: bool = False

    @property
    def secret(self) -> str:
        """The password, which is to appear nowhere."""
        return str(conninfo_to_dict(self.dsn).get("password") or "")

    @property
    def public(self) -> list[str]:
        """The other parts of the address."""
        return [str(value) for key, value in conninfo_to_dict(self.dsn).items() if key != "password"]


def settings(environment: Mapping[str, str]) -> Settings:
    """Read POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD (required) and MIGRATION_DIR.

    Raises:
        Refused: naming every missing or bad variable.
    """
    port = environment.get("POSTGRES_PORT") or "5432"
    wrong = [] if environment.get("POSTGRES_PASSWORD") else ["POSTGRES_PASSWORD is required"]
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        wrong.append("POSTGRES_PORT must be a number from 1 to 65535")
    if wrong:
        raise Refused("; ".join(wrong))
    dsn = make_conninfo(
        host=environment.get("POSTGRES_HOST") or "postgresql.bizmatters-dev.svc.cluster.local",
        port=port,
        dbname=environment.get("POSTGRES_DB") or "langgraph_dev",
        user=environment.get("POSTGRES_USER") or "postgres",
        password=environment["POSTGRES_PASSWORD"],
        application_name=f"agent-executor-migrate@{socket.gethostname()}",
    )
    return Settings(dsn, directory(environment))


def directory(environment: Mapping[str, str]) -> Path:
    """MIGRATION_DIR."""
    return Path(environment.get("MIGRATION_DIR") or "migrations")
