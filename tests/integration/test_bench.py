"""`nox -s bench`, without nox: two small parts of it, on servers of its own. Says nothing of how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_a_quick_run_of_two_parts_prints_a_table_and_writes_json_and_a_chart(tmp_path: Path) -> None:
    words = ["-m", "tests.bench", "graph", "checkpoints", "--quick", "--to", str(tmp_path)]
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=False, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-4000:]
    lines = ended.stdout.splitlines()
    assert [line.partition(",")[0] for line in lines if line[:1].isalpha()][:2] == ["graph", "checkpoints"]
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["quick"] is True
    assert {name: part["failed"] or part["left_out"] for name, part in found["parts"].items()} == {
        "graph": "",
        "checkpoints": "",
    }
    assert {each["part"] for each in found["figures"]} == {"graph", "checkpoints"}
    assert [each["name"] for each in found["figures"] if not any(each["name"] in line for line in lines)] == []
    assert all(each["median"] > 0 for each in found["figures"])
    bars = [each.get("class") for each in ElementTree.parse(tmp_path / "bench.svg").iter() if each.tag.endswith("rect")]
    assert bars == ["page", *["theirs", "ours"] * 2]
