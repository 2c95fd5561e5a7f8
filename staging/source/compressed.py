"""Compressed archives as streams: gzip and zstd, told by their first bytes and unpacked as they pass by.

Invariants: the end of the plain bytes is said only when the compressed ones ended there too, whole: every
gzip member with its CRC and length, every zstd frame with its checksum where it has one, nothing behind
the last one. After an error every further read raises it again. What is unpacked is bounded: in all, and
by what comes in, so that a small file cannot keep a machine busy for days (`Limits`).
Memory: two buffers of a MiB, and for zstd the window that the archive asks for, at most 128 MiB.
Not guaranteed: that a zstd frame without a checksum is undamaged; the format leaves that to its writer,
the program `zstd` writes one.

Unpacking runs in the thread that reads, one core for one archive: gzip at 0.1 to 0.4 GB/s, zstd at 0.4 to
1 GB/s. Both formats leave nothing to share out; whoever packs has pigz or zstd -T0, unpacking stays serial.
"""

from __future__ import annotations

import enum
import re
import types
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from staging.formats.stranger import ZIP
from staging.source import stream as streams
from staging.source.stream import Stream
from staging.vocabulary.errors import MalformedInput, UsageError

MIB: Final = 1024 * 1024

START_BYTES: Final = 16
"""Bytes from the start of an archive that `compression_of` likes to see; fewer will do."""

