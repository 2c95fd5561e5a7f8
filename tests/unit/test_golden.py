"""Manifests that a released version wrote: read, named and written again the same for good (I4).

The files in `tests/golden` are never rewritten; see the README there. Ids are recomputed here from
the bytes, without the code under test.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from blake3 import blake3

from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.manifest import Manifest

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"

IDS = {
    "small": "sha256:4aac5ca6c67dfdbaebcbcf4195d8f31fdf245f0866a488e28e1bfc24807c432a",
    "chunks": "sha256:d4321ef66b831d045bfabe16eb0c81414a47c7b380743e0db9ddeb18253441b7",
    "sha256": "sha256:efdfe823ba166b39dcd383b163d9fda1d5b53e109b77b2ec09ffea6fdebe58c7",
    "names": "sha256:10d1e0127fd64a3d2dded64d6c85cbd58e66c4fdbfb7d513af8aaa07327321a5",
}

SHA256_OF_FILE = {
    "small": "86297f70c44e71be203fcc899a057312e41c1605409e3a4a27abcfe294b484b5",
    "chunks": "a0659caa76885284085d1de95678fb13532d2f8b13a0afd83b5ec9388a8dd81b",
    "sha256": "aeec0f995ff84e20ec2a515ac358c6e17342859c6b7dd12bcc1e646aca7728d3",
    "names": "d164f01c9e76e3e924ca421bebf93e99565509ea24641eaacc9457ce93267792",
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == IDS.keys() == SHA256_OF_FILE.keys()


@pytest.mark.parametrize("name", IDS)
def test_golden_files_are_as_they_were_written(name: str) -> None:
    assert hashlib.sha256(golden(name)).hexdigest() == SHA256_OF_FILE[name]


@pytest.mark.parametrize("name", IDS)
def test_a_golden_manifest_is_read_and_written_again_byte_for_byte(name: str) -> None:
    manifest = Manifest.decode(golden(name))
    assert manifest.id == IDS[name]
    assert manifest.encode() == golden(name)


@pytest.mark.parametrize("name", IDS)
def test_the_id_is_the_sha256_of_the_canonical_content(name: str) -> None:
    content = json.loads(golden(name))["content"]
    # RFC 8785 of a document of strings and integers, with keys of ASCII
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert "sha256:" + hashlib.sha256(canonical.encode()).hexdigest() == IDS[name]


@pytest.mark.parametrize(("name", "family"), [("chunks", blake3), ("sha256", hashlib.sha256)])
def test_file_digests_are_made_of_the_chunk_digests(name: str, family: type[blake3]) -> None:
    document = json.loads(golden(name))
    long = {
        file["path"]: file for file in document["content"]["files"] if file["size"] > CHUNK_SIZE
    }
    assert long.keys() == document["chunks"].keys()
    for path, file in long.items():
        packed = base64.b64decode(document["chunks"][path])
        message = b"checkpoint-file/1\0" + file["size"].to_bytes(8, "little") + packed
        assert file["digest"].endswith(":" + family(message).hexdigest())


def test_what_the_small_one_says() -> None:
    manifest = Manifest.decode(golden("small"))
    assert manifest.hash is HashFamily.BLAKE3
    assert [(file.path, file.size) for file in manifest.files] == [
        ("config.json", 65),
        ("generation_config.json", 21),
        ("model.safetensors", 10),
        ("special_tokens/empty", 0),
        ("tokenizer.json", 19),
        ("tokenizer_config.json", 3),
    ]
    assert manifest.total_size == 118
    assert manifest.files[2].digest.value == blake3(b"\x02\0\0\0\0\0\0\0{}").digest()
    assert manifest.files[3].checksums == {"crc64nvme": "AAAAAAAAAAA="}
    assert manifest.layout == {"checked": True, "warnings": []}
    assert manifest.source == {"kind": "tar", "name": "laguna-xs.tar", "size": 20480}
    assert (manifest.created, manifest.tool) == ("2026-04-01T12:00:00Z", "checkpoint-staging/0.1.0")
    assert manifest.annotations == {"ticket": "ML-1"}


def test_how_many_chunks_the_long_ones_have() -> None:
    manifest = Manifest.decode(golden("chunks"))
    assert {str(file.path): len(file.chunks) for file in manifest.files} == {
        "exactly-one-chunk.bin": 1,
        "model-00001-of-00002.safetensors": 40,
        "model-00002-of-00002.safetensors": 4,
        "model.safetensors.index.json": 1,
        "one-byte-more.bin": 2,
    }


def test_names_keep_every_character() -> None:
    names = [str(file.path) for file in Manifest.decode(golden("names")).files]
    assert names == sorted(names, key=str.encode)
    assert {"a b/c d.txt", "%2e%2e", "#1", "模型/配置.json", "\U0001f600.bin", "café/Å.bin"} <= set(
        names
    )
