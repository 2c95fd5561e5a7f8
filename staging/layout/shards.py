"""Files that belong together: named by an index, or numbered `-NUMBER-of-TOTAL`.

Neither says that its files are there; `staging.layout.facts` holds them against the inventory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from staging.vocabulary.paths import why_unsafe

_NUMBERED: Final = re.compile(
    r"(?P<stem>[^/]+)-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})\.(?P<kind>safetensors|gguf)"
)


@dataclass(frozen=True, slots=True)
class Index:
    """An index: for each tensor the file it is in. Files are named from the root."""

    places: Mapping[str, str]
    by_file: Mapping[str, tuple[str, ...]]
    total_size: object

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Index:
        """Read the JSON of an index. Raises ValueError with a reason when it is none."""
        places = document.get("weight_map")
        if not isinstance(places, dict):
            raise ValueError("it has no weight_map")
        if not places:
            raise ValueError("its weight_map is empty")
        by_file: dict[str, list[str]] = {}
        for tensor, path in places.items():
            if not isinstance(path, str):
                raise ValueError(f"its weight_map has no file for {tensor[:100]!r}")
            by_file.setdefault(path, []).append(tensor)
        for path in by_file:
            reason = why_unsafe(path)
            if reason is not None:
                raise ValueError(f"it names the file {path[:100]!r}, which is unsafe: {reason}")
        metadata = document.get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        return cls(places, {path: tuple(names) for path, names in by_file.items()}, total)


@dataclass(frozen=True, slots=True)
class Numbering:
    """Files of one stem that are numbered `-NUMBER-of-TOTAL`: for each total, paths by number."""

    stem: str
    kind: str
    totals: Mapping[int, Mapping[int, str]]

    @property
    def mixed(self) -> bool:
        """True when the files do not agree on how many there are."""
        return len(self.totals) > 1

    @property
    def total(self) -> int:
        """How many files there should be; the most, when they do not agree."""
        return max(self.totals)

    @property
    def there(self) -> int:
        """How many of them are there."""
        return len(self.totals[self.total])

    @property
    def paths(self) -> frozenset[str]:
        """All files of this stem."""
        return frozenset(path for numbered in self.totals.values() for path in numbered.values())

    @property
    def first_missing(self) -> str | None:
        """The name of the first file that is not there; numbers begin with 1, or with 0."""
        numbered = self.totals[self.total]
        start = 0 if 0 in numbered else 1
        for number in range(start, start + self.total):
            if number not in numbered:
                match = _NUMBERED.fullmatch(next(iter(numbered.values())))
                width, of = (len(match["number"]), match["total"]) if match else (5, self.total)
                return f"{self.stem}-{number:0{width}d}-of-{of}.{self.kind}"
        return None


def numbered(paths: Iterable[str]) -> tuple[Numbering, ...]:
    """The numbered files in the root, grouped by stem and kind, in order of these."""
    groups: dict[tuple[str, str], dict[int, dict[int, str]]] = {}
    for path in paths:
        match = _NUMBERED.fullmatch(path)
        if match is not None:
            totals = groups.setdefault((match["stem"], match["kind"]), {})
            totals.setdefault(int(match["total"]), {})[int(match["number"])] = path
    return tuple(Numbering(stem, kind, totals) for (stem, kind), totals in sorted(groups.items()))