_INPUT: Final = 256 * 1024  # bytes read at once
_FIRST_INPUT: Final = 4096  # bytes given to a gzip member first: what it leaves over is copied
_PIECE: Final = MIB  # bytes unpacked at once
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE: Final = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
_ZSTD_BLOCK: Final = 128 * 1024  # the format's bound for a block, packed or not
_UNSUPPORTED: Final = (
    (re.compile(rb"\xfd7zXZ\0", re.DOTALL), "an xz file", "xz -dc"),
    # More than its three letters, with which a tar may begin: a member's name comes first in it.
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", re.DOTALL), "a bzip2 file", "bzip2 -dc"),
    (re.compile(rb"\x04\x22\x4d\x18", re.DOTALL), "an lz4 file", "lz4 -dc"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c", re.DOTALL), "a 7z file", None),
    (re.compile(rb"PK(?:\x03\x04|\x05\x06)", re.DOTALL), ZIP.name, None),
)
_DOWNLOAD_AGAIN: Final = (
    "compare the archive's size and digest with the vendor's, then download it again"
)


class Compression(enum.Enum):
    """What an archive is compressed with."""

    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is unpacked at most, in bytes but for `ratio`.

    `total` is the most of all plain bytes. They may be `ratio` times as many as the compressed ones, and
    `slack` more, over any stretch: zeros pack by a factor of thousands, and a real tensor may hold some.
    `idle` is the most of compressed bytes in a row that hold nothing. `window` is the most that a zstd
    frame may look back, that of `zstd --long`.
    """

    total: int = 20 * 10**12
    ratio: int = 1000
    slack: int = 1024 * MIB
    idle: int = 64 * MIB
    window: int = 128 * MIB


def compression_of(start: bytes) -> Compression | None:
    """Tell from its first bytes what an archive is compressed with; None when it is not.

    No safe name of a member begins so, so a plain tar is never taken for anything else. Raises
    MalformedInput for other ways to pack files.
    """
    if start.startswith(_GZIP):
        return Compression.GZIP
    if start.startswith(_ZSTD) or _SKIPPABLE.match(start):
        return Compression.ZSTD
    for magic, name, unpack in _UNSUPPORTED:
        if magic.match(start):
            way = (
                f"on the way: {unpack} FILE | staging upload - TARGET"
                if unpack
                else "into a directory and upload that: staging upload DIR TARGET"
            )
            raise MalformedInput(
                f"this is {name}, which is not read",
                reference="compression-unsupported",
                hint=f".tar, .tar.gz and .tar.zst are; unpack it {way}",
                side="source",
            )
    return None


class Unpacked:
    """The plain bytes of a stream, whether it is compressed or not: its first bytes tell."""

    def __init__(self, stream: Stream | BinaryIO, *, limits: Limits | None = None) -> None:
        """Nothing is read yet: standard input may come late."""
        self._stream = stream
        self._limits = limits or Limits()
        self._input = _Input(stream)
        self._pieces = self._unpack()
        self._piece = memoryview(b"")
        self._passes = False  # true when the rest of the stream is as it is
        self._ended = False
        self._failure: MalformedInput | UsageError | None = None
        self._length = 0  # plain bytes so far
        self._packed = 0  # compressed bytes when that was reckoned
        self._debt = 0  # plain bytes beyond the ratio

    def readinto(self, view: memoryview, /) -> int:
        """Put the next plain bytes into `view`; 0 at the end, once everything was found whole.

        Raises MalformedInput for what is damaged, cut, too much or packed another way, and UsageError
        when zstd is not installed.
        """
        if not self._piece:
            if self._passes:
                return streams.read_some(self._stream, view)
            if self._ended:
                return 0
            try:
                self._piece = memoryview(self._next())
            except (MalformedInput, UsageError) as error:
                self._failure = error
                raise
        count = min(len(view), len(self._piece))
        view[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def finish(self) -> None:
        """Finish the stream below, if it is owned."""
        streams.finish(self._stream)

    def close(self) -> None:
        """Close the stream below, if it is owned."""
        streams.close(self._stream)

    def _next(self) -> bytes:
        """The next piece of plain bytes; an empty one at the end."""
        if self._failure is not None:
            raise self._failure
        piece = next(self._pieces, None)
        if piece is None:  # it raised something of the stream below, and cannot go on
            raise RuntimeError("a stream is read on after it failed")
        self._reckon(len(piece))
        self._ended = not piece
        return piece

    def _unpack(self) -> Iterator[bytes]:
        start = self._input.take(START_BYTES)
        compression = compression_of(start)
        self._input.unread(start)
        if compression is None:
            self._passes = True
            yield self._input.drained()
        elif compression is Compression.GZIP:
            yield from _gunzip(self._input, self._limits)
        else:
            yield from _unzstd(self._input, self._limits)

    def _reckon(self, length: int) -> None:
        taken, self._packed = self._input.taken - self._packed, self._input.taken
        self._length += length
        self._debt = max(0, self._debt + length - self._limits.ratio * taken)
        if self._length > self._limits.total:
            raise MalformedInput(
                f"the archive unpacks to more than {self._limits.total / 1e12:g} TB",
                reference="compressed-too-large",
                hint="check that this is a checkpoint's archive; a larger one can be uploaded as a plain tar",
                side="source",
            )
        if self._debt > self._limits.slack:
            raise MalformedInput(
                f"the archive unpacks to {self._length} bytes from {self._packed}: it is nearly all zeros,"
                " or made to keep its reader busy",
                reference="compressed-bomb",
                hint="check where it comes from; if it is what you want, unpack it first and upload that",
                side="source",
            )


class _Input:
    """A stream's bytes in pieces of any length, and how many were taken."""

    def __init__(self, stream: Stream | BinaryIO) -> None:
        self._stream = stream
        self._buffer = bytearray(_INPUT)
        self._rest = b""
        self._at = 0
        self.taken = 0

    def some(self, most: int = _INPUT) -> bytes:
        """At least one byte and at most `most`; nothing at the end."""
        if self._at == len(self._rest):
            with memoryview(self._buffer) as view:
                count = streams.read_some(self._stream, view)
                self._rest, self._at = bytes(view[:count]), 0
        data = self._rest[self._at : self._at + most]
        self._at += len(data)
        self.taken += len(data)
        return data

    def take(self, length: int) -> bytes:
        """Exactly `length` bytes; fewer at the end."""
        data = self.some(length)
        if len(data) == length or not data:
            return data
        gathered = bytearray(data)
        while len(gathered) < length and (data := self.some(length - len(gathered))):
            gathered += data
        return bytes(gathered)

    def unread(self, data: bytes) -> None:
        """Put back the last bytes that were taken."""
        if len(data) <= self._at:
            self._at -= len(data)
        else:  # they came with several reads
            self._rest, self._at = data + self._rest[self._at :], 0
        self.taken -= len(data)

    def drained(self) -> bytes:
        """What was read of the stream and not taken."""
        return self.some() if self._at < len(self._rest) else b""


class _Idle:
    """Compressed bytes that were taken without a plain one coming out."""

    def __init__(self, feed: _Input, limit: int) -> None:
        self._feed = feed
        self._limit = limit
        self._since = 0

    def over(self) -> None:
        """Bytes came out."""
        self._since = self._feed.taken

    def check(self) -> None:
        """Raise MalformedInput when there were too many in a row."""
        if self._feed.taken - self._since > self._limit:
            raise MalformedInput(
                f"more than {self._limit} compressed bytes in a row hold nothing",
                reference="compressed-bomb",
                hint=_DOWNLOAD_AGAIN,
                side="source",
            )


def _gunzip(feed: _Input, limits: Limits) -> Iterator[bytes]:
    """Unpack gzip members to the end of the stream; an empty piece comes last."""
    idle = _Idle(feed, limits.idle)
    while True:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        most = _FIRST_INPUT
        while not member.eof:
            idle.check()
            data, most = feed.some(most), min(2 * most, _INPUT)
            if not data:
                raise _truncated("gzip", feed)
            try:
                piece = member.decompress(data, _PIECE)
            except zlib.error as error:
                raise _damaged("gzip", feed, str(error).rpartition(": ")[2]) from error
            feed.unread(member.unconsumed_tail or member.unused_data)
            if piece:
                idle.over()
                yield piece
        magic = feed.take(len(_GZIP))
        if not magic:
            break
        if magic != _GZIP:
            raise (_truncated if _GZIP.startswith(magic) else _trailing)("gzip", feed)
        feed.unread(magic)
    yield b""


def _unzstd(feed: _Input, limits: Limits) -> Iterator[bytes]:
    """Unpack zstd frames to the end of the stream; an empty piece comes last."""
    zstandard = _zstandard()
    idle = _Idle(feed, limits.idle)
    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.window)
    while magic := feed.take(len(_ZSTD)):
        if magic == _ZSTD:
            header = _frame_header(feed, zstandard, limits)
            frame = decompressor.decompressobj()
            for packed in _blocks(feed, header, idle):
                try:
                    piece = frame.decompress(packed)
                except zstandard.ZstdError as error:
                    raise _damaged("zstd", feed, str(error).rpartition(": ")[2]) from error
                if piece:
                    idle.over()
                    yield piece
            if not frame.eof:
                raise _damaged("zstd", feed, "the frame does not end with its last block")
        elif _SKIPPABLE.match(magic):
            left = int.from_bytes(_exactly(feed, 4), "little")
            while left:
                idle.check()
                left -= len(_exactly(feed, min(left, _INPUT)))
        else:
            cut = _ZSTD.startswith(magic) or _SKIPPABLE.match(
                magic + b"\x50\x2a\x4d\x18"[len(magic) :]
            )
            raise (_truncated if cut else _trailing)("zstd", feed)
        idle.check()
    yield b""


