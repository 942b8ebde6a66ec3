"""The agent definition: what a caller may ask this service to build.

Owns the JSON shape, which is published as JSON Schema. The rules between its parts are `validation`'s; nothing is built
here, and no script is run.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

ROOT_TYPE = "orchestrator"
MAX_NODES = 200
MAX_TOOLS = 100
MAX_SCRIPT_BYTES = 256 * 1024
MAX_DEPENDENCIES = 100
MAX_FIELDS = 100
BUILT_IN_TOOLS = frozenset({"ls", "read_file", "write_file", "edit_file", "delete", "glob", "grep", "execute", "task"})
"""Tools that deepagents gives to agents."""
OWN_FIELDS = frozenset({"messages", "files", "todos"})
"""State fields that deepagents declares itself: a `state_schema` may name them, and changes nothing about them."""
_RESERVED = frozenset({"thread_id", "idempotency_key"})

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _at_most(items: int, least: int = 0) -> Any:
    """Bounds for readers of the schema; `validation` holds to them before it looks at a single item."""
    return Field(json_schema_extra={"minItems": least, "maxItems": items})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


def _with_either_name(schema: dict[str, Any]) -> None:
    """pydantic's schema has the first of a field's aliases only."""
    schema["properties"]["model_name"] = {**schema["properties"]["model"], "title": "Model Name"}
    schema["required"] = ["provider"]
    schema["anyOf"] = [{"required": ["model"]}, {"required": ["model_name"]}]


class ModelChoice(_Part):
    """`provider` and `model`; further keys are the provider's own (`replies` of `scripted`, `temperature`, ...)."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), json_schema_extra=_with_either_name)

    provider: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]
    model: Annotated[Name, Field(validation_alias=AliasChoices("model", "model_name"))]

    @model_validator(mode="before")
    @classmethod
    def _has_one_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and {"model", "model_name"} <= value.keys():  # whether they differ is validation's
            return {key: item for key, item in value.items() if key != "model_name"}
        return value

    @property
    def options(self) -> dict[str, Any]:
        """The keys beyond provider and model."""
        return dict(self.model_extra or {})


class StateField(_Part):
    """One field of a specialist's own state."""

    type: Literal["list", "dict", "str", "int", "any"] = "any"
    item_type: str | None = None
    reducer: Literal["add_messages", "append"] | None = None


Decision = Literal["approve", "edit", "reject", "respond"]


class Approval(_Part):
    """What a person may decide about a call of one tool, and what they are told; deepagents' InterruptOnConfig."""

    allowed_decisions: Annotated[tuple[Decision, ...], Field(min_length=1)]
    description: str | None = None


def _by_tool(value: Any) -> Any:
    """Both notations as one: what may be decided by tool; None where a tool needs no approval."""
    every = {"allowed_decisions": get_args(Decision)}
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return dict.fromkeys(value, every)
    if isinstance(value, dict) and None not in value.values():
        return {name: every if each is True else None if each is False else each for name, each in value.items()}
    if value is None:
        return None
    raise ValueError("must be a list of tool names, or an object with true, false or an object for each")


Approvals = Annotated[
    dict[Name, Approval | None] | None,
    BeforeValidator(_by_tool, json_schema_input_type=tuple[Name, ...] | dict[Name, bool | Approval] | None),
]


class NodeConfig(_Part):
    """What a node is told and what it may use."""

    name: Name
    model: ModelChoice
    system_prompt: str = ""
    description: str = ""
    tools: Annotated[tuple[Name, ...], _at_most(MAX_TOOLS)] = ()
    interrupt_on: Approvals = None
    state_schema: Annotated[dict[str, StateField], Field(json_schema_extra={"maxProperties": MAX_FIELDS})] = Field(
        default_factory=dict
    )


class Node(_Part):
    """One agent: the orchestrator (root) or a specialist (its subagent)."""

    id: Name
    type: Name
    config: NodeConfig

    @property
    def is_root(self) -> bool:
        """Whether this is the orchestrator."""
        return self.type.strip().lower() == ROOT_TYPE


def _of_bounded_size(script: str) -> str:
    if len(script.encode(errors="replace")) > MAX_SCRIPT_BYTES:
        raise ValueError(f"must be at most {MAX_SCRIPT_BYTES} bytes")
    return script


class Runtime(_Part):
    """Python source that makes the tool, and the distributions it imports."""

    script: Annotated[str, StringConstraints(min_length=1), AfterValidator(_of_bounded_size)]
    dependencies: Annotated[tuple[str, ...], _at_most(MAX_DEPENDENCIES)] = ()


class ToolDefinition(_Part):
    """A tool made by a script."""

    name: Name
    runtime: Runtime


class Limits(_Part):
    """What the job may use, where that is less than the operator allows."""

    model_config = ConfigDict(frozen=True, strict=True)

    steps: Annotated[int, Field(ge=1)] | None = None
    model_calls: Annotated[int, Field(ge=1)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    tool_output_bytes: Annotated[int, Field(ge=1)] | None = None
    state_bytes: Annotated[int, Field(ge=1)] | None = None


class Definition(_Part):
    """A whole agent: one root, its specialists and their tools."""

    nodes: Annotated[tuple[Node, ...], _at_most(MAX_NODES, least=1)]
    tool_definitions: Annotated[tuple[ToolDefinition, ...], _at_most(MAX_TOOLS)] = ()
    edges: Annotated[Any, Field(description="only inform", repr=False)] = ()
    name: str = ""
    version: Any = ""
    limits: Limits = Limits()

    @property
    def root(self) -> Node:
        """The orchestrator."""
        return next(node for node in self.nodes if node.is_root)

    @property
    def specialists(self) -> tuple[Node, ...]:
        """Every node but the orchestrator, in the order given."""
        return tuple(node for node in self.nodes if not node.is_root)


def _free_keys(configurable: dict[str, Any]) -> dict[str, Any]:
    for key in configurable:
        if key in _RESERVED or key.startswith(("__", "checkpoint")):
            raise ValueError("may not hold what the service sets: thread_id, checkpoint_*, __*")
    return configurable


class GraphConfig(_Part):
    """What a job hands to a graph from code; LangGraph's RunnableConfig without what the service decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configurable: Annotated[dict[str, Any], AfterValidator(_free_keys)] = Field(default_factory=dict)
    recursion_limit: Annotated[int, Field(ge=1, strict=True)] | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)

    def for_langgraph(self) -> dict[str, Any]:
        """As a RunnableConfig, with what was given only."""
        return self.model_dump(exclude_defaults=True, mode="json")


class GraphReference(_Part):
    """A graph that the deployment ships as code, in place of a definition."""

    graph: Name
    config: GraphConfig = Field(default_factory=GraphConfig)
    limits: Limits = Limits()


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of everything that may stand in a job's `agent_definition`; one object for all who ask."""
    return TypeAdapter(Definition | GraphReference).json_schema()
