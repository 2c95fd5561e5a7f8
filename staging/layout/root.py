"""Where the root of a checkpoint is inside an archive: what to strip from every member's name.

An archive has one top-level directory, which is stripped. Anything else would be served from the wrong
place, and a name that is too short to be stripped would vanish as with `tar --strip-components`; both
are refused with the command to run instead. A count given by the operator is followed as it is.

One implementation serves archives whose names are all known (`find_root`) and those that come member
by member (`RootTracker`), which refuses as soon as a name contradicts.

Invariants: no member is dropped or renamed but for the stripped components, which are the same for all;
what is returned is a `SafePath`, so reserved names are refused here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from staging.layout.inventory import (
    INDEX_NAME,
    directory_of,
    is_config,
    is_leftover,
    is_other_weights,
    is_safetensors,
)
from staging.vocabulary.errors import LayoutInvalid, MalformedInput
from staging.vocabulary.paths import SafePath, UnsafePath

_BUNDLE: Final = frozenset({"scripts", "containers", "charts"})
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Root:
    """The directory of an archive that becomes the root of the checkpoint; empty for the archive itself."""

    components: tuple[str, ...] = ()

    def strip(self, name: str) -> SafePath:
        """The path of a member below the root.

        Raises LayoutInvalid for a member outside the root, MalformedInput for a reserved name.
        """
        components = tuple(name.split("/"))
        count = len(self.components)
        if len(components) <= count or components[:count] != self.components:
            raise LayoutInvalid(
                f"{name[:200]!r} is not inside {'/'.join(self.components)[:200]!r}, which is stripped",
                reference="layout-strip",
                hint="give a --strip-components that fits all members; none is ever left out",
                side="source",
            )
        try:
            return SafePath("/".join(components[count:]))
        except UnsafePath as error:
            raise MalformedInput(
                str(error),
                reference="tar-name",
                hint="pack the checkpoint's own files only, then run again",
                side="source",
            ) from error


def find_root(
    names: Iterable[str],
    *,
    strip_components: int | None = None,
    source: str = "ARCHIVE",
    target: str = "TARGET",
) -> Root:
    """Decide what to strip from all members of an archive, given their names.

    `source` and `target` are only named in hints. Raises LayoutInvalid, MalformedInput.
    """
    tracker = RootTracker(strip_components=strip_components, source=source, target=target)
    all_names = list(names)
    for name in all_names:
        tracker.note(name)
    tracker.finish()
    for name in all_names:
        tracker.root.strip(name)
    return tracker.root


class RootTracker:
    """Decides the root from the first member and holds every later one against it."""

    def __init__(
        self,
        *,
        strip_components: int | None = None,
        source: str = "ARCHIVE",
        target: str = "TARGET",
    ) -> None:
        """`source` and `target` are only named in hints."""
        self.root = Root()
        self._count = strip_components
        self._source = source or "ARCHIVE"
        self._target = target or "TARGET"
        self._first: str | None = None
        self._common: tuple[str, ...] = ()  # directories that all files share
        self._at_top: list[str] = []  # files outside any directory
        self._tops: dict[str, None] = {}  # top-level directories, in order
        self._second: set[str] = set()  # names of directories one level down
        self._safetensors: dict[str, None] = {}  # directories that hold weights, in order
        self._other_weights: dict[str, None] = {}

    def add(self, name: str) -> SafePath:
        """Take the next member's name and return its path below the root.

        Raises LayoutInvalid as soon as the names so far contradict each other, MalformedInput for a
        reserved name.
        """
        self.note(name)
        if self._count is None:
            self._refuse_contradiction()
        return self.root.strip(name)

    def note(self, name: str) -> None:
        """Take a member's name without judging it: `finish` will."""
        components = tuple(name.split("/"))
        if self._first is None:
            self._first = name
            self._common = components[:-1]
            self.root = Root(components[: 1 if self._count is None else self._count])
        shared = 0
        for mine, common in zip(components[:-1], self._common, strict=False):
            if mine != common:
                break
            shared += 1
        self._common = self._common[:shared]
        if len(components) == 1:
            self._at_top.append(name)
        else:
            self._tops.setdefault(components[0])
        if len(components) > 2:
            self._second.add(components[1])
        if is_safetensors(name) or components[-1] == INDEX_NAME:
            self._safetensors.setdefault(directory_of(name))
        elif is_other_weights(name):
            self._other_weights.setdefault(directory_of(name))

    def finish(self) -> None:
        """Judge all names together, once the last one was added. Raises LayoutInvalid."""
        if self._count is not None:
            return
        self._refuse_contradiction()
        holding = self._checkpoints()
        if not holding or "/" not in holding[0]:
            return
        if len(holding) > 1:
            raise self._several(holding)
        (inner,) = holding
        depth = inner.count("/") + 1
        everything = len(self._common) >= depth  # is inside, so nothing needs repacking
        hint = self._upload(depth) if everything else self._repack(inner)
        raise LayoutInvalid(
            f"the weights are in the folder {inner[:200]!r}, not at the root of the checkpoint",
            reference="layout-nested",
            hint=hint,
            side="source",
        )

    def _checkpoints(self) -> list[str]:
        """Directories that hold weights, without those that lie inside another one of them."""
        holding = self._safetensors or self._other_weights
        return [
            path for path in holding if not any(path.startswith(outer + "/") for outer in holding)
        ]

    def _refuse_contradiction(self) -> None:
        """Raise LayoutInvalid when the files so far are not all inside one top-level directory."""
        tops = list(self._tops)
        if len(_BUNDLE & set(tops)) > 1 or (len(tops) == 1 and len(_BUNDLE & self._second) > 1):
            raise LayoutInvalid(
                "this is a deployment bundle (scripts, containers, charts), not a checkpoint",
                reference="deployment-bundle",
                hint="upload the checkpoint's own .tar; the vendor ships one per model, beside the bundle",
                side="source",
            )
        if len(tops) < 2 and not self._at_top:
            return
        leftovers = [
            name for name in (*self._at_top, *tops) if is_leftover(name) or name == ".DS_Store"
        ]
        if leftovers:
            raise LayoutInvalid(
                f"{leftovers[0][:200]!r} was added by macOS; the archive has more than a checkpoint",
                reference="layout-macos",
                hint="ask for an archive packed with COPYFILE_DISABLE=1, or pack the directory again with it",
                side="source",
            )
        if self._at_top:
            self._refuse_files_at_top()
        holding = self._checkpoints()
        raise self._several(holding if len(holding) > 1 else tops)

    def _refuse_files_at_top(self) -> None:
        name = self._at_top[0]
        if any(map(_belongs_to_a_checkpoint, self._at_top)):
            hint = self._upload(0)
        else:
            hint = "ask for an archive with one top-level directory that holds the checkpoint"
        raise LayoutInvalid(
            f"{name[:200]!r} is not inside a top-level directory, which would be stripped",
            reference="layout-top-files",
            hint=hint,
            side="source",
        )

    def _several(self, directories: list[str]) -> LayoutInvalid:
        shown = ", ".join(repr(name[:100]) for name in directories[:_SHOWN])
        more = f" and {len(directories) - _SHOWN} more" if len(directories) > _SHOWN else ""
        return LayoutInvalid(
            f"the archive has several directories where one checkpoint is expected: {shown}{more}",
            reference="layout-several",
            hint=f"upload each to a prefix of its own: {self._repack(directories[0])}",
            side="source",
        )

    def _upload(self, count: int) -> str:
        feed = "cat ARCHIVE | " if self._source == "-" else ""
        return (
            f"{feed}staging upload {shlex.quote(self._source)} {shlex.quote(self._target)}"
            f" --strip-components {count}"
        )

    def _repack(self, directory: str) -> str:
        """Commands that upload one directory of the archive."""
        archive = "ARCHIVE" if self._source == "-" else self._source
        parent, _, last = directory.rpartition("/")
        place = f"unpacked/{parent}" if parent else "unpacked"
        return (
            f"mkdir unpacked && tar -xf {shlex.quote(archive)} -C unpacked && "
            f"tar -c -C {shlex.quote(place)} {shlex.quote(last)} | "
            f"staging upload - {shlex.quote(self._target)}"
        )


def _belongs_to_a_checkpoint(name: str) -> bool:
    return (
        is_safetensors(name)
        or is_other_weights(name)
        or is_config(name)
        or name in (INDEX_NAME, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    )
