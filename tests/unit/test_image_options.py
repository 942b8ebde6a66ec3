"""`nox -s build`: what the environment may ask for, what the image is called, and what git says of the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tier3.image import naming, options, revision
from tier3.image.errors import BuildError, Misconfigured

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("more", "tag"),
    [
        ({}, "0123456"),
        ({"dirty": True}, "0123456-dirty"),
        ({"pr_number": "17"}, "pr-17-0123456"),
        ({"pr_number": "17", "dirty": True}, "pr-17-0123456-dirty"),
        ({"target": "test-runner"}, "0123456-test-runner"),
        ({"target": "runtime"}, "0123456"),
    ],
)
def test_a_tag_tells_the_pull_request_the_commit_and_whether_it_is_one(more: dict[str, str], tag: str) -> None:
    assert naming.tag(SHA, **more) == tag  # type: ignore[arg-type]
    assert naming.is_tag(tag)


def test_the_registry_has_its_default() -> None:
    assert naming.name(options.read({}).registry, "0123456") == "95.216.151.243:30500/agent-executor:0123456"


@pytest.mark.parametrize(
    "registry",
    ["localhost", "localhost:5000", "registry.example", "r.example:443/team/a_b", "[::1]:5000", "ghcr.io/a--b", "team"],
)
def test_these_are_registries(registry: str) -> None:
    assert options.read({"DOCKER_REGISTRY": registry}).registry == registry


@pytest.mark.parametrize(
    "registry",
    [
        *(
            "https://r.example",
            "r.example/",
            "/team",
            "r.example:port",
            "r.example:123456",
            "r.example/Team",
            "-r.example",
        ),
        *("r_e.example", "r.example/a___b", "r.example//a", "user@r.example", "r.example\n", " r.example", "a" * 250),
    ],
)
def test_these_are_none(registry: str) -> None:
    with pytest.raises(Misconfigured, match="DOCKER_REGISTRY must be like"):
        options.read({"DOCKER_REGISTRY": registry})


@pytest.mark.parametrize("tag", ["1", "v1.2_3-x", "_x", "A" * 128])
def test_these_are_tags(tag: str) -> None:
    assert options.read({"IMAGE_TAG": tag}).image_tag == tag


@pytest.mark.parametrize("tag", [".x", "-x", "a b", "a:b", "a/b", "ü", "A" * 129, "x\n", "$(id)"])
def test_these_are_no_tags(tag: str) -> None:
    with pytest.raises(Misconfigured, match="IMAGE_TAG must be a tag"):
        options.read({"IMAGE_TAG": tag})


def test_all_that_is_bad_is_named_in_one_message_without_its_value(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    bad = {
        **{"PR_NUMBER": "-3x", "IMAGE_TAG": "a b", "DOCKER_REGISTRY": "HTTP://x", "BUILD_TARGET": "dependencies"},
        **{"PUSH": "yes", "DOCKER_BUILDKIT": "2", "BUILD_CA_FILE": str(key)},
        "BUILD_INDEX_URL": "https://user:hunter2@index.example/simple",
    }
    with pytest.raises(Misconfigured) as raised:
        options.read(bad)
    assert [name for name in bad if name not in str(raised.value)] == []
    assert "hunter2" not in str(raised.value)
    assert raised.value.exit_status == 64


def test_what_is_empty_counts_as_not_set() -> None:
    assert options.read(
        dict.fromkeys([*options.DEFAULTS, "PR_NUMBER", "IMAGE_TAG", "BUILD_CA_FILE"], "")
    ) == options.read({})


def test_only_what_is_set_overrides_the_dockerfile() -> None:
    assert options.read({}).build_args == {}
    given = {"BASE_IMAGE": "base:1", "BUILD_INDEX_URL": "https://index.example/simple", "HOME": "/root"}
    assert options.read(given).build_args == {"BASE_IMAGE": "base:1", "INDEX_URL": "https://index.example/simple"}


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://user:hunter2@code.example/team/project.git", "https://code.example/team/project"),
        ("https://code.example:8443/project", "https://code.example:8443/project"),
        ("git@code.example:team/project.git", "https://code.example/team/project"),
        ("ssh://git@code.example:2222/team/project.git", "https://code.example/team/project"),
        *(("/srv/project", None), ("../project", None), ("file:///srv/project", None), ("", None), ("./a:b", None)),
    ],
)
def test_the_source_is_an_address_for_others_without_credentials(remote: str, address: str | None) -> None:
    assert revision.web_address(remote) == address


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    (tmp_path / "file").write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "one")
    return tmp_path


def git(place: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=place, check=True)


def test_a_clean_tree_is_its_commit(repository: Path) -> None:
    found = revision.read(repository)
    assert not found.dirty
    assert found.source is None
    labels = found.labels("1.2.3")
    assert labels["org.opencontainers.image.revision"] == found.sha
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert labels["org.opencontainers.image.created"] == found.committed_at
    assert "org.opencontainers.image.source" not in labels


@pytest.mark.parametrize("name", ["file", "another"], ids=["changed", "added"])
def test_a_tree_that_differs_from_its_commit_is_dirty(repository: Path, name: str) -> None:
    (repository / name).write_text("2")
    git(repository, "remote", "add", "origin", "git@code.example:a/b.git")
    found = revision.read(repository)
    assert found.dirty
    labels = found.labels("1")
    assert labels["org.opencontainers.image.revision"] == f"{found.sha}-dirty"
    assert labels["org.opencontainers.image.source"] == "https://code.example/a/b"


def test_what_git_lacks_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not a git repository" in (revision.problem(tmp_path) or "")
    with pytest.raises(BuildError, match="not a git repository"):
        revision.read(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision.problem(tmp_path) == "git is not installed"
