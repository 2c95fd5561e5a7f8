"""The init container's program with exactly what its image holds, started as its image starts it.

Covers I1 (exit codes where nothing can be proven), I5 and I6 for a pod that is told to end, I10: in
the box everything but the destination is read-only. The box needs root and namespaces; where they
are refused those cases are skipped with the reason, and the plain ones run.
"""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from staging.vocabulary import crc64
from tests.packaging.dockerfile import ROOT
from tests.packaging.manifests import containers
from tests.packaging.pod import (
    Box,
    Ended,
    Plain,
    Process,
    Runner,
    build_wheel,
    entry_point,
    image_environment,
    kept_services,
    make_pod,
)
from tests.support.checkpoints import manifest_of, weights
from tests.support.s3server import ScriptedS3
from tests.support.stores import s3_store

URI = "s3://models/checkpoints/tiny/"
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": weights(300_000, 1),
    "modeling_tiny.py": b"raise SystemExit('a checkpoint is data')\n",
    "tokenizer/vocab.json": b"{}",
}
GUARD = 45
"""Seconds after which a program that does not end fails its test; no expectation."""

STRANGER = "1000740000:0"
"""A user as some clusters make them up for each namespace: in no database, with root's group."""

HOLD_IMPORT = """
import os, sys
class Hold:
    def find_spec(self, name, path=None, target=None):
        if name == "downloader.program":
            os.write(1, b"importing\\n")
            os.read(0, 1)
sys.meta_path.insert(0, Hold())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def pod(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pod(tmp_path_factory.mktemp("pod") / "venv", wheel)


@pytest.fixture(params=["plain", "boxed"])
def runner(request: pytest.FixtureRequest, pod: Path, tmp_path: Path) -> Runner:
    destination = tmp_path / "models"
    destination.mkdir()
    if request.param == "plain":
        return Plain(pod, destination)
    if reason := Box.refusal():
        pytest.skip(reason)
    return Box(pod, destination, tmp_path / "root", STRANGER)


@pytest.fixture
def store() -> Iterator[ScriptedS3]:
    """A store with one published checkpoint."""
    objects = {**FILES, ".checkpoint/manifest.json": manifest_of(FILES).encode()}
    with ScriptedS3() as server:
        with s3_store(server, "models") as models:
            for path, data in objects.items():
                key = f"checkpoints/tiny/{path}"
                models.create(key, data, crc64nvme=crc64.to_text(crc64.crc64(data)))
        yield server


def settings(server: ScriptedS3) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_ENDPOINT_URL": server.endpoint_url,
    }


def ended(process: Process) -> Ended:
    with process:
        return process.finish(GUARD)


def is_ready(directory: Path) -> bool:
    return (directory / ".checkpoint/ready.json").exists()


# What is shipped


def test_wheel_holds_the_two_packages_their_types_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"staging", "downloader", info}
    assert {"staging/py.typed", "downloader/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("staging", "downloader")
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py"
    }
    code = {name for name in names if not name.startswith(info) and not name.endswith("py.typed")}
    assert code == sources | {"staging/layout/gpus.json"}


def test_pod_lacks_what_only_the_staging_box_has(pod: Path) -> None:
    python = str(pod / "bin/python3")
    for name in ("awscrt", "tqdm", "pip", "setuptools", "hatchling", "tests"):
        process = subprocess.run([python, "-I", "-c", f"import {name}"], capture_output=True)
        assert b"ModuleNotFoundError" in process.stderr, name


def test_sdk_of_the_pod_has_what_s3_and_credentials_need(pod: Path) -> None:
    make = (
        "import botocore.session as b, sys; s = b.Session();"
        " [s.create_client(name, region_name='eu-west-1') for name in sys.argv[1:]]"
    )
    command = [str(pod / "bin/python3"), "-I", "-c", make]
    subprocess.run([*command, *kept_services()], check=True)
    process = subprocess.run([*command, "ec2"], capture_output=True, text=True, check=False)
    assert "UnknownServiceError" in process.stderr


# What it does


def test_help(runner: Runner) -> None:
    end = ended(runner.start("--help", environment={}))
    assert (end.code, end.err) == (0, "")
    assert end.out.startswith("Usage: model-downloader")


def test_wrong_usage(runner: Runner) -> None:
    end = ended(runner.start(URI, environment={}))
    assert (end.code, end.out) == (2, "")
    assert end.err.startswith("ERROR exit=2 ")


def test_misspelled_prefix(runner: Runner, store: ScriptedS3) -> None:
    order = ("s3://models/checkpoints/tin/", f"{runner.inside}/tiny")
    end = ended(runner.start(*order, environment=settings(store)))
    assert (end.code, end.out) == (10, "")
    assert "\nERROR exit=10 prefix-empty " in end.err
    assert not is_ready(runner.models / "tiny")


def test_download_next_start_and_verification(runner: Runner, store: ScriptedS3) -> None:
    tiny = f"{runner.inside}/tiny"
    order = {"MODEL_URI": URI, "MODEL_DIR": tiny}
    for message in ("fetched", "already holds"):
        end = ended(runner.start(environment={**settings(store), **order}))
        assert end.code == 0, end.err
        assert end.out == f"{tiny} {manifest_of(FILES).id}\n"
        assert message in end.err
    assert is_ready(runner.models / "tiny")
    assert {path: (runner.models / "tiny" / path).read_bytes() for path in FILES} == FILES
    end = ended(runner.start("verify", "--level", "digest", tiny, environment={}))
    assert end.code == 0, end.err


# As deploy/ starts it


def as_deployed(file: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of `model-downloader` in a workload, for the checkpoint of `store`."""
    (container,) = (
        each
        for each in containers()
        if (each.file, each.spec["name"]) == (file, "model-downloader")
    )
    filled = {"MODEL_URI": URI, "MODEL_EXPECT_ID": manifest_of(FILES).id}
    return container.spec.get("args", []), {**container.environment(), **filled}


