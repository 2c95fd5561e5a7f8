"""Collecting the facts that layout rules judge: names, sizes and safetensors headers of a source.

Of each safetensors file two ranges are read, its length and its header; of a sequential source
the same bytes are kept as they pass by. Everything else stays unread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from staging.formats.safetensors import (
    HeaderCapture,
    SafetensorsError,
    SafetensorsHeader,
    read_header,
)
from staging.layout.inventory import Inventory, is_safetensors
from staging.source.source import Source, SourceFile
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.read_at import ReadAt

_CONCURRENCY = 8
_BLOCK = 1024 * 1024  # bytes read at once from a source that is only looked at


class Passing:
    """The inventory of a sequential source, taken while its bytes pass by."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._captures: dict[str, HeaderCapture] = {}

    def note(self, file: SourceFile) -> None:
        """Take note of a file, before its bytes come."""
        self._sizes[file.path] = file.size
        if is_safetensors(file.path):
            self._captures[file.path] = HeaderCapture(file.size)

    def watch(self, file: SourceFile, view: memoryview) -> None:
        """See the next bytes of a file that was noted."""
        capture = self._captures.get(file.path)
        if capture is not None and capture.missing:
            capture.feed(view)

    def inventory(self) -> Inventory:
        """What has passed so far."""
        headers = {path: _outcome(capture.result) for path, capture in self._captures.items()}
        return Inventory(dict(self._sizes), headers)


def read_through(source: Source) -> tuple[tuple[SourceFile, ...], Inventory]:
    """Read a sequential source to its end, keeping nothing but its files and their inventory."""
    passing = Passing()
    files = []
    buffer = bytearray(_BLOCK)
    for file in source.files():
        files.append(file)
        passing.note(file)
        for offset in range(0, file.size, _BLOCK):
            with memoryview(buffer)[: min(_BLOCK, file.size - offset)] as view:
                source.read_into(file, offset, view)
                passing.watch(file, view)
    return tuple(files), passing.inventory()


def take_inventory(
    sizes: Iterable[tuple[str, int]], open_file: Callable[[str], ReadAt]
) -> Inventory:
    """Take the inventory of files that can be read anywhere, all headers in parallel.

    `sizes` are paths with sizes in bytes. Raises what reading raises; a broken header is a fact.
    """
    files = dict(sizes)
    headers: dict[str, SafetensorsHeader | str | None] = {}

    def look(path: str) -> None:
        headers[path] = _outcome(functools.partial(read_header, open_file(path)))

    with Scheduler(_CONCURRENCY, name="headers") as scheduler:
        for path in filter(is_safetensors, files):
            scheduler.submit(functools.partial(look, path))
    return Inventory(files, headers)


def _outcome(read: Callable[[], SafetensorsHeader]) -> SafetensorsHeader | str:
    try:
        return read()
    except SafetensorsError as error:
        return error.reason
