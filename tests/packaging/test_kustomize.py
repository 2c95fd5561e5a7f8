"""What kustomize makes of `deploy/`: keys instead of a role, and our image in somebody else's chart.

Its own builds need kubectl; where that is missing those cases are skipped, and only the merge of
tests/packaging/manifests.py is held against the schemas.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.packaging.manifests import (
    DEPLOY,
    OBJECTS,
    PLACEHOLDER,
    VERSIONS,
    Document,
    merged,
    pod_of,
    read,
    validate,
)

SAMPLE: Document = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "inference-laguna-xs", "labels": {"app": "laguna-xs"}},
    "spec": {
        "selector": {"matchLabels": {"app": "laguna-xs"}},
        "template": {
            "metadata": {"labels": {"app": "laguna-xs"}},
            "spec": {
                "serviceAccountName": "inference",
                "initContainers": [
                    {
                        "name": "model-downloader",
                        "image": "registry.example/vendor/atlas:1",
                        "command": ["/bin/sh", "-c"],
                        "args": ["aws s3 sync $MODEL /models"],
                        "env": [
                            {"name": "MODEL", "value": "s3://models/checkpoints/laguna-xs"},
                            {"name": "MODEL_EXPECT_ID", "value": "stale"},
                        ],
                        "volumeMounts": [{"name": "weights", "mountPath": "/models"}],
                    }
                ],
                "containers": [
                    {
                        "name": "server",
                        "image": "registry.example/vendor/atlas:1",
                        "volumeMounts": [{"name": "weights", "mountPath": "/models"}],
                    }
                ],
                "volumes": [{"name": "weights", "emptyDir": {}}],
            },
        },
    },
}
"""A Deployment as somebody else's chart could render it."""


# Somebody else's chart


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_the_patch_makes_a_valid_deployment_with_our_image(version: str) -> None:
    patched = merged(SAMPLE, read("existing-chart/laguna-xs.yaml"))
    validate(patched, version)
    check_patched(patched)


def check_patched(document: Document) -> None:
    pod = pod_of(document)
    (container,) = pod["initContainers"]
    patch = pod_of(read("existing-chart/laguna-xs.yaml"))["initContainers"][0]
    assert container["command"] == patch["command"]
    assert container["args"][0].startswith("s3://")
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["MODEL_EXPECT_ID"] != "stale"
    assert environment["MODEL"] == "s3://models/checkpoints/laguna-xs"  # the chart's own stays
    assert container["volumeMounts"] == [{"name": "weights", "mountPath": "/models"}]
    assert "/model-downloader:" in container["image"]
    assert pod["containers"] == pod_of(SAMPLE)["containers"]
    assert pod["volumes"] == pod_of(SAMPLE)["volumes"]


KUBECTL = shutil.which("kubectl")
NEEDS_KUBECTL = pytest.mark.skipif(KUBECTL is None, reason="kustomize's builds need kubectl")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """`deploy/` with its placeholders filled in."""
    path = tmp_path / "deploy"
    shutil.copytree(DEPLOY, path)
    for file in path.rglob("*.yaml"):
        file.write_text(PLACEHOLDER.sub(lambda found: found[0][1:-1], file.read_text()))
    return path