@pytest.fixture
def deployed(pod: Path, tmp_path: Path) -> Box:
    """The box with the user of deploy/."""
    if reason := Box.refusal():
        pytest.skip(reason)
    (tmp_path / "models").mkdir()
    return Box(pod, tmp_path / "models", tmp_path / "root", "10003:10003")


def test_deployment(deployed: Box, store: ScriptedS3) -> None:
    arguments, environment = as_deployed("deployment.yaml")
    end = ended(deployed.start(*arguments, environment={**settings(store), **environment}))
    assert end.code == 0, end.err
    served = deployed.models / "laguna-xs"
    assert environment["MODEL_DIR"] == "/models/laguna-xs"
    assert is_ready(served)
    assert {path: (served / path).read_bytes() for path in FILES} == FILES


def test_preflight_changes_nothing_and_ends_as_the_download_would(
    deployed: Box, store: ScriptedS3
) -> None:
    arguments, environment = as_deployed("preflight-job.yaml")
    environment |= settings(store)
    end = ended(deployed.start(*arguments, environment=environment))
    assert end.code == 0, end.err
    assert list(deployed.models.iterdir()) == []
    wrong = environment | {"MODEL_EXPECT_ID": f"sha256:{'0' * 64}"}
    for words in (arguments, []):
        end = ended(deployed.start(*words, environment=wrong))
        assert end.code == 11, end.err
    assert not is_ready(deployed.models / "laguna-xs")


def test_deployment_with_a_cache(pod: Path, store: ScriptedS3, tmp_path: Path) -> None:
    """Two volumes beside each other, as in the pod: the link leads from the one into the other."""
    for volume in ("cache", "models"):
        (tmp_path / volume).mkdir()
    arguments, environment = as_deployed("deployment-cache.yaml")
    assert (environment["MODEL_CACHE"], environment["MODEL_DIR"]) == ("/cache", "/models/laguna-xs")
    for name in ("MODEL_CACHE", "MODEL_DIR"):
        environment[name] = f"{tmp_path}{environment[name]}"
    runner = Plain(pod, tmp_path / "models")
    end = ended(runner.start(*arguments, environment={**settings(store), **environment}))
    assert end.code == 0, end.err
    link = tmp_path / "models/laguna-xs"
    assert not link.readlink().is_absolute()
    assert link.resolve().parent == tmp_path / "cache"
    assert {path: (link / path).read_bytes() for path in FILES} == FILES


# When it is told to end


def test_end_before_the_program_is_imported(
    runner: Runner, store: ScriptedS3, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.mkdir()
    (hold / "sitecustomize.py").write_text(HOLD_IMPORT)
    before = len(store.requests)
    order = (URI, f"{runner.inside}/tiny")
    with runner.start(*order, environment=settings(store), extra=hold) as process:
        assert process.read_line() == "importing\n"
        process.terminate()
        end = process.finish(GUARD)
    assert end == Ended(143, "", "")
    assert len(store.requests) == before
    assert list(runner.models.iterdir()) == []


def test_end_during_the_download(runner: Runner, store: ScriptedS3) -> None:
    order = (URI, f"{runner.inside}/tiny")
    with (
        store.hold("GetObject", key="checkpoints/tiny/model.safetensors") as hold,
        runner.start(*order, environment=settings(store)) as process,
    ):
        assert hold.arrived.wait(GUARD)
        process.terminate()
        hold.release()  # the last bytes come, but too late
        end = process.finish(GUARD)
    assert (end.code, end.out) == (143, "")
    assert "SIGTERM" in end.err
    assert not is_ready(runner.models / "tiny")
    end = ended(runner.start(*order, environment=settings(store)))
    assert end.code == 0, end.err
    assert is_ready(runner.models / "tiny")


# What a checkpoint cannot do


def test_modules_in_the_working_directory_are_not_imported(pod: Path, tmp_path: Path) -> None:
    for name in ("click", "downloader", "six", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from a checkpoint')\n")
    process = subprocess.run(
        [*entry_point(str(pod)), "--help"],
        env=image_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
