"""`python -m tests.bench`: measure, print one table, write artifacts/bench.json. Judges nothing but the goals."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.bench import access, checkpoints, fairness, graph, image, migrations, sandbox
from tests.bench.figures import Figure, table
from tier3.stack import Postgres

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "artifacts" / "bench.json"


def main() -> None:
    """Run every benchmark on a server of its own."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        data.chmod(0o755)  # the server is another user where we are root
        with Postgres(data) as server:
            figures: list[Figure] = [
                *access.measure(),
                *graph.measure(),
                *sandbox.measure(),
                *checkpoints.measure(server),
                *fairness.measure(server),
                *migrations.measure(server, data),
            ]
    figures += image.measure()
    sys.stdout.write(table(figures))
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    found = [{"median_ms": each.median_ms, **asdict(each)} for each in figures]
    RESULTS.write_text(json.dumps({"machine": machine, "figures": found}, indent=2) + "\n")
    sys.stdout.write(f"\nwritten to {RESULTS.relative_to(ROOT)}\n")


main()
