"""The chain: base image, images, servers, migration, secrets, two replicas, the tests, the tests again under a kill."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import certifi
import httpx
import psycopg
from docker.models.containers import Container

from tier3.chain import accounts, builds, pod, servers
from tier3.chain.builds import ROOT
from tier3.chain.errors import ChainError, NotYet
from tier3.chain.place import Place, ended, tail, until
from tier3.chain.servers import DATABASE, Servers
from tier3.chain.token_reviews import service_account_token
from tier3.image import base
from tier3.image.engine import Engine
from tier3.image.progress import step

BASE_IMAGE = "agent-executor-base:bookworm"
REPLICAS = ("service-1", "service-2")
SERVICE = "agent-executor"
MANY = 3
_BUSY = """
    select split_part(lease_owner, ':', 1), count(*) from agent_executor.jobs
     where status = 'running' group by 1 having count(*) >= %s
"""
_TAKEN_OVER = "select count(*) from agent_executor.jobs where attempt > 1 and status = 'completed'"


class Chain:
    """One run. Each method is a step, and they go in this order."""

    def __init__(self, place: Place, directory: Path, environment: Mapping[str, str]) -> None:
        self._place = place
        self._directory = directory
        self._environment = environment

    def run(self) -> None:
        """All of it; ChainError names the link that did not hold."""
        with _timed("base image") as note:
            base_image, note[0] = self._base_image()
        targets = ("runtime", "test-runner")
        with builds.begun(
            *targets, base_image=base_image, environment=self._environment, directory=self._directory
        ) as begun:
            with _timed("servers in containers, while the images are built"):
                servers.build(base_image)
                running = servers.start(self._place)
                running.prepare()
            with _timed("images") as note:
                image, tests_image = (build.name() for build in begun)
                note[0] = f"{image}, {tests_image}"
        with _timed("migrations, by the image"):
            postgres = {
                "POSTGRES_HOST": "postgres",
                "POSTGRES_DB": DATABASE,
                "POSTGRES_USER": "postgres",
                "POSTGRES_PASSWORD": running.secrets.postgres,
            }
            command = ["python", "-m", "agent_executor", "migrate"]
            self._place.run("migrate", image, command, environment=postgres, **pod.MIGRATION)
        with _timed("Vault, by vault_init and populate_secrets"):
            command = ["python", "-m", "agent_executor", "api-key", "new", "e2e", "--scopes", accounts.SCOPES]
            key = self._place.run("api-key", image, command, environment=postgres, **pod.MIGRATION).strip()
            self._fill_vault(running, key)
        with _timed(f"{len(REPLICAS)} replicas, ready"):
            replicas = self._start(image)
            for replica in replicas.values():
                self._until_ready(replica)
        told = self._told(running)
        with _timed("nox -s e2e, in the test-runner") as note:
            note[0] = summary(self._place.run("tests-1", tests_image, environment=told, **pod.TESTS))
        with _timed("nox -s e2e, while a replica is killed and restarted") as note:
            note[0] = self._tests_under_a_kill(running, tests_image, told, replicas)
        with _timed("replicas, told to stop"):
            for replica in replicas.values():
                replica.stop(timeout=40)
                ended(replica)

    def _base_image(self) -> tuple[str, str]:
        """Its name: BASE_IMAGE, else the one that is made of Debian's packages where it is not there yet."""
        if given := self._environment.get("BASE_IMAGE"):
            return given, f"{given}, from BASE_IMAGE"
        if Engine().has(BASE_IMAGE):
            return BASE_IMAGE, f"{BASE_IMAGE} was there"
        base.make(BASE_IMAGE, self._environment.get("DEBIAN_MIRROR"))
        return BASE_IMAGE, f"{BASE_IMAGE}, of Debian's packages"

    def _fill_vault(self, running: Servers, key: str) -> None:
        """As an operator does it."""
        certificate = self._directory / "ca.pem"  # of an authority that nobody is asked about: the stand-in has no TLS
        first = re.search("-----BEGIN.*?END CERTIFICATE-----\n", Path(certifi.where()).read_text(), re.DOTALL)
        certificate.write_text(first[0] if first else "")
        reviewer = self._directory / "reviewer.jwt"
        reviewer.write_text("reviewer")
        vault = {
            "VAULT_ADDR": running.vault_addr,
            "VAULT_TOKEN": running.secrets.vault,
            "ENABLE_K8S_AUTH": "true",
            "KUBERNETES_HOST": servers.REVIEWS,
            "KUBERNETES_CA_FILE": str(certificate),
            "KUBERNETES_REVIEWER_JWT_FILE": str(reviewer),
        }
        known = running.secrets
        account = {"username": "postgres", "password": known.postgres}
        given = {
            "postgres": {"host": "postgres", "port": "5432", "database": DATABASE, **account},
            "redis": {"url": f"redis://:{known.redis}@redis:6379/0"},
            "nats": {"url": f"nats://service:{known.nats}@nats:4222"},
            "e2e": {"api_key": key},
        }
        _session("tier3.vault_init", vault)
        _session("tier3.populate_secrets", vault, "--from-json", "-", given=json.dumps(given))

    def _start(self, image: str) -> Mapping[str, Container]:
        """The replicas, which know nothing but Vault and their pod's token."""
        environment = {**pod.settings(), "VAULT_ADDR": "http://vault:8200"}
        token = Path(environment["VAULT_K8S_TOKEN_PATH"])
        volume = self._place.volume("token", image, {token.name: service_account_token(life_s=3600)})
        options = {**pod.SERVICE, "volumes": {volume: {"bind": str(token.parent), "mode": "ro"}}}
        return {
            name: self._place.start(name, image, aliases=[SERVICE], environment=environment, **options)
            for name in REPLICAS
        }

    def _until_ready(self, replica: Container) -> None:
        def ready() -> bool:
            answer = httpx.get(f"http://{self._place.address(replica)}:8080/ready", timeout=5)
            if not answer.is_success or not all(answer.json()["services"].values()):
                raise NotYet(f"{answer.status_code} {answer.text}")
            return True

        until(ready, f"{replica.name} is not ready", httpx.TransportError)

    def _told(self, running: Servers) -> dict[str, str]:
        """What the pod of the tests is told; the accounts are made."""
        password = running.secrets.e2e
        accounts.postgres(running.dsn(), password)
        with running.vault() as client:
            token = accounts.vault(client, "agent-executor")
        return {
            "NATS_URL": f"nats://{accounts.USER}:{password}@nats:4222",
            "TEST_POSTGRES_URI": f"postgresql://{accounts.USER}:{password}@postgres:5432/{DATABASE}",
            "TEST_REDIS_URL": f"redis://{accounts.USER}:{password}@redis:6379/0",
            "VAULT_ADDR": "http://vault:8200",
            "VAULT_TOKEN": token,
            "AGENT_EXECUTOR_URL": f"http://{SERVICE}:8080",
        }

    def _tests_under_a_kill(
        self, running: Servers, tests_image: str, told: Mapping[str, str], replicas: Mapping[str, Container]
    ) -> str:
        """Kill a replica while it runs several jobs of the tests, start it again, and wait for the tests' end."""
        tests = self._place.start("tests-2", tests_image, environment=told, **pod.TESTS)
        with psycopg.connect(running.dsn(), autocommit=True) as connection:

            def busy() -> tuple[str, int] | None:
                tests.reload()
                found = connection.execute(_BUSY, [MANY]).fetchone()
                if not found and tests.status == "exited":
                    raise ChainError(f"the tests ended before a replica could be killed:\n{tail(tests)}")
                return found

            name, jobs = until(busy, f"no replica runs {MANY} jobs")
            replicas[name].kill()
            replicas[name].start()
            self._until_ready(replicas[name])
            passed = summary(ended(tests))
            (taken_over,) = connection.execute(_TAKEN_OVER).fetchone() or (0,)
        return f"{passed}; {name} had {jobs} jobs, {taken_over} were taken over"


def _session(module: str, environment: Mapping[str, str], *words: str, given: str = "") -> None:
    """Run what a session runs."""
    ran = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise ChainError(f"{module} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")


def summary(printed: str) -> str:
    """The line that says how many tests passed."""
    found = re.findall(r"=+ (\d+ passed.*) =+", printed)
    if not found:
        raise ChainError(f"the tests say nothing of their success:\n{printed}")
    return str(found[-1])


@contextmanager
def _timed(name: str) -> Iterator[list[str]]:
    """Tell the step when it is done, with its seconds, and with what is put into the list."""
    began, note = time.monotonic(), [""]
    try:
        yield note
    except BaseException:
        step(time.monotonic() - began, name, "failed")
        raise
    step(time.monotonic() - began, name, note[0])


def run(environment: Mapping[str, str], place: Place) -> None:
    """Run the chain there."""
    with tempfile.TemporaryDirectory(prefix="agent-executor-chain-") as directory:
        Chain(place, Path(directory), environment).run()
