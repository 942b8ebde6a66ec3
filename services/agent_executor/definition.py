"""The agent definition, validated: what a caller may ask this service to build.

Owns the JSON shape and the rules between its parts; builds nothing and runs no script. Unknown keys are ignored, edges
only inform. What this version cannot do is refused here by name, before a job exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from .errors import Finding, InvalidInput
from .job import findings_of

ROOT_TYPE = "orchestrator"

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class ModelChoice(_Part):
    """`provider` and `model`; further keys are the provider's own (`replies` of `scripted`, `temperature`, ...)."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    provider: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=64)]
    model: Annotated[Name, Field(validation_alias=AliasChoices("model", "model_name"))]

    @property
    def options(self) -> dict[str, Any]:
        """The keys beyond provider and model."""
        return dict(self.model_extra or {})


class StateField(_Part):
    """One field of a specialist's own state."""

    type: Literal["list", "dict", "str", "int", "any"] = "any"
    item_type: str | None = None
    reducer: str | None = None


class NodeConfig(_Part):
    """What a node is told and what it may use."""

    name: Name
    model: ModelChoice
    system_prompt: str = ""
    description: str = ""
    tools: tuple[Name, ...] = ()
    interrupt_on: Any = ()
    state_schema: dict[str, StateField] = Field(default_factory=dict)


class Node(_Part):
    """One agent: the orchestrator (root) or a specialist (its subagent)."""

    id: Name
    type: Name
    config: NodeConfig

    @property
    def is_root(self) -> bool:
        """Whether this is the orchestrator."""
        return self.type.strip().lower() == ROOT_TYPE


class Runtime(_Part):
    """Python source that makes the tool, and the distributions it imports."""

    script: Annotated[str, StringConstraints(min_length=1)]
    dependencies: tuple[str, ...] = ()


class ToolDefinition(_Part):
    """A tool made by a script."""

    name: Name
    runtime: Runtime


class Definition(_Part):
    """A whole agent: one root, its specialists and their tools."""

    nodes: tuple[Node, ...]
    tool_definitions: tuple[ToolDefinition, ...] = ()
    name: str = ""
    version: Any = ""

    @property
    def root(self) -> Node:
        """The orchestrator."""
        return next(node for node in self.nodes if node.is_root)

    @property
    def specialists(self) -> tuple[Node, ...]:
        """Every node but the orchestrator, in the order given."""
        return tuple(node for node in self.nodes if not node.is_root)


def parse(document: Any, prefix: str = "agent_definition") -> Definition:
    """Validate `document` as an agent definition.

    Raises:
        InvalidInput: with every finding, each naming its field below `prefix`.
    """
    try:
        definition = Definition.model_validate(document)
    except ValidationError as error:
        raise InvalidInput("invalid agent definition", findings_of(error, prefix)) from None
    findings = [Finding(f"{prefix}.{path}", message) for path, message in _contradictions(definition)]
    if findings:
        raise InvalidInput("invalid agent definition", findings)
    return definition


def _contradictions(definition: Definition) -> Iterator[tuple[str, str]]:
    roots = sum(node.is_root for node in definition.nodes)
    if roots != 1:
        yield "nodes", f"exactly one node must be of type {ROOT_TYPE}, found {roots}"
    yield from _repeated("tool_definitions[{}].name", [tool.name for tool in definition.tool_definitions])
    yield from _repeated("nodes[{}].id", [node.id for node in definition.nodes])
    yield from _repeated("nodes[{}].config.name", [node.config.name for node in definition.nodes])
    known = {tool.name for tool in definition.tool_definitions}
    for index, node in enumerate(definition.nodes):
        path = f"nodes[{index}].config"
        for position, tool in enumerate(node.config.tools):
            if tool not in known:
                yield f"{path}.tools[{position}]", "names a tool that tool_definitions does not define"
        if node.config.interrupt_on:
            yield f"{path}.interrupt_on", "approvals are not supported by this version"
        if node.config.state_schema:
            yield f"{path}.state_schema", "own state fields are not supported by this version"


def _repeated(path: str, names: list[str]) -> Iterator[tuple[str, str]]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield path.format(index), "is used twice"
