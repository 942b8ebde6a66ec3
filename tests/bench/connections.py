"""A client of HTTP that costs little, and the same for whoever is asked: JSON over kept connections.

Owns as much of HTTP/1.1 as the servers of the benchmarks answer with.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any


class Connections:
    """So many connections to a port of this machine, each opened when it is needed first."""

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._free: asyncio.LifoQueue[_Pair | None] = asyncio.LifoQueue()
        for _ in range(most):
            self._free.put_nowait(None)

    async def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """What is answered, which has to be JSON. A body of bytes is sent as it is, and any other as JSON.

        Raises:
            AssertionError: the status is no success.
        """
        pair = await self._free.get() or await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = pair
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {kind}",
            f"Content-Length: {len(sent)}",
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + sent)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        if headers.get("transfer-encoding") == "chunked":
            content = await _chunks(reader)
        else:
            content = await reader.readexactly(int(headers["content-length"]))
        self._free.put_nowait(pair)
        assert status.split()[1].startswith("2"), (method, path, status, content[:500])
        return json.loads(content)

    def close(self) -> None:
        """Close them all; none may be asked."""
        while not self._free.empty():
            if (pair := self._free.get_nowait()) is not None:
                pair[1].close()


_Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    found = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        found += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return found
