"""Graphs that a deployment ships as code, by name: the `graphs` of a langgraph.json, the file of LangGraph's own tools.

Owns loading and opening them. They are trusted: they run in this process, with its rights. What a job says of one is
`definition.GraphReference`; `runner` makes a name and a config of that. Shapes of entries and of what they name follow
LangGraph's server (docs.langchain.com, "Application structure" and "Rebuild graph at runtime").
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from langgraph.graph.state import StateGraph
from langgraph.pregel import Pregel
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import GraphNotLoaded
from .job import findings_of

Graph = Pregel[Any, Any, Any, Any]
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _without_nul(place: str) -> str:
    if "\0" in place:
        raise ValueError("must hold no NUL")
    return place


class _File(BaseModel):
    """What is read of a langgraph.json; the entries are looked at one by one, to be named."""

    model_config = ConfigDict(strict=True)

    graphs: dict[str, Any]
    dependencies: list[Annotated[str, AfterValidator(_without_nul)]] = Field(default_factory=list)


class Graphs:
    """The graphs of one file, all imported."""

    def __init__(self, found: Mapping[str, Any] | None = None) -> None:
        """`found`: compiled graphs, builders or factories, by name.

        Raises:
            GraphNotLoaded: naming a factory that cannot be called.
        """
        self._found = dict(found or {})
        self._arguments = {name: _arguments(name, made) for name, made in self._found.items()}

    @property
    def names(self) -> frozenset[str]:
        """What a definition may name."""
        return frozenset(self._found)

    @asynccontextmanager
    async def open(self, name: str, config: Mapping[str, Any]) -> AsyncIterator[Graph]:
        """The compiled graph of that name, for one run.

        A factory is called with a copy of the run's config, a runtime, both or neither; it may be async, and may be a
        context manager, which is left when the run ends. How the run ended stands, whatever the manager makes of it:
        that it swallows exceptions makes a run that failed, or was stopped, no success.
        """
        made = self._found[name]
        if not isinstance(made, Pregel | StateGraph):
            given = {"config": lambda: copy.deepcopy(config), "runtime": _runtime}
            made = made(**{parameter: given[what]() for parameter, what in self._arguments[name].items()})
            if inspect.isawaitable(made):
                made = await made
        ended: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                compiled = _compiled(name, await _entered(made, stack))
                try:
                    yield compiled
                except BaseException as error:
                    ended = error
                    raise
        except BaseException:
            if ended is None:
                raise
        if ended is not None:
            raise ended


async def _entered(made: Any, stack: AsyncExitStack) -> Any:
    if hasattr(made, "__aenter__"):
        return await stack.enter_async_context(made)
    return stack.enter_context(made) if hasattr(made, "__enter__") else made


def load(file: str | None) -> Graphs:
    """Import every graph that `file` names; None has none. Directories among its `dependencies` can be imported from.

    Raises:
        GraphNotLoaded: naming the file, and the graph at fault.
    """
    if file is None:
        return Graphs()
    path = Path(file)
    try:
        path = path.resolve()
        document = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        wrong = "; ".join(str(finding) for finding in findings_of(error))
        raise GraphNotLoaded(f"{path} is no langgraph.json with graphs: {wrong}") from None
    except (OSError, RuntimeError) as error:
        raise GraphNotLoaded(f"{path} cannot be read: {type(error).__name__}") from error
    for place in (".", *document.dependencies):
        directory = str((path.parent / place).resolve())
        if Path(directory).is_dir() and directory not in sys.path:
            sys.path.append(directory)  # last, so that a file of a common name hides no package from the service
    return Graphs({name: _attribute(path, name, entry) for name, entry in document.graphs.items()})


def _attribute(file: Path, name: str, entry: Any) -> Any:
    where = entry.get("path") if isinstance(entry, dict) else entry
    source, _, attribute = str(where).rpartition(":")
    try:
        found = getattr(_module(file, source), attribute)
    except (Exception, SystemExit) as error:
        raise GraphNotLoaded(f"graph {name!r} of {file} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(found, Pregel | StateGraph) and not callable(found):
        raise GraphNotLoaded(f"graph {name!r} of {file} is neither a graph nor a function that makes one")
    return found


def _module(file: Path, source: str) -> ModuleType:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = (file.parent / source).resolve()
    # The same name in every process: checkpoints name the classes of what they hold by their modules.
    digest = hashlib.sha256(os.path.normpath(source).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"langgraph_file_{path.stem}_{digest}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {path}")
    if spec.name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # before it runs, as dataclasses and type hints need it
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
    return sys.modules[spec.name]


def _arguments(name: str, factory: Any) -> dict[str, str]:
    """The parameters that a factory is called with: name -> `config` or `runtime`.

    By annotation (RunnableConfig, ServerRuntime), by name, and an only one of neither is the config.
    """
    if isinstance(factory, Pregel | StateGraph):
        return {}
    try:
        try:
            signature = inspect.signature(factory, eval_str=True)
        except Exception:  # noqa: BLE001 - an annotation may be any text, as of what is imported for type checkers
            signature = inspect.signature(factory)
    except (TypeError, ValueError) as error:
        raise GraphNotLoaded(f"graph {name!r}: its factory cannot be called: {error}") from None
    named = {each.name: each for each in signature.parameters.values() if each.kind not in _VARIADIC}
    found = {each.name: given for each in named.values() if (given := _given(each))}
    missing = [each.name for each in named.values() if each.default is each.empty and each.name not in found]
    if len(named) == len(missing) == 1:
        found[missing.pop()] = "config"
    if missing or any(named[each].kind is inspect.Parameter.POSITIONAL_ONLY for each in found):
        complaint = f"its factory takes {', '.join(named)}, and can be given a RunnableConfig and a ServerRuntime only"
        raise GraphNotLoaded(f"graph {name!r}: {complaint}, by keyword")
    return found


def _given(parameter: inspect.Parameter) -> str | None:
    annotation = repr(parameter.annotation)
    if "ServerRuntime" in annotation:
        return "runtime"
    if "RunnableConfig" in annotation:
        return "config"
    return parameter.name if parameter.name in ("config", "runtime") else None


def _runtime() -> Any:
    """What LangGraph's server tells a factory of the run, as far as this service has it: no user, store or context."""
    from langgraph_sdk.runtime import _ExecutionRuntime

    nothing: Any = None
    return _ExecutionRuntime(access_context="threads.create_run", user=None, store=nothing, context=None)


def _compiled(name: str, made: Any) -> Graph:
    if isinstance(made, StateGraph):
        made = made.compile()
    if not isinstance(made, Pregel):
        raise GraphNotLoaded(f"graph {name!r}: what was made is a {type(made).__name__}, and no graph")
    return made
