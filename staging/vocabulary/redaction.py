"""Text of strangers as it may be shown: one line, nothing a terminal would obey, no secret (I13).

Arguments, names of files and a store's messages end up in errors. Any of them may hold a presigned URL,
whose query is as good as a password until it expires: `wget` even names the file after it.

Not guaranteed: that a secret is recognised which stands alone, without the name it has in a query.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_SIGNED_QUERY: Final = re.compile(r"""(?i)\?[^\s'"`]*(?:x-amz-|signature|token)[^\s'"`]*""")
_SECRET: Final = re.compile(
    r"(?i)(x-amz-(?:signature|credential|security-token)|signature|awsaccesskeyid|token)"
    r"""=[^&\s'"`]+"""
)
_USER: Final = re.compile(r"://[^/\s@]+@")


def one_line(text: str) -> str:
    """The text on one printable line, without signed queries, signatures, and users in URLs."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _USER.sub("://...@", _SECRET.sub(r"\1=...", _SIGNED_QUERY.sub("?...", line)))


def file_name(path: Path) -> str:
    """The name of a file as it may be published: no directories, no query, valid printable UTF-8."""
    name = os.fsencode(path.name).decode("utf-8", "replace").partition("?")[0]
    return one_line(name) or "unnamed"
