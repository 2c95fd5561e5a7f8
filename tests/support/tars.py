"""Tar archives made by hand, block by block: valid ones in every dialect, and hostile ones.

Nothing here shares code with the reader under test. `HOSTILE` names each attack, says what it is
after, and the reference the refusal must carry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
POSIX: Final = b"ustar\x0000"
GNU: Final = b"ustar  \0"
V7: Final = bytes(8)

CHECKSUM_FIELD: Final = slice(148, 156)


def octal(value: int, width: int) -> bytes:
    """A number as most writers write it: octal digits filling the field but for a NUL."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """A number as GNU tar writes what octal digits cannot say."""
    return b"\x80" + value.to_bytes(width - 1, "big")


def with_checksum(block: bytes) -> bytes:
    """The header block with the checksum its bytes call for."""
    blanked = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blanked) + block[156:]


def header(
    name: bytes,
    size: int | bytes = 0,
    *,
    kind: bytes = b"0",
    magic: bytes = POSIX,
    prefix: bytes = b"",
    linkname: bytes = b"",
    mode: bytes = b"0000644\0",
    mtime: bytes = b"00000000000\0",
    checksum: bool = True,
) -> bytes:
    """One header block. `size` may be the raw bytes of its field."""
    block = b"".join(
        [
            name.ljust(100, b"\0"),
            mode,
            octal(0, 8),
            octal(0, 8),
            octal(size, 12) if isinstance(size, int) else size,
            mtime,
            b" " * 8,
            kind,
            linkname.ljust(100, b"\0"),
            magic,
            bytes(32 + 32 + 8 + 8),
            prefix.ljust(155, b"\0"),
            bytes(12),
        ]
    )
    assert len(block) == BLOCK
    return with_checksum(block) if checksum else block


def padded(data: bytes) -> bytes:
    """Data filled up with zeros to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes = b"", **fields: bytes) -> bytes:
    """A regular file."""
    return header(name, len(data), **fields) + padded(data)  # type: ignore[arg-type]


def record(keyword: bytes, value: bytes) -> bytes:
    """One PAX record with the length it must have."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    if rest + len(str(length)) != length:
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with its records, for the member that follows."""
    data = b"".join(records)
    return header(b"./PaxHeaders/x", len(data), kind=kind) + padded(data)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """A GNU long name for the member that follows."""
    data = name + b"\0"
    return header(b"././@LongLink", len(data), kind=kind, magic=GNU) + padded(data)


LONG: Final = b"m/" + b"d" * 120 + b"/model.safetensors"

CONTENTS: Final = {
    "m/config.json": b'{"model_type": "tiny"}',
    "m/a.safetensors": b"weights" * 100,
    "m/empty": b"",
}


def ustar_archive() -> bytes:
    """Three members, one with a prefix field."""
    return b"".join(
        [
            member(b"config.json", CONTENTS["m/config.json"], prefix=b"m"),
            member(b"m/a.safetensors", CONTENTS["m/a.safetensors"]),
            member(b"m/empty", CONTENTS["m/empty"]),
            END,
        ]
    )


def pax_archive() -> bytes:
    """Three members with PAX headers: times, a path, a size that says the same as the header."""
    names = list(CONTENTS)
    return b"".join(
        [
            pax(record(b"mtime", b"1700000000.5"), record(b"path", names[0].encode())),
            member(b"x", CONTENTS[names[0]]),
            pax(record(b"path", names[1].encode()), record(b"size", b"700")),
            member(b"x", CONTENTS[names[1]]),
            pax(record(b"uname", b"builder"), record(b"path", names[2].encode())),
            member(b"x", CONTENTS[names[2]]),
            END,
        ]
    )


def gnu_archive() -> bytes:
    """Three members in GNU's dialect, with long names."""
    return b"".join(
        [
            long_name(LONG),
            member(LONG[:100], b"long", magic=GNU),
            member(b"m/a.safetensors", CONTENTS["m/a.safetensors"], magic=GNU),
            long_name(LONG + b".index"),
            member(LONG[:100], b"{}", magic=GNU),
            END,
        ]
    )


