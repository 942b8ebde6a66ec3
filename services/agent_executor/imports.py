"""How this process imports: without collections, and without what others import and nobody uses.

Imports nothing of the service. What is put off or hidden is there for whoever asks for it.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

UNUSED = ("langsmith.types",)
"""150 modules of pydantic models of LangSmith's HTTP API. LangChain's callbacks import the package for one annotation,
and it takes a tenth of a start and 5 MB.
"""


_THRESHOLDS = 10_000, 5, 5
"""When garbage is looked for: seldom among the youngest objects, of which a run makes thousands; among the oldest after
250,000 more than were freed, which is little to look through without what the imports made.
"""


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile, and never in what is there at the end: nearly all of it stays.

    Looking again and again takes a quarter of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(*_THRESHOLDS)


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Have `names` not be installed meanwhile, for packages that only make use of them where they are."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # as the import system has it: ModuleNotFoundError
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def defer(*names: str) -> None:
    """Have these packages run when a name is asked of them, unless they have run already or are not installed.

    Modules in them can be imported meanwhile.
    """
    for name in names:
        if name in sys.modules:
            continue
        spec = _found(name)
        if spec is None or spec.loader is None or spec.submodule_search_locations is None:
            continue
        sys.modules[name] = _Deferred(spec)
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, sys.modules[name])


def _found(name: str) -> ModuleSpec | None:
    """Where a package is, without the packages it is in having run, which may import it."""
    whole, *inner = name.split(".")
    spec = importlib.util.find_spec(whole)
    for number in range(len(inner)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        inside = spec.submodule_search_locations
        spec = PathFinder.find_spec(".".join([whole, *inner[: number + 1]]), inside)
    return spec


class _Deferred(ModuleType):
    """A package of which nothing has run yet."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec
        self.__loader__ = spec.loader
        self.__package__ = spec.name
        self.__path__ = spec.submodule_search_locations or []
        self.__file__ = spec.origin
        self.__dict__["_running"] = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system and inspect look for these, and do without
            raise AttributeError(name)
        with self.__dict__["_running"]:
            if type(self) is _Deferred:
                if "_runs" in self.__dict__:  # in this very thread: a part of it asks for what is not there yet
                    raise AttributeError(name)
                self.__dict__["_runs"] = True
                try:
                    self.__loader__.exec_module(self)  # type: ignore[union-attr]
                finally:
                    del self.__dict__["_runs"]
                self.__class__ = ModuleType  # type: ignore[assignment]  # only now: other threads wait for all of it
        return getattr(self, name)
