"""A strict reader of tar archives that does no I/O: it says which bytes it needs next, and is fed them.

One parser serves random access and pipes. The offsets it wants only ever grow and never fall inside
a member's data: a driver with random access reads small ranges (`read_index` is one), a driver of a
stream hands the data of each member to its consumer and then feeds what follows.

Invariants: `wanted` is None only when every 512-byte block from the first byte to the end of the input
is accounted for, data apart, both blocks of the end marker were seen, and nothing but zeros follows
(I2). No construct is accepted that common readers read differently (I3). Names are safe and collide
with none before them. Memory is bounded by the caps below, whatever sizes the archive claims (I11).
After a refusal the reader refuses for good.
Not guaranteed: that data is undamaged (tar has no checksum over it), nor that an archive padded with
more zeros than the end marker needs was not cut inside that padding: its members are the same.
Names are not yet checked for reservation, which depends on what is stripped from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from staging.formats import tar_header
from staging.formats.tar_header import BLOCK, ZERO_BLOCK, Header, PaxRecords
from staging.formats.tar_refusals import REFUSED_TYPES, TarRefused, check_kind
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.paths import NameSet, why_not_portable
from staging.vocabulary.read_at import ReadAt

MAX_METADATA: Final = 1024 * 1024
"""Most bytes of one extension header's data."""

MAX_TRAILING: Final = 1024 * 1024
"""Most bytes of zeros after the end marker; writers pad to a record, 10 KiB by default."""

MAX_ENTRIES: Final = 100_000
"""Most files and directories in an archive."""

MAX_NAME_BYTES: Final = 8 * 1024 * 1024
"""Most bytes of all names of an archive together."""

MAX_DEPTH: Final = 32
"""Most components of a name."""

_STAMP_LENGTH = 16
_TRAILING_READ = 64 * 1024
_SHOWN_LENGTH = 200

