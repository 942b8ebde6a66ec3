"""`python -m tests.bench [PART ...] [--quick]`: measure, print one table, write artifacts/bench.json.

Judges nothing but the goals. --quick measures throughput and growth once only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.bench import access, checkpoints, fairness, graph, growth, image, migrations, sandbox, throughput
from tests.bench.figures import Figure, table
from tier3.stack import Stack, start

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "artifacts" / "bench.json"


def main() -> None:
    """Run the benchmarks on servers of their own."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        data.chmod(0o755)  # the servers are other users where we are root
        with start(data, kinds=["postgres", "nats", "redis"]) as stack:
            parts = _parts(stack, data)
            asked = _asked(list(parts))
            figures = [figure for part in asked.parts or parts for figure in parts[part](asked.quick)]
    sys.stdout.write(table(figures))
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    found = [{"median": each.median, **asdict(each)} for each in figures]
    RESULTS.write_text(json.dumps({"machine": machine, "figures": found}, indent=2) + "\n")
    sys.stdout.write(f"\nwritten to {RESULTS.relative_to(ROOT)}\n")


def _parts(stack: Stack, data: Path) -> dict[str, Callable[[bool], list[Figure]]]:
    return {
        "throughput": lambda quick: throughput.measure(stack, quick=quick),
        "access": lambda quick: list(access.measure()),
        "graph": lambda quick: list(graph.measure()),
        "sandbox": lambda quick: list(sandbox.measure()),
        "checkpoints": lambda quick: list(checkpoints.measure(stack.postgres)),
        "growth": lambda quick: growth.measure(stack.postgres, quick=quick),
        "fairness": lambda quick: list(fairness.measure(stack.postgres)),
        "migrations": lambda quick: list(migrations.measure(stack.postgres, data)),
        "image": lambda quick: list(image.measure()),
    }


def _asked(parts: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s bench --", allow_abbrev=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; all unless named")
    parser.add_argument("--quick", action="store_true", help="measure throughput and growth once only")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return asked


main()
