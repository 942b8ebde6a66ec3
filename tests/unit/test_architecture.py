"""Which module may import which: the layers of DESIGN.md, read from the sources."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import agent_executor

PACKAGE = Path(agent_executor.__file__).parent
LEAVES = {
    *(
        "errors",
        "differences",
        "job",
        "interrupts",
        "announcements",
        "strict_json",
        "sql",
        "metrics",
        "tracing",
        "redaction",
        "crash",
        "tls",
        "arrays",
    ),
}
ADAPTERS = {
    *(
        "database",
        "group_commit",
        "ledger",
        "leases",
        "checkpoints",
        "checkpoint_commits",
        "bases",
        "stream",
        "outbox",
        "vault",
        "broker",
        "pull",
        "notify",
        "metrics",
    ),
    "audit",
    *("quotas", "places"),
}
CORE = {
    "errors": set[str](),
    "strict_json": {"errors"},
    "job": {"errors", "strict_json"},
    "announcements": {"strict_json", "job"},
    "interrupts": {"errors", "strict_json"},
    "retries": set[str](),
    "imports": set[str](),
    "definition": set[str](),
    "model_options": {"job"},
    "validation": {"errors", "job", "definition", "model_options"},
    "sandbox": {"errors", "retries", "definition", "strict_json", "imports"},
    "graphs": {"errors", "job"},
    "scripted": {"model_options"},
    "models": {"errors", "job", "definition", "model_options", "scripted", "imports"},
    "state": {"definition"},
    "middleware": {"strict_json", "definition", "state", "redaction"},
    "limits": {"errors", "definition"},
    "graph": {"definition", "models", "middleware"},
}


def _names(path: Path, *, types: bool, level: int = 1) -> set[str]:
    """Names of the package's modules that a module imports, anywhere in it; `types`: its types as well.

    `level`: how many dots lead to the package.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    if not types:
        tree.body = [each for each in tree.body if not (isinstance(each, ast.If) and "TYPE_CHECKING" in ast.dump(each))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level != level:
                continue
            found |= {node.module.partition(".")[0]} if node.module else {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            whole = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            assert not [name for name in whole if name.partition(".")[0] == "agent_executor"], "use relative imports"
    return found & MODULES


def _imports(name: str, *, types: bool) -> set[str]:
    """What a module of the package imports from it; of `sandbox`, what any of its modules does."""
    if name != "sandbox":
        return _names(PACKAGE / f"{name}.py", types=types)
    return set().union(*(_names(path, types=types, level=2) for path in IN_SANDBOX.values()))


MODULES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | {"migrate", "sandbox"}
IN_SANDBOX = {path.stem: path for path in (PACKAGE / "sandbox").glob("*.py")}
IMPORTS = {name: _imports(name, types=True) for name in sorted(MODULES - {"migrate"})}


def test_there_are_no_cycles() -> None:
    needed = {name: _imports(name, types=False) for name in IMPORTS}
    assert [*TopologicalSorter(needed).static_order()]


@pytest.mark.parametrize("module", CORE)
def test_the_core_is_built_in_layers(module: str) -> None:
    assert IMPORTS[module] <= CORE[module]


@pytest.mark.parametrize("module", sorted(ADAPTERS))
def test_an_adapter_knows_errors_job_and_leaves_and_other_adapters_only(module: str) -> None:
    assert IMPORTS[module] <= LEAVES | ADAPTERS


@pytest.mark.parametrize("module", sorted(LEAVES - {"job", "strict_json", "announcements", "interrupts"}))
def test_a_leaf_imports_nothing(module: str) -> None:
    assert IMPORTS[module] == set()


def test_only_those_who_wire_read_settings() -> None:
    assert {name for name, imported in IMPORTS.items() if "settings" in imported} <= {"app", "service", "__main__"}


def test_only_the_app_knows_the_service() -> None:
    """`api`, `event_stream` and `refusals` know its type, and are given one."""
    known = {"app", "api", "event_stream", "refusals"}
    assert {name for name, imported in IMPORTS.items() if "service" in imported} <= known


@pytest.mark.parametrize("module", ["graph", "runner", "worker", "intake", "models", "sandbox"])
def test_nothing_that_does_work_knows_http(module: str) -> None:
    assert not IMPORTS[module] & {"api", "api_models", "app", "event_stream", "health", "service"}


def test_the_worker_knows_no_graph_and_no_broker() -> None:
    assert not IMPORTS["worker"] & {"graph", "runner", "definition", "broker", "intake", "outbox"}


def test_what_a_child_runs_knows_nothing_of_the_service() -> None:
    """Neither does the zygote: what it imports is in the memory of every child."""
    theirs = {"zygote", "child", "scripts", "frames", "directory", "confine", "landlock", "seccomp", "syscalls"}
    assert theirs < IN_SANDBOX.keys()
    for name in theirs:
        assert _names(IN_SANDBOX[name], types=True, level=2) <= {"retries", "imports"}, name
        siblings = {path.stem for path in IN_SANDBOX.values()} & _siblings(IN_SANDBOX[name])
        assert siblings <= theirs, name


def _siblings(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.partition(".")[0]} if node.module else {each.name for each in node.names}
    return found


def test_the_migration_runner_imports_nothing_of_the_service() -> None:
    found: set[str] = set()
    for path in (PACKAGE / "migrate").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path} imports from the service"
                found |= {(node.module or "").partition(".")[0]} if node.level == 0 else set()
    assert "agent_executor" not in found
    assert "psycopg" in found
