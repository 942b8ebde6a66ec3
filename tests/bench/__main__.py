"""`python -m tests.bench [PART ...] [--quick] [--to DIRECTORY]`: measure, print a table, write it as JSON and as SVG.

Judges nothing but the goals. A part that fails leaves the figures of the others alone; the exit status then is 1.
--quick measures each part as little as says anything: all of them together in less than two minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import (
    access,
    agents,
    chart,
    checkpoints,
    events,
    fairness,
    graph,
    growth,
    image,
    memory,
    migrations,
    peers,
    sandbox,
    starts,
    throughput,
)
from tests.bench.figures import Figure
from tests.bench.report import measured, results, table
from tier3.stack import Stack, start


def main() -> int:
    """Run the benchmarks on servers of their own."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        data.chmod(0o755)  # the servers are other users where we are root
        with start(data, kinds=["postgres", "nats", "redis"]) as stack:
            parts = _parts(stack, data)
            asked = _asked(list(parts))
            found = [measured(name, parts[name], quick=asked.quick) for name in asked.parts or parts]
    sys.stdout.write(f"\n{table(found)}")
    asked.to.mkdir(parents=True, exist_ok=True)
    written = results(found, quick=asked.quick)
    (asked.to / "bench.json").write_text(json.dumps(written, indent=2) + "\n")
    (asked.to / "bench.svg").write_text(chart.drawn(written))
    sys.stdout.write(f"\nwritten to {asked.to}/bench.json and {asked.to}/bench.svg\n")
    return 1 if any(part.failed for part in found) else 0


def _parts(stack: Stack, data: Path) -> dict[str, Callable[[bool], list[Figure]]]:
    return {
        "throughput": lambda quick: throughput.measure(stack, quick=quick),
        "agents": lambda quick: agents.measure(stack, quick=quick),
        "peers": lambda quick: peers.measure(stack, quick=quick),
        "events": lambda quick: list(events.measure(stack, quick=quick)),
        "start": lambda quick: starts.measure(stack, quick=quick),
        "memory": lambda quick: memory.measure(stack, quick=quick),
        "access": lambda quick: access.measure(quick=quick),
        "graph": lambda quick: graph.measure(quick=quick),
        "sandbox": lambda quick: sandbox.measure(quick=quick),
        "checkpoints": lambda quick: checkpoints.measure(stack.postgres, quick=quick),
        "growth": lambda quick: growth.measure(stack.postgres, quick=quick),
        "fairness": lambda quick: fairness.measure(stack.postgres, quick=quick),
        "migrations": lambda quick: migrations.measure(stack.postgres, data, quick=quick),
        "image": lambda quick: image.measure(quick=quick),
    }


def _asked(parts: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s bench --", allow_abbrev=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; all unless named")
    parser.add_argument("--quick", action="store_true", help="measure little: all parts in less than two minutes")
    parser.add_argument(
        "--to", type=Path, default=Path("artifacts"), metavar="DIRECTORY", help="artifacts unless named"
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
