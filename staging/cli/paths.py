"""Arguments that name something on this machine: files, directories, standard input."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import BinaryIO, Final, cast

from staging.vocabulary.errors import StagingError, UsageError

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def local_path(text: str, *, hint: str = "give a path on this machine") -> Path:
    """The path an argument names. Raises UsageError for a URL, without repeating its query (I13)."""
    match = _SCHEME.match(text)
    if match is not None:
        raise UsageError(
            f"{text.split('?', 1)[0].rpartition('@')[2][:200]!r} is a URL where a path is expected",
            reference="uri",
            hint=hint,
        )
    return Path(text)


def standard_input() -> BinaryIO:
    """Standard input as unbuffered bytes: reads come short, and may say None if it does not block.

    A buffer's lock would be held by a thread that waits for bytes, and end the interpreter in a crash
    when the program is told to stop meanwhile. Raises StagingError when the program was started
    without one.
    """
    if sys.stdin is None:
        raise StagingError(
            "cannot read the pipe: standard input is closed",
            reference="source-io",
            hint="pipe the archive in: cat ARCHIVE | staging ...",
            side="source",
        )
    return cast("BinaryIO", open(0, "rb", buffering=0, closefd=False))
