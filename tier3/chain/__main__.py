"""`python -m tier3.chain`: the whole chain on this machine's Docker engine, with one line on stderr for each step.

What it made in the engine is removed in the end, also after a failure, Ctrl-C or SIGTERM; images stay, since the next
run builds on them. Exit status: 0 proven, 1 a link did not hold, 69 no engine or no way to a base image.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import httpx
import psycopg
from docker.errors import DockerException
from redis.exceptions import RedisError
from requests.exceptions import RequestException

from agent_executor.redaction import redact
from tier3.chain import steps
from tier3.chain.errors import ChainError
from tier3.chain.place import Place
from tier3.image.engine import Engine
from tier3.image.errors import BuildError, Unavailable
from tier3.image.progress import say
from tier3.stack import ServerError
from tier3.stack.launch import die_with

_FAILURES = (
    *(ChainError, BuildError, ServerError, DockerException, RequestException, OSError),
    *(httpx.HTTPError, psycopg.Error, RedisError),
)


def main() -> int:
    """Run it; the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.platform == "linux":
        die_with(os.getppid(), signal.SIGTERM)  # nox passes no SIGTERM on
    try:
        say(f"chain: {Engine()}")
    except BuildError as error:
        say(f"chain: {error}")
        return Unavailable.exit_status
    began = time.monotonic()
    try:
        status = _chain()
    except KeyboardInterrupt:
        say("chain: interrupted")
        status = 130
    except (DockerException, RequestException) as error:
        say(f"chain: {error}")
        status = 1
    say(f"chain: {'proven' if status == 0 else 'NOT proven'} in {time.monotonic() - began:.1f} s")
    return status


def _chain() -> int:
    place = Place()
    status = 1
    try:
        steps.run(os.environ, place)
        status = 0
    except _FAILURES as error:
        for name, lines in place.tails():
            say(redact(f"{name}:\n{lines}"))
        say(redact(f"chain: {error}"))
        status = error.exit_status if isinstance(error, BuildError) else 1
    finally:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        began = time.monotonic()
        try:
            place.remove()
            say(f"{time.monotonic() - began:7.1f} s  removed: containers, network, volumes")
        except ChainError as error:
            say(f"chain: {error}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
