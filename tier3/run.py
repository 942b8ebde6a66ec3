"""`nox -s run`: the service with hot reload, on embedded servers.

Owns what a developer's machine needs and production has otherwise: servers, a migrated database, a Vault with the
service's secrets, a reloader. The servers live here, outside the reloader, so that a reload finds them, and the jobs in
them, as they were. Their data is kept in .stack/. A server that the environment or .env names is used instead of the
embedded one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from secrets import token_urlsafe

import psycopg
from dotenv import dotenv_values

from agent_executor.migrate import MigrationError
from agent_executor.migrate import settings as migration_settings
from agent_executor.migrate import up as migrate
from tier3 import populate_secrets, vault_init
from tier3.stack import ServerError, Stack, Vault, start
from tier3.stack.process import LAUNCH, OWN_UID
from tier3.vault.errors import SessionError

ROOT = Path(__file__).parents[1]
DATABASE = "langgraph_dev"
STOP_S = 5.0
_READY_S = 60.0
_NAMED_BY = {
    "postgres": ("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"),
    "nats": ("NATS_URL",),
    "redis": ("REDIS_URL",),
    "vault": ("VAULT_ADDR",),
}
_DEFAULTS = {
    "PORT": "8080",
    "LOG_LEVEL": "debug",
    "VAULT_TOKEN": "root",
    "SHUTDOWN_GRACE_S": "1",
    "AUTH_MODE": "none",  # uvicorn listens on 127.0.0.1
    "TOOL_SANDBOX": "best-effort",  # a developer's machine may be a Mac, or a container without Landlock
}

_IN_VAULT = {
    "POSTGRES_HOST": ("postgres", "host"),
    "POSTGRES_PORT": ("postgres", "port"),
    "POSTGRES_DB": ("postgres", "database"),
    "POSTGRES_USER": ("postgres", "username"),
    "POSTGRES_PASSWORD": ("postgres", "password"),
    "REDIS_URL": ("redis", "url"),
    "NATS_URL": ("nats", "url"),
}

GUIDE = """
  agent-executor runs; Ctrl-C stops it and its servers, what is in them stays in .stack/

    API         {base}
    API docs    {base}/docs
    ready?      {base}/ready
{servers}
  Send a job, then watch it:

    curl -s {base}/v1/jobs -H 'Content-Type: application/json' -d @examples/adder.json
    curl -sN {base}/v1/jobs/{job_id}/events
"""


def main() -> int:
    """Run until interrupted; the exit status is 0, or 1 with the reason on stderr."""
    environment = {**_DEFAULTS, **_dotenv(ROOT / ".env"), **os.environ}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not _is_port(environment["PORT"]):
        print("run: PORT must be a number from 1 to 65535", file=sys.stderr)
        return 1
    wanted = embedded(environment)
    try:
        with start(ROOT / ".stack", kinds=wanted, standard_ports=True, durable=True) as stack:
            found = addresses(stack)
            migrate(migration_settings({**environment, **found, "MIGRATION_DIR": str(ROOT / "migrations")}))
            environment |= found
            if "vault" in stack.servers:
                environment = through_vault(environment, found, stack.vault)
            with service(environment) as process:
                _guide(environment, stack, process)
                return process.wait()
    except (ServerError, MigrationError, SessionError) as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def embedded(environment: Mapping[str, str]) -> list[str]:
    """Kinds of servers that the environment does not name."""
    return [kind for kind, names in _NAMED_BY.items() if not any(environment.get(name) for name in names)]


def addresses(stack: Stack) -> dict[str, str]:
    """Variables that lead the service to the servers of `stack`; makes the database."""
    found: dict[str, str] = {}
    if "postgres" in stack.servers:
        server = stack.postgres
        with contextlib.suppress(psycopg.errors.DuplicateDatabase):
            server.create_database(DATABASE)
        found = {
            "POSTGRES_HOST": server.host,
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": DATABASE,
            "POSTGRES_USER": server.user,
            "POSTGRES_PASSWORD": server.password,
        }
    if "nats" in stack.servers:
        found["NATS_URL"] = stack.nats.url
    if "redis" in stack.servers:
        found["REDIS_URL"] = stack.redis.url
    if "vault" in stack.servers:
        found |= {"VAULT_ADDR": stack.vault.addr, "VAULT_TOKEN": stack.vault.token}
    return found


def through_vault(environment: Mapping[str, str], found: Mapping[str, str], vault: Vault) -> dict[str, str]:
    """Prepare Vault as an operator does, and let the service learn from it what `found` says, as in production.

    Returns the service's environment: how it logs in, and nothing of the servers but what the user named.
    """
    operator = {"VAULT_ADDR": vault.addr, "VAULT_TOKEN": vault.token}
    secrets: dict[str, dict[str, str]] = {"e2e": {"api_key": token_urlsafe(32)}}
    for name, (secret, field) in _IN_VAULT.items():
        if name in found:
            secrets.setdefault(secret, {})[field] = found[name]
    with tempfile.TemporaryDirectory() as private, contextlib.redirect_stdout(io.StringIO()):  # 0700
        login, given = Path(private, "login"), Path(private, "secrets")
        given.write_text(json.dumps(secrets))
        vault_init.main(["--write", str(login)], operator)
        populate_secrets.main(["--from-json", str(given)], operator)
        own = {name: value for name, value in environment.items() if name not in _IN_VAULT and name[:6] != "VAULT_"}
        named = {name: value for name, value in environment.items() if name in _IN_VAULT and name not in found}
        return {**own, **named, **_dotenv(login), "VAULT_ADDR": vault.addr}


@contextlib.contextmanager
def service(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """uvicorn with its reloader, in a session of its own: Ctrl-C in a terminal reaches only us."""
    watched = sys.platform != "linux"  # elsewhere launch.py leaves a watcher that holds this pipe from us
    launch = [sys.executable, "-I", "-S", LAUNCH, os.getpid(), signal.SIGTERM.value, OWN_UID, int(watched)]
    uvicorn = [
        *(sys.executable, "-m", "uvicorn", "--factory", "agent_executor.app:main"),
        *("--http", "agent_executor.connections:Connection", "--ws", "none", "--no-server-header"),
        *("--port", environment["PORT"], "--no-access-log"),
        *("--reload", "--reload-dir", ROOT / "services", "--reload-include", "*.sql"),
        *("--timeout-graceful-shutdown", "2"),
    ]
    process = subprocess.Popen(
        [str(word) for word in [*launch, *uvicorn]],
        cwd=ROOT,
        env=dict(environment),
        stdin=subprocess.PIPE if watched else subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _guide(environment: Mapping[str, str], stack: Stack, process: subprocess.Popen[bytes]) -> None:
    """Print where things are, once the service is ready."""
    base = f"http://localhost:{environment['PORT']}"
    deadline = time.monotonic() + _READY_S
    while not _answers(f"{base}/ready"):
        if process.poll() is not None or time.monotonic() > deadline:
            return  # its log says why
        time.sleep(0.1)
    servers = "".join(f"    {server.name:<11} {server.url}\n" for server in stack.servers.values())
    job_id = json.loads((ROOT / "examples/adder.json").read_text())["job_id"]
    print(GUIDE.format(base=base, servers=servers, job_id=job_id), flush=True)


def _is_port(word: str) -> bool:
    return word.isascii() and word.isdecimal() and 0 < int(word) < 65536


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _dotenv(path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(path).items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
