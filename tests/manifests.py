"""What `kubectl apply -k` would send to the cluster, of the kustomizations in deploy/.

Reads no more of kustomize than deploy/ uses, so that the tests need none of its programs: resources, components, images
and configMapGenerator without the hash in its names. Anything else is refused. test_deploy holds it against kustomize.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DEPLOYED = ("overlays/knative", "overlays/keda", "migrations", "test-runner", "test-job")
_KNOWN = {"apiVersion", "kind", "resources", "components", "images", "configMapGenerator", "configurations"}

Document = dict[str, Any]


def built(name: str) -> list[Document]:
    """The documents of one of `DEPLOYED`."""
    return _build(DEPLOY / name)


def one(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The only document of this kind (and name)."""
    (found,) = (each for each in documents if each["kind"] == kind and name in {None, each["metadata"]["name"]})
    return found


def pods(documents: list[Document]) -> Iterator[Document]:
    """Every specification of a pod: a Pod's own, or the template's of whatever makes some."""
    for each in documents:
        spec = each["spec"] if each["kind"] == "Pod" else each.get("spec", {}).get("template", {}).get("spec")
        if spec is not None:
            yield spec


def containers(documents: list[Document]) -> list[Document]:
    """The containers of all of them; there are no others, such as initContainers."""
    found = [each for pod in pods(documents) for each in pod["containers"]]
    assert not any(key in pod for pod in pods(documents) for key in ("initContainers", "ephemeralContainers"))
    return found


def _build(directory: Path) -> list[Document]:
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    assert kustomization.keys() <= _KNOWN, f"{directory}: {kustomization.keys() - _KNOWN}"
    documents = [each for name in kustomization.get("resources", []) for each in _resource(directory / name)]
    documents += [_config_map(directory, each) for each in kustomization.get("configMapGenerator", [])]
    for name in kustomization.get("components", []):
        component = yaml.safe_load((directory / name / "kustomization.yaml").read_text())
        assert component.keys() == {"apiVersion", "kind", "images"}, name
        _set_images(documents, component["images"])
    _set_images(documents, kustomization.get("images", []))
    return documents


def _resource(path: Path) -> list[Document]:
    return _build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _config_map(directory: Path, generator: Document) -> Document:
    assert generator.keys() == {"name", "namespace", "envs"}
    lines = "".join((directory / name).read_text() for name in generator["envs"])
    data = dict(re.findall(r"(?m)^(\w+)=(.*)$", lines))
    metadata = {"name": generator["name"], "namespace": generator["namespace"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _set_images(documents: list[Document], images: list[Document]) -> None:
    tags = {each["name"]: each["newTag"] for each in images}
    for container in containers(documents):
        if (name := container["image"]) in tags:
            container["image"] = f"{name}:{tags[name]}"
