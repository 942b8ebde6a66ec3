"""imports: what is put off or hidden is there for whoever asks."""

from __future__ import annotations

import gc
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from agent_executor.imports import defer, hidden, uncollected


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that can be imported, and counts how often it has run."""
    whole = tmp_path / "put_off" / "whole"
    whole.mkdir(parents=True)
    (tmp_path / "put_off" / "__init__.py").write_text("runs = 0\n")
    (whole / "__init__.py").write_text("import put_off\nput_off.runs += 1\nfrom .part import NAME\n")
    (whole / "part.py").write_text("NAME = 'found'\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("put_off", "put_off.whole", "put_off.whole.part"):
        monkeypatch.setitem(sys.modules, name, None)  # forgotten again at the end
        del sys.modules[name]
    return "put_off.whole"


def _runs() -> int:
    return int(sys.modules["put_off"].runs)


def test_a_module_of_a_deferred_package_is_imported_without_the_package(package: str) -> None:
    importlib.import_module("put_off")
    defer(package)
    assert importlib.import_module(f"{package}.part").NAME == "found"
    assert _runs() == 0


def test_a_name_that_is_asked_for_runs_the_package_once(package: str) -> None:
    importlib.import_module("put_off")
    defer(package)
    module = importlib.import_module(package)
    assert module.NAME == "found"
    assert module is sys.modules["put_off"].whole
    with pytest.raises(AttributeError):
        _ = module.other
    defer(package)
    assert sys.modules[package] is module
    assert _runs() == 1


def test_a_package_can_be_deferred_before_the_one_it_is_in_has_run(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "put_off" / "__init__.py").write_text("runs = 0\nfrom . import whole\n")
    (tmp_path / "put_off" / "whole" / "inner").mkdir()
    (tmp_path / "put_off" / "whole" / "inner" / "__init__.py").write_text("import put_off\nput_off.runs += 10\n")
    monkeypatch.setitem(sys.modules, f"{package}.inner", None)
    del sys.modules[f"{package}.inner"]
    defer(package, f"{package}.inner", "put_off.nowhere.whole")
    assert "put_off" not in sys.modules
    module = importlib.import_module("put_off").whole
    assert _runs() == 0
    assert module.NAME == "found"
    assert _runs() == 1


def test_whoever_asks_while_another_thread_runs_it_waits_for_all_of_it(package: str, tmp_path: Path) -> None:
    slow = "import threading, put_off\nput_off.begun.set()\nput_off.go_on.wait(5)\nNAME = 'found'\n"
    (tmp_path / "put_off" / "__init__.py").write_text(
        "import threading\nbegun, go_on = threading.Event(), threading.Event()\n"
    )
    (tmp_path / "put_off" / "whole" / "__init__.py").write_text(slow)
    outer = importlib.import_module("put_off")
    defer(package)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(lambda: importlib.import_module(package).NAME)
        assert outer.begun.wait(5)
        second = threads.submit(lambda: importlib.import_module(package).NAME)
        with suppress(TimeoutError):
            second.result(0.1)
        outer.go_on.set()
        assert [first.result(5), second.result(5)] == ["found", "found"]


def test_what_is_not_installed_is_not_deferred() -> None:
    defer("put_off_nowhere", "put_off_nowhere.whole")
    assert "put_off_nowhere" not in sys.modules


def test_a_hidden_package_is_not_there_meanwhile(package: str) -> None:
    with hidden("put_off.whole", "put_off"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("put_off")
    assert "put_off.whole" not in sys.modules
    assert importlib.import_module("put_off").runs == 0
    with hidden("put_off"):
        assert importlib.import_module("put_off").runs == 0  # nothing is taken away from those who have it


def test_nothing_is_collected_meanwhile() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
