"""The one type of safe relative names, for tar members, manifest paths and S3 keys alike.

A name is refused, never repaired: two readers that repair differently see two checkpoints (I3, I10).

Invariants: a `SafePath` is relative, NFC, at most 1,024 bytes of UTF-8 with components of at most 255,
has no empty, `.` or `..` component, no backslash, control, line-separating, invisible or unassigned
character and no drive letter, and is not inside the reserved `.checkpoint/`.
Not guaranteed: that the name is pretty, or that two names differ on a case-insensitive filesystem;
for sets of names there is `collisions`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

MAX_PATH_BYTES: Final = 1024
"""Longest name in bytes of UTF-8: the limit of an S3 key."""

MAX_COMPONENT_BYTES: Final = 255
"""Longest component in bytes of UTF-8: the limit of common filesystems."""

CONTROL_DIRECTORY: Final = ".checkpoint"
"""Holds manifests, markers and partial files; never a member's name."""

LEGACY_MARKER: Final = ".checkpoint-complete"
"""Zero-byte marker object of the reference uploader; never a member's name."""

_DRIVE = re.compile(r"[A-Za-z]:")
# Controls, format characters (direction, joiners), surrogates, unassigned ones, line separators. What is
# unassigned today has no normal form yet, and may get another one with the next Unicode.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Cs", "Zl", "Zp"})
# Letters and marks that show as nothing: fillers, joiners, variation selectors.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0") | {
    chr(code) for code in (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}


class UnsafePath(ValueError):
    """A name that is not a `SafePath`; `reason` says why in a few words."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"unsafe name {name[:200]!r}: {reason}")
        self.name = name
        self.reason = reason


class SafePath(str):
    """A relative POSIX name that means the same file everywhere. Raises UnsafePath when it does not."""

    __slots__ = ()

    def __new__(cls, name: str) -> SafePath:
        """Check `name` and return it as a SafePath."""
        if isinstance(name, cls):
            return name
        reason = why_unsafe(name)
        if reason is not None:
            raise UnsafePath(name, reason)
        return super().__new__(cls, name)

    @property
    def components(self) -> tuple[str, ...]:
        """The names between the slashes."""
        return tuple(self.split("/"))

    @property
    def sort_key(self) -> bytes:
        """Manifests are sorted by the bytes of UTF-8, not by code points of a locale."""
        return self.encode("utf-8")


def why_unsafe(name: str) -> str | None:
    """Say why `name` cannot be a member's name, or None when it can."""
    reason = why_not_portable(name)
    if reason is None and is_reserved(name):
        return f"{CONTROL_DIRECTORY}/ and {LEGACY_MARKER} are reserved"
    return reason


def why_not_portable(name: str) -> str | None:
    """Say why `name` does not mean the same file everywhere, or None when it does.

    This is `why_unsafe` without reservation: an archive's names are judged before their top-level
    directory is stripped, reserved names after.
    """
    if not name:
        return "it is empty"
    for character in name:
        if character == "\\":
            return "it has a backslash"
        category = unicodedata.category(character)
        if category == "Cf" or character in _INVISIBLE:
            return f"it has the invisible character U+{ord(character):04X}"
        if category in _FORBIDDEN_CATEGORIES:
            return f"it has the control character U+{ord(character):04X}"
    if len(name.encode("utf-8")) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    if name.startswith("/"):
        return "it is absolute"
    if _DRIVE.match(name):
        return "it starts with a drive letter"
    if not unicodedata.is_normalized("NFC", name):
        return "it is not in Unicode normal form NFC"
    for component in name.split("/"):
        if component == "":
            return "it has an empty component"
        if component in (".", ".."):
            return f"it has the component {component!r}"
        if len(component.encode("utf-8")) > MAX_COMPONENT_BYTES:
            return f"a component is longer than {MAX_COMPONENT_BYTES} bytes"
    return None


def is_reserved(name: str) -> bool:
    """True for names inside the control directory and for the legacy marker, in any case."""
    top = name.split("/", 1)[0].casefold()
    return top == CONTROL_DIRECTORY or name.casefold() == LEGACY_MARKER


class NameSet:
    """Names seen so far; tells of each new one whether it can live beside the earlier ones everywhere.

    Two names collide when they are equal, equal but for case, when one file is a directory of the
    other, or when their directories are equal but for case.
    """

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        # folded -> (spelling, the first name that told of it)
        self._directories: dict[str, tuple[str, str]] = {}

    def add(self, name: str) -> str | None:
        """Add a file. Returns the earlier name it collides with, and then does not add it."""
        folded = _fold(name)
        other = self._files.get(folded)
        if other is None and folded in self._directories:
            other = self._directories[folded][1]
        parents = _parents(name)
        if other is None:
            other = self._add_directories(parents, name)
        if other is None:
            self._files[folded] = name
        return other

    def add_directory(self, name: str) -> str | None:
        """Add a directory, perhaps again. Returns the earlier name it collides with."""
        return self._add_directories([*_parents(name), name], name)

    def _add_directories(self, directories: list[str], name: str) -> str | None:
        folded = [(_fold(directory), directory) for directory in directories]
        for key, spelling in folded:
            if key in self._files:
                return self._files[key]
            if key in self._directories and self._directories[key][0] != spelling:
                return self._directories[key][1]
        for key, spelling in folded:
            self._directories.setdefault(key, (spelling, name))
        return None


def collisions(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that cannot live side by side everywhere, as `NameSet` tells.

    Each later name is reported once, beside the earlier name it collides with.
    """
    seen = NameSet()
    return [(other, name) for name in names if (other := seen.add(name)) is not None]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _parents(name: str) -> list[str]:
    components = name.split("/")
    return ["/".join(components[:count]) for count in range(1, len(components))]