_EXTENSIONS: Final = {
    tar_header.PAX: "a PAX header",
    tar_header.PAX_GLOBAL: "a global PAX header",
    tar_header.LONG_NAME: "a GNU long name",
}
_NO_RECORDS: Final = PaxRecords(None, None)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in an archive. Offsets and size are in bytes from the start of the archive.

    `name` is as in the archive without a leading `./`; its components are safe, but the top-level
    directory is still there. `header_offset` is that of the first extension header, if there is one.
    `stamp` is the beginning of the BLAKE3 digest of the member's header blocks, extensions included, as
    hexadecimal: the same wherever and however the archive is read, and likely another one when the
    member was written anew, for headers hold its time. It is no part of what makes members equal.
    """

    name: str
    size: int
    header_offset: int
    data_offset: int
    stamp: str = field(compare=False)

    @property
    def data_end(self) -> int:
        """Offset of the first byte after the data."""
        return self.data_offset + self.size


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range of the archive, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Extension:
    """An extension header that waits for its member, and what it says about it."""

    type: bytes
    offset: int
    size: int
    pax: PaxRecords = _NO_RECORDS
    name: bytes | None = None


class TarReader:
    """Reads one archive: feed it the bytes it wants until it wants no more.

        while (wanted := reader.wanted) is not None:
            member = reader.feed(bytes_at(wanted.offset, wanted.length))

    `max_metadata` bounds the data of an extension header, `max_trailing` the zeros behind the end
    marker (bytes), `max_entries` the number of files and directories.
    """

    def __init__(
        self,
        *,
        max_metadata: int = MAX_METADATA,
        max_trailing: int = MAX_TRAILING,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._max_metadata = max_metadata
        self._max_trailing = max_trailing
        self._max_entries = max_entries
        self._wanted: Wanted | None = Wanted(0, BLOCK)
        self._step: Callable[[Wanted, bytes], TarMember | None] = self._header
        self._failure: MalformedInput | None = None
        self._at = 0  # offset of the block being judged, and what it belongs to: for messages
        self._place = self._before = "the first header"
        self._padding = 0  # bytes of padding in front of the next header
        self._headers = bytearray()  # of the member to come, with at most two extensions
        self._waiting: _Extension | None = None
        self._names = NameSet()
        self._name_bytes = 0
        self._entries = 0
        self._files = 0
        self._trailing = 0

    @property
    def wanted(self) -> Wanted | None:
        """The next bytes needed; None when the archive is over and accounted for.

        Raises the refusal again once the archive was refused.
        """
        if self._failure is not None:
            raise self._failure
        return self._wanted

    def feed(self, data: bytes) -> TarMember | None:
        """Take the wanted bytes, or fewer when the input ended there; return the file they announce.

        None means that they announce no file. When the input ended even before the wanted offset,
        call `truncated` instead. Raises MalformedInput; ValueError when less, or nothing, was wanted.
        """
        wanted = self.wanted
        if wanted is None or len(data) > wanted.length:
            raise ValueError(f"fed {len(data)} bytes where {wanted} was wanted")
        self._at = wanted.offset
        try:
            return self._step(wanted, data)
        except TarRefused as refused:
            raise self._refuse(refused) from refused

    def truncated(self, end: int) -> MalformedInput:
        """Refuse the archive because its input ended at offset `end`; returns the error to raise."""
        self._at = end
        return self._refuse(TarRefused("tar-truncated", "the archive ends inside its data"))

    # The steps: each takes the bytes that were wanted, judges them and says what is wanted next.

    def _header(self, wanted: Wanted, data: bytes) -> TarMember | None:
        """Padding of the data before, then a header or the first block of the end marker."""
        if any(data[: self._padding]):
            raise TarRefused("tar-padding", "the padding of its data is not zero")
        self._place = self._before
        if len(data) < wanted.length:
            self._at = wanted.offset + len(data)
            if self._at == 0:
                raise TarRefused("tar-empty", "the file is empty")
            if wanted.offset == 0:
                check_kind(data)
            if len(data) == self._padding:
                raise TarRefused("tar-no-end", "the archive ends here, without an end marker")
            raise TarRefused("tar-truncated", "the archive ends inside a header or its padding")
        block = data[self._padding :]
        offset = self._at = wanted.offset + self._padding
        self._padding = 0
        if block == ZERO_BLOCK:
            self._check_nothing_waits("the end of the archive")
            self._then(self._second_zero_block, offset + BLOCK, BLOCK)
            return None
        try:
            header = tar_header.parse_header(block)
        except TarRefused:
            if offset == 0:
                check_kind(block)
            raise
        self._headers += block
        if header.type in _EXTENSIONS:
            self._extension(header, offset)
            return None
        return self._entry(header, offset)

    def _extension(self, header: Header, offset: int) -> None:
        """The header of an extension: what it extends comes after its data."""
        first = self._waiting
        self._place = _EXTENSIONS[header.type]
        if first is not None:
            if first.type != tar_header.PAX_GLOBAL or header.type == tar_header.PAX_GLOBAL:
                self._check_nothing_waits(_EXTENSIONS[header.type])
            offset = first.offset
        if not 0 < header.size <= self._max_metadata:
            raise TarRefused(
                "tar-metadata",
                f"{_EXTENSIONS[header.type]} claims {header.size} bytes, "
                f"not 1 to {self._max_metadata}",
            )
        self._waiting = _Extension(header.type, offset, header.size)
        self._then(self._extension_data, self._at + BLOCK, header.size + _padding_of(header.size))

    def _extension_data(self, wanted: Wanted, data: bytes) -> None:
        assert self._waiting is not None  # noqa: S101 - this step follows `_extension` only
        extension = self._waiting
        if len(data) < wanted.length:
            self._at = wanted.offset + len(data)
            raise TarRefused("tar-truncated", f"the archive ends in {_EXTENSIONS[extension.type]}")
        if any(data[extension.size :]):
            raise TarRefused("tar-padding", "the padding of an extension header is not zero")
        self._headers += data
        records = data[: extension.size]
        if extension.type == tar_header.PAX:
            self._waiting = replace(extension, pax=tar_header.parse_pax(records))
        elif extension.type == tar_header.PAX_GLOBAL:
            tar_header.check_global_pax(records)
        else:
            self._waiting = replace(extension, name=tar_header.parse_long_name(records))
        self._then(self._header, wanted.offset + wanted.length, BLOCK)

    def _entry(self, header: Header, offset: int) -> TarMember | None:
        """The header of a member, with what the extension before it says."""
        extension = self._waiting or _Extension(header.type, offset, 0)
        self._waiting = None
        headers, self._headers = self._headers, bytearray()
        name = extension.pax.path or extension.name or header.name
        self._place = f"member {_shown(name)}"
        self._before = f"the header after {_shown(name)}"
        if header.type in REFUSED_TYPES:
            raise TarRefused(*REFUSED_TYPES[header.type])
        is_directory = header.type == tar_header.DIRECTORY
        if not is_directory and header.type not in tar_header.FILE_TYPES:
            raise TarRefused("tar-unknown-type", f"it is of the unknown type {header.type!r}")
        size = tar_header.effective_size(header.size, extension.pax.size)
        if is_directory and size:
            raise TarRefused("tar-size", f"it is a directory with {size} bytes of data")
        path = self._accept_name(name, is_directory=is_directory)
        data_offset = self._at + BLOCK
        self._padding = _padding_of(size)
        self._then(self._header, data_offset + size, self._padding + BLOCK)
        if is_directory:
            return None
        self._files += 1
        stamp = HashFamily.BLAKE3.hash(headers).hex()[:_STAMP_LENGTH]
        return TarMember(path, size, extension.offset, data_offset, stamp)

    def _second_zero_block(self, wanted: Wanted, data: bytes) -> None:
        if len(data) < wanted.length:
            self._at = wanted.offset + len(data)
            raise TarRefused("tar-no-end", "the archive ends inside its end marker")
        if data != ZERO_BLOCK:
            raise TarRefused(
                "tar-ambiguous", "one zero block, then data: readers differ on where it ends"
            )
        if self._files == 0:
            raise TarRefused("tar-empty", "the archive holds no files")
        self._place = "after the end marker"
        self._want_trailing(wanted.offset + BLOCK)

    def _want_trailing(self, offset: int) -> None:
        # One byte past the bound is asked for, to tell an archive that ends there from one too long.
        length = min(_TRAILING_READ, self._max_trailing + 1 - self._trailing)
        self._then(self._trailing_zeros, offset, length)

    def _trailing_zeros(self, wanted: Wanted, data: bytes) -> None:
        self._trailing += len(data)
        if data.count(0) != len(data):
            raise TarRefused("tar-trailing", "there is data behind the end of the archive")
        if self._trailing > self._max_trailing:
            raise TarRefused("tar-trailing", f"more than {self._max_trailing} bytes of zeros")
        if len(data) == wanted.length:
            self._want_trailing(wanted.offset + wanted.length)
            return
        if self._trailing % BLOCK:
            self._at = wanted.offset + len(data)
            raise TarRefused("tar-truncated", "the archive ends inside a block")
        self._wanted = None

    def _then(
        self, step: Callable[[Wanted, bytes], TarMember | None], offset: int, length: int
    ) -> None:
        self._step = step
        self._wanted = Wanted(offset, length)

    def _check_nothing_waits(self, what: str) -> None:
        if self._waiting is not None:
            waiting = _EXTENSIONS[self._waiting.type]
            raise TarRefused("tar-ambiguous", f"{waiting} is followed by {what}, not by a member")

    def _accept_name(self, raw: bytes, *, is_directory: bool) -> str:
        """Check a member's name alone and beside all names before it."""
        self._entries += 1
        self._name_bytes += len(raw)
        if self._entries > self._max_entries:
            raise TarRefused("tar-too-many", f"more than {self._max_entries} files and directories")
        if self._name_bytes > MAX_NAME_BYTES:
            raise TarRefused("tar-too-many", f"more than {MAX_NAME_BYTES} bytes of names")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise TarRefused("tar-name", "its name is not UTF-8") from None
        if is_directory and name in (".", "./"):
            return ""
        name = name.removeprefix("./")
        if is_directory:
            name = name.removesuffix("/")
        elif name.endswith("/"):
            raise TarRefused("tar-ambiguous", "it is a file, but its name is that of a directory")
        reason = why_not_portable(name)
        if reason is not None:
            raise TarRefused("tar-name", f"its name is unsafe: {reason}")
        if name.count("/") >= MAX_DEPTH:
            raise TarRefused("tar-name", f"its name has more than {MAX_DEPTH} components")
        other = self._names.add_directory(name) if is_directory else self._names.add(name)
        if other is not None:
            raise TarRefused("tar-duplicate", f"it cannot live beside {_shown(other.encode())}")
        return name

    def _refuse(self, refused: TarRefused) -> MalformedInput:
        self._failure = refused.at(self._at, self._place)
        return self._failure


def read_index(source: ReadAt) -> list[TarMember]:
    """Read the index of a whole archive, a few small ranges per member and none of its data.

    Raises MalformedInput for archives that `TarReader` refuses, and what `source` raises.
    """
    reader = TarReader()
    members = []
    while (wanted := reader.wanted) is not None:
        if wanted.offset > source.size:
            raise reader.truncated(source.size)
        length = min(wanted.length, source.size - wanted.offset)
        member = reader.feed(source.read_at(wanted.offset, length) if length else b"")
        if member is not None:
            members.append(member)
    return members


def _padding_of(size: int) -> int:
    return -size % BLOCK


def _shown(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "...")
