"""Where things lie below a destination directory, relative to it.

    .checkpoint/lock                        held while a program writes here; says who, and how far it is
    .checkpoint/partial/<id>/<path>         files that are not complete yet
    .checkpoint/manifest.<id>.json          a version whose publishing began
    .checkpoint/manifest.json               the version that was published last
    .checkpoint/ready.json                  the marker: that version is complete

In file names the colon of an id becomes a hyphen.
"""

from __future__ import annotations

import re
from typing import Final

from staging.vocabulary.paths import CONTROL_DIRECTORY

READY_NAME: Final = f"{CONTROL_DIRECTORY}/ready.json"
LOCK_NAME: Final = f"{CONTROL_DIRECTORY}/lock"
PARTIAL_DIRECTORY: Final = f"{CONTROL_DIRECTORY}/partial"

_BEGUN = re.compile(r"manifest\.sha256-[0-9a-f]{64}\.json")


def partial_directory(checkpoint_id: str) -> str:
    """Where the incomplete files of a version lie."""
    return f"{PARTIAL_DIRECTORY}/{_plain(checkpoint_id)}"


def begun_name(checkpoint_id: str) -> str:
    """Where the manifest of a version lies while its files are moved into place."""
    return f"{CONTROL_DIRECTORY}/manifest.{_plain(checkpoint_id)}.json"


def is_begun(name: str) -> bool:
    """True for the names that `begun_name` makes, without their directory."""
    return _BEGUN.fullmatch(name) is not None


def is_leftover(name: str) -> bool:
    """True for begun manifests and for temporary files of documents, without their directory."""
    return is_begun(name) or (name.endswith(".tmp") and name.startswith(("manifest.", "ready.")))


def parents(path: str) -> list[str]:
    """The directories above a relative path, outermost first, without the root."""
    components = path.split("/")
    return ["/".join(components[:count]) for count in range(1, len(components))]


def _plain(checkpoint_id: str) -> str:
    return checkpoint_id.replace(":", "-")
