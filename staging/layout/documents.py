"""Small files of a checkpoint that rules read: configurations, the index of its shards, what tokenizers need.

Some are read whole, as JSON; of others the first bytes are enough to see that they are something else, such
as the pointer that git-LFS leaves behind. All lie in the root or in `tokenizer/`.

Invariants: the cap is compared with a file's size before anything is read or kept, and that of values with
their number before any is made (I11); a document has one reading: a key that comes twice is refused (I3),
with equal values too, since servers in Python take the last and typed readers in other languages neither.
Not guaranteed: that a JSON document means anything. `NaN` and `Infinity` are taken as numbers, as Python
and with it the model servers do: published configurations have them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from staging.formats.stranger import (
    LFS_POINTER,
    SNIFF_BYTES,
    WEB_PAGE,
    XML_ANSWER,
    Stranger,
    recognise,
)
from staging.layout.inventory import CONSOLIDATED_INDEX_NAME, INDEX_NAME, Unreadable
from staging.vocabulary.digest import Bytes
from staging.vocabulary.read_at import ReadAt

MAX_DOCUMENT_BYTES: Final = 8 * 1024 * 1024
"""Longest document that is read, in bytes; configurations have some KB, tokenizers' settings up to 2 MB."""

MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
"""Longest index that is read where it can be read at once, in bytes; one of 200,000 tensors has 20 MB."""

MAX_PASSING_INDEX_BYTES: Final = 32 * 1024 * 1024
"""Longest index that is kept while it passes by, in bytes."""

MAX_VALUES: Final = 2**20
"""Most values in a document, so that a hostile one takes at most some twenty times its length in memory."""

_INDEXES: Final = (INDEX_NAME, CONSOLIDATED_INDEX_NAME)

_WHOLE: Final = frozenset(
    {
        *_INDEXES,
        "adapter_config.json",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "hf_quant_config.json",
        "params.json",
        "preprocessor_config.json",
        "processor_config.json",
        "quant_config.json",
        "quantize_config.json",
        "tokenizer_config.json",
    }
)
_STARTS: Final = frozenset(
    {
        "chat_template.jinja",
        "config.yaml",
        "merges.txt",
        "special_tokens_map.json",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
    }
)
_TOKENIZER: Final = "tokenizer/"
_STRANGERS: Final = (LFS_POINTER, WEB_PAGE, XML_ANSWER)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What is known of a document: its JSON, why it has none, or nothing (`known` is False)."""

    value: Any = None
    known: bool = True


_UNKNOWN: Final = Parsed(known=False)


def is_document(path: str) -> bool:
    """True for files that rules look into, besides weights."""
    name = path.removeprefix(_TOKENIZER)
    return name in _STARTS or name in _WHOLE


class DocumentCapture:
    """Keeps of a file that passes by what rules need of it; bytes are fed in order from offset 0.

    `size` is the file's size in bytes. What is not needed may be fed and is ignored.
    """

    def __init__(self, path: str, size: int, *, index_limit: int = MAX_PASSING_INDEX_BYTES) -> None:
        name = path.removeprefix(_TOKENIZER)
        limit = index_limit if path in _INDEXES else MAX_DOCUMENT_BYTES
        self._whole = name in _WHOLE
        self._too_long = self._whole and size > limit
        self._needed = size if self._whole and not self._too_long else min(size, SNIFF_BYTES)
        self._held = bytearray()
        self._result: Parsed | None = None

    @property
    def held(self) -> int:
        """Bytes of the file that are known so far."""
        return len(self._held)

    def start(self, length: int) -> bytes:
        """The first bytes, at most `length`. Ask before `result`, which lets go of them."""
        return bytes(self._held[:length])

    @property
    def missing(self) -> int:
        """Bytes still needed; 0 when the outcome is known."""
        return 0 if self._result is not None else self._needed - len(self._held)

    def feed(self, data: Bytes) -> None:
        """Take the next bytes of the file."""
        if self.missing:
            self._held += memoryview(data)[: self.missing]

    def result(self) -> Parsed:
        """What the file is, as far as it has come. Ask once nothing is missing."""
        if self._result is None:
            if self.missing:
                return _UNKNOWN
            self._result = self._read(bytes(self._held))
            self._held = bytearray()
        return self._result

    def _read(self, data: bytes) -> Parsed:
        stranger = recognise(data[:SNIFF_BYTES])
        if stranger in _STRANGERS:
            return Parsed(Unreadable(stranger, f"it is {stranger.name}"))
        if self._too_long:
            return Parsed(Unreadable(None, "it is too long to be looked into", too_long=True))
        if not self._whole:
            return _UNKNOWN
        return Parsed(_decode(data, stranger))


def read_document(path: str, source: ReadAt) -> Parsed:
    """Read a document with one request. Raises what `source` raises."""
    capture = DocumentCapture(path, source.size, index_limit=MAX_INDEX_BYTES)
    if capture.missing:
        capture.feed(source.read_at(0, capture.missing))
    return capture.result()


def _decode(data: bytes, stranger: Stranger | None) -> Any:
    if not data:
        return Unreadable(None, "it is empty")
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        return Unreadable(None, "it has too many values to be looked into", too_long=True)
    try:
        return _parsed(data)
    except UnicodeEncodeError:
        return Unreadable(None, "its text has half a character")
    except UnicodeDecodeError:
        what = "it is no text in UTF-8" if stranger is None else f"it is {stranger.name}"
        return Unreadable(stranger, what)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        if error.pos >= len(data.decode("utf-8").rstrip()):
            return Unreadable(stranger, "its JSON ends too early, as of a file that was cut off")
        return Unreadable(stranger, f"it is no JSON: {error.msg} at {where}")
    except RecursionError:
        return Unreadable(None, "its JSON is nested too deeply")
    except ValueError as error:
        return Unreadable(None, str(error))


def _parsed(data: bytes) -> Any:
    value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    if b"\\ud" in data.lower():  # half a character could not be printed
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"its key {name[:100]!r} comes twice")
            seen.add(name)
    return found
