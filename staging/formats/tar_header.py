"""One header block of a tar archive, and the records of a PAX extended header: bytes in, facts out.

Dialects: ustar with PAX, GNU, and v7 as far as they say the same to everybody. What GNU tar, CPython and
libarchive read differently is refused (I3), and so is whatever no writer of today writes: a damaged
header looks like that.

Invariants: a `Header` had a right checksum, so no single flipped bit in a block changes what it says
(I2); sizes are between 0 and 2^53-1; no function searches or recurses beyond its input.
Not guaranteed: that a PAX record is undamaged. Tar has no checksum over extension data: flips in
keywords and lengths are found, a flip in a name's characters makes another name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from staging.formats.tar_refusals import REFUSED_TYPES, TarRefused
from staging.vocabulary.digest import MAX_FILE_SIZE

BLOCK: Final = 512
"""Bytes of a tar block: of every header, and what all data is padded to."""

ZERO_BLOCK: Final = bytes(BLOCK)

FILE_TYPES: Final = frozenset({b"0", b"\0"})
DIRECTORY: Final = b"5"
PAX: Final = b"x"
PAX_GLOBAL: Final = b"g"
LONG_NAME: Final = b"L"

_POSIX_MAGIC = b"ustar\x0000"
_GNU_MAGIC = b"ustar  \0"
_OLD_MAGIC = bytes(8)

# What writers produce: optional leading spaces, octal digits, then spaces and NULs to the field's end.
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_EIGHT_GIB = 8 * 1024**3  # the first size that eleven octal digits cannot say

_LONGEST_SIZE = len(str(MAX_FILE_SIZE))
_TIME = re.compile(rb"-?[0-9]+(\.[0-9]*)?")
_NO_MEANING_HERE: Final[dict[str, re.Pattern[bytes]]] = {
    **dict.fromkeys(("atime", "ctime", "mtime"), _TIME),
    **dict.fromkeys(("uid", "gid"), re.compile(rb"[0-9]+")),
    **dict.fromkeys(("uname", "gname", "comment"), re.compile(rb".+", re.DOTALL)),
}
_UTF8_CHARSET = b"ISO-IR 10646 2000 UTF-8"
_VENDOR = re.compile(r"[A-Z][A-Z0-9_]*\..+", re.DOTALL)
_CHANGES_CONTENT = ("GNU.", "SCHILY.realsize", "SCHILY.filetype", "SUN.holesdata")


@dataclass(frozen=True, slots=True)
class Header:
    """What a header block says: the type flag, the name as bytes, the size of the data in bytes."""

    type: bytes
    name: bytes
    size: int


@dataclass(frozen=True, slots=True)
class PaxRecords:
    """What a PAX extended header says about the next member; None where it says nothing."""

    path: bytes | None
    size: int | None


def parse_header(block: bytes) -> Header:
    """Read a header block of 512 bytes that is not all zeros. Raises TarRefused."""
    stored = _octal(block, 148, 156, "checksum", reference="tar-checksum")
    # The sum is over unsigned bytes, its own field taken as eight spaces.
    computed = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if stored != computed:
        raise TarRefused(
            "tar-checksum", f"the header's checksum is {stored}, its bytes sum up to {computed}"
        )
    kind = block[156:157]
    prefix = _prefix(block, kind)
    for start, end, what in (
        (100, 108, "mode"),
        (108, 116, "uid"),
        (116, 124, "gid"),
        (136, 148, "mtime"),
        (329, 337, "devmajor"),  # read by CPython in every dialect
        (337, 345, "devminor"),
    ):
        _ignored_number(block, start, end, what)
    size = _size(block)
    name = _text(block, 0, 100, "name")
    if kind == b"\0" and name.endswith(b"/"):
        raise TarRefused("tar-ambiguous", "it is a file for some readers, a directory for others")
    return Header(kind, prefix + b"/" + name if prefix else name, size)


def parse_pax(data: bytes) -> PaxRecords:
    """Read the records of an extended header (type x). Raises TarRefused."""
    records = _records(data)
    path: bytes | None = None
    size: int | None = None
    for keyword, value in records.items():
        if keyword == "path":
            _check_plain(keyword, value)
            path = value
        elif keyword == "size":
            size = _decimal_size(value)
        elif keyword == "linkpath":
            raise TarRefused("tar-link", "it has the target of a link")
        else:
            _check_without_meaning(keyword, value)
    return PaxRecords(path, size)


def check_global_pax(data: bytes) -> None:
    """Accept a global extended header (type g) that only comments. Raises TarRefused for others."""
    for keyword, value in _records(data).items():
        if keyword != "comment":
            raise TarRefused("tar-pax", f"a global header sets {_shown(keyword)} for many members")
        _check_plain(keyword, value)


def parse_long_name(data: bytes) -> bytes:
    """Read the data of a GNU long name (type L). Raises TarRefused."""
    name = data[:-1]
    if not name or data.find(b"\0") != len(name):
        raise TarRefused("tar-name", "its long name is empty or does not end in its only NUL")
    return name


def _prefix(block: bytes, kind: bytes) -> bytes:
    """The directory part of the name, where the dialect has one."""
    magic = block[257:265]
    if magic == _POSIX_MAGIC:
        if any(block[500:]):
            raise TarRefused("tar-ambiguous", "its header is in the dialect of star")
        return _text(block, 345, 500, "prefix")
    if kind in (PAX, PAX_GLOBAL):
        raise TarRefused("tar-ambiguous", "a PAX extended header in an archive that is not ustar")
    if magic == _GNU_MAGIC:
        # Times and sparse maps of incremental dumps; CPython reads them as a part of the name.
        if kind not in REFUSED_TYPES and any(block[345:]):
            raise TarRefused("tar-ambiguous", "its header holds GNU fields besides the usual ones")
        return b""
    if magic == _OLD_MAGIC:
        if any(block[345:]):
            raise TarRefused("tar-ambiguous", "its header has no magic but a prefix as in ustar")
        return b""
    raise TarRefused("tar-ambiguous", f"its header is of an unknown dialect, {magic!r}")


def _text(block: bytes, start: int, end: int, what: str) -> bytes:
    text, _, rest = block[start:end].partition(b"\0")
    if any(rest):
        raise TarRefused("tar-ambiguous", f"its {what} field has bytes behind the end of the text")
    return text


def _octal(block: bytes, start: int, end: int, what: str, *, reference: str) -> int:
    match = _OCTAL.fullmatch(block, start, end)
    if match is None:
        raise TarRefused(reference, f"its {what} field is no octal number: {block[start:end]!r}")
    if not match[1]:  # zero for CPython and libarchive, an error for GNU tar
        raise TarRefused(reference, f"its {what} field is empty")
    return int(match[1], 8)


def _size(block: bytes) -> int:
    first = block[124]
    if first & 0x80 == 0:
        return _octal(block, 124, 136, "size", reference="tar-size")
    # Base-256: one marker bit, then a big-endian number; 0xff in front is a negative one.
    if first != 0x80:
        raise TarRefused("tar-size", f"its size is negative or no number: {block[124:136]!r}")
    return _within_bounds(int.from_bytes(block[125:136], "big"))


def _ignored_number(block: bytes, start: int, end: int, what: str) -> None:
    """Check a number nobody needs: it may be empty, octal or base-256 of either sign, not garbage."""
    if block[start] in (0x80, 0xFF) or _OCTAL.fullmatch(block, start, end) is not None:
        return
    raise TarRefused("tar-number", f"its {what} field is no number: {block[start:end]!r}")


def _within_bounds(size: int) -> int:
    if size > MAX_FILE_SIZE:
        raise TarRefused("tar-size", f"its size is {size}, more than {MAX_FILE_SIZE} bytes")
    return size


def effective_size(header_size: int, pax_size: int | None) -> int:
    """The size of a member whose header and PAX record both speak. Raises TarRefused if they differ.

    A header says 0 for what it cannot say, a size of 8 GiB or more; readers that believe the one and
    skip by the other find members that are not there.
    """
    if pax_size is None or pax_size == header_size:
        return header_size
    if header_size == 0 and pax_size >= _EIGHT_GIB:
        return pax_size
    raise TarRefused(
        "tar-size", f"its header says {header_size} bytes, its PAX record says {pax_size}"
    )


def _records(data: bytes) -> dict[str, bytes]:
    """Split records `<length> <keyword>=<value>` and a newline; a length counts all of its record."""
    if not data:
        raise TarRefused("tar-pax", "an extended header is empty")
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        digits, space, _ = data[position : position + 8].partition(b" ")
        if not space or not digits.isdigit() or digits.startswith(b"0"):
            raise TarRefused("tar-pax", "an extended header has a record without a proper length")
        end = position + int(digits)
        body = data[position + len(digits) + 1 : end]
        if end > len(data) or not body.endswith(b"\n"):
            raise TarRefused("tar-pax", "an extended header has a record of a wrong length")
        raw, equals, value = body[:-1].partition(b"=")
        try:
            keyword = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise TarRefused("tar-pax", "an extended header has a keyword not in UTF-8") from None
        if not equals or not keyword:
            raise TarRefused("tar-pax", "an extended header has a record without a keyword")
        if keyword in records:
            raise TarRefused("tar-pax", f"an extended header has {_shown(keyword)} twice")
        records[keyword] = value
        position = end
    return records


def _decimal_size(value: bytes) -> int:
    if not value.isdigit() or (value.startswith(b"0") and value != b"0"):
        raise TarRefused("tar-size", f"its PAX size is no decimal number: {value[:40]!r}")
    if len(value) > _LONGEST_SIZE:
        raise TarRefused("tar-size", f"its PAX size has {len(value)} digits")
    return _within_bounds(int(value))


def _check_without_meaning(keyword: str, value: bytes) -> None:
    """Refuse records that would change names or content, and lower-case keywords nobody defined.

    A flipped bit in `path` must not lose the name, nor one in a length swallow the record behind it.
    """
    if keyword == "hdrcharset":
        if value != _UTF8_CHARSET:
            raise TarRefused("tar-name", f"its names are in the character set {value[:40]!r}")
    elif keyword.startswith("GNU.sparse.") or keyword in ("SCHILY.realsize", "SUN.holesdata"):
        raise TarRefused("tar-sparse", "it is a sparse file")
    elif keyword.startswith(_CHANGES_CONTENT):
        raise TarRefused("tar-pax", f"it has the record {_shown(keyword)}")
    elif keyword in _NO_MEANING_HERE:
        _check_plain(keyword, value)
        if _NO_MEANING_HERE[keyword].fullmatch(value) is None:  # GNU tar stops here, others go on
            raise TarRefused("tar-pax", f"its record {_shown(keyword)} is no number")
    elif _VENDOR.fullmatch(keyword) is None:
        raise TarRefused("tar-pax", f"it has an unknown record, {_shown(keyword)}")
    elif any(_looks_like_a_record(line) for line in value.split(b"\n")[1:]):
        raise TarRefused("tar-pax", f"its record {_shown(keyword)} has another record inside")
    elif b"\0" in value and ".xattr." not in keyword:  # attributes are binary, all else is text
        raise TarRefused("tar-pax", f"its record {_shown(keyword)} has a NUL inside")


def _check_plain(keyword: str, value: bytes) -> None:
    """Refuse values that are not one line of text."""
    if not value or b"\0" in value or b"\n" in value:
        raise TarRefused("tar-pax", f"its record {_shown(keyword)} is empty or not one line")
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        raise TarRefused("tar-name", f"its record {_shown(keyword)} is not UTF-8") from None


def _looks_like_a_record(line: bytes) -> bool:
    digits, space, rest = line.partition(b" ")
    return bool(space) and digits.isdigit() and b"=" in rest


def _shown(keyword: str) -> str:
    return repr(keyword[:60])
