"""Free ports of 127.0.0.1."""

from __future__ import annotations

import random
import socket

from tier3.stack.process import ServerError

HOST = "127.0.0.1"
# Below those that systems hand out to clients: a client that keeps trying to reach a stopped server could otherwise be
# given the server's own port.
PORTS = range(15000, 30000)
TRIES = 100


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of 127.0.0.1, or of all addresses, and we may."""
    with socket.socket() as probe, socket.socket() as listener:
        if probe.connect_ex((HOST, port)) == 0:
            return False  # macOS would let us bind beside a listener on all addresses
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port of PORTS that is free now; somebody may still take it before we do."""
    for port in random.sample(PORTS, TRIES):
        if is_free(port):
            return port
    raise ServerError(f"no free port found between {PORTS.start} and {PORTS.stop - 1}")
