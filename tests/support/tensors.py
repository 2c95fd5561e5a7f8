"""Safetensors files made by hand, and files that are none. Shares no code with the parser under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

Specification = Mapping[str, tuple[str, list[int], bytes]]


def framed(header: bytes, data: bytes = b"") -> bytes:
    """A file with any bytes as its header."""
    return len(header).to_bytes(8, "little") + header + data


def safetensors_file(
    tensors: Specification, *, metadata: Mapping[str, str] | None = None, align: int = 8
) -> bytes:
    """A whole file: tensors as name -> (dtype, shape, data), one behind the other."""
    document: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        end = len(data) + len(content)
        document[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += content
    header = json.dumps(document, separators=(",", ":")).encode()
    return framed(header + b" " * (-len(header) % align), data)


def one_tensor(**fields: Any) -> bytes:
    """A file of one tensor `w` of two bytes, with fields of its entry replaced."""
    entry = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | fields
    return framed(json.dumps({"w": entry}).encode(), b"xy")


SMALL: Final = safetensors_file(
    {
        "embed": ("BF16", [2, 3], bytes(12)),
        "bias": ("F32", [1], bytes(4)),
        "none": ("I8", [0], b""),
    },
    metadata={"format": "pt"},
)
"""A valid file of three tensors."""

_TWO = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
_TWO_MORE = b'"b":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}'

BROKEN: Final[dict[str, tuple[bytes, str]]] = {
    "empty": (b"", "empty"),
    "short": (b"\2\0\0", "not start"),
    "nine-bytes": (b"\2" + bytes(7) + b"{", "not start"),
    "zeros": (bytes(4096), "zeros"),
    "length-zero": (framed(b"", b"{}"), "claims 0 bytes"),
    "length-one": ((1).to_bytes(8, "little") + b"{}", "claims 1 bytes"),
    "length-too-long-by-one": ((3).to_bytes(8, "little") + b"{}", "claims 3 bytes"),
    "length-at-cap": ((10**8).to_bytes(8, "little") + b"{}", "claims 100000000 bytes"),
    "length-above-cap": ((10**8 + 1).to_bytes(8, "little") + b"{}", "more than the"),
    "length-2-63": ((2**63).to_bytes(8, "little") + b"{}", "more than the"),
    "length-2-64": (b"\xff" * 8 + b"{}", "more than the"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS"),
    "web-page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
    "store-error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "zip": (b"PK\x03\x04" + bytes(100), "zip"),
    "pickle": (b"\x80\x02}q\0." + bytes(100), "pickle"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(100), "GGUF"),
    "truncated": (SMALL[:-1], "truncated"),
    "header-only": (SMALL[:-16], "truncated"),
    "trailing": (SMALL + b"\0", "only calls for"),
    "leading-space": (framed(b" {}"), "not start"),
    "array": (framed(b"[]" + b" " * 20), "not start"),
    "not-utf-8": (framed(b'{"\xff":1}'), "JSON"),
    "half-json": (framed(b'{"a":'), "JSON"),
    "two-documents": (framed(b"{}{}"), "JSON"),
    "nul-padding": (framed(b"{}\0\0"), "JSON"),
    "surrogate": (framed(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "JSON"),
    "deep": (framed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "JSON"),
    "nan": (framed(b'{"a":NaN}'), "JSON"),
    "duplicate-tensor": (framed(b"{" + (_TWO * 2)[:-1] + b"}", b"x"), "duplicate"),
    "duplicate-field": (
        framed(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "duplicate",
    ),
    "minus-zero": (framed(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "JSON"),
    "metadata-number": (framed(b'{"__metadata__":{"a":1}}'), "metadata"),
    "metadata-list": (framed(b'{"__metadata__":["a"]}'), "metadata"),
    "hole": (framed(b"{" + _TWO + _TWO_MORE % (1, 2, 3) + b"}", b"xyz"), "hole"),
    "overlap": (framed(b"{" + _TWO + _TWO_MORE % (1, 0, 1) + b"}", b"xy"), "overlaps"),
    "late-start": (one_tensor(data_offsets=[1, 3]), "hole"),
    "backwards": (one_tensor(data_offsets=[2, 0]), "call for"),
    "three-offsets": (one_tensor(data_offsets=[0, 2, 2]), "impossible"),
    "one-offset": (one_tensor(data_offsets=[0]), "impossible"),
    "negative-offset": (one_tensor(data_offsets=[-2, 0]), "impossible"),
    "float-shape": (one_tensor(shape=[2.0]), "impossible"),
    "true-shape": (one_tensor(shape=[2, True]), "impossible"),
    "negative-shape": (one_tensor(shape=[-1, -2]), "impossible"),
    "text-shape": (one_tensor(shape="2"), "impossible"),
    "shape-beyond-u64": (one_tensor(shape=[0, 2**64], data_offsets=[0, 0]), "impossible"),
    "overflow-before-zero": (
        one_tensor(shape=[2**32, 2**32, 0], data_offsets=[0, 0]),
        "impossible",
    ),
    "overflow-to-two": (one_tensor(shape=[2**63, 2], data_offsets=[0, 0]), "impossible"),
    "shape-too-small": (one_tensor(shape=[1]), "call for 8 bits"),
    "shape-too-large": (one_tensor(shape=[3]), "call for 24 bits"),
    "half-a-byte": (one_tensor(dtype="F4", shape=[3]), "call for 12 bits"),
    "unknown-type": (one_tensor(dtype="F7"), "unknown type"),
    "type-is-a-list": (one_tensor(dtype=["U8"]), "unknown type"),
    "unknown-field": (one_tensor(strides=[1]), "exactly"),
    "missing-field": (framed(b'{"a":{"dtype":"U8","shape":[0]}}'), "exactly"),
    "tensor-as-list": (framed(b'{"a":["U8",[0],[0,0]]}'), "exactly"),
}
"""Files that must be found broken, with a part of the reason."""
