"""Reading the manifests of `deploy/`, and merging patches into them as Kubernetes does.

`merged` is a strategic merge for what our patches have: mappings merge, lists of named things merge by
their key, other lists are replaced, null removes. Keys are those of the API for pods; a list that is
neither known here nor plain is refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubernetes_validate import utils

from tests.packaging.dockerfile import ROOT

DEPLOY = ROOT / "deploy"

Document = dict[str, Any]

WORKLOADS = (
    "preflight-job.yaml",
    "deployment.yaml",
    "deployment-cache.yaml",
    "prefetch-daemonset.yaml",
)

OBJECTS = (*WORKLOADS, "service-account.yaml")
"""Every file that holds one object of Kubernetes."""

PLACEHOLDER = re.compile(r"<[a-z-]+>")

VERSIONS = [
    version
    for version in dict.fromkeys(utils.all_versions())
    if tuple(map(int, version.split(".")[:2])) >= (1, 29)
]
"""The versions of Kubernetes whose schemas are here, from the oldest that we are for."""

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}


class _Strict(yaml.SafeLoader):
    """Refuses a key that a mapping has twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(problem=f"a key stands twice among {keys}")
        return super().construct_mapping(node, deep)


def read(path: Path | str) -> Document:
    """The one document of a file, a path below `deploy/` or anywhere."""
    with (DEPLOY / path).open(encoding="utf-8") as file:
        document = yaml.load(file, _Strict)
    assert isinstance(document, dict), path
    return document


def files() -> list[str]:
    """Every YAML file of `deploy/`."""
    return sorted(path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*.yaml"))


@dataclass(frozen=True)
class Container:
    """A container of a workload, with the pod it is in."""

    file: str
    pod: Document
    init: bool
    spec: Document

    @property
    def name(self) -> str:
        return f"{self.file}: {self.spec['name']}"

    @property
    def ours(self) -> bool:
        """It runs our image."""
        return "/model-downloader:" in self.spec["image"]

    def environment(self) -> dict[str, Any]:
        entries = self.spec.get("env", [])
        assert len({entry["name"] for entry in entries}) == len(entries), self.name
        return {entry["name"]: entry.get("value") for entry in entries}


def pod_of(document: Document) -> Document:
    """The pod specification of a workload."""
    pod = document["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


def containers() -> Iterator[Container]:
    """Every container of every workload."""
    for file in WORKLOADS:
        pod = pod_of(read(file))
        for init, kind in ((True, "initContainers"), (False, "containers")):
            for spec in pod.get(kind, []):
                yield Container(file, pod, init, spec)


def validate(document: Document, version: str) -> None:
    """Raises kubernetes_validate.ValidationError for what this version of Kubernetes would not take."""
    held = kubernetes_validate.validate(document, version, strict=True)
    assert held == version.rpartition(".")[0]  # not the nearest one that there is a schema of


def merged(base: Any, patch: Any, field: str = "") -> Any:
    """`base` with a strategic merge patch applied; neither is changed."""
    if isinstance(base, dict) and isinstance(patch, dict):
        found = {key: copy.deepcopy(value) for key, value in base.items()}
        for key, value in patch.items():
            if value is None:
                found.pop(key, None)
            else:
                found[key] = merged(found[key], value, key) if key in found else value
        return found
    if isinstance(base, list) and isinstance(patch, list) and field in _KEYS:
        return _merged_by(_KEYS[field], base, patch)
    if isinstance(patch, list) and any(isinstance(entry, dict) for entry in patch):
        raise ValueError(f"no merge key is known for {field}")
    return copy.deepcopy(patch)


def _merged_by(key: str, base: list[Document], patch: list[Document]) -> list[Document]:
    patches = {entry[key]: entry for entry in patch}
    found = [merged(entry, patches.pop(entry[key], {})) for entry in base]
    return [*found, *copy.deepcopy(list(patches.values()))]


def bytes_of(quantity: str) -> int:
    """`64Gi` as a number. Raises KeyError for other units than `Mi` and `Gi`."""
    return int(quantity[:-2]) * {"Mi": 1024**2, "Gi": 1024**3}[quantity[-2:]]
