"""The manifests in deploy/: what a cluster would refuse, and every name and figure in them against the code's own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Any, cast

import jsonschema
import kubernetes_validate
import pytest
import yaml

from agent_executor import access, api, health
from agent_executor.migrate.settings import DEFAULTS as MIGRATE
from agent_executor.settings import Settings, load
from tests.manifests import DEPLOY, DEPLOYED, ROOT, Document, built, containers, one, pods

SCHEMAS = {
    f"{api}-{kind}": json.loads((Path(__file__).parent / f"schemas/{api}-{kind}.json").read_text())
    for api, kind in (
        ("serving.knative.dev-v1", "Service"),
        ("keda.sh-v1alpha1", "ScaledObject"),
        ("keda.sh-v1alpha1", "TriggerAuthentication"),
    )
}
KUBERNETES = ("1.31", "1.37")
IMAGE = "95.216.151.243:30500/agent-executor"
SERVICES = {"overlays/knative": "http1", "overlays/keda": "http"}
NAMESPACES = {name: "langgraph" if name.startswith("test") else "bizmatters-dev" for name in DEPLOYED}
E2E = {"NATS_URL", "TEST_POSTGRES_URI", "TEST_REDIS_URL", "VAULT_ADDR", "VAULT_TOKEN", "AGENT_EXECUTOR_URL"}
UVICORN_S = 10  # docs/operations.md: what a process needs beyond SHUTDOWN_GRACE_S
QUEUE_PROXY_S = 30  # what Knative's queue-proxy waits for late requests before the service hears of its end
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def serving(overlay: str) -> tuple[Document, Document]:
    """The pod and the container that serve."""
    documents = built(overlay)
    (pod,), (container,) = pods(documents), containers(documents)
    return pod, container


def variables(container: Document) -> dict[str, str | None]:
    """The variables that a manifest sets by itself; without a value where a Secret has it."""
    return {each["name"]: each.get("value") for each in container.get("env", [])}


def vault_init(name: str) -> Any:
    """A default of the session `vault_init`, whose module needs packages that these tests do not have."""
    return re.findall(rf'"{name}": "(.+)"', (ROOT / "tier3/vault_init.py").read_text())[0]


@pytest.mark.parametrize("name", DEPLOYED)
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_document_is_one_that_a_cluster_takes(name: str, version: str) -> None:
    for document in built(name):
        schema = SCHEMAS.get(f"{document['apiVersion'].replace('/', '-')}-{document['kind']}")
        if schema is None:
            kubernetes_validate.validate(document, version, strict=True)
        else:
            jsonschema.Draft202012Validator(schema).validate(document)


def test_every_file_of_deploy_is_used() -> None:
    kustomizations = {path.parent: yaml.safe_load(path.read_text()) for path in DEPLOY.rglob("kustomization.yaml")}
    used = {
        (directory / each).resolve()
        for directory, found in kustomizations.items()
        for each in (
            *("kustomization.yaml", *found.get("resources", []), *found.get("configurations", [])),
            *(file for generator in found.get("configMapGenerator", []) for file in generator["envs"]),
        )
    }
    assert [path for path in DEPLOY.rglob("*") if path.is_file() and path not in used] == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here: nobody to ask what kustomize does")
@pytest.mark.parametrize("name", DEPLOYED)
def test_the_reader_of_these_tests_and_kustomize_agree(name: str) -> None:
    said = subprocess.run(["kubectl", "kustomize", DEPLOY / name], capture_output=True, text=True, check=True).stdout
    for document in yaml.safe_load_all(said):
        if document["kind"] == "ConfigMap":  # its name has a hash, and so has what names it
            hashed = document["metadata"]["name"]
            assert re.fullmatch("agent-executor-[a-z0-9]{10}", hashed)
            assert said.count(hashed) == 2
            said = said.replace(hashed, "agent-executor")
    assert sorted(yaml.safe_load_all(said), key=kind_and_name) == sorted(built(name), key=kind_and_name)


def kind_and_name(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


@pytest.mark.parametrize("name", DEPLOYED)
def test_names_are_those_of_the_contract(name: str) -> None:
    documents = built(name)
    assert {each["metadata"]["namespace"] for each in documents} == {NAMESPACES[name]}
    assert {each["image"] for each in containers(documents)} == {f"{IMAGE}:unset"}
    assert f'sed "s|{IMAGE}:unset|' in (ROOT / "docs/deployment.md").read_text()
    accounts = {each["metadata"]["name"] for each in documents if each["kind"] == "ServiceAccount"}
    assert accounts == {pod["serviceAccountName"] for pod in pods(documents) if "serviceAccountName" in pod}
    assert accounts == ({vault_init("SERVICE_ACCOUNT")} if name in SERVICES else set())
    assert NAMESPACES["overlays/keda"] == vault_init("K8S_NAMESPACE")


@pytest.mark.parametrize("name", DEPLOYED)
def test_every_container_has_the_security_context(name: str) -> None:
    documents = built(name)
    for container in containers(documents):
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container["resources"]["limits"].keys() >= {"memory"}
    for pod in pods(documents):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service `postgres` would set POSTGRES_PORT=tcp://..."
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        volumes = {each["name"]: each for each in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {each["mountPath"]: volumes.pop(each["name"]) for each in container["volumeMounts"]}
        assert volumes == {}, "mounted nowhere"
        assert mounts["/tmp"]["emptyDir"]["medium"] == "Memory"
        assert all("sizeLimit" in volume["emptyDir"] for volume in mounts.values() if "emptyDir" in volume)


@pytest.mark.parametrize("overlay", SERVICES)
def test_the_service_starts_with_what_its_manifest_says(
    overlay: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = built(overlay)
    (container,) = containers(documents)
    config = one(documents, "ConfigMap")
    assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    assert "env" not in container
    known = {name.upper(): name for name in Settings.model_fields}
    assert config["data"].keys() <= known.keys(), "not a setting"
    for name in environment:
        monkeypatch.delenv(name)  # Vault has them
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert settings.vault_role == vault_init("SERVICE_ACCOUNT")
    assert settings.auth_mode == Settings.model_fields["auth_mode"].default
    for name in ("nats_stream_name", "nats_consumer_group", "max_concurrent_jobs", "shutdown_grace_s"):
        assert getattr(settings, name) == Settings.model_fields[name].default, name


@pytest.mark.parametrize("overlay", SERVICES)
def test_the_token_for_vault_is_where_the_service_looks_and_for_vault_alone(overlay: str) -> None:
    pod, container = serving(overlay)
    path = Path(one(built(overlay), "ConfigMap")["data"]["VAULT_K8S_TOKEN_PATH"])
    (volume,) = [each for each in pod["volumes"] if "projected" in each]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
    (source,) = volume["projected"]["sources"]
    assert mount["readOnly"] is True
    assert Path(mount["mountPath"]) / source["serviceAccountToken"]["path"] == path
    assert source["serviceAccountToken"]["audience"] == vault_init("VAULT_K8S_AUDIENCE")


@pytest.mark.parametrize("overlay", SERVICES)
def test_probes_ask_routes_that_are_open(overlay: str) -> None:
    _, container = serving(overlay)
    (port,) = container["ports"]
    assert port == {"name": SERVICES[overlay], "containerPort": 8080}
    asked = {}
    for kind in ("startup", "liveness", "readiness"):
        probe = container[f"{kind}Probe"]
        asked[kind] = probe["httpGet"]["path"]
        assert probe["httpGet"]["port"] in {port["name"], port["containerPort"]}
        assert access.NEEDS[f"GET {asked[kind]}"] == (access.OPEN,)
    assert asked == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert container["readinessProbe"]["timeoutSeconds"] > health.PROBE_TIMEOUT_S


@pytest.mark.parametrize("overlay", SERVICES)
def test_memory_holds_all_jobs_tools_and_tmp(overlay: str) -> None:
    pod, container = serving(overlay)
    config = one(built(overlay), "ConfigMap")["data"]
    tools = int(config["MAX_CONCURRENT_JOBS"]) * int(config["TOOL_MEMORY_BYTES"])
    (tmp,) = [size(each["emptyDir"]["sizeLimit"]) for each in pod["volumes"] if each["name"] == "tmp"]
    assert size(container["resources"]["limits"]["memory"]) >= tools + tmp + 2**29


def test_both_ways_to_run_it_run_the_same() -> None:
    parts = []
    for overlay in SERVICES:
        pod, container = serving(overlay)
        probes = {
            name: {**each, "httpGet": each["httpGet"]["path"]} for name, each in container.items() if "Probe" in name
        }
        same = {name: container[name] for name in ("image", "envFrom", "resources", "securityContext", "volumeMounts")}
        parts.append({**same, **probes, "volumes": pod["volumes"]})
    assert parts[0] == parts[1]


def test_a_pod_of_the_deployment_gets_the_time_to_end() -> None:
    pod, container = serving("overlays/keda")
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    grace_s = float(one(built("overlays/keda"), "ConfigMap")["data"]["SHUTDOWN_GRACE_S"])
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + grace_s + UVICORN_S


def test_a_pod_of_knative_gets_the_time_to_end() -> None:
    pod, container = serving("overlays/knative")
    grace_s = float(one(built("overlays/knative"), "ConfigMap")["data"]["SHUTDOWN_GRACE_S"])
    assert pod["timeoutSeconds"] >= QUEUE_PROXY_S + grace_s + UVICORN_S
    assert "lifecycle" not in container, "Knative would overwrite it"


def test_knative_lets_a_caller_wait_as_long_as_the_service_does() -> None:
    pod, _ = serving("overlays/knative")
    assert pod["responseStartTimeoutSeconds"] == pod["timeoutSeconds"] == api.MAX_WAIT_S


def test_knative_keeps_a_pod_and_lets_requests_in_where_they_come() -> None:
    documents = built("overlays/knative")
    annotations = one(documents, "Service")["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["autoscaling.knative.dev/min-scale"]) >= 1
    (rule,) = one(documents, "NetworkPolicy", "agent-executor-ingress")["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [8012, 8112, 9090]


def test_keda_counts_what_the_service_works_on() -> None:
    documents = built("overlays/keda")
    spec = one(documents, "ScaledObject")["spec"]
    assert spec["scaleTargetRef"]["name"] == one(documents, "Deployment")["metadata"]["name"]
    assert "replicas" not in one(documents, "Deployment")["spec"]
    assert spec["maxReplicaCount"] == 10
    jobs, arrivals = spec["triggers"]
    fields = Settings.model_fields
    assert arrivals["metadata"]["stream"] == fields["nats_stream_name"].default
    assert arrivals["metadata"]["consumer"] == fields["nats_consumer_group"].default
    assert jobs["metadata"]["targetQueryValue"] == "5"
    assert int(jobs["metadata"]["targetQueryValue"]) <= fields["max_concurrent_jobs"].default
    where = {name: jobs["metadata"][name] for name in ("host", "port", "dbName")}
    assert where == dict(zip(where, (MIGRATE[f"POSTGRES_{name}"] for name in ("HOST", "PORT", "DB")), strict=True))
    assert jobs["authenticationRef"]["name"] == one(documents, "TriggerAuthentication")["metadata"]["name"]


def test_a_node_can_be_drained() -> None:
    documents = built("overlays/keda")
    budget = one(documents, "PodDisruptionBudget")["spec"]
    assert 1 <= budget["minAvailable"] < one(documents, "ScaledObject")["spec"]["minReplicaCount"]


def test_selectors_select_the_services_pods_and_no_others() -> None:
    documents = [*built("overlays/keda"), *built("migrations")]
    labels = one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(documents, "Deployment")["spec"]["selector"]["matchLabels"],
        one(documents, "Service")["spec"]["selector"],
        one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(documents, "NetworkPolicy", "agent-executor-ingress")["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * 4
    knative = built("overlays/knative")
    assert one(knative, "Service")["spec"]["template"]["metadata"]["labels"] == labels
    assert one(knative, "NetworkPolicy", "agent-executor-ingress")["spec"]["podSelector"]["matchLabels"] == labels
    migration = one(documents, "Job")["spec"]["template"]["metadata"]["labels"]
    egress = one(documents, "NetworkPolicy", "agent-executor-egress")["spec"]["podSelector"]["matchLabels"]
    assert egress.items() <= labels.items()
    assert egress.items() <= migration.items()
    assert not labels.items() <= migration.items()
    port = one(documents, "Service")["spec"]["ports"][0]["targetPort"]
    assert port == one(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"]


def test_pods_reach_their_servers_and_nothing_else_inside() -> None:
    spec = one(built("overlays/keda"), "NetworkPolicy", "agent-executor-egress")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    dns, servers, outside = spec["egress"]
    assert {(each["protocol"], each["port"]) for each in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert [each["port"] for each in servers["ports"]] == [5432, 4222, 6379, 8200]
    assert [each["port"] for each in outside["ports"]] == [443]
    v4, v6 = (each["ipBlock"] for each in outside["to"])
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(v4["except"])
    assert {"fc00::/7", "fe80::/10"} <= set(v6["except"])
    for block in (v4, v6):  # or the API server refuses the policy
        whole, *parts = cast("list[IPv6Network]", [ip_network(each) for each in (block["cidr"], *block["except"])])
        for part in parts:
            assert part.subnet_of(whole)
            assert part != whole
            mapped = getattr(part.network_address, "ipv4_mapped", None)
            assert mapped is None, "Go takes it for an address of four bytes"


def test_the_migration_job_runs_the_image_with_the_runners_variables() -> None:
    job = one(built("migrations"), "Job")["spec"]
    (container,) = containers(built("migrations"))
    assert container["args"] == ["python", "-m", "agent_executor", "migrate"]
    assert "command" not in container, "the entrypoint runs its arguments"
    assert job["backoffLimit"] == 3
    found = variables(container)
    assert found.pop("POSTGRES_PASSWORD") is None
    assert found == {name: MIGRATE[name] for name in found}
    of_the_platform = {"MIGRATION_DIR", "POSTGRES_SSLMODE", "POSTGRES_CACERT"}
    assert {*found, "POSTGRES_PASSWORD", *of_the_platform} == set(MIGRATE)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_test_runner_is_there_to_run_the_session() -> None:
    pod = one(built("test-runner"), "Pod")
    assert pod["metadata"]["name"] == "test-runner"
    (waiting,), job = pod["spec"]["containers"], one(built("test-job"), "Job")["spec"]
    assert job["template"]["metadata"]["labels"] == pod["metadata"]["labels"]
    (running,) = job["template"]["spec"]["containers"]
    assert running["command"] == ["nox", "-s", "e2e"]
    assert job["backoffLimit"] == 0
    assert {**running, "command": waiting["command"]} == waiting
    assert variables(waiting).keys() == E2E
    assert variables(waiting)["VAULT_ADDR"] == one(built("overlays/keda"), "ConfigMap")["data"]["VAULT_ADDR"]
    assert variables(waiting)["AGENT_EXECUTOR_URL"] == "http://agent-executor.bizmatters-dev.svc.cluster.local"
    artifacts = next(each for each in waiting["volumeMounts"] if each["name"] == "artifacts")
    assert artifacts["mountPath"] == "/app/artifacts"
    for overlay in SERVICES:
        (rule,) = one(built(overlay), "NetworkPolicy", "agent-executor-ingress")["spec"]["ingress"]
        assert {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": pod["metadata"]["namespace"]}},
            "podSelector": {"matchLabels": pod["metadata"]["labels"]},
        } in rule["from"]


def test_secrets_are_told_where_they_are_made() -> None:
    """docs/deployment.md makes every Secret that a manifest names, with its keys."""
    named: set[tuple[str, str, str]] = set()
    for name in DEPLOYED:
        for found in _references(built(name)):
            named.add((NAMESPACES[name], found["name"], found["key"]))
    page = (ROOT / "docs/deployment.md").read_text()
    commands = re.findall(r"kubectl create secret generic (?:[^\n]*\\\n)*[^\n]*", page)
    made = {
        (*re.findall(r"-n (\S+)", command), re.findall(r"generic (\S+)", command)[0], key)
        for command in commands
        for key in re.findall(r"--from-literal=(\w+)=", command)
    }
    assert named == made


def _references(value: Any) -> list[Document]:
    if isinstance(value, list):
        return [found for each in value for found in _references(each)]
    if not isinstance(value, dict):
        return []
    here = [value["secretKeyRef"]] if "secretKeyRef" in value else value.get("secretTargetRef", [])
    return [*here, *(found for each in value.values() for found in _references(each))]
