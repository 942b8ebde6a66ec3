"""`python -m tier3.image.base NAME`: a base image from Debian's packages, for where no image registry can be reached.

It is Debian's smallest system with python3, its venv module and certificates. mmdebstrap makes it, from the mirror that
DEBIAN_MIRROR names if that is set, and the engine imports it; then `BASE_IMAGE=NAME nox -s build` builds on it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tier3.image.engine import Engine
from tier3.image.errors import BuildError, Unavailable
from tier3.image.progress import say

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make it; the exit status. The name is printed on stdout."""
    parser = argparse.ArgumentParser(prog="python -m tier3.image.base", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="e.g. agent-executor-base:bookworm")
    name = parser.parse_args(arguments).name
    try:
        say(f"base: {name} is {make(name, os.environ.get('DEBIAN_MIRROR'))}")
    except BuildError as error:
        say(f"base: {error}")
        return error.exit_status
    print(name)
    return 0


def make(name: str, mirror: str | None = None) -> str:
    """Make the image `name`, and return its id; Unavailable names all that is missing for it."""
    missing = [] if shutil.which("mmdebstrap") else ["mmdebstrap is not installed (Debian's package mmdebstrap)"]
    try:
        engine = Engine()
    except BuildError as error:
        missing.append(str(error))
    if missing:
        raise Unavailable("\n  ".join(["cannot make a base image:", *missing]))
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, "-"]
    with subprocess.Popen([*command, *([mirror] if mirror else [])], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        made = engine.take_in(process.stdout, name)
    if process.returncode:
        raise BuildError(f"mmdebstrap failed with exit status {process.returncode}")
    return made


if __name__ == "__main__":
    sys.exit(main())