VALID: Final[dict[str, Callable[[], bytes]]] = {
    "ustar": ustar_archive,
    "pax": pax_archive,
    "gnu": gnu_archive,
}


def one(name: bytes = b"m/a", data: bytes = b"x") -> bytes:
    """One ordinary member."""
    return member(name, data)


@dataclass(frozen=True)
class Attack:
    """An archive that must be refused with `reference`; `after` says what it is after."""

    data: bytes
    reference: str
    after: str


def _pax_attack(*records: bytes) -> bytes:
    return pax(*records) + one() + END


def _sized(field: bytes) -> bytes:
    return header(b"m/a", field) + padded(b"x") + END


_BAD_SUM = bytearray(header(b"m/b", 1))
_BAD_SUM[0] ^= 1
_HIGH = bytearray(header("m/é".encode(), 1))
_HIGH_SIGNED = sum(byte - 256 if byte > 127 else byte for byte in _HIGH) - sum(_HIGH[148:156]) + 256
_HIGH[CHECKSUM_FIELD] = b"%06o\0 " % _HIGH_SIGNED

HOSTILE: Final[dict[str, Attack]] = {
    # Damage that the usual readers take for the end of the archive.
    "later-checksum": Attack(
        one() + bytes(_BAD_SUM) + padded(b"x") + END,
        "tar-checksum",
        "losing every later member in silence",
    ),
    "signed-checksum": Attack(
        bytes(_HIGH) + padded(b"x") + END, "tar-checksum", "two sums of one header"
    ),
    "empty-checksum": Attack(
        header(b"m/a", 1, checksum=False) + padded(b"x") + END, "tar-checksum", "a sum nobody made"
    ),
    "no-end": Attack(one(), "tar-no-end", "a producer that died between two members"),
    "one-zero-block-end": Attack(one() + bytes(512), "tar-no-end", "half an end marker"),
    "lone-zero-block": Attack(
        one() + bytes(512) + one(b"m/b") + END, "tar-ambiguous", "readers that stop at one block"
    ),
    "concatenated": Attack(
        one() + END + one(b"m/b") + END, "tar-trailing", "members behind the end"
    ),
    "trailing-garbage": Attack(one() + END + b"\1", "tar-trailing", "data nobody accounts for"),
    "trailing-half-block": Attack(one() + END + bytes(100), "tar-truncated", "a cut in padding"),
    "trailing-zeros": Attack(one() + END + bytes(2 << 20), "tar-trailing", "endless zeros"),
    "dirty-padding": Attack(
        header(b"m/a", 1) + b"x" + b"\1" * 511 + END, "tar-padding", "bytes outside every member"
    ),
    "empty-file": Attack(b"", "tar-empty", "a download that never began"),
    "empty-archive": Attack(END, "tar-empty", "a checkpoint without files"),
    "only-directories": Attack(
        header(b"m/", kind=b"5") + END, "tar-empty", "a checkpoint without files"
    ),
    # Members that are no files.
    "symlink": Attack(
        header(b"m/a", kind=b"2", linkname=b"/etc/passwd") + END, "tar-link", "writing elsewhere"
    ),
    "hardlink": Attack(
        one() + header(b"m/b", kind=b"1", linkname=b"m/a") + END, "tar-link", "a second name"
    ),
    "link-with-size": Attack(
        header(b"m/a", 512, kind=b"2", linkname=b"b") + one(b"m/hidden", b"") + END,
        "tar-link",
        "a member inside data that only some readers skip",
    ),
    "long-link": Attack(
        long_name(b"t" * 200, b"K") + header(b"m/a", kind=b"2") + END, "tar-link", "a link"
    ),
    "pax-linkpath": Attack(_pax_attack(record(b"linkpath", b"/x")), "tar-link", "a link"),
    "character-device": Attack(header(b"m/a", kind=b"3") + END, "tar-device", "a device node"),
    "block-device": Attack(header(b"m/a", kind=b"4") + END, "tar-device", "a device node"),
    "fifo": Attack(header(b"m/a", kind=b"6") + END, "tar-device", "a reader that never returns"),
    "gnu-sparse": Attack(
        header(b"m/a", 1, kind=b"S", magic=GNU) + padded(b"x") + END, "tar-sparse", "holes"
    ),
    "pax-sparse-0": Attack(
        _pax_attack(record(b"GNU.sparse.map", b"0,1"), record(b"GNU.sparse.size", b"9")),
        "tar-sparse",
        "two sizes of one file",
    ),
    "pax-sparse-1": Attack(
        _pax_attack(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.name", b"m/b")),
        "tar-sparse",
        "two names of one file",
    ),
    "star-sparse": Attack(_pax_attack(record(b"SCHILY.realsize", b"9")), "tar-sparse", "two sizes"),
    "multi-volume": Attack(
        header(b"m/a", 1, kind=b"M", magic=GNU) + padded(b"x") + END,
        "tar-multivolume",
        "the middle of a file taken for all of it",
    ),
    "volume-label": Attack(
        header(b"label", kind=b"V", magic=GNU) + one() + END, "tar-multivolume", "a name for naught"
    ),
    "dump-directory": Attack(
        header(b"m", 1, kind=b"D", magic=GNU) + padded(b"\0") + END, "tar-multivolume", "a dump"
    ),
    "contiguous": Attack(
        header(b"m/a", 1, kind=b"7") + padded(b"x") + END, "tar-unknown-type", "a file for some"
    ),
    "unknown-type": Attack(
        header(b"m/a", 1, kind=b"Z") + padded(b"x") + END, "tar-unknown-type", "data skipped or not"
    ),
    "solaris-header": Attack(
        header(b"m/a", 1, kind=b"X") + padded(b"x") + END, "tar-unknown-type", "an old PAX header"
    ),
    "directory-with-size": Attack(
        header(b"m/", 512, kind=b"5") + one(b"m/hidden", b"") + one() + END,
        "tar-size",
        "a member inside data that only some readers skip",
    ),
    # Numbers.
    "negative-size": Attack(_sized(b"\xff" * 12), "tar-size", "offsets that go backwards"),
    "minus-512": Attack(
        _sized(b"\xff" * 10 + b"\xfe\x00"), "tar-size", "an offset loop: the same header for ever"
    ),
    "octal-minus": Attack(_sized(b"-0000000001\0"), "tar-size", "a signed octal number"),
    "base256-padding-bits": Attack(
        _sized(b"\x81" + bytes(10) + b"\1"), "tar-size", "bits that some readers drop"
    ),
    "base256-2-53": Attack(_sized(base256(2**53, 12)), "tar-size", "sizes JSON cannot hold"),
    "base256-2-63": Attack(
        _sized(base256(2**63 - 1, 12)), "tar-size", "a stream reader that skips for ever"
    ),
    "empty-size": Attack(_sized(bytes(12)), "tar-size", "zero for some, an error for others"),
    "size-with-junk": Attack(_sized(b"1\0aaaaaaaaa\0"), "tar-size", "digits behind the end"),
    "size-not-octal": Attack(_sized(b"00000000009\0"), "tar-size", "a digit eight or nine"),
    "mode-junk": Attack(
        header(b"m/a", mode=b"rw-r--r-") + END, "tar-number", "a header that is none"
    ),
    "device-number-junk": Attack(
        with_checksum(header(b"m/a", magic=GNU)[:329] + b"?" + bytes(182)) + END,
        "tar-number",
        "a field that GNU tar skips and CPython stumbles over",
    ),
    # PAX.
    "pax-size-larger": Attack(
        _pax_attack(record(b"size", b"1024")), "tar-size", "swallowing the next header"
    ),
    "pax-size-smaller": Attack(
        pax(record(b"size", b"0")) + member(b"m/a", header(b"m/hidden")) + END,
        "tar-size",
        "data that is read as headers",
    ),
    "pax-size-for-zero": Attack(
        pax(record(b"size", b"1024")) + header(b"m/a") + one(b"m/hidden") + END,
        "tar-size",
        "a nested archive whose members only some readers see",
    ),
    **{
        f"pax-size-{label}": Attack(_pax_attack(record(b"size", value)), "tar-size", after)
        for label, value, after in (
            ("float", b"1e3", "a number that is zero for some"),
            ("sign", b"+1", "a number with a sign"),
            ("negative", b"-1", "offsets that go backwards"),
            ("space", b" 1", "a number with a space"),
            ("leading-zero", b"01", "octal or decimal"),
            ("underscore", b"1_0", "digits grouped as in Python"),
            ("huge", b"9" * 400_000, "quadratic time in a decimal number"),
            ("2-53", str(2**53).encode(), "sizes JSON cannot hold"),
            ("nul", b"1\0", "a number that ends early"),
            ("empty", b"", "an unset size"),
        )
    },
    "pax-duplicate": Attack(
        _pax_attack(record(b"path", b"m/b"), record(b"path", b"m/c")), "tar-pax", "first or last"
    ),
    "pax-empty-path": Attack(_pax_attack(record(b"path", b"")), "tar-pax", "an unset name"),
    "pax-nul-path": Attack(
        _pax_attack(record(b"path", b"m/b\0.txt")), "tar-pax", "a name that ends early"
    ),
    "pax-newline-path": Attack(_pax_attack(record(b"path", b"m/b\nc")), "tar-pax", "two lines"),
    "pax-latin-1": Attack(
        _pax_attack(record(b"path", b"m/\xe9")), "tar-name", "a name with two readings"
    ),
    "pax-binary-charset": Attack(
        _pax_attack(record(b"hdrcharset", b"BINARY"), record(b"path", b"m/b")),
        "tar-name",
        "a name with two readings",
    ),
    "pax-unknown-keyword": Attack(
        _pax_attack(record(b"pa|h", b"m/b")), "tar-pax", "a flipped bit that loses the name"
    ),
    "pax-lower-case-vendor": Attack(
        _pax_attack(record(b"li.kpath", b"m/b")), "tar-pax", "a flipped bit that makes a dot"
    ),
    "pax-swallowed-record": Attack(
        _pax_attack(record(b"SCHILY.xattr.user.x", b"1\n" + record(b"path", b"m/b")[:-1])),
        "tar-pax",
        "a flipped bit in a length that swallows the next record",
    ),
    "pax-swallowed-by-comment": Attack(
        _pax_attack(record(b"comment", b"1\n" + record(b"path", b"m/b")[:-1])),
        "tar-pax",
        "a flipped bit in a length that swallows the next record",
    ),
    "pax-time-junk": Attack(
        _pax_attack(record(b"mtime", b"yesterday")),
        "tar-pax",
        "a stop for GNU tar, nothing for others",
    ),
    "pax-nul-vendor": Attack(
        _pax_attack(record(b"VENDOR.note", b"a\0b")), "tar-pax", "a value that ends early"
    ),
    "pax-empty": Attack(header(b"x", kind=b"x") + one() + END, "tar-metadata", "an idle header"),
    **{
        f"pax-{label}": Attack(_pax_attack(data), "tar-pax", after)
        for label, data, after in (
            ("no-newline", b"12 path=m/bc", "a record that never ends"),
            ("long-length", b"99 path=m/b\n", "reading behind the header"),
            ("short-length", b"5 path=m/b\n", "a record inside a record"),
            ("zero-length", b"0 path=m/b\n", "an endless loop"),
            ("zero-padded-length", b"013 path=m/b\n", "octal or decimal"),
            ("signed-length", b"+12 path=m/b\n", "a number with a sign"),
            ("no-length", b"path=m/b\n", "a record without a frame"),
            ("huge-length", b"9" * 300 + b" path=m/b\n", "quadratic time in a number"),
            ("no-equals", b"8 path\n\n", "a record without a value"),
            ("no-keyword", b"7 =m/b\n", "a record without a keyword"),
            ("spaces", b" " * 100_000, "a pattern that backtracks"),
            ("trailing-zeros", record(b"path", b"m/b") + bytes(20), "padding inside the header"),
            ("volume", record(b"GNU.volume.label", b"x"), "a dump"),
            ("file-type", record(b"SCHILY.filetype", b"sparse"), "another type than the header's"),
        )
    },
    **{
        f"global-{keyword.decode()}": Attack(
            pax(record(keyword, value), kind=b"g") + one() + END,
            "tar-pax",
            "every later member at once",
        )
        for keyword, value in (
            (b"path", b"m/b"),
            (b"size", b"0"),
            (b"linkpath", b"m/b"),
            (b"hdrcharset", b"BINARY"),
            (b"SCHILY.xattr.x", b"y"),
        )
    },
    # Extension headers out of place.
    "pax-then-long-name": Attack(
        pax(record(b"path", b"m/b")) + long_name(b"m/c") + one() + END,
        "tar-ambiguous",
        "two names, another one for each reader",
    ),
    "long-name-then-pax": Attack(
        long_name(b"m/c") + pax(record(b"path", b"m/b")) + one() + END,
        "tar-ambiguous",
        "two names, another one for each reader",
    ),
    "stacked-pax": Attack(
        pax(record(b"path", b"m/b")) + pax(record(b"path", b"m/c")) + one() + END,
        "tar-ambiguous",
        "first or last",
    ),
    "stacked-long-name": Attack(
        long_name(b"m/b") + long_name(b"m/c") + one() + END, "tar-ambiguous", "first or last"
    ),
    "stacked-global": Attack(
        pax(record(b"comment", b"1"), kind=b"g")
        + pax(record(b"comment", b"2"), kind=b"g")
        + one()
        + END,
        "tar-ambiguous",
        "first or last",
    ),
    "pax-then-global": Attack(
        pax(record(b"path", b"m/b")) + pax(record(b"comment", b"2"), kind=b"g") + one() + END,
        "tar-ambiguous",
        "a name for the wrong member",
    ),
    "dangling-pax": Attack(
        one() + pax(record(b"path", b"m/b")) + END, "tar-ambiguous", "a member that is missing"
    ),
    "dangling-long-name": Attack(
        one() + long_name(b"m/b") + END, "tar-ambiguous", "a member that is missing"
    ),
    "dangling-global": Attack(
        one() + pax(record(b"comment", b"1"), kind=b"g") + END, "tar-ambiguous", "a lost member"
    ),
    "dangling-at-end-of-input": Attack(
        one() + pax(record(b"path", b"m/b")), "tar-no-end", "a member that is missing"
    ),
    "pax-dirty-padding": Attack(
        header(b"x", 12, kind=b"x") + b"12 path=m/b\n" + b"\1" * 500 + one() + END,
        "tar-padding",
        "bytes outside every record",
    ),
    "pax-in-gnu": Attack(
        header(b"x", 12, kind=b"x", magic=GNU) + padded(b"12 path=m/b\n") + one() + END,
        "tar-ambiguous",
        "a dialect that is neither",
    ),
    **{
        f"{label}-claims-{size}": Attack(
            header(b"x", base256(size, 12), kind=kind, magic=magic) + one() + END,
            reference,
            "memory for data that never comes",
        )
        for label, kind, magic in (
            ("pax", b"x", POSIX),
            ("global", b"g", POSIX),
            ("long-name", b"L", GNU),
        )
        for size, reference in (
            (1024**2 + 1, "tar-metadata"),
            (4 * 1024**3, "tar-metadata"),
            (2**62, "tar-size"),
        )
    },
    "unterminated-long-name": Attack(
        header(b"x", 4, kind=b"L", magic=GNU) + padded(b"m/b ") + one() + END,
        "tar-name",
        "a flipped bit that makes the name longer",
    ),
    "empty-long-name": Attack(
        header(b"x", 1, kind=b"L", magic=GNU) + padded(b"\0") + one() + END, "tar-name", "no name"
    ),
    "long-name-with-nul": Attack(
        header(b"x", 8, kind=b"L", magic=GNU) + padded(b"m/b\0c\0\0\0") + one() + END,
        "tar-name",
        "a name that ends early",
    ),
    # One header, two readings.
    "old-directory": Attack(
        header(b"m/a/", 512, kind=b"\0", magic=V7) + one(b"m/hidden", b"") + END,
        "tar-ambiguous",
        "a file for some readers, a directory for others",
    ),
    "old-directory-with-long-name": Attack(
        long_name(b"m/a")
        + header(b"m/a/", 512, kind=b"\0", magic=GNU)
        + one(b"m/hidden", b"")
        + END,
        "tar-ambiguous",
        "data of a file that CPython takes for a directory",
    ),
    "file-with-slash": Attack(
        header(b"m/a/", 1) + padded(b"x") + END, "tar-ambiguous", "a directory for GNU tar"
    ),
    "gnu-prefix": Attack(
        header(b"a", 1, magic=GNU, prefix=b"m") + padded(b"x") + END,
        "tar-ambiguous",
        "times of a dump that CPython takes for a directory's name",
    ),
    "v7-prefix": Attack(
        header(b"a", 1, magic=V7, prefix=b"m") + padded(b"x") + END,
        "tar-ambiguous",
        "a prefix that GNU tar does not see",
    ),
    "unknown-magic": Attack(
        header(b"m/a", 1, magic=b"ustar\x0001") + padded(b"x") + END, "tar-ambiguous", "a dialect"
    ),
    "star-trailer": Attack(
        with_checksum(header(b"m/a")[:508] + b"tar\0") + END,
        "tar-ambiguous",
        "a dialect whose prefix field ends earlier",
    ),
    "name-residue": Attack(
        header(b"m/a\0hidden", 1) + padded(b"x") + END, "tar-ambiguous", "a name behind the name"
    ),
    # Names that cannot live side by side.
    **{
        f"duplicate-{label}": Attack(
            one(first) + one(second) + END, "tar-duplicate", "one member hiding another"
        )
        for label, first, second in (
            ("exact", b"m/a", b"m/a"),
            ("case", b"m/a", b"m/A"),
            ("dot", b"m/a", b"./m/a"),
            ("directory-case", b"m/a", b"M/b"),
            ("file-then-below", b"m/a", b"m/a/b"),
            ("below-then-file", b"m/a/b", b"m/a"),
            ("sharp-s", "m/stra\u00dfe".encode(), b"m/STRASSE"),
        )
    },
    "file-then-directory": Attack(
        one() + header(b"m/a/", kind=b"5") + END, "tar-duplicate", "a file that is a directory"
    ),
    "directory-then-file": Attack(
        header(b"m/a/", kind=b"5") + one() + END, "tar-duplicate", "a file that is a directory"
    ),
    "directory-case": Attack(
        header(b"m/", kind=b"5") + one(b"M/a") + END, "tar-duplicate", "two directories or one"
    ),
}

UNSAFE_NAMES: Final[dict[str, bytes]] = {
    "empty": b"",
    "absolute": b"/etc/passwd",
    "parent": b"m/../../etc/passwd",
    "leading-parent": b"../m/a",
    "dot": b"m/./a",
    "two-dots-in-front": b"././m/a",
    "double-slash": b"m//a",
    "slash-behind-dot": b".//m/a",
    "backslash": b"m\\a",
    "drive": b"C:/a",
    "drive-relative": b"C:a",
    "control": b"m/a\x1b[31m",
    "newline": b"m/a\nb",
    "delete": b"m/a\x7f",
    "c1-control": "m/a\u0085".encode(),
    "line-separator": "m/a\u2028".encode(),
    "right-to-left": "m/\u202egnp.exe".encode(),
    "zero-width": "m/a\u200b".encode(),
    "byte-order-mark": "\ufeffm/a".encode(),
    "decomposed": "m/e\u0301".encode(),
    "surrogate": b"m/\xed\xa0\x80",
    "overlong": b"m/\xc0\xae",
    "latin-1": b"m/\xe9",
    "long-component": b"m/" + b"a" * 256,
    "long-path": b"m/" + b"a/" * 520 + b"a",
    "too-deep": b"a/" * 32 + b"a",
}
