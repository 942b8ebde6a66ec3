"""`nox -s vault_init`, without nox, against a real OpenBao."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import certifi
import hvac
import pytest
from hvac.exceptions import Forbidden, InvalidRequest

from tests.integration.fixtures.operator import INIT, Gate, Operator, client, documented_rights
from tier3.stack import Vault
from tier3.stack.ports import free_port
from tier3.stack.vault import program

RIGHTS = {
    "sys/mounts": ["read"],
    "sys/mounts/secret": ["update"],
    "sys/policies/acl/agent-executor-policy": ["read", "update"],
    "sys/auth": ["read"],
    "sys/auth/approle": ["update", "sudo"],
    "auth/approle/role/agent-executor": ["create", "read", "update"],
}
KUBERNETES_RIGHTS = {
    "sys/auth/kubernetes": ["update", "sudo"],
    "auth/kubernetes/config": ["create", "read", "update"],
    "auth/kubernetes/role/agent-executor": ["create", "read", "update"],
}
KUBERNETES = {"ENABLE_K8S_AUTH": "true", "KUBERNETES_HOST": "https://kubernetes.example:6443"}
AUTHORITY = Path(certifi.where()).read_text().split("\n\n")[0].partition("-----BEGIN")[2]
AUTHORITY = f"-----BEGIN{AUTHORITY}\n"
ALL = ["KV v2 engine", "policy", "auth method", "AppRole"]


class Uninitialised(Vault):
    """A Vault that waits for `vault operator init`."""

    def command(self) -> list[str | Path]:
        listener = {"tcp": {"address": f"127.0.0.1:{self.port}", "tls_disable": True}}
        file = self.data / "vault.json"
        file.write_text(json.dumps({"storage": {"inmem": {}}, "listener": listener}))
        return [program(), "server", f"-config={file}"]

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1):
            return True


class WithTls(Vault):
    """A Vault with a certificate of an authority of its own, which lies in `authority`."""

    @property
    def addr(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def authority(self) -> Path:
        return self.data / "vault-ca.pem"

    def command(self) -> list[str | Path]:
        command = [*super().command()]
        return [*command[:3], "-dev-tls", f"-dev-tls-cert-dir={self.data}", *command[3:]]

    def answers(self) -> bool:
        url = f"{self.addr}/v1/secret/config"
        context = ssl.create_default_context(cafile=self.authority)
        request = urllib.request.Request(url, headers={"X-Vault-Token": self.token})
        with urllib.request.urlopen(request, context=context, timeout=1) as answer:
            return bool(answer.status == 200)


@pytest.fixture
def empty(operator: Operator) -> Operator:
    """An operator whose Vault has no engine yet."""
    operator.admin.delete("sys/mounts/secret")
    return operator


def states(output: str) -> dict[str, list[str]]:
    """What the table says: state -> kinds of things."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if len(cells) > 2:
            found.setdefault(cells[2], []).append(cells[0])
    return found


def files(operator: Operator) -> dict[str, str]:
    """The files about Kubernetes that an operator may have."""
    (operator.home / "ca.crt").write_text(AUTHORITY)
    (operator.home / "jwt").write_text("reviewer-token-canary")
    return {"KUBERNETES_CA_FILE": "ca.crt", "KUBERNETES_REVIEWER_JWT_FILE": "jwt"}


def snapshot(admin: hvac.Client) -> str:
    """All that vault_init writes, with Vault's own marks of a write."""
    paths = ["sys/mounts", "sys/auth", "sys/policies/acl/agent-executor-policy", "auth/approle/role/agent-executor"]
    paths += ["auth/kubernetes/config", "auth/kubernetes/role/agent-executor"]
    return json.dumps([(found := admin.read(path)) and found["data"] for path in paths], sort_keys=True)  # type: ignore[index]


def accessors(admin: hvac.Client) -> list[str]:
    found: Any = admin.list("auth/approle/role/agent-executor/secret-id")
    return found["data"]["keys"] if found else []


def test_an_empty_vault_gets_everything_and_a_second_run_changes_nothing(empty: Operator, gate: Gate) -> None:
    status, output = empty.init()
    assert status == 0, output
    assert states(output)["made"] == ALL
    before = snapshot(empty.admin)
    status, output = empty.init(VAULT_ADDR=gate.addr)
    assert status == 0, output
    assert states(output)["found"] == ALL
    assert "nothing changed" in output
    assert gate.writes == []
    assert snapshot(empty.admin) == before


