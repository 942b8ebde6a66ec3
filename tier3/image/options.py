"""The environment of a build, read once; every bad variable is named in one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tier3.image import naming
from tier3.image.errors import Misconfigured

TARGETS = (naming.DEFAULT_TARGET, "test-runner")
DEFAULTS = {
    "DOCKER_REGISTRY": "95.216.151.243:30500",
    "BUILD_TARGET": naming.DEFAULT_TARGET,
    "PUSH": "false",
    "DOCKER_BUILDKIT": "1",
}
KNOWN = (
    *DEFAULTS,
    *("PR_NUMBER", "IMAGE_TAG", "BASE_IMAGE", "BUILD_CA_FILE", "BUILD_INDEX_URL", "BUILD_NETWORK", "GITHUB_OUTPUT"),
)


def _is_index(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False


def _is_bundle(text: str) -> bool:
    try:
        found = Path(text).read_bytes()
    except OSError:
        return False
    return b"BEGIN CERTIFICATE" in found and b"PRIVATE KEY" not in found


_RULES: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "DOCKER_REGISTRY": (naming.is_registry, "must be like registry.example:5000 or registry.example/team"),
    "IMAGE_TAG": (naming.is_tag, "must be a tag: letters, digits, _ . - and 128 characters at most"),
    "PR_NUMBER": (lambda text: text.isascii() and text.isdecimal() and len(text) <= 20, "must be a number"),
    "BUILD_TARGET": (lambda text: text in TARGETS, f"must be one of {', '.join(TARGETS)}"),
    "PUSH": (lambda text: text in {"true", "false"}, "must be true or false"),
    "DOCKER_BUILDKIT": (lambda text: text in {"0", "1"}, "must be 0 or 1"),
    "BUILD_CA_FILE": (_is_bundle, "must name a file of certificates in PEM, without keys"),
    "BUILD_INDEX_URL": (_is_index, "must be an http or https URL without credentials, which the engine would keep"),
}


@dataclass(frozen=True)
class Options:
    """What the environment asks for."""

    registry: str
    image_tag: str
    pr_number: str
    target: str
    push: bool
    buildkit: bool
    network: str | None
    ca_file: Path | None
    github_output: Path | None
    build_args: Mapping[str, str]


def read(environment: Mapping[str, str]) -> Options:
    """What `environment` asks for; an empty variable counts as not set. Misconfigured names all that is bad."""
    given = DEFAULTS | {name: environment[name] for name in KNOWN if environment.get(name)}
    bad = [f"{name} {why}" for name, (is_good, why) in _RULES.items() if name in given and not is_good(given[name])]
    if bad:
        raise Misconfigured(f"bad environment variables: {'; '.join(bad)}")
    args = {"BASE_IMAGE": given.get("BASE_IMAGE"), "INDEX_URL": given.get("BUILD_INDEX_URL")}
    return Options(
        registry=given["DOCKER_REGISTRY"],
        image_tag=given.get("IMAGE_TAG", ""),
        pr_number=given.get("PR_NUMBER", ""),
        target=given["BUILD_TARGET"],
        push=given["PUSH"] == "true",
        buildkit=given["DOCKER_BUILDKIT"] == "1",
        network=given.get("BUILD_NETWORK"),
        ca_file=_path(given.get("BUILD_CA_FILE")),
        github_output=_path(given.get("GITHUB_OUTPUT")),
        build_args={name: value for name, value in args.items() if value},
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
