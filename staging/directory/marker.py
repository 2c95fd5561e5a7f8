"""The ready marker: `.checkpoint/ready.json` says which version lies complete in a directory.

    {"schema": "checkpoint-ready/1", "id": "sha256:...",
     "files": {"<path>": {"inode": n, "mtime_ns": n, "size": n}, ...}}

Invariants: `Marker.decode(m.encode()) == m`; equal markers have equal bytes; a marker is written last
and removed first (I5). It vouches for files only together with the manifest of the same id.
Not guaranteed: that bytes did not rot or change behind an unchanged size, mtime and inode; that is
what hashing is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from staging.directory.entry import Stamp
from staging.vocabulary import strict_json
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import SafePath

SCHEMA: Final = "checkpoint-ready/1"
MAX_MARKER_BYTES: Final = 64 * 1024 * 1024

_FIELDS: Final = ("size", "mtime_ns", "inode")
_ID = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Marker:
    """The id of a complete version and the stamp of each of its files."""

    id: str
    files: Mapping[str, Stamp]

    def covers(self, manifest: Manifest) -> bool:
        """True when this is the marker of exactly the manifest's files, in their sizes."""
        return self.id == manifest.id and {
            path: stamp.size for path, stamp in self.files.items()
        } == {file.path: file.size for file in manifest.files}

    def encode(self) -> bytes:
        """The marker as the bytes of one JSON document."""
        document = {
            "schema": SCHEMA,
            "id": self.id,
            "files": {
                path: {name: getattr(stamp, name) for name in _FIELDS}
                for path, stamp in self.files.items()
            },
        }
        text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True)
        return text.encode("utf-8") + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Marker:
        """Read a marker, strictly. Raises MalformedInput."""
        try:
            return _decode(strict_json.loads(data, limit=MAX_MARKER_BYTES))
        except ValueError as error:
            raise MalformedInput(
                f"the ready marker is not valid: {error}",
                reference="marker-malformed",
                hint="run the download again: it checks the files and writes a new marker",
                side="local",
            ) from error


def _decode(document: Any) -> Marker:
    if not isinstance(document, dict) or set(document) != {"schema", "id", "files"}:
        raise ValueError("it must have exactly schema, id and files")
    if document["schema"] != SCHEMA:
        raise ValueError(f"its schema is {str(document['schema'])[:100]!r}, not {SCHEMA!r}")
    checkpoint_id, files = document["id"], document["files"]
    if not isinstance(checkpoint_id, str) or not _ID.fullmatch(checkpoint_id):
        raise ValueError(f"not an id: {str(checkpoint_id)[:100]!r}")
    if not isinstance(files, dict):
        raise ValueError("files is not an object")
    return Marker(
        checkpoint_id, {SafePath(path): _stamp(path, fields) for path, fields in files.items()}
    )


def _stamp(path: str, fields: Any) -> Stamp:
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        raise ValueError(f"{path[:200]!r} must have exactly {', '.join(_FIELDS)}")
    for name in _FIELDS:
        value = fields[name]
        if type(value) is not int or (value < 0 and name != "mtime_ns"):
            raise ValueError(f"{path[:200]!r} has an impossible {name}: {str(value)[:100]}")
    return Stamp(fields["size"], fields["mtime_ns"], fields["inode"])