def test_the_approles_token_reads_the_services_secrets_and_nothing_else(operator: Operator) -> None:
    status, output = operator.init("--show-credentials")
    assert status == 0, output
    found = dict(line.split("=", 1) for line in output.splitlines() if line.startswith("VAULT_"))
    anonymous: Any = client(operator.vault, "-")
    login = anonymous.auth.approle.login(found["VAULT_ROLE_ID"], found["VAULT_SECRET_ID"])
    assert login["auth"]["policies"] == ["agent-executor-policy", "default"]
    assert login["auth"]["lease_duration"] == 3600
    assert login["auth"]["renewable"] is True
    service = client(operator.vault, login["auth"]["client_token"])
    for path in ("agent-executor/redis", "agent-executor/llm-providers/openai", "other/redis", "agent-executor-2/x"):
        operator.admin.write_data(f"secret/data/{path}", data={"data": {"a": "1"}})
    assert service.read("secret/data/agent-executor/redis")
    assert service.read("secret/data/agent-executor/llm-providers/openai")
    for path in ("data/other/redis", "data/agent-executor-2/x", "metadata/agent-executor/redis"):
        with pytest.raises(Forbidden):
            service.read(f"secret/{path}")
    with pytest.raises(Forbidden):
        service.list("secret/metadata/agent-executor")
    with pytest.raises(Forbidden):
        service.write_data("secret/data/agent-executor/redis", data={"data": {"a": "2"}})
    assert service.write_data("auth/token/renew-self", data={})
    asked = {"paths": ["secret/data/agent-executor/redis"]}
    capabilities: Any = service.write_data("sys/capabilities-self", data=asked)
    assert capabilities["data"]["secret/data/agent-executor/redis"] == ["read"]


def test_what_differs_is_put_right_and_said(operator: Operator) -> None:
    operator.init()
    role = "auth/approle/role/agent-executor"
    operator.admin.write_data(role, data={"token_policies": ["root"], "token_max_ttl": 0, "secret_id_ttl": 777})
    operator.admin.write_data("sys/policies/acl/agent-executor-policy", data={"policy": 'path "*" {policy = "sudo"}'})
    status, output = operator.init()
    assert status == 0, output
    assert states(output)["changed"] == ["policy", "AppRole"]
    assert "token_policies was root, agent-executor-policy is wanted" in output
    assert "token_max_ttl was 0, 86400 is wanted" in output
    found: Any = operator.admin.read(role)
    assert found["data"]["secret_id_ttl"] == 777
    assert states(operator.init()[1])["found"] == ALL


def test_a_dry_run_says_what_would_be_done_and_does_nothing(empty: Operator, gate: Gate) -> None:
    status, output = empty.init("--dry-run", VAULT_ADDR=gate.addr)
    assert status == 0, output
    assert states(output)["would make"] == ALL
    assert gate.writes == []


def test_all_rights_that_are_lacking_are_named_before_anything_is_changed(empty: Operator, gate: Gate) -> None:
    token = empty.token({"sys/mounts": ["read"], "sys/mounts/secret": ["create"]})
    before = snapshot(empty.admin)
    status, output = empty.init(VAULT_TOKEN=token, VAULT_ADDR=gate.addr, **KUBERNETES)
    assert status == 3
    for path, rights in {**RIGHTS, **KUBERNETES_RIGHTS}.items():
        if path != "sys/mounts":
            assert f" on {path}" in output, path
            assert rights[-1] in output
    assert "nothing was changed" in output
    assert gate.writes == []
    assert snapshot(empty.admin) == before


def test_the_rights_that_are_documented_are_enough(empty: Operator) -> None:
    token = empty.token(documented_rights("vault_init"))
    settings = {**KUBERNETES, **files(empty), "VAULT_TOKEN": token}
    status, output = empty.init("--wrap", **settings)
    assert status == 0, output
    assert "nothing changed" in empty.init(**settings).output


def test_a_token_that_may_only_read_can_check_that_all_is_there(operator: Operator) -> None:
    operator.init()
    token = operator.token({path: ["read"] for path in RIGHTS})
    status, output = operator.init(VAULT_TOKEN=token)
    assert status == 0, output
    assert "nothing changed" in output


