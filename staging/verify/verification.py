"""What a comparison with a manifest can prove, and what it found."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from staging.vocabulary.digest import chunk_span
from staging.vocabulary.manifest import ManifestFile


class Level(enum.Enum):
    """How much is proven."""

    SIZE = "size"
    CHECKSUM = "checksum"
    DIGEST = "digest"


@dataclass(frozen=True, slots=True)
class Problem:
    """One difference. `kind` is missing, size, checksum, not-provable, digest, changed or extra."""

    path: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome: passed exactly when there is no problem. `read_bytes` counts object bytes read."""

    level: Level
    files: int
    read_bytes: int
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """True when everything the level looks at is as the manifest says."""
        return not self.problems


def missing(file: ManifestFile) -> Problem:
    """A file that is not there."""
    return Problem(
        file.path, "missing", f"{file.path}: missing ({file.size} bytes in the manifest)"
    )


def extra_weight(name: str) -> Problem:
    """A file that the manifest does not name, and that a server would load with the checkpoint."""
    return Problem(name, "extra", f"{name}: a server would load it, and it is not in the manifest")


def wrong_size(file: ManifestFile, found: int) -> Problem:
    """A file with another size."""
    return Problem(file.path, "size", f"{file.path}: {found} bytes, the manifest says {file.size}")


def wrong_chunk(file: ManifestFile, index: int) -> Problem:
    """A chunk whose bytes are not the published ones."""
    offset, length = chunk_span(file.size, index)
    return Problem(
        file.path,
        "digest",
        f"{file.path}: chunk {index} (bytes {offset} to {offset + length - 1}) is not what was published",
    )
