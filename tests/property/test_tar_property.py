"""The tar reader under every flipped bit, every cut and many mutants (I2, I3).

Exhaustive over three archives of three members (ustar, PAX, GNU long names):

- flip any one bit outside the members' data and their long names: refused, or the very same members;
- cut anywhere: refused; only the whole archive is read.

What no reader of tar can find is a flip in the data of an extension header that turns one name into
another (tar has no checksum over it), and a flip in a member's data. Flips in PAX keywords, lengths,
sizes and separators, and in the terminator of a GNU long name, are found.

Against CPython's tarfile as the oracle: what it writes is read alike, and a mutant with its checksums
made right again is either refused or read alike.
"""

from __future__ import annotations

import io
import tarfile  # noqa: TID251 - the oracle the reader is compared with

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from staging.formats.tar import TarMember, read_index
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.paths import collisions, why_not_portable
from staging.vocabulary.read_at import BytesAt
from tests.support import tars
from tests.support.tars import BLOCK, END

Read = list[tuple[str, int, bytes]]


def members_of(data: bytes) -> list[TarMember] | None:
    try:
        return read_index(BytesAt(data))
    except MalformedInput:
        return None


def regions(data: bytes) -> dict[str, list[int]]:
    """Offsets of every byte of a valid archive, by what it is: told by its layout, not by the reader."""
    found: dict[str, list[int]] = {
        "header": [],
        "extension": [],
        "name": [],
        "rest": [],
        "data": [],
    }
    offset = 0
    while data[offset : offset + BLOCK] != bytes(BLOCK):
        found["header"] += range(offset, offset + BLOCK)
        kind = data[offset + 156 : offset + 157]
        size = int(data[offset + 124 : offset + 135], 8)
        start, end = offset + BLOCK, offset + BLOCK + size
        offset = end + -size % BLOCK
        found["rest"] += range(end, offset)
        if kind == b"0":
            found["data"] += range(start, end)
            continue
        body = data[start:end]
        if kind == b"L":
            low, high = start, end - 1
        else:
            low = start + body.index(b"path=") + len(b"path=")
            high = data.index(b"\n", low)
        found["name"] += range(low, high)
        found["extension"] += [*range(start, low), *range(high, end)]
    found["rest"] += range(offset, len(data))
    assert sum(map(len, found.values())) == len(data)
    return found


def flips_that_change_members(data: bytes, offsets: list[int], bits: range = range(8)) -> list[str]:
    expected = members_of(data)
    assert expected is not None
    assert len(expected) == 3
    assert offsets
    mutant = bytearray(data)
    bad = []
    for offset in offsets:
        for bit in bits:
            mutant[offset] ^= 1 << bit
            if members_of(bytes(mutant)) not in (None, expected):
                bad.append(f"byte {offset} bit {bit}")
            mutant[offset] ^= 1 << bit
    return bad


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", tars.VALID)
def test_no_flip_in_a_header_changes_the_members(name: str, part: int) -> None:
    data = tars.VALID[name]()
    assert flips_that_change_members(data, regions(data)["header"][part::4]) == []


@pytest.mark.parametrize("name", ["pax", "gnu"])
def test_no_flip_in_an_extension_but_in_its_name_changes_the_members(name: str) -> None:
    data = tars.VALID[name]()
    offsets = regions(data)["extension"]
    assert flips_that_change_members(data, offsets) == []


@pytest.mark.parametrize("name", tars.VALID)
def test_no_flip_in_padding_or_end_marker_is_accepted(name: str) -> None:
    data = tars.VALID[name]()
    mutant = bytearray(data)
    for offset in regions(data)["rest"]:
        mutant[offset] ^= 1 << offset % 8
        assert members_of(bytes(mutant)) is None, offset
        mutant[offset] ^= 1 << offset % 8


@pytest.mark.parametrize("name", ["pax", "gnu"])
def test_flips_in_an_extended_name_are_what_tar_cannot_tell(name: str) -> None:
    """Not a promise but the reason for the exception above: the name is the only copy there is."""
    data = tars.VALID[name]()
    assert flips_that_change_members(data, regions(data)["name"], range(1)) != []


@pytest.mark.parametrize("name", tars.VALID)
def test_no_cut_archive_is_accepted(name: str) -> None:
    data = tars.VALID[name]()
    accepted = [length for length in range(len(data) + 1) if members_of(data[:length]) is not None]
    assert accepted == [len(data)]


# The oracle.


def ours(data: bytes) -> Read | None:
    found = members_of(data)
    if found is None:
        return None
    return [(one.name, one.size, data[one.data_offset : one.data_end]) for one in found]


def theirs(data: bytes) -> Read:
    result: Read = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errorlevel=2) as archive:
        for info in archive:
            if info.isdir():
                continue
            assert info.isreg(), info
            content = archive.extractfile(info)
            assert content is not None
            result.append((info.name.removeprefix("./"), info.size, content.read()))
    return result


component = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12
) | st.sampled_from(["a" * 60, "model-00001-of-00002.safetensors", "config.json", "\u00e9"])
names = st.lists(component, min_size=1, max_size=5).map("/".join)
safe_names = names.filter(lambda name: why_not_portable(name) is None)


@settings(max_examples=150, deadline=None)
@given(
    files=st.dictionaries(safe_names, st.binary(max_size=1500), min_size=1, max_size=5).filter(
        lambda files: not collisions(files)
    ),
    dialect=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    dot=st.booleans(),
    time=st.sampled_from([0, 1_700_000_000, 1_700_000_000.5, -1, 2**40]),
)
def test_what_cpython_writes_is_read_alike(
    files: dict[str, bytes], dialect: int, dot: bool, time: float
) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=dialect, encoding="utf-8") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(("./" if dot else "") + name)
            info.size = len(data)
            info.mtime = time if dialect != tarfile.USTAR_FORMAT else 0
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:
                assert dialect == tarfile.USTAR_FORMAT  # the name is too long for it
                return
    assert ours(output.getvalue()) == [(name, len(data), data) for name, data in files.items()]


NUMBERS = [b"", b"0", b"1", b"512", b"1e3", b"-1", b"+1", b" 1", b"01", b"1_0", b"8589934592"]
PATHS = [b"m/b", b"m/a", b"./m/c", b"m/", b"m", b"/m", b"../m", b"m/\xe9", b"m//x", b"m/b\0c", b""]
pax_records = st.one_of(
    st.tuples(st.just(b"size"), st.sampled_from(NUMBERS)),
    st.tuples(st.just(b"path"), st.sampled_from(PATHS)),
    st.tuples(
        st.sampled_from([b"mtime", b"uid", b"uname", b"comment", b"linkpath", b"hdrcharset"]),
        st.sampled_from([b"1", b"1.5", b"BINARY", b"x\n12 path=m/z", b"\xff"]),
    ),
    st.tuples(
        st.sampled_from([b"GNU.sparse.size", b"GNU.sparse.name", b"SCHILY.xattr.u", b"VENDOR.k"]),
        st.sampled_from([b"1", b"m/other", b"\n13 path=m/zz", b"\0"]),
    ),
)
size_fields = st.one_of(
    st.integers(0, 1600).map(lambda size: tars.octal(size, 12)),
    st.integers(0, 1600).map(lambda size: tars.base256(size, 12)),
    st.sampled_from([bytes(12), b"\xff" * 12, b"           1", b"1 2        \0", b"77777777777\0"]),
)
headers = st.builds(
    tars.header,
    st.sampled_from([b"m/a", b"m/d", b"./m/e", b"m/f/", b"m/\xc3\xa9", b"m/g\0x", b""]),
    size_fields,
    kind=st.sampled_from(
        [b"0"] * 6 + [b"\0", b"5", b"7", b"1", b"x", b"g", b"L", b"S", b"K", b"?"]
    ),
    magic=st.sampled_from([tars.POSIX, tars.POSIX, tars.GNU, tars.V7, b"ustar\0\0\0"]),
    prefix=st.sampled_from([b"", b"", b"", b"p", b"p/"]),
)
data_blocks = st.integers(0, 3).map(lambda count: b"\7" * (count * BLOCK))
pieces = st.one_of(
    headers,
    data_blocks,
    st.tuples(st.sampled_from([b"m/h", b"m/i", b"q"]), st.binary(max_size=600)).map(
        lambda pair: tars.member(*pair)
    ),
    st.lists(pax_records, min_size=1, max_size=3).map(
        lambda records: tars.pax(*(tars.record(*record) for record in records))
    ),
    st.sampled_from(PATHS).map(tars.long_name),
    st.just(bytes(BLOCK)),
)


def with_checksums(data: bytes) -> bytes:
    """Every block that has a magic gets the checksum it calls for: mutants must not die at that."""
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    return b"".join(
        tars.with_checksum(block) if block[257:262] == b"ustar" and len(block) == BLOCK else block
        for block in blocks
    )


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(pieces, min_size=1, max_size=6), st.booleans())
def test_built_mutants_are_refused_or_read_alike(parts: list[bytes], ordinary_first: bool) -> None:
    data = (tars.one(b"m/first") if ordinary_first else b"") + b"".join(parts) + END
    accepted = ours(data)
    if accepted is not None:
        assert theirs(data) == accepted


edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([b"\0", b"0", b"1", b"7", b" ", b"/", b"\x80", b"\xff", b"x", b"L", b"5"]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(list(tars.VALID)), edits)
def test_edited_mutants_are_refused_or_read_alike(
    name: str, changes: list[tuple[float, bytes]]
) -> None:
    data = bytearray(tars.VALID[name]())
    interesting = regions(bytes(data))
    offsets = interesting["header"] + interesting["extension"] + interesting["name"]
    for place, byte in changes:
        data[offsets[int(place * len(offsets))]] = byte[0]
    mutant = with_checksums(bytes(data))
    accepted = ours(mutant)
    if accepted is not None:
        assert theirs(mutant) == accepted
