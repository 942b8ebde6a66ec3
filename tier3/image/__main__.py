"""`python -m tier3.image`: build the image of this commit, push it if asked, and print its name and nothing else.

Everything else goes to stderr. What is missing is named before anything is done. Exit status: 0 built, 1 failed,
64 bad variables, 69 something that a build needs is not here.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tier3.image import context, naming, options, revision
from tier3.image.engine import Build, Engine
from tier3.image.errors import BuildError, Unavailable
from tier3.image.options import Options
from tier3.image.progress import say

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Build; the exit status."""
    parser = argparse.ArgumentParser(prog="nox -s build --", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--name-to", type=Path, metavar="FILE", help="write the name there instead of to stdout")
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    told = parser.parse_args(arguments)
    try:
        name = made(options.read(environment), ROOT, cached=not told.no_cache)
    except BuildError as error:
        say(f"build: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        say("build: interrupted")
        return 130
    if told.name_to:
        told.name_to.write_text(f"{name}\n")
    else:
        print(name)
    return 0


def made(wanted: Options, root: Path, *, cached: bool = True) -> str:
    """Build, and push if that is wanted; returns the image's name."""
    began = time.monotonic()
    engine = checked(root)
    commit = revision.read(root)
    tag = wanted.image_tag or naming.tag(
        commit.sha, dirty=commit.dirty, pr_number=wanted.pr_number, target=wanted.target
    )
    name = naming.name(wanted.registry, tag)
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    build = Build(
        name=name,
        target=wanted.target,
        context=context.pack(root, {context.CA: wanted.ca_file.read_bytes()} if wanted.ca_file else {}),
        labels=commit.labels(version),
        build_args=wanted.build_args,
        network=wanted.network,
        buildkit=wanted.buildkit,
        cached=cached,
    )
    say(f"build: {name} ({wanted.target}), {engine}")
    engine.fetch(wanted.build_args.get("BASE_IMAGE") or _default_base(root))
    image_id = engine.build(build)
    say(f"build: {image_id} in {time.monotonic() - began:.1f} s")
    if wanted.push:
        say(f"build: pushed as {name.rpartition(':')[0]}@{engine.push(name)}")
    if wanted.github_output:
        with wanted.github_output.open("a") as output:
            output.write(f"image={name}\n")
    return name


def _default_base(root: Path) -> str:
    """The base image that the Dockerfile names."""
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", (root / "Dockerfile").read_text(), re.MULTILINE)
    if found is None:
        raise BuildError("the Dockerfile names no BASE_IMAGE")
    return found[1]


def checked(root: Path) -> Engine:
    """The engine; Unavailable names all that a build needs and is not here."""
    missing = [problem for problem in (revision.problem(root),) if problem]
    missing += [f"no {name} in {root}" for name in ("Dockerfile", ".dockerignore") if not (root / name).is_file()]
    engine = None
    try:
        engine = Engine()
    except BuildError as error:
        missing.insert(0, str(error))
    if engine is None or missing:
        raise Unavailable("\n  ".join(["cannot build:", *missing]))
    return engine


if __name__ == "__main__":
    sys.exit(main())
