"""The end-to-end suite knows public edges only: it imports what its dependency group installs, and not the service."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

from tier3 import e2e

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"nats": "nats-py"}


def _imported(path: Path) -> set[str]:
    """Modules that a file imports, by their whole names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            found.add(node.module or "")
    return found


def _all_imported() -> set[str]:
    """Modules of others that the suite imports, also by way of modules of this repository."""
    waiting, seen, others = [*(ROOT / "tests/e2e").glob("*.py"), ROOT / "tier3/e2e.py"], set[Path](), set[str]()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in _imported(path):
            if name.partition(".")[0] not in ("tests", "tier3"):
                others.add(name.partition(".")[0])
            elif (place := ROOT / f"{name.replace('.', '/')}.py") not in seen:
                waiting.append(place)
    return others - sys.stdlib_module_names


def test_the_suite_imports_what_its_group_installs_and_not_the_service() -> None:
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["e2e"]
    installed = {each.partition(">=")[0].partition("[")[0] for each in group}
    needed = {DISTRIBUTIONS.get(name, name) for name in _all_imported()}
    assert "agent_executor" not in needed
    assert needed == installed - {"nox", "pytest-asyncio"}


def test_hosts_and_ports_are_told_and_nothing_else() -> None:
    assert e2e._address("nats://a:secret@one:1,nats://two") == "one:1, two:4222"
    assert e2e._address("postgresql://a:secret@one:1,two:2/b") == "one:1, two:2"
    assert e2e._address("postgresql:///b?host=/run") == "a socket"
    assert e2e._address("redis://:secret@one/0") == "one:6379"
    assert e2e._address("https://one") == "one:443"


def test_a_password_of_a_url_is_decoded_for_nats() -> None:
    server = e2e.nats_server("nats://me:a%40b@one:1,tls://two:2")
    assert server == {"servers": ["nats://one:1", "tls://two:2"], "user": "me", "password": "a@b"}
    assert e2e.nats_server("nats://word@one:1") == {"servers": ["nats://one:1"], "token": "word"}
