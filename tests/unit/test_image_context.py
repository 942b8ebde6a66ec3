"""The context of a build: what .dockerignore lets in, and that the same content is the same bytes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from tier3.image import context
from tier3.image.errors import BuildError

ROOT = Path(__file__).parents[2]
KEPT_OUT = [
    *(".env", ".env.production", ".git/config", ".gitignore", ".nox/unit/lib/x.py", ".stack/vault/root.json"),
    *("id_rsa", "key.pem", "services/.env", "services/agent_executor/.env", "services/agent_executor/notes.txt"),
    *("services/agent_executor/htmlcov/index.html", "services/agent_executor/__pycache__/app.cpython-311.pyc"),
    *("services/agent_executor/sandbox/__pycache__/x.pyc", "migrations/dump.sql.gz", "migrations/old/001.sql"),
    *("tests/unit/.env", "tests/e2e/credentials.json", "tier3/image/token", "deploy/secret.py", "artifacts/bench.json"),
    *("tests/unit/test_job.py", "tests/integration/fixtures/keys.py", "tier3/image/engine.py", "tier3/stack/nats.py"),
]
LET_IN = [
    *("Dockerfile", "LICENSE", "README.md", "noxfile.py", "pyproject.toml", "run.sh", "uv.lock", "build-ca.pem"),
    *("migrations/001_words.up.sql", "services/agent_executor/app.py", "services/agent_executor/ledger.sql"),
    *("tests/__init__.py", "tests/e2e/test_agent_executor_e2e.py"),
    *("tier3/e2e.py", "tier3/image/stages.sh", "tier3/vault/access.py"),
]


def tree(place: Path, names: list[str]) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    shutil.copy(ROOT / ".dockerignore", place)
    return place


def test_only_what_is_named_enters(tmp_path: Path) -> None:
    assert context.names(tree(tmp_path, [*KEPT_OUT, *LET_IN])) == sorted(LET_IN)


def test_all_that_an_image_holds_enters() -> None:
    wanted = [
        *(ROOT / "migrations").glob("*.sql"),
        *(path for path in (ROOT / "services").rglob("*") if path.suffix in {".py", ".sql"}),
        *(ROOT / "tests/e2e").glob("*.py"),
        *(ROOT / "tier3/vault").glob("*.py"),
    ]
    assert len(wanted) > 50
    entering = set(context.names(ROOT))
    assert [path for path in wanted if path.relative_to(ROOT).as_posix() not in entering] == []


def test_the_dockerfile_copies_only_what_enters() -> None:
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    copied = [word for line in lines if "--from" not in line[1] for word in line[1:-1] if "[" not in word]
    assert "services" in copied
    entering = context.names(ROOT)
    assert [each for each in copied if not any(name == each or name.startswith(f"{each}/") for name in entering)] == []


def test_neither_clock_nor_umask_nor_order_changes_a_byte(tmp_path: Path) -> None:
    names = sorted(LET_IN)
    one, other = tree(tmp_path / "one", names), tree(tmp_path / "other", names[::-1])
    for place, mode, time_s in ((one, 0o600, 1), (other, 0o664, 2_000_000_000.5)):
        for name in names:
            (place / name).chmod(mode | (0o110 if name == "run.sh" else 0))
            os.utime(place / name, (time_s, time_s))
    assert context.pack(one) == context.pack(other)
    (other / "run.sh").chmod(0o644)
    assert context.pack(one) != context.pack(other)


def test_every_entry_is_roots_and_of_a_form_that_buildkit_takes(tmp_path: Path) -> None:
    packed = context.pack(tree(tmp_path, LET_IN), {context.CA: b"certificates"})
    assert packed[257:263] == b"ustar\0"
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        entries = tar.getmembers()
        found = tar.extractfile(context.CA)
        assert found is not None
        assert found.read() == b"certificates"
    assert {(entry.uid, entry.gid, entry.uname, entry.pax_headers == {}) for entry in entries} == {(0, 0, "", True)}
    assert len({entry.mtime for entry in entries}) == 1
    assert [entry.name for entry in entries if entry.isfile()] == sorted(LET_IN)
    directories = [entry.name for entry in entries if entry.isdir()]
    assert "services/agent_executor" in directories
    assert len(entries) == len(directories) + len(LET_IN)


def test_a_link_that_would_let_something_in_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, LET_IN)
    (tmp_path / "services/agent_executor/secret.py").symlink_to("/etc/passwd")
    with pytest.raises(BuildError, match=r"secret\.py is no regular file"):
        context.pack(tmp_path)