def _frame_header(feed: _Input, zstandard: types.ModuleType, limits: Limits) -> bytes:
    """The header of a frame, judged. Raises MalformedInput."""
    at = feed.taken - len(_ZSTD)
    descriptor = _exactly(feed, 1)
    size_flag, single, dictionary_flag = (
        descriptor[0] >> 6,
        descriptor[0] >> 5 & 1,
        descriptor[0] & 3,
    )
    size_bytes = (single, 2, 4, 8)[size_flag]
    header = _ZSTD + descriptor
    header += _exactly(feed, (1 - single) + (0, 1, 2, 4)[dictionary_flag] + size_bytes)
    try:
        parameters = zstandard.get_frame_parameters(header)
    except zstandard.ZstdError as error:
        raise _damaged("zstd", feed, str(error).rpartition(": ")[2]) from error
    if parameters.dict_id:
        raise MalformedInput(
            f"the zstd frame at byte {at} was packed with a dictionary, which is not in it",
            reference="compression-unsupported",
            hint="unpack it with that dictionary on the way: zstd -dc -D DICTIONARY FILE |"
            " staging upload - TARGET",
            side="source",
        )
    if parameters.window_size > limits.window:
        raise MalformedInput(
            f"the zstd frame at byte {at} asks for a window of {-(-parameters.window_size // MIB)} MiB of"
            f" memory, {limits.window // MIB} MiB is the most",
            reference="zstd-window",
            hint="unpack it on the way: zstd -dc --long=31 FILE | staging upload - TARGET; or have it packed"
            " with --long=27 or less",
            side="source",
        )
    return header


def _blocks(feed: _Input, header: bytes, idle: _Idle) -> Iterator[bytes]:
    """A frame as it is packed, in pieces that unpack to at most `_PIECE` bytes each."""
    gathered, room, last = bytearray(header), _PIECE, False
    while not last:
        idle.check()
        block = _exactly(feed, 3)
        number = int.from_bytes(block, "little")
        last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
        if kind == 3 or size > _ZSTD_BLOCK:
            raise _damaged("zstd", feed, "a block of an impossible kind or size")
        gathered += block
        gathered += _exactly(feed, 1 if kind == 1 else size)  # kind 1 is one byte, repeated
        room -= _ZSTD_BLOCK
        if room < _ZSTD_BLOCK and not last:
            yield bytes(gathered)
            gathered, room = bytearray(), _PIECE
    if header[len(_ZSTD)] & 4:
        gathered += _exactly(feed, 4)  # the checksum
    yield bytes(gathered)


def _exactly(feed: _Input, length: int) -> bytes:
    data = feed.take(length) if length else b""
    if len(data) < length:
        raise _truncated("zstd", feed)
    return data


def _zstandard() -> types.ModuleType:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise UsageError(
            "`staging` was installed without what it needs to read zstd",
            reference="extra-missing",
            hint="pip install 'checkpoint-staging[stage]', or '.[stage]' in a checkout",
        ) from error
    return zstandard


def _truncated(name: str, feed: _Input) -> MalformedInput:
    return MalformedInput(
        f"the {name} archive ends at byte {feed.taken}, before it is complete",
        reference="compressed-truncated",
        hint=_DOWNLOAD_AGAIN,
        side="source",
    )


def _damaged(name: str, feed: _Input, reason: str) -> MalformedInput:
    return MalformedInput(
        f"the {name} archive is damaged before byte {feed.taken}: {reason}",
        reference="compressed-damaged",
        hint=_DOWNLOAD_AGAIN,
        side="source",
    )


def _trailing(name: str, feed: _Input) -> MalformedInput:
    return MalformedInput(
        f"there is something else behind the end of the {name} archive, before byte {feed.taken}",
        reference="compressed-trailing",
        hint="upload one archive at a time; if it was never joined, download it again",
        side="source",
    )
