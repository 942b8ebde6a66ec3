"""Whether this process listens on loopback alone.

uvicorn opens the port after the application has started, so its command line is asked, by its own parser, which knows
UVICORN_HOST as well. Whoever starts the application otherwise is not known to listen on loopback.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit


def is_loopback(host: object) -> bool:
    """Whether `host`, an address or a name, is this machine's own and no other's."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def named_host(url: str) -> str:
    """The host that a URL names, empty if it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def listens_on_loopback(command: Sequence[str] | None = None) -> bool:
    """Whether `command`, by default that of this process, is uvicorn's and has it listen on loopback alone."""
    program, *words = sys.argv if command is None else command
    names = {os.path.basename(program), os.path.basename(os.path.dirname(program))}  # noqa: PTH119, PTH120
    if "uvicorn" not in names:
        return False
    import click
    from uvicorn.main import main

    try:
        parameters = main.make_context("uvicorn", list(words)).params
    except (click.ClickException, click.exceptions.Exit):
        return False
    return parameters["uds"] is None and parameters["fd"] is None and is_loopback(parameters["host"])