def post_render(directory: Path, manifests: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(directory / "post-render.sh")],
        input=manifests,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(directory.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(*documents: Document) -> str:
    return yaml.safe_dump_all(documents)


def by_name(document: Document) -> Document:
    """The order of variables carries no meaning here, and kustomize has its own."""
    (container,) = pod_of(document)["initContainers"]
    container["env"].sort(key=lambda entry: entry["name"])
    return document


def service() -> Document:
    ports = [{"port": 80}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a"},
        "spec": {"ports": ports},
    }


@NEEDS_KUBECTL
@pytest.mark.parametrize("namespace", [None, "poolside-models"])
def test_the_post_renderer_patches_what_helm_hands_it(copied: Path, namespace: str | None) -> None:
    sample = merged(SAMPLE, {"metadata": {"namespace": namespace}})
    process = post_render(copied / "existing-chart", rendered(service(), sample))
    assert process.returncode == 0, process.stderr
    unchanged, patched = yaml.safe_load_all(process.stdout)
    assert unchanged == service()
    check_patched(patched)
    validate(patched, VERSIONS[-1])
    patch = yaml.safe_load((copied / "existing-chart/laguna-xs.yaml").read_text())
    assert by_name(patched) == by_name(merged(sample, patch))
    assert [path.name for path in copied.parent.iterdir()] == ["deploy"]  # nothing is left


@NEEDS_KUBECTL
def test_the_post_renderer_refuses_what_it_would_not_change(copied: Path) -> None:
    directory = copied / "existing-chart"
    other = merged(SAMPLE, {"metadata": {"name": "inference-point"}})
    without = merged(SAMPLE, {})
    pod_of(without)["initContainers"][0]["name"] = "fetch"
    for manifests, message in (
        (rendered(service(), other), "meets no Deployment"),
        (rendered(without), "no init container is called model-downloader"),
        ("", "no init container is called model-downloader"),
    ):
        process = post_render(directory, manifests)
        assert (process.returncode, process.stdout) == (1, ""), manifests
        assert message in process.stderr
        assert "\nhint: " in process.stderr
    assert [path.name for path in copied.parent.iterdir()] == ["deploy"]


@NEEDS_KUBECTL
@pytest.mark.parametrize(
    "written",
    [
        "'model-downloader'",
        '"model-downloader"',
        "model-downloader # the vendor's",
        "'model-downloader'  #",
    ],
)
def test_a_name_may_be_written_in_any_way(copied: Path, written: str) -> None:
    text = rendered(SAMPLE)
    assert text.count("name: model-downloader\n") == 1
    text = text.replace("name: model-downloader\n", f"name: {written}\n")
    process = post_render(copied / "existing-chart", text)
    assert process.returncode == 0, process.stderr
    check_patched(yaml.safe_load(process.stdout))


@NEEDS_KUBECTL
def test_a_deployment_without_the_init_container_gets_none(copied: Path) -> None:
    """Kustomize would add one that has no mounts, and fills a directory that nobody reads."""
    without = merged(SAMPLE, {})
    pod_of(without)["initContainers"][0]["name"] = "fetch"
    other = merged(SAMPLE, {"metadata": {"name": "inference-point"}})
    process = post_render(copied / "existing-chart", rendered(without, other))
    assert (process.returncode, process.stdout) == (1, "")
    assert "has no init container model-downloader" in process.stderr


@NEEDS_KUBECTL
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"ephemeral-storage": "10Gi"}, "ephemeral-storage 80Gi, limit 10Gi"),
        ({"ephemeral-storage": "80G"}, "ephemeral-storage 80Gi, limit 80G"),
        ({"cpu": "1500m"}, 'cpu "2", limit 1500m'),
        ({"cpu": 1, "ephemeral-storage": "1"}, "; "),
        ({"ephemeral-storage": "80Gi", "cpu": "2"}, None),
        ({"ephemeral-storage": "0.1Ti", "cpu": "2.5"}, None),
        ({"memory": "1Gi"}, None),  # the patch has its own
    ],
    ids=str,
)
def test_a_limit_of_the_chart_below_what_is_asked_for_is_refused(
    copied: Path, limits: dict[str, object], said: str | None
) -> None:
    sample = merged(SAMPLE, {})
    pod_of(sample)["initContainers"][0]["resources"] = {"limits": limits}
    process = post_render(copied / "existing-chart", rendered(service(), sample))
    if said is None:
        assert process.returncode == 0, process.stderr
        return
    assert (process.returncode, process.stdout) == (1, "")
    assert "would ask for more than its limit: " in process.stderr
    assert said in process.stderr


@NEEDS_KUBECTL
def test_the_post_renderer_refuses_placeholders() -> None:
    process = post_render(DEPLOY / "existing-chart", rendered(SAMPLE))
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("error: there are placeholders in ")


def test_the_post_renderer_can_be_run() -> None:
    assert os.access(DEPLOY / "existing-chart/post-render.sh", os.X_OK)


# Kustomize


def built(directory: Path) -> list[Document]:
    process = subprocess.run(
        ["kubectl", "kustomize", str(directory)], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(process.stdout))


@NEEDS_KUBECTL
def test_kustomize_builds_what_the_files_say() -> None:
    names = read("kustomization.yaml")["resources"]
    assert names == ["service-account.yaml", "deployment.yaml"]
    assert built(DEPLOY) == [read(name) for name in names]


def test_what_can_be_chosen_in_the_kustomization_is_there() -> None:
    text = (DEPLOY / "kustomization.yaml").read_text(encoding="utf-8")
    choices = re.findall(r"^ *#? +- ([\w.-]+)", text, re.MULTILINE)
    assert set(choices) == {*OBJECTS, "static-keys"}


@NEEDS_KUBECTL
def test_with_static_keys_every_download_has_the_secret_and_nobody_a_role(copied: Path) -> None:
    # deployment-cache.yaml has the name of deployment.yaml: they do not go together
    resources = [name for name in OBJECTS if name != "deployment.yaml"]
    kustomization = copied / "kustomization.yaml"
    kustomization.write_text(
        yaml.safe_dump({"resources": resources, "components": ["static-keys"]})
    )
    documents = {document["kind"]: document for document in built(copied)}
    assert documents.keys() == {"Job", "Deployment", "DaemonSet", "ServiceAccount"}
    assert "role-arn" not in json.dumps(documents)
    del documents["ServiceAccount"]
    for document in documents.values():
        validate(document, VERSIONS[0])
        pod = pod_of(document)
        every = [*pod.get("initContainers", []), *pod["containers"]]
        keyed = {each["name"] for each in every if "envFrom" in each}
        assert keyed == {"model-downloader"}
        (secret,) = next(each for each in every if "envFrom" in each)["envFrom"]
        assert secret == {"secretRef": {"name": "aws-credentials"}}
