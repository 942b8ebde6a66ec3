"""`nox -s populate_secrets`, without nox, against a real OpenBao, PostgreSQL, Redis and NATS."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as Client

from tests.integration.fixtures.operator import POPULATE, Gate, Operator, client, documented_rights
from tests.integration.fixtures.postgres import ROOT, Database
from tier3.stack import Redis, Stack
from tier3.stack.ports import free_port

CANARY = "canary-4711-canary"
POSTGRES = {"host": "db.example", "port": "5432", "database": "d", "username": "u", "password": f"{CANARY}-pg"}
SECRETS = {
    "postgres": POSTGRES,
    "redis": {"url": f"redis://:{CANARY}-redis@redis.example:6379/0"},
    "nats": {"url": f"nats://u:{CANARY}-nats@nats.example:4222"},
    "e2e": {"api_key": f"{CANARY}-e2e"},
    "llm-providers/openai": {"api_key": f"{CANARY}-openai", "base_url": "https://openai.example/v1"},
}
ENV = f"""
# what the service reads
POSTGRES_HOST=db.example
POSTGRES_PORT=5432
POSTGRES_DB=d
POSTGRES_USER=u
POSTGRES_PASSWORD='{CANARY}-pg'
REDIS_URL=redis://:{CANARY}-redis@redis.example:6379/0
NATS_URL=nats://u:{CANARY}-nats@nats.example:4222
E2E_API_KEY={CANARY}-e2e
OPENAI_API_KEY={CANARY}-openai
OPENAI_BASE_URL=https://openai.example/v1
LOG_LEVEL=debug
"""
RIGHTS = {
    "secret/data/agent-executor/*": ["create", "read", "update"],
    "secret/metadata/agent-executor/*": ["list"],
}


def put(operator: Operator, secrets: Any, *words: str, **settings: str) -> tuple[int, str]:
    """populate_secrets --from-json - ; the canary appears nowhere in what it says."""
    status, output = operator.populate("--from-json", "-", *words, typed=json.dumps(secrets), **settings)
    assert CANARY not in output
    return status, output


def table(output: str) -> dict[str, list[str]]:
    """The rows of the table by their first cell."""
    rows = [[cell.strip() for cell in re.split(r"\s{2,}", line.strip())] for line in output.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def test_json_on_standard_input_fills_an_empty_mount(operator: Operator) -> None:
    status, output = put(operator, SECRETS)
    assert status == 0, output
    assert {path: operator.secret(path) for path in SECRETS} == {path: (each, 1) for path, each in SECRETS.items()}
    assert table(output)["postgres"] == ["made", "1", "host, port, database, username, password"]


def test_a_env_file_fills_it_too(operator: Operator) -> None:
    file = operator.home / "secrets.env"
    file.write_text(ENV)
    file.chmod(0o644)
    status, output = operator.populate("--from-env", "secrets.env")
    assert status == 0, output
    assert {path: operator.secret(path)[0] for path in SECRETS} == SECRETS
    assert "passed over: LOG_LEVEL" in output
    assert "others can read secrets.env" in output
    assert CANARY not in output
    file.chmod(0o600)
    assert "others can read" not in operator.populate("--from-env", "secrets.env").output
    assert "nothing to change" in operator.populate("--from-env", "-", typed=ENV).output


def test_fields_that_are_not_given_are_kept(operator: Operator) -> None:
    put(operator, SECRETS)
    status, output = put(operator, {"postgres": {"password": f"{CANARY}-new"}, "redis": SECRETS["redis"]})
    assert status == 0, output
    assert operator.secret("postgres") == (POSTGRES | {"password": f"{CANARY}-new"}, 2)
    assert operator.secret("redis") == (SECRETS["redis"], 1)
    assert table(output)["postgres"] == ["changed", "2", "password"]
    assert table(output)["redis"] == ["found", "1"]


def test_replace_lets_go_of_other_fields(operator: Operator) -> None:
    put(operator, SECRETS)
    status, output = put(operator, {"llm-providers/openai": {"api_key": f"{CANARY}-new"}}, "--replace")
    assert status == 0, output
    assert operator.secret("llm-providers/openai") == ({"api_key": f"{CANARY}-new"}, 2)
    assert operator.secret("postgres") == (POSTGRES, 1)
    status, output = put(operator, {"postgres": {"password": f"{CANARY}-new"}}, "--replace")
    assert status == 2
    assert "postgres lacks host, port, database, username" in output
    assert operator.secret("postgres") == (POSTGRES, 1)


def test_a_secret_that_was_deleted_is_made_again(operator: Operator) -> None:
    put(operator, SECRETS)
    operator.admin.delete("secret/data/agent-executor/redis")
    assert table(put(operator, {"redis": SECRETS["redis"]})[1])["redis"] == ["made", "2", "url"]
    operator.admin.write_data("secret/destroy/agent-executor/redis", data={"versions": [2]})
    assert table(put(operator, {"redis": SECRETS["redis"]})[1])["redis"] == ["made", "3", "url"]


def test_nothing_is_written_if_anything_is_wrong(operator: Operator, gate: Gate) -> None:
    wrong = SECRETS | {"redsi": {"url": CANARY}, "e2e": {"key": CANARY}, "nats": {"url": CANARY}}
    status, output = put(operator, wrong, VAULT_ADDR=gate.addr)
    assert status == 2
    assert [part for part in ("redsi", "e2e has no field key", "nats.url must be") if part not in output] == []
    status, output = put(operator, SECRETS | {"postgres": {"password": CANARY}}, VAULT_ADDR=gate.addr)
    assert status == 2
    assert "postgres lacks host, port, database, username" in output
    assert gate.writes == []


def test_writers_at_once_lose_nothing_of_each_other(operator: Operator) -> None:
    put(operator, {"postgres": POSTGRES})
    new = {"host": "new.example", "port": "1", "database": "new", "username": "new", "password": f"{CANARY}-new"}
    with ThreadPoolExecutor(5) as pool:
        runs = [pool.submit(put, operator, {"postgres": {name: value}}) for name, value in new.items()]
        assert [run.result() for run in runs if run.result()[0]] == []
    assert operator.secret("postgres") == (new, 6)


def test_who_is_overtaken_merges_again(operator: Operator, gate: Gate) -> None:
    put(operator, {"postgres": POSTGRES})
    gate.holds = "POST secret/data/agent-executor/postgres"
    with operator.start(POPULATE, "--from-json", "-", VAULT_ADDR=gate.addr) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"postgres": {"port": "1"}}))
        process.stdin.close()
        process.stdin = None
        assert gate.held.wait(30)
        put(operator, {"postgres": {"host": "overtaking.example"}})
        gate.holds = ""
        gate.released.set()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert operator.secret("postgres") == (POSTGRES | {"host": "overtaking.example", "port": "1"}, 3)


def test_a_run_that_was_cut_off_says_what_it_wrote_and_the_next_completes_it(operator: Operator, gate: Gate) -> None:
    gate.writes_left = 2
    status, output = put(operator, SECRETS, VAULT_ADDR=gate.addr)
    assert status == 4
    assert [path for path, cells in table(output).items() if cells[0] == "made"] == ["postgres", "redis"]
    status, output = put(operator, SECRETS)
    assert status == 0
    assert {path: operator.secret(path) for path in SECRETS} == {path: (each, 1) for path, each in SECRETS.items()}


def test_the_list_has_names_and_versions_and_no_values(operator: Operator) -> None:
    put(operator, SECRETS)
    put(operator, {"postgres": {"password": f"{CANARY}-new"}})
    operator.admin.write_data("secret/data/agent-executor/old/thing", data={"data": {"a": CANARY}})
    status, output = operator.populate("--list")
    assert status == 0, output
    rows = table(output)
    assert rows["postgres"] == ["2", "host set, port set, database set, username set, password set"]
    assert rows["nats"] == ["1", "url set, credentials unset"]
    assert rows["llm-providers/anthropic"] == ["api_key unset, base_url unset"]
    assert rows["old/thing"] == ["1", "a set", "unknown"]
    assert CANARY not in output
    assert "db.example" not in output


def test_the_rights_that_are_documented_are_enough(ready: Operator) -> None:
    operator, token = ready, ready.token(documented_rights("populate_secrets"))
    assert put(operator, SECRETS, VAULT_TOKEN=token)[0] == 0
    assert operator.populate("--list", VAULT_TOKEN=token).status == 0
    status, output = operator.populate("--verify", VAULT_TOKEN=token)
    assert (status, table(output)["e2e"][0]) == (1, "present"), output


def test_all_rights_that_are_lacking_are_named_before_anything_is_written(operator: Operator, gate: Gate) -> None:
    token = operator.token(
        RIGHTS | {"secret/data/agent-executor/e2e": ["read"], "secret/data/agent-executor/nats": ["deny"]}
    )
    status, output = put(operator, SECRETS, VAULT_TOKEN=token, VAULT_ADDR=gate.addr)
    assert status == 3
    assert "create, update on secret/data/agent-executor/e2e" in output
    assert "create, read, update on secret/data/agent-executor/nats" in output
    assert "postgres" not in output
    assert gate.writes == []


def test_a_mount_of_another_kind_is_refused(operator: Operator, gate: Gate) -> None:
    operator.admin.write_data("sys/mounts/old", data={"type": "kv", "options": {"version": "1"}})
    for mount, said in (("old", "not version 2"), ("nowhere", "no engine at nowhere/")):
        status, output = put(operator, SECRETS, VAULT_MOUNT=mount, VAULT_ADDR=gate.addr)
        assert (status, said in output) == (2, True), output
    assert gate.writes == []


def test_a_vault_that_cannot_be_used(operator: Operator) -> None:
    assert put(operator, SECRETS, VAULT_ADDR=f"http://127.0.0.1:{free_port()}")[0] == 4
    assert put(operator, SECRETS, VAULT_TOKEN="wrong-token-4711")[0] == 3
    status, output = put(operator, SECRETS, VAULT_ADDR="vault", VAULT_TOKEN="", VAULT_MOUNT="*")
    assert status == 64
    assert [name for name in ("VAULT_ADDR", "VAULT_TOKEN", "VAULT_MOUNT") if name not in output] == []
    operator.admin.write_data("sys/seal", data={})
    status, output = put(operator, SECRETS)
    assert (status, "sealed" in output) == (4, True)


@pytest.mark.parametrize(
    "words",
    [
        ["postgres", f"password={CANARY}"],
        [f"--password={CANARY}"],
        [f"--list={CANARY}"],
        ["--from-env", "a", "--from-json", "b"],
        ["postgres", "--list"],
        ["--verify", "--replace"],
        ["--from-env", "/nowhere"],
        ["postgres"],
    ],
)
def test_calls_that_make_no_sense_repeat_nothing(operator: Operator, words: list[str]) -> None:
    status, output = operator.populate(*words)
    assert status == 2, output
    assert CANARY not in output


class Terminal:
    """A session at a pseudo-terminal, and what it shows."""

    def __init__(self, operator: Operator, *words: str) -> None:
        self.shown = ""
        ours, theirs = pty.openpty()
        settings = operator.settings | {"PATH": os.environ["PATH"], "TERM": "xterm", "HOME": str(operator.home)}
        self._fd = ours
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, POPULATE, *words],
            cwd=operator.home,
            env=settings | {"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def expect(self, text: str) -> None:
        """Wait until `text` is shown, after what was expected before."""
        before = len(self.shown)
        deadline = time.monotonic() + 30
        while text not in self.shown[getattr(self, "_seen", 0) :]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown!r}"
            assert self._read() or text in self.shown[before:], f"ended without {text!r}: {self.shown!r}"
        self._seen = self.shown.index(text, getattr(self, "_seen", 0)) + len(text)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def answer(self, prompt: str, text: str = "") -> None:
        self.expect(prompt)
        self.type(f"{text}\n")

    def end(self) -> int:
        deadline = time.monotonic() + 60
        while self._read():
            assert time.monotonic() < deadline, f"does not end: {self.shown!r}"
        os.close(self._fd)
        return self.process.wait(30)

    def _read(self) -> bool:
        if not select.select([self._fd], [], [], 1)[0]:
            return self.process.poll() is None
        try:
            found = os.read(self._fd, 65536)
        except OSError:  # its other end is closed
            return False
        self.shown += found.decode()
        return bool(found)


_IN_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that /dev/tty is this terminal
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def terminal(operator: Operator) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*words: str) -> Terminal:
        made.append(Terminal(operator, *words))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()


def test_prompts_show_no_secret_and_take_defaults(operator: Operator, terminal: Callable[..., Terminal]) -> None:
    tty = terminal("postgres", "redis", "llm-providers/openai")
    tty.expect("postgres: host unset, port unset")
    tty.answer("host [unset]: ", "db.example")
    tty.answer("port [5432]: ", "port")
    tty.expect("port must be a number from 1 to 65535")
    tty.answer("port [5432]: ")
    tty.answer("database [langgraph_dev]: ")
    tty.answer("username [postgres]: ", "u")
    tty.answer("password [unset]: ", f"{CANARY}-pg")
    tty.answer("url [unset]: ", f"{CANARY}")
    tty.expect("url must be like redis://")
    tty.answer("url [unset]: ", f"redis://:{CANARY}@h:6379/0")
    tty.answer("api_key [unset]: ")
    tty.answer("base_url [optional]: ")
    assert tty.end() == 0, tty.shown
    assert CANARY not in tty.shown
    expected = POSTGRES | {"database": "langgraph_dev"}
    assert operator.secret("postgres") == (expected, 1)
    assert operator.secret("redis") == ({"url": f"redis://:{CANARY}@h:6379/0"}, 1)
    assert operator.secret("llm-providers/openai") == ({}, 0)


def test_enter_keeps_what_is_set(operator: Operator, terminal: Callable[..., Terminal]) -> None:
    put(operator, SECRETS)
    tty = terminal("postgres", "nats")
    tty.expect("postgres: host set, port set, database set, username set, password set")
    for name in ("host", "port", "database", "username"):
        tty.answer(f"{name} [set]: ")
    tty.answer("password [set]: ", f"{CANARY}-new")
    (operator.home / "user.creds").write_text(
        creds := f"-----BEGIN NATS USER JWT-----\n{CANARY}\n-----BEGIN USER NKEY SEED-----"
    )
    tty.answer("url [set]: ")
    tty.answer("file with the credentials [optional]: ", "user.creds")
    assert tty.end() == 0, tty.shown
    assert CANARY not in tty.shown
    assert "db.example" not in tty.shown
    assert operator.secret("postgres") == (POSTGRES | {"password": f"{CANARY}-new"}, 2)
    assert operator.secret("nats") == (SECRETS["nats"] | {"credentials": creds}, 2)


@pytest.mark.parametrize("how", ["\x03", "\x04"])
def test_an_end_in_the_middle_writes_nothing(operator: Operator, terminal: Callable[..., Terminal], how: str) -> None:
    tty = terminal("redis", "e2e")
    tty.answer("url [unset]: ", "redis://h:6379/0")
    tty.expect("api_key [unset]: ")
    tty.type(how)
    assert tty.end() == (130 if how == "\x03" else 2), tty.shown
    assert "Traceback" not in tty.shown
    assert operator.secret("redis") == ({}, 0)


def test_all_secrets_are_asked_for_without_words(terminal: Callable[..., Terminal]) -> None:
    tty = terminal()
    for path in (
        "postgres",
        "redis",
        "nats",
        "e2e",
        "llm-providers/anthropic",
        "llm-providers/ollama",
        "llm-providers/openai",
    ):
        tty.expect(f"{path}: ")
        for _ in range(5 if path == "postgres" else 1 if path in {"redis", "e2e"} else 2):
            tty.answer("]: ")
    assert tty.end() == 0, tty.shown
    assert "nothing to change" in tty.shown


def real(stack: Stack, database: Database) -> dict[str, dict[str, str]]:
    """Secrets that work."""
    server = database.server
    postgres = {"host": server.host, "port": str(server.port), "database": database.name}
    return {
        "postgres": postgres | {"username": server.user, "password": server.password},
        "redis": {"url": stack.redis.url},
        "nats": {"url": stack.nats.url},
    }


@pytest.fixture
def ready(operator: Operator, stack: Stack, database: Database) -> Operator:
    """An operator whose Vault was prepared and filled."""
    assert operator.init().status == 0
    assert put(operator, real(stack, database))[0] == 0
    return operator


def app_role(operator: Operator) -> dict[str, str]:
    output = operator.init("--show-credentials").output
    return dict(line.split("=", 1) for line in output.splitlines() if line.startswith("VAULT_"))


def test_secrets_that_work_are_found_to_work(ready: Operator) -> None:
    put(ready, {"llm-providers/openai": {"api_key": CANARY}})
    for settings in ({}, {"VAULT_TOKEN": "", **app_role(ready)}):
        status, output = ready.populate("--verify", **settings)
        assert status == 0, output
        rows = table(output)
        assert [rows[name][0] for name in ("postgres", "redis", "nats")] == ["works"] * 3
        assert rows["llm-providers/openai"][0] == "present"
        assert rows["e2e"] == ["not set"]
        assert CANARY not in output


def test_secrets_that_do_not_work_fail_one_by_one(ready: Operator) -> None:
    away = free_port()
    wrong = {
        "postgres": {"password": f"{CANARY}-pg", "username": f"{CANARY}-pg"},  # which PostgreSQL repeats
        "redis": {"url": f"redis://:{CANARY}-redis@127.0.0.1:{away}/0"},
        "nats": {"url": f"nats://u:{CANARY}-nats@127.0.0.1:{away}"},
        "e2e": {"api_key": f"{CANARY}-e2e"},
    }
    put(ready, wrong)
    started = time.monotonic()
    status, output = ready.populate("--verify")
    assert time.monotonic() - started < 20
    assert status == 1
    rows = table(output)
    assert [rows[name][0] for name in ("postgres", "redis", "nats")] == ["failed"] * 3
    assert rows["e2e"][0] == "present"
    assert "postgres, redis, nats will not do" in output
    assert f"{CANARY}-" not in output


def test_a_redis_password_that_is_wrong(ready: Operator, own_redis: Redis) -> None:
    with Client.from_url(own_redis.url) as client:
        client.config_set("requirepass", "right-password")
    for password, state in ((f"{CANARY}-redis", "failed"), ("right-password", "works")):
        put(ready, {"redis": {"url": own_redis.url.replace("//", f"//:{password}@")}})
        status, output = ready.populate("--verify")
        assert (status, table(output)["redis"][0]) == (int(state == "failed"), state)
        assert password not in output


def test_missing_and_incomplete_secrets_fail(ready: Operator) -> None:
    ready.admin.delete("secret/data/agent-executor/redis")
    ready.admin.write_data("secret/data/agent-executor/nats", data={"data": {"adress": CANARY}})
    ready.admin.write_data("secret/data/agent-executor/e2e", data={"data": {"api_key": f"{CANARY} "}})
    status, output = ready.populate("--verify")
    rows = table(output)
    assert status == 1
    assert rows["redis"] == ["missing", "the service needs it"]
    assert rows["nats"] == ["failed", "url is missing"]
    assert rows["e2e"][0] == "failed"
    assert CANARY not in output


def test_a_policy_that_denies_a_path_is_seen_although_the_operator_may_read_it(ready: Operator) -> None:
    narrow = 'path "secret/data/agent-executor/postgres" {capabilities = ["read"]}'
    ready.admin.write_data("sys/policies/acl/agent-executor-policy", data={"policy": narrow})
    status, output = ready.populate("--verify")
    rows = table(output)
    assert status == 1
    assert rows["postgres"][0] == "works"
    assert rows["redis"] == ["denied", "the service's role may not read secret/data/agent-executor/redis"]


def test_the_token_that_verify_makes_is_short_and_revoked(ready: Operator, gate: Gate) -> None:
    before: Any = ready.admin.list("auth/token/accessors")
    gate.holds = "data/agent-executor/postgres"
    with ready.start(POPULATE, "--verify", VAULT_ADDR=gate.addr) as process:
        assert gate.held.wait(30)
        during: Any = ready.admin.list("auth/token/accessors")
        (accessor,) = {*during["data"]["keys"]} - {*before["data"]["keys"]}
        found: Any = ready.admin.write_data("auth/token/lookup-accessor", data={"accessor": accessor})
        gate.released.set()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert found["data"]["policies"] == ["agent-executor-policy", "default"]
    assert found["data"]["ttl"] <= 120
    after: Any = ready.admin.list("auth/token/accessors")
    assert {*after["data"]["keys"]} == {*before["data"]["keys"]}


def test_who_may_not_make_a_token_is_told_what_to_do(ready: Operator) -> None:
    status, output = ready.populate("--verify", VAULT_TOKEN=ready.token(RIGHTS))
    assert (status, "VAULT_ROLE_ID" in output) == (3, True)
    status, output = ready.populate("--verify", **app_role(ready) | {"VAULT_SECRET_ID": CANARY})
    assert (status, "are refused" in output, CANARY in output) == (3, True, False)
    status, output = ready.populate("--verify", VAULT_ROLE_ID="x")
    assert (status, "VAULT_SECRET_ID go together" in output) == (64, True)


def test_the_canary_is_in_no_argument_and_no_file(operator: Operator, gate: Gate) -> None:
    gate.holds = "data/agent-executor/postgres"
    with operator.start(POPULATE, "--from-json", "-", VAULT_ADDR=gate.addr, VAULT_TOKEN="root") as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(SECRETS))
        process.stdin.close()
        process.stdin = None
        assert gate.held.wait(30)
        arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_of(path, process.pid)]
        open_files = [str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
        gate.released.set()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert arguments
    assert not [each for each in arguments if CANARY.encode() in each]
    assert not [each for each in open_files if each.startswith(str(operator.home))]
    assert [path for path in operator.home.rglob("*") if path.is_file()] == []
    assert CANARY not in output


def _is_of(path: Path, pid: int) -> bool:
    """Whether a /proc entry is the process or a child of it."""
    try:
        parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return pid in {int(path.parent.name), parent}


def test_a_namespace_is_respected(operator: Operator) -> None:
    operator.admin.write_data("sys/namespaces/team", data={})
    settings = {"VAULT_NAMESPACE": "team"}
    assert operator.init(**settings).status == 0
    assert put(operator, SECRETS, **settings)[0] == 0
    assert operator.secret("redis") == ({}, 0)
    inside: Any = client(operator.vault, namespace="team").read("secret/data/agent-executor/redis")
    assert inside["data"]["data"] == SECRETS["redis"]


def test_an_interrupt_is_told(operator: Operator, gate: Gate) -> None:
    gate.holds = "data/agent-executor/postgres"
    with operator.start(POPULATE, "--from-json", "-", VAULT_ADDR=gate.addr) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(SECRETS))
        process.stdin.close()
        process.stdin = None
        assert gate.held.wait(30)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in output
