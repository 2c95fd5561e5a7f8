"""The manifests of `deploy/`: valid for Kubernetes, true to the program and the image, and to each other.

Covers I10 and I13 where a pod is described: nothing but the destination can be written, no key stands
in a manifest.
"""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys

import click
import kubernetes_validate
import pytest

from downloader.program import download
from staging.doctor.policies import dumps, pod_policy
from staging.kubernetes import deployment_patch, pod_sizing
from tests.packaging.dockerfile import ROOT, Dockerfile
from tests.packaging.manifests import (
    DEPLOY,
    OBJECTS,
    PLACEHOLDER,
    VERSIONS,
    WORKLOADS,
    Container,
    bytes_of,
    containers,
    files,
    merged,
    pod_of,
    read,
    validate,
)

SCRIPTING = (ROOT / "docs/scripting.md").read_text(encoding="utf-8")
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
OUR_IMAGE = "<registry>/model-downloader:<version>"

EVERY_CONTAINER = pytest.mark.parametrize(
    "container", [pytest.param(each, id=each.name) for each in containers()]
)

# Schemas


def test_the_schemas_cover_what_clusters_run() -> None:
    assert len(VERSIONS) >= 5
    assert VERSIONS[0].startswith("1.29.")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    for name in OBJECTS:
        validate(read(name), version)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "progressDeadlineSecond"), 600),
        (("spec", "progressDeadlineSeconds"), "600"),
        (("spec", "template", "spec", "volumes"), {"models": {}}),
    ],
)
def test_a_slip_would_be_found(path: tuple[str, ...], value: object) -> None:
    document = read("deployment.yaml")
    *above, last = path
    functools.reduce(lambda inner, key: inner[key], above, document)[last] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(document, VERSIONS[0])


# True to each other


def test_every_file_is_known() -> None:
    others = {
        "kustomization.yaml",
        *(f"static-keys/{name}.yaml" for name in ("kustomization", "init-container", "job")),
        "static-keys/service-account.yaml",
        *(f"existing-chart/{name}.yaml" for name in ("kustomization", "laguna-xs")),
    }
    assert set(files()) == {*OBJECTS, *others}
    for name in OBJECTS:
        assert f"]({name})" in README


@pytest.mark.parametrize("name", OBJECTS)
def test_one_namespace_and_one_account(name: str) -> None:
    document = read(name)
    assert document["metadata"]["namespace"] == "poolside-models"
    if name == "service-account.yaml":
        assert document["metadata"]["name"] == "inference"
    else:
        assert pod_of(document)["serviceAccountName"] == "inference"
        assert pod_of(document)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [name for name in WORKLOADS if "job" not in name])
def test_selectors_select_their_pods_and_nobody_elses(name: str) -> None:
    document = read(name)
    labels = document["spec"]["template"]["metadata"]["labels"]
    selector = document["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    for other in set(WORKLOADS) - {name}:
        theirs = read(other)
        if theirs["metadata"]["name"] != document["metadata"]["name"]:
            assert not selector.items() <= theirs["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", WORKLOADS)
def test_mounts_are_those_of_the_volumes(name: str) -> None:
    pod = pod_of(read(name))
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounted = set()
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        mounts = container.get("volumeMounts", [])
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
        mounted |= {mount["name"] for mount in mounts}
    assert mounted == volumes


@pytest.mark.parametrize("name", ["deployment.yaml", "deployment-cache.yaml"])
def test_the_server_reads_what_was_downloaded_and_writes_none_of_it(name: str) -> None:
    pod = pod_of(read(name))
    (downloader,), (server,) = pod["initContainers"], pod["containers"]
    places = {mount["mountPath"]: mount["name"] for mount in downloader["volumeMounts"]}
    theirs = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    for path, volume in places.items():  # a link into the cache has to lead there for both
        assert theirs[path]["name"] == volume
        assert theirs[path]["readOnly"] is True
    environment = {entry["name"]: entry.get("value") for entry in downloader["env"]}
    assert environment["MODEL_DIR"] in server["args"]
    assert any(environment["MODEL_DIR"].startswith(f"{path}/") for path in places)


def test_prefetch_and_pods_share_one_directory_of_the_host() -> None:
    prefetch, server = (
        pod_of(read(name)) for name in ("prefetch-daemonset.yaml", "deployment-cache.yaml")
    )
    (disk,) = (volume["hostPath"] for volume in prefetch["volumes"] if "hostPath" in volume)
    (cache,) = (volume["hostPath"] for volume in server["volumes"] if "hostPath" in volume)
    for container in prefetch["initContainers"]:
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == "disk")
        assert mount["mountPath"] == "/cache"
        assert cache["path"] == f"{disk['path']}/{mount['subPath']}"
    # Neither is ever made on a disk that is not mounted.
    assert disk["type"] == cache["type"] == "Directory"
    owner = prefetch["initContainers"][0]["args"]
    user = prefetch["securityContext"]["runAsUser"]
    assert owner == [f"import os; os.chown('/cache', {user}, {user})"]