def test_a_token_that_is_none_is_denied(operator: Operator) -> None:
    status, output = operator.init(VAULT_TOKEN="wrong-token-4711")
    assert status == 3
    assert "refuses the token" in output
    assert "wrong-token-4711" not in output


def test_a_sealed_vault(operator: Operator) -> None:
    operator.admin.write_data("sys/seal", data={})
    assert operator.init().status == 4
    assert "vault operator unseal" in operator.init().output


def test_a_vault_that_was_never_initialised(operator: Operator, tmp_path: Path) -> None:
    with Uninitialised(tmp_path / "other") as vault:
        status, output = operator.init(VAULT_ADDR=vault.addr)
    assert status == 4
    assert "not initialised" in output


def test_no_vault_at_all(operator: Operator) -> None:
    status, output = operator.init(VAULT_ADDR=f"http://127.0.0.1:{free_port()}")
    assert status == 4
    assert "does not answer" in output


def test_a_vault_that_takes_the_call_and_says_nothing(operator: Operator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        status, output = operator.init(VAULT_ADDR=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert status == 4, output
    assert time.monotonic() - started < 15


def test_a_certificate_is_trusted_only_if_its_authority_is_named(operator: Operator, tmp_path: Path) -> None:
    with WithTls(tmp_path / "tls") as vault:
        status, output = operator.init(VAULT_ADDR=vault.addr)
        assert (status, "VAULT_CACERT" in output) == (4, True), output
        status, output = operator.init(VAULT_ADDR=vault.addr, VAULT_CACERT=str(vault.authority))
        assert status == 0, output
        status, output = operator.init(VAULT_ADDR=vault.addr.replace("https", "http"))
        assert status == 4, output


def test_something_else_that_answers(operator: Operator, receiver: Any) -> None:
    status, output = operator.init(VAULT_ADDR=receiver.url)
    assert status == 4
    assert "not Vault" in output


@pytest.mark.parametrize("engine", [{"type": "kv", "options": {"version": "1"}}, {"type": "kv"}, {"type": "transit"}])
def test_another_engine_at_the_mount_is_refused(operator: Operator, gate: Gate, engine: dict[str, Any]) -> None:
    operator.admin.write_data("sys/mounts/old", data=engine)
    status, output = operator.init(VAULT_MOUNT="old", VAULT_ADDR=gate.addr)
    assert status == 2
    assert ("version 1" if engine["type"] == "kv" else "type transit") in output
    assert gate.writes == []


def test_another_method_at_the_mount_is_refused(operator: Operator) -> None:
    operator.admin.write_data("sys/auth/kubernetes", data={"type": "userpass"})
    status, output = operator.init(**KUBERNETES)
    assert status == 2
    assert "auth/kubernetes/ is of type userpass, not kubernetes" in output


def test_every_bad_variable_is_named_at_once(operator: Operator) -> None:
    bad = {
        "VAULT_ADDR": "",
        "VAULT_TOKEN": "",
        "VAULT_MOUNT": "a/*",
        "VAULT_PATH": '"x',
        "VAULT_NAMESPACE": "a b",
        "VAULT_CACERT": "/nowhere",
        "ENABLE_K8S_AUTH": "perhaps",
        "SERVICE_ACCOUNT": "*",
        "K8S_NAMESPACE": "a,b",
        "VAULT_K8S_MOUNT": "+",
        "VAULT_K8S_AUDIENCE": "a b",
        "KUBERNETES_HOST": "kubernetes",
        "KUBERNETES_CA_FILE": "/nowhere",
        "KUBERNETES_REVIEWER_JWT_FILE": "/nowhere",
    }
    status, output = operator.init(**bad)
    assert status == 64
    assert [name for name in bad if name not in output] == []
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("forwards_last", [False, True])
def test_a_run_that_was_cut_off_is_completed_by_the_next(operator: Operator, gate: Gate, forwards_last: bool) -> None:
    gate.forwards_last = forwards_last
    for count in range(8):
        namespace = f"cut{count}"
        operator.admin.write_data(f"sys/namespaces/{namespace}", data={})
        gate.asked.clear()
        gate.writes_left = count
        settings = {**KUBERNETES, **files(operator), "VAULT_NAMESPACE": namespace}
        first = operator.init(VAULT_ADDR=gate.addr, **settings)
        second = operator.init(**settings)
        assert second.status == 0, second.output
        assert "nothing changed" in operator.init(**settings).output
        if len(gate.writes) <= count:
            assert first.status == 0
            assert count == 7
            break
        assert first.status == 4, first.output
        assert len(states(second.output).get("found", [])) == count + forwards_last
    else:
        pytest.fail("it writes more often than there are things to write")


def test_two_at_once_both_end_well(operator: Operator) -> None:
    with ThreadPoolExecutor(3) as pool:
        for count in range(3):
            operator.admin.write_data(f"sys/namespaces/both{count}", data={})
            runs = [pool.submit(operator.init, VAULT_NAMESPACE=f"both{count}") for _ in range(3)]
            assert [run.result().output for run in runs if run.result().status] == []


def test_what_somebody_else_made_in_between_counts_as_found(operator: Operator, gate: Gate) -> None:
    gate.holds = "POST sys/auth/approle"
    with operator.start(INIT, VAULT_ADDR=gate.addr) as process:
        assert gate.held.wait(30)
        assert operator.init().status == 0
        gate.released.set()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "auth method" in states(output)["found"]


def test_an_interrupt_is_told_and_ends_with_130(operator: Operator, gate: Gate) -> None:
    gate.holds = "sys/policies"
    with operator.start(INIT, VAULT_ADDR=gate.addr) as process:
        assert gate.held.wait(30)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run it again" in output
    assert "Traceback" not in output


class Reviewer:
    """Stands for Kubernetes' TokenReview API: the token `good` is the service's, issued for the audience `vault`."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                good = asked["spec"].get("audiences") == ["vault"]
                user = {"username": "system:serviceaccount:bizmatters-dev:agent-executor", "uid": "1"}
                status = {"authenticated": good, "user": user, "audiences": ["vault"]} if good else {"error": "no"}
                body = json.dumps({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status})
                self.send_response(201)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def reviewer() -> Iterator[Reviewer]:
    made = Reviewer()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def jwt(namespace: str) -> str:
    """A service account's token as far as Vault itself looks at it; its signature is the reviewer's matter."""
    name = f"system:serviceaccount:{namespace}:agent-executor"
    account = {"namespace": namespace, "serviceaccount": {"name": "agent-executor", "uid": "1"}}
    now = int(time.time()) - 5
    claims = {"sub": name, "aud": ["vault"], "iat": now, "nbf": now, "exp": now + 600, "kubernetes.io": account}
    parts = [{"alg": "RS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return f"{'.'.join(encoded)}.c2lnbmF0dXJl"


def test_kubernetes_is_set_up_and_a_pod_can_log_in(operator: Operator, reviewer: Reviewer) -> None:
    settings = {**KUBERNETES, "KUBERNETES_HOST": reviewer.url, **files(operator)}
    status, output = operator.init(**settings)
    assert status == 0, output
    assert "reviewer-token-canary" not in output
    assert states(output)["made"] == [
        "policy",
        "auth method",
        "AppRole",
        "auth method",
        "Kubernetes config",
        "Kubernetes role",
    ]
    role: Any = operator.admin.read("auth/kubernetes/role/agent-executor")
    assert role["data"]["bound_service_account_names"] == ["agent-executor"]
    assert role["data"]["bound_service_account_namespaces"] == ["bizmatters-dev"]
    assert role["data"]["audience"] == "vault"
    assert role["data"]["token_policies"] == ["agent-executor-policy"]
    anonymous: Any = client(operator.vault, "-")
    login = anonymous.auth.kubernetes.login(role="agent-executor", jwt=jwt("bizmatters-dev"))
    assert login["auth"]["policies"] == ["agent-executor-policy", "default"]
    with pytest.raises((Forbidden, InvalidRequest)):
        anonymous.auth.kubernetes.login(role="agent-executor", jwt=jwt("other"))
    before = snapshot(operator.admin)
    assert "nothing changed" in operator.init(**settings).output
    assert "nothing changed" in operator.init(ENABLE_K8S_AUTH="true").output
    assert snapshot(operator.admin) == before
    assert states(operator.init("--replace-k8s-config", **settings).output)["changed"] == ["Kubernetes config"]
    assert snapshot(operator.admin) == before


def test_a_kubernetes_config_that_differs_is_left_alone_unless_told(operator: Operator) -> None:
    operator.admin.write_data("sys/auth/kubernetes", data={"type": "kubernetes"})
    others = {"kubernetes_host": "https://other.example", "kubernetes_ca_cert": AUTHORITY, "issuer": "their-issuer"}
    operator.admin.write_data("auth/kubernetes/config", data=others)
    before = snapshot(operator.admin)
    status, output = operator.init(**KUBERNETES)
    assert status == 2
    assert "auth/kubernetes/config is there and differs" in output
    assert "kubernetes_host was https://other.example, https://kubernetes.example:6443 is wanted" in output
    assert snapshot(operator.admin) == before
    status, output = operator.init("--replace-k8s-config", **KUBERNETES)
    assert status == 0, output
    assert states(output)["changed"] == ["Kubernetes config"]
    config: Any = operator.admin.read("auth/kubernetes/config")
    assert config["data"]["kubernetes_host"] == "https://kubernetes.example:6443"
    assert config["data"]["issuer"] == "their-issuer"
    assert config["data"]["kubernetes_ca_cert"].strip() == AUTHORITY.strip()


def test_outside_a_pod_the_missing_certificate_is_explained_and_what_was_done_is_shown(operator: Operator) -> None:
    status, output = operator.init(**KUBERNETES)
    assert status == 1
    assert "set KUBERNETES_CA_FILE" in output
    assert "policy" in states(output)["made"]


def test_no_credentials_are_made_unless_asked_for(operator: Operator) -> None:
    output = operator.init().output
    role: Any = operator.admin.read("auth/approle/role/agent-executor/role-id")
    assert role["data"]["role_id"] not in output
    assert accessors(operator.admin) == []


def test_wrapped_credentials_can_be_unwrapped_once(operator: Operator) -> None:
    status, output = operator.init("--wrap", "5m")
    assert status == 0, output
    found = dict(line.split("=", 1) for line in output.splitlines() if line.startswith("VAULT_"))
    anonymous: Any = client(operator.vault, found["VAULT_WRAPPED_SECRET_ID"])
    unwrapped = anonymous.sys.unwrap()["data"]
    assert unwrapped["secret_id"] not in output
    assert anonymous.auth.approle.login(found["VAULT_ROLE_ID"], unwrapped["secret_id"])
    with pytest.raises((Forbidden, InvalidRequest)):
        anonymous.sys.unwrap()


def test_credentials_in_a_file_are_for_its_owner_only(operator: Operator) -> None:
    before = os.umask(0)
    try:
        status, output = operator.init("--write", "credentials")
    finally:
        os.umask(before)
    assert status == 0, output
    file = operator.home / "credentials"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = dict(line.split("=", 1) for line in file.read_text().splitlines() if line.startswith("VAULT_"))
    anonymous: Any = client(operator.vault, "-")
    assert anonymous.auth.approle.login(found["VAULT_ROLE_ID"], found["VAULT_SECRET_ID"])
    assert found["VAULT_SECRET_ID"] not in output


@pytest.mark.parametrize("what", ["file", "link", "nowhere"])
def test_credentials_go_into_a_new_file_only(operator: Operator, what: str) -> None:
    file = operator.home / "credentials"
    if what == "file":
        file.write_text("mine")
    elif what == "link":
        file.symlink_to(operator.home / "elsewhere")
    where = "no/such/directory" if what == "nowhere" else "credentials"
    before = snapshot(operator.admin)
    assert operator.init("--write", where).status == 2
    assert snapshot(operator.admin) == before
    assert accessors(operator.admin) == []
    assert not (operator.home / "elsewhere").exists()
    assert what != "file" or file.read_text() == "mine"


def test_a_run_that_fails_leaves_no_file(operator: Operator, gate: Gate) -> None:
    gate.writes_left = 3
    assert operator.init("--write", "credentials", VAULT_ADDR=gate.addr).status == 4
    assert not (operator.home / "credentials").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--wrap", "soon"],
        ["--wrap", "--show-credentials"],
        ["--dry-run", "--wrap"],
        ["--show-credentials", "--write", "x"],
    ],
)
def test_calls_that_make_no_sense(operator: Operator, words: list[str]) -> None:
    assert operator.init(*words).status == 2
