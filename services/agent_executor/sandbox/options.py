"""What an operator decides about the sandbox, and what follows for a child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["require", "best-effort", "off"]


@dataclass(frozen=True)
class Options:
    """`mode` and `network` as TOOL_SANDBOX and TOOL_NETWORK have them; the rest are limits of one child.

    `output_name`: what set `output_bytes`.
    """

    mode: Mode = "require"
    network: Literal["none", "allow"] = "none"
    timeout_s: float = 60
    memory_bytes: int = 512 * 2**20
    output_bytes: int = 2**20
    output_name: str = "TOOL_OUTPUT_BYTES"
    file_bytes: int = 32 * 2**20
    disk_bytes: int = 256 * 2**20
    disk_files: int = 10_000
    open_files: int = 64

    @property
    def cpu_s(self) -> int:
        """CPU time of a child in its whole life, which may see many calls."""
        return int(60 * self.timeout_s) + 1

    def order(self) -> dict[str, Any]:
        """What the zygote and the child need to know of it."""
        limits = {
            "memory_bytes": self.memory_bytes,
            "cpu_s": self.cpu_s,
            "file_bytes": self.file_bytes,
            "open_files": self.open_files,
            "network": self.network == "allow",
        }
        return {"mode": self.mode, "limits": limits, "output_bytes": self.output_bytes}
