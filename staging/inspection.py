"""Collecting the facts that layout rules judge: names, sizes, headers and small documents of a source.

Of each safetensors file two ranges are read, its length and its header; of each document one. Of a sequential
source the same bytes are kept as they pass by. Everything else stays unread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

from staging.formats.safetensors import (
    HeaderCapture,
    SafetensorsError,
    SafetensorsHeader,
    read_header,
)
from staging.layout.documents import DocumentCapture, Parsed, is_document, read_document
from staging.layout.inventory import Inventory, is_safetensors
from staging.layout.rules import Finding, Gradual
from staging.source.source import Source, SourceFile
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.read_at import ReadAt

CONCURRENCY: Final = 8
"""Files that `take_inventory` looks into at once, when it is not told another number."""

_BLOCK = 1024 * 1024  # bytes read at once from a source that is only looked at


class Passing:
    """The inventory of a sequential source, taken while its bytes pass by.

    `gradual` judges what has passed so far: see `certain`; without it nobody does. Not for several threads
    at once.
    """

    def __init__(self, gradual: Gradual | None = None) -> None:
        self._gradual = gradual
        self._sizes: dict[str, int] = {}
        self._headers: dict[str, SafetensorsHeader | str | None] = {}
        self._documents: dict[str, Any] = {}
        self._captures: dict[str, HeaderCapture | DocumentCapture] = {}
        self._fresh: set[str] = set()

    def note(self, file: SourceFile) -> None:
        """Take note of a file, before its bytes come."""
        path = str(file.path)
        self._sizes[path] = file.size
        self._fresh.add(path)
        if is_safetensors(path):
            self._captures[path] = HeaderCapture(file.size)
        elif is_document(path):
            self._captures[path] = DocumentCapture(path, file.size)
        self._settle(path)

    def watch(self, file: SourceFile, view: memoryview) -> None:
        """See the next bytes of a file that was noted."""
        path = str(file.path)
        capture = self._captures.get(path)
        if capture is not None:
            capture.feed(view)
            self._settle(path)

    def certain(self) -> list[Finding]:
        """What has become certain since the last call, whatever files follow; errors come first."""
        fresh, self._fresh = self._fresh, set()
        if self._gradual is None or not fresh:
            return []
        return self._gradual.judge(Inventory(self._sizes, self._headers, self._documents), fresh)

    def inventory(self) -> Inventory:
        """What has passed so far."""
        cut = {
            path: _outcome(capture.result)
            for path, capture in self._captures.items()
            if isinstance(capture, HeaderCapture)
        }
        return Inventory(dict(self._sizes), {**self._headers, **cut}, dict(self._documents))

    def _settle(self, path: str) -> None:
        """Read what a capture holds as soon as it holds enough."""
        capture = self._captures.get(path)
        if capture is None or capture.missing:
            return
        del self._captures[path]
        self._fresh.add(path)
        if isinstance(capture, HeaderCapture):
            self._headers[path] = _outcome(capture.result)
        else:
            _keep(self._documents, path, capture.result())


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
    sizes: Iterable[tuple[str, int]],
    open_file: Callable[[str], ReadAt],
    *,
    concurrency: int = CONCURRENCY,
) -> Inventory:
    """Take the inventory of files that can be read anywhere, headers and documents in parallel.

    `sizes` are paths with sizes in bytes. Raises what reading raises; a broken header is a fact.
    """
    files = dict(sizes)
    headers: dict[str, SafetensorsHeader | str | None] = {}
    documents: dict[str, Any] = {}

    def look(path: str) -> None:
        if is_safetensors(path):
            headers[path] = _outcome(functools.partial(read_header, open_file(path)))
        else:
            _keep(documents, path, read_document(path, open_file(path)))

    with Scheduler(concurrency, name="headers") as scheduler:
        for path in files:
            if is_safetensors(path) or is_document(path):
                scheduler.submit(functools.partial(look, path))
    return Inventory(files, headers, documents)


def _keep(documents: dict[str, Any], path: str, parsed: Parsed) -> None:
    if parsed.known:
        documents[path] = parsed.value


def _outcome(read: Callable[[], SafetensorsHeader]) -> SafetensorsHeader | str:
    try:
        return read()
    except SafetensorsError as error:
        return error.reason
