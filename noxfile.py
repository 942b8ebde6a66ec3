# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2026.10.20"]
#
# [tool.nox]
# script-venv-backend = "uv"
# ///
"""The Tier 3 primitives of agent-executor, one session each; `nox -l` is the table of contents.

Words after `--` go to the tool that a session runs: `nox -s unit -- -k name`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "unit", "integration"]

HTML = "--cov-report=html:services/agent_executor/htmlcov"
TESTING = {
    "TESTING": "true",
    "LOG_LEVEL": os.environ.get("LOG_LEVEL", "info"),
    "VAULT_ADDR": os.environ.get("VAULT_ADDR", "http://localhost:8200"),
    "VAULT_TOKEN": os.environ.get("VAULT_TOKEN", "root"),
}

# More than cores, since tests wait for processes too.
WORKERS = min(4, (os.cpu_count() or 1) + 1)
# A worker has no terminal, and none is to be had without xdist.
NEED_ONE_PROCESS = {"--pdb", "--trace", "-s", "--capture=no", "no:xdist", "-pno:xdist"}
CHOOSE_FEW = {"-k", "--lf", "--last-failed", "--sw", "--stepwise"}

TESTS_PATH = os.environ.get("TESTS_PATH") or "tests/e2e/test_agent_executor_e2e.py"
ARTIFACTS_DIR = os.environ.get("ARTIFACTS_DIR") or "artifacts"


def sync(session: nox.Session, *groups: str, service: bool = True) -> None:
    """Bring the session's environment in step with uv.lock: the service, and these dependency groups.

    In the image test-runner, where nox makes no environments, everything is there already.
    """
    if session.venv_backend == "none":
        return
    here = session.virtualenv.location
    uv = ("uv", "sync", "--locked", "--quiet", "--compile-bytecode", f"--python={here}")
    option = "--group" if service else "--only-group"
    session.run_install(*uv, *(f"{option}={group}" for group in groups), env={"UV_PROJECT_ENVIRONMENT": here})


@contextlib.contextmanager
def stdout_reserved() -> Iterator[Callable[[str], object]]:
    """Send to stderr whatever the body and its children print, but for what the yielded function is given."""
    sys.stdout.flush()
    reserved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield lambda text: os.write(reserved, text.encode())
    finally:
        sys.stdout.flush()
        os.dup2(reserved, 1)
        os.close(reserved)


def are_named(session: nox.Session) -> bool:
    """Whether the arguments name files or directories of tests."""
    return any(Path(word.partition("::")[0]).exists() for word in session.posargs)


def tests(session: nox.Session, stage: str, *workers: str) -> None:
    """Run tests/<stage>, or what is named of it, with coverage, between banner and verdict; arguments go to pytest."""
    pytest = ("python", "-m", "pytest", "-p", "tier3.verdict", f"--stage={stage}", "--cov", HTML)
    spread = workers if NEED_ONE_PROCESS.isdisjoint(session.posargs) else ()
    session.run(*pytest, *spread, *([] if are_named(session) else [f"tests/{stage}"]), *session.posargs, env=TESTING)


@nox.session(tags=["local", "ci"])
def lint(session: nox.Session) -> None:
    """Ruff (rules and format) and mypy over everything. Arguments go to ruff check, e.g. --fix."""
    sync(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(tags=["local", "ci"])
def unit(session: nox.Session) -> None:
    """Fast tests that need no server, with coverage. Arguments go to pytest.

    All of them on some processes at once, but those that -k, --lf or a file chooses in one, which starts sooner.
    """
    sync(session, "test")
    are_few = are_named(session) or not CHOOSE_FEW.isdisjoint(session.posargs)
    tests(session, "unit", *([] if are_few else [f"--numprocesses={WORKERS}", "--dist=worksteal"]))


@nox.session(tags=["local", "ci"])
def integration(session: nox.Session) -> None:
    """Tests against real servers that it starts itself; --external uses those in the environment."""
    sync(session, "integration")
    tests(session, "integration", "--numprocesses=3", "--dist=loadgroup")


@nox.session(default=False, tags=["ci"])
def e2e(session: nox.Session) -> None:
    """Tests of a deployed service, from outside; artifacts/e2e.xml and e2e.log tell how it went.

    On the servers that NATS_URL, TEST_POSTGRES_URI, TEST_REDIS_URL, VAULT_ADDR and VAULT_TOKEN name, and by HTTP where
    AGENT_EXECUTOR_URL is set; also TESTS_PATH, ARTIFACTS_DIR. Arguments go to pytest.
    """
    sync(session, "e2e", service=False)
    check = ("python", "-m", "tier3.e2e", TESTS_PATH, ARTIFACTS_DIR)
    if wrong := session.run(*check, silent=True, stderr=None, success_codes=[0, 64]):
        session.error(wrong)
    reports = (f"--junit-xml={ARTIFACTS_DIR}/e2e.xml", f"--log-file={ARTIFACTS_DIR}/e2e.log", "--log-file-level=info")
    elsewhere_nothing = ("-p", "no:cacheprovider", "--capture=sys")  # a pod's root is read-only
    options = (*elsewhere_nothing, "--tb=short", *reports)  # longer ones show arguments, passwords among them
    session.run("python", "-m", "pytest", *options, TESTS_PATH, *session.posargs)


@nox.session(default=False, tags=["local", "ci"])
def faults(session: nox.Session) -> None:
    """Kills, cuts, freezes and restarts against real servers; -- --soak SECONDS and -- --long for more of it."""
    sync(session, "integration")
    options = ("--numprocesses=3", "--dist=worksteal")
    session.run("python", "-m", "pytest", "tests/faults", *options, *session.posargs, env=TESTING)


@nox.session(default=False, tags=["local", "ci"])
def image(session: nox.Session) -> None:
    """Build the images and test them in containers; needs a Docker engine. Arguments go to pytest."""
    sync(session, "integration", "e2e")
    session.run("python", "-m", "pytest", "tests/image", *session.posargs, env=TESTING)


@nox.session(default=False, tags=["local", "ci"])
def chain(session: nox.Session) -> None:
    """From this commit to an image proven in containers; needs a Docker engine, on Linux (BASE_IMAGE, BUILD_CA_FILE).

    Builds the images, starts servers and two replicas on a private network, and runs `e2e` there, also while a replica
    is killed and restarted. All but the images is removed in the end.
    """
    sync(session, "chain")
    module = ("python", "-m", "tier3.chain", *session.posargs)
    session.run(*module, interrupt_timeout=60, terminate_timeout=30)


@nox.session(default=False, tags=["local"])
def bench(session: nox.Session) -> None:
    """Ours beside the references, in one run on embedded servers: a table, artifacts/bench.json and bench.svg.

    All parts, or those that are named; -- --quick measures little, in two minutes. docs/performance.md has the parts.
    """
    sync(session, "bench")
    session.run("python", "-m", "tests.bench", *session.posargs)


@nox.session(default=False, tags=["local"])
def run(session: nox.Session) -> None:
    """The service on PORT (8080) with hot reload, on servers it starts itself unless the environment names others."""
    sync(session, "run")
    session.run("python", "-m", "tier3.run", *session.posargs, interrupt_timeout=10, terminate_timeout=10)


@nox.session(default=False, tags=["ci"])
def build(session: nox.Session) -> None:
    """Build the production image with Docker; stdout is its name (PR_NUMBER, IMAGE_TAG, DOCKER_REGISTRY).

    PUSH=true pushes it, BUILD_TARGET=test-runner builds the tests' image; docs/image.md has the rest.
    """
    with stdout_reserved() as announce:
        sync(session, "build", service=False)
        name = Path(session.create_tmp()) / "image-name"
        session.run("python", "-m", "tier3.image", "--name-to", str(name), *session.posargs)
        announce(name.read_text())


@nox.session(default=False, tags=["ci"])
def migrations(session: nox.Session) -> None:
    """Apply what is pending of MIGRATION_DIR to the database POSTGRES_* names; POSTGRES_PASSWORD is required.

    Also: -- down [N|to VERSION], status, plan, baseline VERSION, new WORDS; --help has the rest.
    """
    sync(session)
    session.run("python", "-m", "agent_executor", "migrate", *session.posargs)


@nox.session(default=False, tags=["local"])
def vault_init(session: nox.Session) -> None:
    """Prepare the Vault that VAULT_ADDR and VAULT_TOKEN name for the service: engine, policy, AppRole, Kubernetes.

    A second run changes nothing. ENABLE_K8S_AUTH=true adds Kubernetes. Credentials are made on request only: -- --wrap,
    --write FILE or --show-credentials; --help has the rest.
    """
    sync(session, "vault")
    session.run("python", "-m", "tier3.vault_init", *session.posargs)


@nox.session(default=False, tags=["local"])
def populate_secrets(session: nox.Session) -> None:
    """Put the service's secrets into Vault, from prompts; also -- --from-env FILE, --from-json -, --list, --verify.

    What is there is kept unless --replace. Nothing is shown, and nothing is taken from the command line.
    """
    sync(session, "vault")
    session.run("python", "-m", "tier3.populate_secrets", *session.posargs)
