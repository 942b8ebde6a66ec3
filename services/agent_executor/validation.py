"""Everything that is wrong or odd about a definition, all at once.

Owns the rules between a definition's parts, and what is only a warning. They are read from the JSON as it came, so that
a mistake in one place hides none in another. Builds nothing and runs no script.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from itertools import chain, islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .definition import (
    BUILT_IN_TOOLS,
    MAX_DEPENDENCIES,
    MAX_FIELDS,
    MAX_NODES,
    MAX_TOOLS,
    OWN_FIELDS,
    ROOT_TYPE,
    Approval,
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
from .model_options import wrong_options

MAX_FINDINGS = 100
MAX_EDGES = 1000
PROVIDERS = frozenset({"anthropic", "ollama", "openai", "scripted"})
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TAKEN = frozenset(
    {
        "hitl_edited_tool_calls",
        "is_last_step",
        "jump_to",
        "memory_contents",
        "model",
        "pinned_skills",
        "remaining_steps",
        "rubric",
        "run_model_call_count",
        "run_tool_call_count",
        "shell_session_resources",
        "skills_load_errors",
        "skills_metadata",
        "structured_response",
        "thread_model_call_count",
        "thread_tool_call_count",
        "tools",
    }
)
_BUILT_IN_WORDS = f"it is none of tool_definitions, and none of {', '.join(sorted(BUILT_IN_TOOLS))}"
_MODEL_KEYS = frozenset({"provider", "model", "model_name"})
_EDGE_ENDS = (("source", "from"), ("target", "to"))
_EDGE_KEYS = frozenset({"source", "target", "from", "to", "type"})

Found = Iterator[tuple[str, str]]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Report:
    """What was found, and the definition if nothing of it is an error."""

    definition: Definition | GraphReference | None
    errors: list[Finding]
    warnings: list[Finding]


def check(document: Any, prefix: str = "agent_definition", graphs: Collection[str] = ()) -> Report:
    """Look at a definition; every finding names its field below `prefix`, and repeats no value.

    `graphs` are the names of the graphs from code that there are. Of many findings the first are listed, and how many
    more there are. Where something has too many parts, that is all that is said.
    """
    if names_graph(document):
        return _check_reference(document, prefix, graphs)
    whole = _object(document)
    if oversized := _listed(prefix, _oversized(whole)):
        return Report(None, oversized, [])
    parsed, wrong = _parsed(Definition, document)
    errors = _listed(prefix, chain(wrong, _errors(whole)))
    return Report(None if errors else parsed, errors, _listed(prefix, _warnings(whole)))


def names_graph(document: Any) -> bool:
    """Whether `document` is a reference to a graph from code. Beside nodes a `graph` is one if it is a name."""
    return (
        isinstance(document, dict)
        and "graph" in document
        and ("nodes" not in document or isinstance(document["graph"], str))
    )


def _check_reference(document: dict[str, Any], prefix: str, graphs: Collection[str]) -> Report:
    config = _object(document.get("config"))
    parts = (("config", config), ("config.tags", config.get("tags")))
    if errors := _listed(prefix, chain.from_iterable(_more_than(MAX_FIELDS, *part) for part in parts)):
        return Report(None, errors, [])
    parsed, wrong = _parsed(GraphReference, document)
    if parsed is not None and parsed.graph not in graphs:
        known = ", ".join(sorted(graphs)) or "none"
        wrong = [("graph", f"names no graph of this deployment; known are {known}")]
    errors = _listed(prefix, wrong)
    warnings = _listed(prefix, _unknown_keys("", document, GraphReference))
    return Report(None if errors else parsed, errors, warnings)


def _parsed(model: type[M], document: Any) -> tuple[M | None, list[tuple[str, str]]]:
    """The document as `model`, or what is wrong with it."""
    try:
        return model.model_validate(document), []
    except ValidationError as error:
        return None, [(finding.field, finding.message) for finding in findings_of(error)]


def _listed(prefix: str, found: Iterable[tuple[str, str]]) -> list[Finding]:
    rest = iter(found)
    findings = [Finding(_join(prefix, path), message) for path, message in islice(rest, MAX_FINDINGS)]
    if more := sum(1 for _ in rest):
        findings.append(Finding(prefix, f"and {more} more"))
    return findings


def look(graphs: Collection[str] = ()) -> Callable[[Any, str], list[Finding]]:
    """The errors that `check` finds, for those who have the definition inside of something."""
    return lambda document, prefix: check(document, prefix, graphs).errors


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


def _oversized(document: dict[str, Any]) -> Found:
    """Lists that are too long, found before anything looks at their items."""
    yield from _more_than(MAX_NODES, "nodes", document.get("nodes"))
    yield from _more_than(MAX_TOOLS, "tool_definitions", document.get("tool_definitions"))
    for path, tool in islice(_objects(document, "tool_definitions"), MAX_TOOLS):
        dependencies = _object(tool.get("runtime")).get("dependencies")
        yield from _more_than(MAX_DEPENDENCIES, f"{path}.runtime.dependencies", dependencies)
    for path, node in islice(_objects(document, "nodes"), MAX_NODES):
        yield from _more_than(MAX_TOOLS, f"{path}.config.tools", _config(node).get("tools"))
        yield from _more_than(MAX_FIELDS, f"{path}.config.state_schema", _config(node).get("state_schema"))


def _more_than(most: int, path: str, value: Any) -> Found:
    if isinstance(value, list | dict) and len(value) > most:
        yield path, f"must have at most {most} {'items' if isinstance(value, list) else 'keys'}, has {len(value)}"


def _errors(document: dict[str, Any]) -> Found:
    nodes, tools = dict(_objects(document, "nodes")), dict(_objects(document, "tool_definitions"))
    yield from _roots(document.get("nodes"))
    yield from _repeated({f"{path}.name": tool.get("name") for path, tool in tools.items()})
    yield from _repeated({f"{path}.id": node.get("id") for path, node in nodes.items()})
    yield from _repeated({f"{path}.config.name": _config(node).get("name") for path, node in nodes.items()})
    for path, tool in tools.items():
        if isinstance(tool.get("name"), str) and tool["name"] in BUILT_IN_TOOLS:
            yield f"{path}.name", "is the name of a tool that agents have already"
        names = _object(tool.get("runtime")).get("dependencies")
        for index, name in enumerate(_list(names)):
            if isinstance(name, str) and not is_installed(name):
                yield f"{path}.runtime.dependencies[{index}]", "is not installed here"
    known = {tool.get("name") for tool in tools.values() if isinstance(tool.get("name"), str)}
    is_known = len(known) > 0 or document.get("tool_definitions", []) == []  # or every name would dangle
    for path, node in nodes.items():
        yield from _node_errors(f"{path}.config", _config(node))
        names = _config(node).get("tools")
        for index, name in enumerate(_list(names) if is_known else []):
            if isinstance(name, str) and name not in known:
                yield f"{path}.config.tools[{index}]", "names a tool that tool_definitions does not define"
        for where, name in _approved(_config(node).get("interrupt_on")) if is_known else ():
            if name not in known | BUILT_IN_TOOLS:  # nobody would ever be asked
                yield f"{path}.config.interrupt_on{where}", f"names no tool: {_BUILT_IN_WORDS}"


def _approved(interrupt_on: Any) -> Iterator[tuple[str, str]]:
    """The tools that `interrupt_on` names, by path."""
    if isinstance(interrupt_on, list):
        yield from ((f"[{index}]", name) for index, name in enumerate(interrupt_on) if isinstance(name, str))
    for name in _object(interrupt_on):
        yield f".{name!s:.64}", name


def _roots(nodes: Any) -> Found:
    if not isinstance(nodes, list):
        return
    kinds = [_object(node).get("type") for node in nodes]
    roots = sum(isinstance(kind, str) and kind.strip().lower() == ROOT_TYPE for kind in kinds)
    if roots > 1 or (roots == 0 and all(isinstance(kind, str) for kind in kinds)):  # or it may be one of the others
        yield "nodes", f"exactly one node must be of type {ROOT_TYPE}, found {roots}"


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
    yield from _model_errors(f"{path}.model", _object(config.get("model")))
    for name, field in _object(config.get("state_schema")).items():
        where = f"{path}.state_schema.{name!s:.64}"
        if not _FIELD.fullmatch(str(name)):
            yield where, "must be a word of at most 64 letters, digits and _, beginning with a letter"
        elif name in _TAKEN:
            yield where, "is a name that LangGraph's agents use themselves"
        if _object(field).get("reducer") is not None and _object(field).get("type", "any") not in ("list", "any"):
            yield f"{where}.reducer", "needs a field of type list"


def _model_errors(path: str, model: dict[str, Any]) -> Found:
    provider = model.get("provider")
    provider = provider.strip().lower() if isinstance(provider, str) else ""
    if provider in PROVIDERS:
        options = {name: value for name, value in model.items() if name not in _MODEL_KEYS}
        yield from ((f"{path}.{place}", message) for place, message in wrong_options(provider, options))
    elif provider:
        yield f"{path}.provider", f"is not known here; known are {', '.join(sorted(PROVIDERS))}"
    names = [model[key] for key in ("model", "model_name") if isinstance(model.get(key), str)]
    if len(set(names)) > 1:
        yield f"{path}.model_name", "is another name than model, of which it is a synonym"


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
        for name, approval in _object(config.get("interrupt_on")).items():
            yield from _unknown_keys(f"{path}.config.interrupt_on.{name!s:.64}", _object(approval), Approval)
        for name, field in _object(config.get("state_schema")).items():
            where = f"{path}.config.state_schema.{name!s:.64}"
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
    if len(_list(edges)) > MAX_EDGES:
        yield "edges", f"has {len(_list(edges))} items, of which the first {MAX_EDGES} are looked at"
    ids = {node.get("id") for _, node in _objects(document, "nodes") if isinstance(node.get("id"), str)}
    graph: dict[str, set[str]] = {}
    for index, edge in enumerate(_list(edges)[:MAX_EDGES]):
        path = f"edges[{index}]"
        if not isinstance(edge, dict):
            yield path, "is not an object, and is ignored"
            continue
        for key in sorted(edge.keys() - _EDGE_KEYS):
            yield f"{path}.{key!s:.64}", "is not a key of an edge, and is ignored"
        names = [next((name for name in pair if name in edge), pair[0]) for pair in _EDGE_ENDS]
        ends = [edge.get(name) for name in names]
        for end, name in zip(ends, names, strict=True):
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
            yield _join(path, f"{key!s:.64}"), "is not a key of this version, and is ignored"


def _repeated(names: dict[str, Any]) -> Found:
    seen: Counter[str] = Counter()
    for path, name in names.items():
        if isinstance(name, str):
            seen[name] += 1
            if seen[name] > 1:
                yield path, "is used twice"


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
