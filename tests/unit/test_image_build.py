"""`nox -s build` where something is missing: nothing on stdout, an exit status, all that is missing in one message."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tier3.image import engine
from tier3.image.__main__ import _default_base
from tier3.image.errors import BuildError

ROOT = Path(__file__).parents[2]
NO_ENGINE = "unix:///nowhere/docker.sock"


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    shell = os.environ | {"DOCKER_HOST": NO_ENGINE} | environment
    return subprocess.run(command, cwd=ROOT, env=shell, capture_output=True, text=True, check=False)


def test_without_an_engine_stdout_is_empty() -> None:
    ended = python("-m", "tier3.image")
    assert ended.returncode == 69
    assert ended.stdout == ""
    assert f"no Docker engine answers at {NO_ENGINE}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bad_environment_is_told_before_anything_is_looked_for() -> None:
    ended = python("-m", "tier3.image", IMAGE_TAG="a b", PUSH="maybe")
    assert ended.returncode == 64
    assert ended.stdout == ""
    assert "IMAGE_TAG" in ended.stderr
    assert "PUSH" in ended.stderr
    assert "engine" not in ended.stderr


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    script = f"import pathlib; from tier3.image.__main__ import checked; checked(pathlib.Path({str(tmp_path)!r}))"
    complaint = python("-c", script, PATH=str(tmp_path)).stderr
    for part in ("no Docker engine", "git is not installed", "no Dockerfile", "no .dockerignore"):
        assert part in complaint


def test_a_base_image_needs_mmdebstrap_and_an_engine(tmp_path: Path) -> None:
    ended = python("-m", "tier3.image.base", "base:1", PATH=str(tmp_path))
    assert ended.returncode == 69
    assert ended.stdout == ""
    assert "mmdebstrap is not installed" in ended.stderr
    assert "no Docker engine" in ended.stderr


class Api:
    """In the place of Docker's API: answers as it was told, and keeps what it was asked."""

    def __init__(self, version: dict[str, str], events: list[dict[str, Any]]) -> None:
        self.about, self.events = version, events
        self.params: dict[str, str] = {}
        self.asked: dict[str, Any] = {}
        self.timeout = 0.0

    def version(self) -> dict[str, str]:
        return self.about

    def build(self, **words: Any) -> Iterator[dict[str, Any]]:
        self.asked = words | {"params": dict(self.params)}
        yield from self.events


@pytest.mark.parametrize(
    ("version", "wanted", "builder"),
    [
        ({"ApiVersion": "1.41", "Os": "linux"}, True, "2"),
        ({"ApiVersion": "1.41", "Os": "linux"}, False, "1"),
        ({"ApiVersion": "1.38", "Os": "linux"}, True, "1"),
        ({"ApiVersion": "1.47", "Os": "windows"}, True, "1"),
    ],
)
def test_buildkit_builds_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, version: dict[str, str], wanted: bool, builder: str
) -> None:
    by_buildkit = {"id": "moby.image.id"} if builder == "2" else {}
    api = Api(version, [by_buildkit | {"aux": {"ID": "sha256:1"}}])
    monkeypatch.setattr(docker, "APIClient", lambda **_: api)
    wanted_build = engine.Build("name:tag", "runtime", b"", {}, {}, buildkit=wanted)
    assert engine.Engine().build(wanted_build) == "sha256:1"
    assert api.asked["params"] == {"version": builder}
    assert api.asked["target"] == "runtime"
    assert api.params == {}


class Registry(Api):
    """An engine that lacks an image, before a registry."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        super().__init__({"ApiVersion": "1.41", "Os": "linux"}, events)
        self.pulled: list[str] = []

    def inspect_image(self, name: str) -> None:
        if name not in self.pulled and name != "here:1":
            raise docker.errors.ImageNotFound(f"no such image: {name}")

    def pull(self, name: str, **words: Any) -> Iterator[dict[str, Any]]:
        self.pulled.append(name)
        yield from self.events


def test_a_base_image_is_pulled_where_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Registry([{"status": "Pulling"}, {"status": "Done"}])
    monkeypatch.setattr(docker, "APIClient", lambda **_: api)
    for name in ("here:1", "away:1", "away:1"):
        engine.Engine().fetch(name)
    assert api.pulled == ["away:1"]
    assert "pulled  (away:1)" in capsys.readouterr().err


def test_a_base_image_that_cannot_be_pulled_fails_in_the_registrys_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "APIClient", lambda **_: Registry([{"error": "manifest unknown"}]))
    with pytest.raises(BuildError, match="manifest unknown"):
        engine.Engine().fetch("away:1")


def test_the_dockerfiles_own_base_is_known() -> None:
    assert _default_base(ROOT) == "python:3.12-slim-bookworm"


def test_an_end_without_an_image_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "APIClient", lambda **_: Api({"ApiVersion": "1.41", "Os": "linux"}, []))
    with pytest.raises(BuildError, match="named no image"):
        engine.Engine().build(engine.Build("name:tag", "runtime", b"", {}, {}))


RESERVED = """
import contextlib, os, subprocess, sys
from collections.abc import Callable, Iterator
{function}
with stdout_reserved() as announce:
    print("printed")
    subprocess.run(["sh", "-c", "echo by a child; echo to stderr >&2"])
    {more}
    announce("the name\\n")
print("after")
"""


@pytest.mark.parametrize(
    ("more", "printed", "status"),
    [("pass", "the name\nafter\n", 0), ("raise SystemExit(3)", "", 3)],
    ids=["done", "failed"],
)
def test_the_noxfile_reserves_stdout(more: str, printed: str, status: int) -> None:
    source = (ROOT / "noxfile.py").read_text()
    [found] = [each for each in ast.parse(source).body if getattr(each, "name", "") == "stdout_reserved"]
    script = RESERVED.format(function=ast.unparse(found), more=more)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stdout == printed
    assert sorted(ended.stderr.splitlines()) == ["by a child", "printed", "to stderr"]
