"""What an image is called: `${DOCKER_REGISTRY}/agent-executor:${tag}`.

Names are held against the grammar of the OCI distribution spec and of Docker's references (distribution/reference)
before anything is built, since an engine says so only after the build.
"""

from __future__ import annotations

import re

IMAGE = "agent-executor"
DEFAULT_TARGET = "runtime"
MOST_CHARACTERS = 255

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = re.compile(rf"{_HOST}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")


def tag(sha: str, *, dirty: bool = False, pr_number: str = "", target: str = DEFAULT_TARGET) -> str:
    """The tag of a commit: `pr-<PR_NUMBER>-<sha7>` or `<sha7>`, then what else tells this image from another."""
    pull_request = f"pr-{pr_number}-" if pr_number else ""
    other_target = f"-{target}" if target != DEFAULT_TARGET else ""
    return f"{pull_request}{sha[:7]}{'-dirty' if dirty else ''}{other_target}"


def name(registry: str, tag: str) -> str:
    """The whole name."""
    return f"{registry}/{IMAGE}:{tag}"


def is_registry(text: str) -> bool:
    """Whether images can be named below `text`: a host, perhaps a port, perhaps a path."""
    return bool(_REGISTRY.fullmatch(text)) and len(f"{text}/{IMAGE}") <= MOST_CHARACTERS


def is_tag(text: str) -> bool:
    """Whether `text` can be a tag."""
    return bool(_TAG.fullmatch(text))
