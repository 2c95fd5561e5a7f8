"""What a file is that is not what it should be: told from its first bytes, for a helpful refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SNIFF_BYTES: Final = 512
"""Bytes from the start of a file that `recognise` likes to see; fewer will do."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """A kind of file. `unpack` is the program that writes its plain content to stdout, if there is one."""

    name: str
    unpack: str | None = None


LFS_POINTER: Final = Stranger("a git-LFS pointer")
WEB_PAGE: Final = Stranger("a web page")
XML_ANSWER: Final = Stranger("an XML document, as stores answer with when they refuse a download")
SAFETENSORS: Final = Stranger("a safetensors file")
ZIP: Final = Stranger("a zip file, perhaps a PyTorch checkpoint")
PICKLE: Final = Stranger("a Python pickle, perhaps a PyTorch checkpoint")
GGUF: Final = Stranger("a GGUF file")

_MAGICS: Final = (
    (b"\x1f\x8b", Stranger("a gzip file", "gzip -dc")),
    (b"\x28\xb5\x2f\xfd", Stranger("a zstd file", "zstd -dc")),
    (b"\xfd7zXZ\0", Stranger("an xz file", "xz -dc")),
    (b"BZh", Stranger("a bzip2 file", "bzip2 -dc")),
    (b"\x04\x22\x4d\x18", Stranger("an lz4 file", "lz4 -dc")),
    (b"7z\xbc\xaf\x27\x1c", Stranger("a 7z file")),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"GGUF", GGUF),
    (b"version https://git-lfs", LFS_POINTER),
)

_MAX_SAFETENSORS_HEADER: Final = 100_000_000


def recognise(start: bytes) -> Stranger | None:
    """Tell what a file that begins with `start` is; None when that is not known.

    A guess for people: two magic bytes prove nothing. Ask only once the expected format has failed.
    """
    header_length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header_length <= _MAX_SAFETENSORS_HEADER:
        return SAFETENSORS
    for magic, stranger in _MAGICS:
        if start.startswith(magic):
            return stranger
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    if text.startswith((b"<?xml", b"<error>")):
        return XML_ANSWER
    return None
