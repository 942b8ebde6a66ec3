"""A stand-in for the part of Kubernetes' API that Vault asks about a service account's token: TokenReview.

`python3 token_reviews.py PORT` serves it on all addresses. Who signed a token is the reviewer's business, so the
signature here is a word. Only the standard library is imported: this runs where nothing else is.
"""

from __future__ import annotations

import base64
import http.server
import json
import sys
import time
from typing import Any

AUDIENCE = "vault"
NAMESPACE, ACCOUNT = "bizmatters-dev", "agent-executor"


class Reviews(http.server.BaseHTTPRequestHandler):
    """Takes the tokens that were signed `good`, for AUDIENCE."""

    def do_POST(self) -> None:
        """A review."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        token, audiences = asked["spec"]["token"], asked["spec"].get("audiences")
        status: dict[str, Any] = {"authenticated": False, "error": "token expired"}
        if token.endswith(".good") and (not audiences or AUDIENCE in audiences):
            user = {"username": f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}", "uid": "1", "groups": []}
            status = {"authenticated": True, "user": user, "audiences": audiences or [AUDIENCE]}
        body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}).encode()
        self.send_response(201)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def service_account_token(signature: str = "good", *, audience: str = AUDIENCE, life_s: int = 600) -> str:
    """A token that looks like one."""

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = int(time.time())
    claims = {
        "iss": "https://kubernetes.default.svc.cluster.local",
        "sub": f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}",
        "aud": [audience],
        "iat": now - 300,
        "nbf": now - 300,
        "exp": now + life_s,
        "kubernetes.io": {"namespace": NAMESPACE, "serviceaccount": {"name": ACCOUNT, "uid": "1"}},
    }
    return f"{part({'alg': 'RS256', 'kid': 'x'})}.{part(claims)}.{signature}"


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Reviews).serve_forever()
