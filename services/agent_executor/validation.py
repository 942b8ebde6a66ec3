"""Everything that is wrong or odd about a definition, all at once.

Owns the rules between a definition's parts, and what is only a warning. They are read from the JSON as it came, so that
a mistake in one place hides none in another. Builds nothing and runs no script.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from typing import Any

from pydantic import BaseModel, ValidationError

from .definition import (
    OWN_FIELDS,
    ROOT_TYPE,
    Definition,
    GraphReference,
    Limits,
    Node,
    NodeConfig,
    Runtime,
    StateField,
    ToolDefinition,
)
from .errors import Finding, InvalidInput
from .job import findings_of

PROVIDERS = frozenset({"anthropic", "ollama", "openai", "scripted"})
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TAKEN = frozenset({"model", "tools", "jump_to", "structured_response", "remaining_steps", "is_last_step"})
_EDGE_KEYS = frozenset({"source", "target", "from", "to", "type"})

Found = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Report:
    """What was found, and the definition if nothing of it is an error."""

    definition: Definition | GraphReference | None
    errors: list[Finding]
    warnings: list[Finding]


def check(document: Any, prefix: str = "agent_definition", graphs: Collection[str] = ()) -> Report:
    """Look at a definition; every finding names its field below `prefix`, and repeats no value.

    `graphs` are the names of the graphs from code that there are.
    """
    if isinstance(document, dict) and "graph" in document:
        return _check_reference(document, prefix, graphs)
    parsed, errors = None, []
    try:
        parsed = Definition.model_validate(document)
    except ValidationError as error:
        errors = findings_of(error, prefix)
    whole = document if isinstance(document, dict) else {}
    errors += [Finding(_join(prefix, path), message) for path, message in _errors(whole)]
    warnings = [Finding(_join(prefix, path), message) for path, message in _warnings(whole)]
    return Report(None if errors else parsed, errors, warnings)


def _check_reference(document: dict[str, Any], prefix: str, graphs: Collection[str]) -> Report:
    parsed, errors = None, []
    try:
        parsed = GraphReference.model_validate(document)
    except ValidationError as error:
        errors = findings_of(error, prefix)
    if parsed is not None and parsed.graph not in graphs:
        known = ", ".join(sorted(graphs)) or "none"
        errors = [Finding(_join(prefix, "graph"), f"names no graph of this deployment; known are {known}")]
    odd = [Finding(_join(prefix, path), message) for path, message in _unknown_keys("", document, GraphReference)]
    return Report(None if errors else parsed, errors, odd)


def read(document: Any, prefix: str = "agent_definition", graphs: Collection[str] = ()) -> Definition | GraphReference:
    """`document` as a definition that can be built, or the graph from code that it names.

    Raises:
        InvalidInput: with every error.
    """
    report = check(document, prefix, graphs)
    if report.definition is None:
        raise InvalidInput("invalid agent definition", report.errors)
    return report.definition


def parse(document: Any, prefix: str = "agent_definition") -> Definition:
    """`read` for a definition that names no graph."""
    found = read(document, prefix)
    assert isinstance(found, Definition)  # no graphs are known here, so a reference was refused
    return found


def _errors(document: dict[str, Any]) -> Found:
    nodes, tools = dict(_objects(document, "nodes")), dict(_objects(document, "tool_definitions"))
    roots = sum(_is_root(node) for node in nodes.values())
    if len(nodes) == len(_list(document.get("nodes"))) > 0 and roots != 1:
        yield "nodes", f"exactly one node must be of type {ROOT_TYPE}, found {roots}"
    yield from _repeated({f"{path}.name": tool.get("name") for path, tool in tools.items()})
    yield from _repeated({f"{path}.id": node.get("id") for path, node in nodes.items()})
    yield from _repeated({f"{path}.config.name": _config(node).get("name") for path, node in nodes.items()})
    for path, tool in tools.items():
        names = _object(tool.get("runtime")).get("dependencies")
        for index, name in enumerate(_list(names)):
            if isinstance(name, str) and not is_installed(name):
                yield f"{path}.runtime.dependencies[{index}]", "is not installed here"
    known = {tool.get("name") for tool in tools.values() if isinstance(tool.get("name"), str)}
    is_known = len(known) > 0 or not document.get("tool_definitions")  # or every name would dangle
    for path, node in nodes.items():
        yield from _node_errors(f"{path}.config", _config(node))
        names = _config(node).get("tools")
        for index, name in enumerate(_list(names) if is_known else []):
            if isinstance(name, str) and name not in known:
                yield f"{path}.config.tools[{index}]", "names a tool that tool_definitions does not define"


def is_installed(dependency: str) -> bool:
    """Whether a script can import this distribution; what follows the name (`>=2`, `[extra]`) is not looked at."""
    name = _normalised(re.split(r"[^\w.-]", dependency.strip())[0])
    return name in _distributions() or name in sys.stdlib_module_names


@functools.cache
def _distributions() -> frozenset[str]:
    return frozenset(_normalised(each.name) for each in metadata.distributions() if each.name)


def _normalised(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _node_errors(path: str, config: dict[str, Any]) -> Found:
    provider = _object(config.get("model")).get("provider")
    if isinstance(provider, str) and provider.strip() and provider.strip().lower() not in PROVIDERS:
        yield f"{path}.model.provider", f"is not known here; known are {', '.join(sorted(PROVIDERS))}"
    if config.get("interrupt_on"):
        yield f"{path}.interrupt_on", "approvals are not supported by this version"
    for name, field in _object(config.get("state_schema")).items():
        where = f"{path}.state_schema.{name:.64}"
        if not _FIELD.fullmatch(name):
            yield where, "must be a word of at most 64 letters, digits and _, beginning with a letter"
        elif name in _TAKEN:
            yield where, "is a name that LangGraph's agents use themselves"
        if _object(field).get("reducer") is not None and _object(field).get("type", "any") not in ("list", "any"):
            yield f"{where}.reducer", "needs a field of type list"


def _warnings(document: dict[str, Any]) -> Found:
    yield from _unknown_keys("", document, Definition, extra={"edges"})
    yield from _unknown_keys("limits", _object(document.get("limits")), Limits)
    for path, tool in _objects(document, "tool_definitions"):
        yield from _unknown_keys(path, tool, ToolDefinition)
        yield from _unknown_keys(f"{path}.runtime", _object(tool.get("runtime")), Runtime)
    for path, node in _objects(document, "nodes"):
        config = _config(node)
        yield from _unknown_keys(path, node, Node)
        yield from _unknown_keys(f"{path}.config", config, NodeConfig)
        for name, field in _object(config.get("state_schema")).items():
            where = f"{path}.config.state_schema.{name:.64}"
            yield from _unknown_keys(where, _object(field), StateField)
            if name in OWN_FIELDS:
                yield where, "is a field that every agent has; what is said of it here changes nothing"
        if not str(config.get("system_prompt") or "").strip():
            yield f"{path}.config.system_prompt", "is empty: the agent is told nothing but what deepagents says"
    yield from _edge_warnings(document)


def _edge_warnings(document: dict[str, Any]) -> Found:
    """Edges only inform, so that what is wrong with them keeps no definition from running."""
    edges = document.get("edges")
    if edges is not None and not isinstance(edges, list):
        yield "edges", "is not a list, and is ignored"
    ids = {node.get("id") for _, node in _objects(document, "nodes") if isinstance(node.get("id"), str)}
    graph: dict[str, set[str]] = {}
    for path, edge in _objects(document, "edges"):
        for key in sorted(edge.keys() - _EDGE_KEYS):
            yield f"{path}.{key:.64}", "is not a key of an edge, and is ignored"
        ends = [edge.get("source", edge.get("from")), edge.get("target", edge.get("to"))]
        for end, name in zip(ends, ("source", "target"), strict=True):
            if not isinstance(end, str) or end not in ids:
                yield f"{path}.{name}", "names no node"
        if all(isinstance(end, str) for end in ends):
            graph.setdefault(str(ends[1]), set()).add(str(ends[0]))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "edges", f"form a circle of {len(error.args[1]) - 1} nodes"


def _unknown_keys(path: str, part: dict[str, Any], model: type[BaseModel], extra: set[str] | None = None) -> Found:
    known = set(model.model_fields) | (extra or set())
    for key in part:
        if key not in known:
            yield _join(path, f"{key:.64}"), "is not a key of this version, and is ignored"


def _repeated(names: dict[str, Any]) -> Found:
    seen: Counter[str] = Counter()
    for path, name in names.items():
        if isinstance(name, str):
            seen[name] += 1
            if seen[name] > 1:
                yield path, "is used twice"


def _is_root(node: dict[str, Any]) -> bool:
    kind = node.get("type")
    return isinstance(kind, str) and kind.strip().lower() == ROOT_TYPE


def _objects(document: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a list, by path; what is none has a finding of its own."""
    for index, value in enumerate(_list(document.get(key))):
        if isinstance(value, dict):
            yield f"{key}[{index}]", value


def _config(node: dict[str, Any]) -> dict[str, Any]:
    return _object(node.get("config"))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path
