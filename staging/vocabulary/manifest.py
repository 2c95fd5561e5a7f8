"""Manifest v1: the names, sizes and digests of one published checkpoint. docs/format.md specifies it.

The manifest's `content` alone makes its id: the SHA-256 of the RFC 8785 canonical form. The same
files give the same id whatever the source kind, part size, concurrency or order of arrival (I4).
Chunk digests lie outside `content` and are bound to it through the file digests.

Invariants: `Manifest.decode(m.encode()) == m`; a decoded manifest is sorted, has safe and
collision-free names, and every file digest equals the one its chunk digests combine to.
Not guaranteed: that objects exist; the store does not take part here.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import rfc8785

from staging.vocabulary import strict_json
from staging.vocabulary.digest import (
    DIGEST_SIZE,
    MAX_FILE_SIZE,
    Digest,
    HashFamily,
    chunk_count,
    file_digest,
)
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.paths import SafePath, collisions

SCHEMA: Final = "checkpoint-manifest/1"
FORMAT: Final = "checkpoint/1"
UNVERIFIED: Final = "unverified"
"""The annotation of a manifest that was made of a prefix without one."""

MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024
"""A longer manifest is refused before it is read into memory."""

_CHECKSUM_SIZES: Final = {"crc64nvme": 8, "sha256": 32}


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: its name, size in bytes, digest, chunk digests and the store's checksums (base64)."""

    path: SafePath
    size: int
    digest: Digest
    chunks: tuple[bytes, ...]
    checksums: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: SafePath,
        size: int,
        family: HashFamily,
        chunks: Iterable[bytes],
        checksums: Mapping[str, str] | None = None,
    ) -> ManifestFile:
        """Build the entry of a file from its chunk digests."""
        chunk_tuple = tuple(chunks)
        return cls(
            path, size, file_digest(family, size, chunk_tuple), chunk_tuple, dict(checksums or {})
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint's content and what was recorded about its making.

    `layout`, `source` and `annotations` are open records that readers may ignore; `created` is a UTC
    time in RFC 3339 form. None of them takes part in the `id`, which is `sha256:<hex>` of the
    canonical content: the checkpoint's name everywhere.
    """

    hash: HashFamily
    files: tuple[ManifestFile, ...]
    layout: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    tool: str = ""
    annotations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_unverified(self) -> bool:
        """True for the manifest of a local copy that nobody published: its digests are of what came."""
        return UNVERIFIED in self.annotations

    id: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("a checkpoint has at least one file")
        keys = [file.path.sort_key for file in self.files]
        if any(first >= second for first, second in itertools.pairwise(keys)):
            raise ValueError("files are not sorted by path")
        clash = collisions(file.path for file in self.files)
        if clash:
            raise ValueError(f"names collide: {clash[0][0]!r} and {clash[0][1]!r}")
        for file in self.files:
            if not 0 <= file.size <= MAX_FILE_SIZE:
                raise ValueError(f"{file.path!r} has an impossible size: {file.size}")
            if file.digest != file_digest(self.hash, file.size, file.chunks):
                raise ValueError(f"the chunk digests of {file.path!r} do not make its digest")
            _check_checksums(file)
        canonical = rfc8785.dumps(self.content)
        object.__setattr__(self, "id", f"sha256:{hashlib.sha256(canonical).hexdigest()}")

    @classmethod
    def of(cls, family: HashFamily, files: Iterable[ManifestFile], **about: Any) -> Manifest:
        """Build a manifest from files in any order. Raises ValueError as `Manifest` does."""
        return cls(family, tuple(sorted(files, key=lambda file: file.path.sort_key)), **about)

    @property
    def content(self) -> dict[str, Any]:
        """The part of the manifest that makes its id."""
        return {
            "format": FORMAT,
            "hash": self.hash.value,
            "files": [
                {"path": str(file.path), "size": file.size, "digest": str(file.digest)}
                for file in self.files
            ],
        }

    @property
    def total_size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def encode(self) -> bytes:
        """The manifest as the bytes of one JSON document. Raises ValueError above the size cap."""
        document = {
            "schema": SCHEMA,
            "id": self.id,
            "content": self.content,
            "chunks": {
                file.path: base64.b64encode(b"".join(file.chunks)).decode("ascii")
                for file in self.files
                if len(file.chunks) > 1
            },
            "checksums": {
                file.path: dict(sorted(file.checksums.items()))
                for file in self.files
                if file.checksums
            },
            "layout": dict(self.layout),
            "source": dict(self.source),
            "created": self.created,
            "tool": self.tool,
            "annotations": dict(self.annotations),
        }
        text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        data = text.encode("utf-8")
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, not {len(data)}")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read a manifest, strictly. Raises MalformedInput for anything v1 does not allow."""
        try:
            return _decode(strict_json.loads(data, limit=MAX_MANIFEST_BYTES))
        except ValueError as error:
            raise _malformed(str(error)) from error


def _malformed(reason: str) -> MalformedInput:
    return MalformedInput(
        f"the manifest is not valid: {reason}",
        reference="manifest-malformed",
        hint="publish the checkpoint again under a new prefix; do not edit manifests",
        side="store",
    )


def _decode(document: object) -> Manifest:
    top = _mapping(document, "the manifest")
    schema = top.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {str(schema)[:100]!r}, this version reads {SCHEMA!r}")
    content = _mapping(top.get("content"), "content", {"format", "hash", "files"})
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {str(content['format'])[:100]!r}, not {FORMAT!r}")
    family = HashFamily(_text(content["hash"], "hash"))
    chunk_lists = _mapping(top.get("chunks"), "chunks")
    checksum_lists = _mapping(top.get("checksums"), "checksums")
    entries = content["files"]
    if not isinstance(entries, list):
        raise ValueError("files is not a list")
    files = tuple(_file(entry, family, chunk_lists, checksum_lists) for entry in entries)
    names = {file.path for file in files}
    with_chunks = {file.path for file in files if len(file.chunks) > 1}
    for label, given, allowed in (
        ("chunks", chunk_lists, with_chunks),
        ("checksums", checksum_lists, names),
    ):
        strangers = sorted(set(given) - allowed)
        if strangers:
            raise ValueError(f"{label} has {strangers[0][:200]!r}, which is not a file it is for")
    manifest = Manifest(
        hash=family,
        files=files,
        layout=_mapping(top.get("layout", {}), "layout"),
        source=_mapping(top.get("source", {}), "source"),
        created=_text(top.get("created", ""), "created"),
        tool=_text(top.get("tool", ""), "tool"),
        annotations=_mapping(top.get("annotations", {}), "annotations"),
    )
    if top.get("id") != manifest.id:
        raise ValueError(f"its id is {str(top.get('id'))[:100]!r}, its content makes {manifest.id}")
    return manifest


def _file(
    entry: object,
    family: HashFamily,
    chunk_lists: Mapping[str, Any],
    checksum_lists: Mapping[str, Any],
) -> ManifestFile:
    fields = _mapping(entry, "a file", {"path", "size", "digest"})
    path = SafePath(_text(fields["path"], "path"))
    size = fields["size"]
    if type(size) is not int or not 0 <= size <= MAX_FILE_SIZE:
        raise ValueError(f"{path!r} has an impossible size: {size!r}")
    digest = Digest.parse(_text(fields["digest"], "digest"))
    if digest.family is not family:
        raise ValueError(f"the digest of {path!r} is not of the family {family.value}")
    count = chunk_count(size)
    if count == 1:
        chunks: tuple[bytes, ...] = (digest.value,)
    else:
        packed = _base64(chunk_lists.get(path), f"the chunk digests of {path!r}")
        if len(packed) != count * DIGEST_SIZE:
            raise ValueError(f"{path!r} has {count} chunks, its list {len(packed)} bytes")
        chunks = tuple(
            packed[start : start + DIGEST_SIZE] for start in range(0, len(packed), DIGEST_SIZE)
        )
    checksums = _mapping(checksum_lists.get(path, {}), f"the checksums of {path!r}")
    return ManifestFile(path, size, digest, chunks, checksums)


def _check_checksums(file: ManifestFile) -> None:
    for name, value in file.checksums.items():
        if name not in _CHECKSUM_SIZES:
            raise ValueError(f"{file.path!r} has an unknown checksum: {name[:100]!r}")
        if len(_base64(value, f"the {name} of {file.path!r}")) != _CHECKSUM_SIZES[name]:
            raise ValueError(f"the {name} of {file.path!r} has the wrong length")


def _mapping(value: object, what: str, exactly: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    if exactly is not None and set(value) != exactly:
        odd = sorted(set(value) ^ exactly)
        raise ValueError(f"{what} must have exactly {sorted(exactly)}; odd one: {odd[0][:100]!r}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string")
    return value


def _base64(value: object, what: str) -> bytes:
    text = _text(value, what)
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:  # also for characters that are not ASCII
        raise ValueError(f"{what}: not base64") from error
    if base64.b64encode(raw).decode("ascii") != text:
        raise ValueError(f"{what}: not canonical base64")
    return raw
