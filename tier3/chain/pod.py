"""How Kubernetes runs the images, as options of a container: what deploy/ says, in the Docker engine's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy"

_SECURITY: Mapping[str, Any] = {
    "user": "65532:65532",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],  # and the engine's seccomp profile, which is RuntimeDefault
}


SERVICE: Mapping[str, Any] = {
    **_SECURITY,
    "tmpfs": {"/tmp": "size=1g"},  # noqa: S108
    "mem_limit": "6g",
    "nano_cpus": 2 * 10**9,
}
MIGRATION: Mapping[str, Any] = {
    **_SECURITY,
    "tmpfs": {"/tmp": "size=16m"},  # noqa: S108
    "mem_limit": "256m",
}
TESTS: Mapping[str, Any] = {
    **_SECURITY,
    "tmpfs": {"/tmp": "size=256m", "/app/artifacts": "size=256m"},  # noqa: S108
    "mem_limit": "1g",
    "nano_cpus": 10**9,
}


def settings() -> dict[str, str]:
    """The service's environment that is no secret."""
    return dict(re.findall(r"(?m)^(\w+)=(.*)$", (DEPLOY / "base/settings.env").read_text()))
