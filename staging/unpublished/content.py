"""What the bytes of an object are found to be, and what its store says that they are.

Chunks come in any order, each of them once or again. Where the store keeps a checksum of the whole
object, the bytes that came are the bytes it took in; an ETag proves the same when it is their MD5. An ETag
that is not their MD5 proves nothing: of encrypted objects and of those in parts it is something else.

Not guaranteed: a comparison with CRC64NVME where its library is not installed.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from staging.vocabulary.digest import Bytes, Digest, HashFamily, chunk_count, chunk_span
from staging.vocabulary.errors import IntegrityError, MalformedInput
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath

Proof = Literal["crc64nvme", "md5", "nothing"]
"""What vouches for bytes beside the store's word: its checksum of them, its ETag, or nothing."""

_MD5: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Crc64:
    """The functions of `staging.vocabulary.crc64`."""

    of: Callable[[Bytes], int]
    combine: Callable[[int, int, int], int]
    to_text: Callable[[int], str]


@functools.cache
def installed_crc64() -> Crc64 | None:
    """CRC64NVME, where its library is installed; loading that takes time."""
    try:
        from staging.vocabulary import crc64
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "awscrt":
            raise
        return None
    return Crc64(crc64.crc64, crc64.combine, crc64.to_text)


def encode(manifest: Manifest) -> bytes:
    """The manifest of such content as a document. Raises MalformedInput when it would be too large."""
    try:
        return manifest.encode()
    except ValueError as error:
        raise MalformedInput(
            f"the manifest of this checkpoint cannot be written: {error}",
            reference="manifest-too-large",
            hint="publish it in several checkpoints",
            side="store",
        ) from error


class Content:
    """What is known of the bytes of one file. May be fed from several threads."""

    def __init__(self, path: SafePath, size: int, etag: str, family: HashFamily) -> None:
        self.path = path
        self.size = size
        self._family = family
        self._crc = installed_crc64()
        self._chunks: dict[int, bytes] = {}
        self._crcs: dict[int, int] = {}
        self._etag = etag if _MD5.fullmatch(etag) and chunk_count(size) == 1 else None
        self._is_md5 = False
        if size == 0:
            self.take(0, b"")

    def take(self, index: int, chunk: Bytes, digest: bytes | None = None) -> None:
        """Take chunk `index`, and its digest if somebody has it; what was known of it before is forgotten."""
        if self._etag is not None:
            self._is_md5 = hashlib.md5(chunk, usedforsecurity=False).hexdigest() == self._etag
        if self._crc is not None:
            self._crcs[index] = self._crc.of(chunk)
        self._chunks[index] = self._family.hash(chunk) if digest is None else digest

    @property
    def crc64nvme(self) -> str | None:
        """CRC64NVME of the whole file in base64, once all chunks came; None where it is not installed."""
        if self._crc is None:
            return None
        value = 0
        for index in range(chunk_count(self.size)):
            value = self._crc.combine(value, self._crcs[index], chunk_span(self.size, index)[1])
        return self._crc.to_text(value)

    def file(self) -> ManifestFile:
        """The manifest's entry of the file, once all chunks came."""
        checksum = self.crc64nvme
        return ManifestFile.of(
            self.path,
            self.size,
            self._family,
            [self._chunks[index] for index in range(chunk_count(self.size))],
            {} if checksum is None else {"crc64nvme": checksum},
        )

    @property
    def digest(self) -> Digest:
        """The file's digest, once all chunks came."""
        return self.file().digest

    def is_provable(self, stored: str | None) -> bool:
        """True when there is something to hold the bytes against; `stored` as for `proof`."""
        return self._etag is not None or (stored is not None and self._crc is not None)

    def proof(self, stored: str | None) -> Proof:
        """What shows that these are the bytes the store took in; `stored` is its CRC64NVME, in base64."""
        if stored is not None and stored == self.crc64nvme:
            return "crc64nvme"
        return "md5" if self._is_md5 else "nothing"

    def require(self, stored: str | None, uri: str) -> Proof:
        """`proof`, of the object at `uri`. Raises IntegrityError when the store's checksum is another."""
        checksum = self.crc64nvme
        if stored is not None and checksum is not None and stored != checksum:
            raise IntegrityError(
                f"{uri} does not have the bytes that were put there: their CRC64NVME is {checksum},"
                f" the store keeps {stored[:40]}",
                reference="stored-checksum",
                hint="run again; if it repeats, the object is damaged in the store: copy it there again",
                side="store",
            )
        return self.proof(stored)
