"""An image registry for tests: as much of the OCI distribution spec as a push needs, in memory, on 127.0.0.1.

It stands in for the real one, which comes as an image only. Engines speak HTTP to 127.0.0.0/8 unasked.
"""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Registry(ThreadingHTTPServer):
    """What was pushed: `blobs` by digest, `manifests` by `name:tag` and by `name@digest`. `deny` refuses all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.deny = False

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def log_request(self, *_: Any) -> None:
        """Nothing, where others write a line on stderr."""

    def do_GET(self) -> None:
        self._answer(200)

    def do_HEAD(self) -> None:
        found = re.fullmatch(r"/v2/(.+)/(blobs|manifests)/(.+)", self.path)
        content = found and self.server.blobs.get(found[3]) if found and found[2] == "blobs" else None
        if content is None:
            self._answer(404)
        else:
            self._answer(200, digest=_digest(content))

    def do_POST(self) -> None:
        if self.server.deny:
            self._answer(403, b'{"errors":[{"code":"DENIED","message":"not today"}]}')
            return
        upload = uuid.uuid4().hex
        self.server.uploads[upload] = b""
        self._answer(202, Location=f"{self.path.partition('?')[0].rstrip('/')}/{upload}", Range="0-0")

    def do_PATCH(self) -> None:
        upload = self.path.rpartition("/")[2]
        self.server.uploads[upload] += self._body()
        self._answer(202, Location=self.path, Range=f"0-{len(self.server.uploads[upload]) - 1}")

    def do_PUT(self) -> None:
        body = self._body()
        name, kind, last = re.fullmatch(r"/v2/(.+)/(blobs/uploads|manifests)/(.+)", self.path).groups()  # type: ignore[union-attr]
        if kind == "manifests":
            self.server.manifests[f"{name}:{last}"] = body
            content = body
        else:
            content = self.server.uploads.pop(last.partition("?")[0]) + body
            self.server.blobs[_digest(content)] = content
        self._answer(201, digest=_digest(content))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes = b"", digest: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Docker-Content-Digest": digest, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextmanager
def registry() -> Iterator[Registry]:
    """One that serves meanwhile."""
    with Registry() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