@EVERY_CONTAINER
def test_nobody_is_root_and_nothing_else_can_be_written(container: Container) -> None:
    pod, own = container.pod["securityContext"], container.spec["securityContext"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod["runAsNonRoot"], pod["runAsUser"]) == (True, 10003)
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"]["drop"] == ["ALL"]
    if container.spec["name"] == "cache-directory":
        assert own["capabilities"]["add"] == ["CHOWN"]
    else:
        assert own.keys() == {
            "allowPrivilegeEscalation",
            "readOnlyRootFilesystem",
            "capabilities",
        }
        assert own["capabilities"].keys() == {"drop"}


@EVERY_CONTAINER
def test_resources_are_asked_for_and_bounded(container: Container) -> None:
    requests, limits = (container.spec["resources"][kind] for kind in ("requests", "limits"))
    assert requests.keys() >= {"cpu", "memory", "ephemeral-storage"}
    assert limits.keys() >= {"memory", "ephemeral-storage"}
    assert "cpu" not in limits
    assert requests["ephemeral-storage"] == limits["ephemeral-storage"]
    if container.ours:
        assert requests["memory"] == limits["memory"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_volumes_on_disk_fit_into_the_limits_of_the_pod(name: str) -> None:
    pod = pod_of(read(name))
    on_disk = [
        volume["emptyDir"]
        for volume in pod["volumes"]
        if "emptyDir" in volume and "medium" not in volume["emptyDir"]
    ]
    total = sum(bytes_of(volume["sizeLimit"]) for volume in on_disk)
    for kind in ("initContainers", "containers"):  # the ones run after the others
        for container in pod.get(kind, []):
            assert total < bytes_of(container["resources"]["limits"]["ephemeral-storage"])


def test_gpus_are_taken_by_the_server_alone() -> None:
    takers = {
        container.name
        for container in containers()
        if "nvidia.com/gpu" in json.dumps(container.spec["resources"])
    }
    assert takers == {"deployment.yaml: vllm", "deployment-cache.yaml: vllm"}
    for name in WORKLOADS:
        assert pod_of(read(name))["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]


@pytest.mark.parametrize("name", ["deployment.yaml", "deployment-cache.yaml"])
def test_an_update_needs_no_second_set_of_gpus(name: str) -> None:
    spec = read(name)["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_sizes_are_those_that_show_reckons() -> None:
    deployment = read("deployment.yaml")
    environment = next(c for c in containers() if c.file == "deployment.yaml").environment()
    patch = deployment_patch(
        pod_sizing([67 * 10**9]),
        identity=environment["MODEL_EXPECT_ID"],
        uri=environment["MODEL_URI"],
    )
    assert merged(deployment, patch) == deployment
    cached = read("deployment-cache.yaml")
    for document in (cached, read("existing-chart/laguna-xs.yaml")):
        assert (
            document["spec"]["progressDeadlineSeconds"]
            == (patch["spec"]["progressDeadlineSeconds"])
        )
    probes = [pod_of(each)["containers"][0]["startupProbe"] for each in (deployment, cached)]
    assert probes[0] == probes[1]


# True to the program and its image


def known_variables() -> set[str]:
    section = SCRIPTING.partition("### `model-downloader`\n")[2].partition("\n### ")[0]
    return set(re.findall(r"`(MODEL_[A-Z_]+)`", section))


def known_options() -> dict[str, click.Option]:
    options = [each for each in download.params if isinstance(each, click.Option)]
    return {name: option for option in options for name in option.opts}


@EVERY_CONTAINER
def test_settings_are_ones_that_the_program_has(container: Container) -> None:
    if not container.ours:
        return
    environment = container.environment()
    ours = {name for name in environment if name.startswith("MODEL_")}
    assert ours <= known_variables()
    assert environment.keys() - ours <= {"AWS_EC2_METADATA_DISABLED"}
    if "command" in container.spec:  # something else than the program
        return
    arguments = container.spec.get("args", [])
    assert {word for word in arguments if word.startswith("-")} <= known_options().keys()
    pairs = [word for word in arguments if not word.startswith("-")]
    sources, places = pairs[::2], pairs[1::2]
    if not pairs:
        sources, places = [environment["MODEL_URI"]], [environment["MODEL_DIR"]]
    assert len(sources) == len(places) == len(environment["MODEL_EXPECT_ID"].split())
    assert all(source.startswith("s3://") and source.endswith("/") for source in sources)
    mounts = [mount["mountPath"] for mount in container.spec["volumeMounts"]]
    for place in [*places, environment.get("MODEL_CACHE", places[0])]:
        assert any(place == mount or place.startswith(f"{mount}/") for mount in mounts)


@EVERY_CONTAINER
def test_a_pod_whose_role_does_not_work_never_takes_the_nodes(container: Container) -> None:
    if container.spec["name"] == "model-downloader":
        assert container.environment()["AWS_EC2_METADATA_DISABLED"] == "true"


@EVERY_CONTAINER
def test_images_and_what_is_run_in_ours(container: Container) -> None:
    assert container.spec["image"] == (OUR_IMAGE if container.ours else "<vllm-image>")
    python = Dockerfile.read().stages[-1].the("ENTRYPOINT").exec_form()[0]
    if container.ours and "command" in container.spec:
        assert container.spec["command"] == [python, "-c"]
        (script,) = container.spec["args"]
        compile(script, container.name, "exec")


def test_the_patch_starts_the_program_as_the_image_does() -> None:
    (container,) = pod_of(read("existing-chart/laguna-xs.yaml"))["initContainers"]
    assert container["command"] == Dockerfile.read().stages[-1].the("ENTRYPOINT").exec_form()


SAYS_THAT_IT_WAITS = """
import signal
wait = signal.sigwait
signal.sigwait = lambda ends: (print(flush=True), wait(ends))
"""


def test_what_keeps_the_prefetch_running_ends_when_told() -> None:
    (waiting,) = pod_of(read("prefetch-daemonset.yaml"))["containers"]
    (script,) = waiting["args"]
    process = subprocess.Popen(
        [sys.executable, "-c", SAYS_THAT_IT_WAITS + script], stdout=subprocess.PIPE
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_the_preflight_fails_for_good_where_running_again_does_not_help() -> None:
    job = read("preflight-job.yaml")["spec"]
    assert (job["backoffLimit"], pod_of(read("preflight-job.yaml"))["restartPolicy"]) == (
        0,
        "Never",
    )
    rows = re.findall(r"^\| (\d+) \| \d+\.\d+ \|.*\| (.*) \|$", SCRIPTING, re.MULTILINE)
    lasting = [int(code) for code, again in rows if again in ("no", "seldom")]
    (rule,) = (rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": "model-downloader",
        "operator": "In",
        "values": lasting,
    }


# Policies and placeholders


def test_the_policy_is_the_one_that_doctor_prints() -> None:
    text = (DEPLOY / "iam/pod-policy.json").read_text(encoding="utf-8")
    assert text == dumps(pod_policy("<models-bucket>", kms_key="<kms-key-arn>")) + "\n"


def test_the_trust_policy_is_for_this_account_in_this_namespace() -> None:
    account = read("service-account.yaml")["metadata"]
    trust = json.loads((DEPLOY / "iam/pod-trust.json").read_text(encoding="utf-8"))
    (statement,) = trust["Statement"]
    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert statement["Condition"]["StringEquals"] == {
        "<oidc-provider>:aud": "sts.amazonaws.com",
        "<oidc-provider>:sub": f"system:serviceaccount:{account['namespace']}:{account['name']}",
    }


def test_placeholders_are_those_that_the_readme_explains() -> None:
    used = {
        found
        for path in DEPLOY.rglob("*")
        if path.suffix in (".yaml", ".json")
        for found in PLACEHOLDER.findall(path.read_text(encoding="utf-8"))
    }
    explained = set(re.findall(r"^\| `(<[a-z-]+>)` \|", README, re.MULTILINE))
    assert used == explained


def test_no_manifest_holds_a_key() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|BEGIN [A-Z ]*PRIVATE", text), path
    assert "kind: Secret" not in "".join((DEPLOY / name).read_text() for name in files())
