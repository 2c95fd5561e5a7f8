"""Arguments that name something on this machine: files, directories, standard input."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import BinaryIO, Final, cast

from staging.vocabulary.errors import StagingError, UsageError

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def local_path(text: str, *, hint: str = "give a path on this machine") -> Path:
    """The path an argument names.

    Raises UsageError for a URL, without repeating its query (I13), and for a relative path when the working
    directory is gone.
    """
    match = _SCHEME.match(text)
    if match is not None:
        raise UsageError(
            f"{text.split('?', 1)[0].rpartition('@')[2][:200]!r} is a URL where a path is expected",
            reference="uri",
            hint=hint,
        )
    path = Path(text)
    if not path.is_absolute():
        _require_working_directory(text)
    return path


def directory_path(text: str) -> Path:
    """The path of a directory of checkpoints, which results and logs name in lines.

    Raises UsageError as `local_path`, and for control characters, with which a name would forge lines.
    """
    if _CONTROL.search(text):
        raise UsageError(
            f"the path {text[:200]!r} has a line break or another control character in it",
            reference="arguments",
            hint="give a path without; quotes and newlines that a script put there are the usual cause",
        )
    return local_path(text)


def _require_working_directory(text: str) -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the path {text[:200]!r} is relative, and the working directory cannot be found:"
            f" {os.strerror(error.errno or 0)}",
            reference="arguments",
            hint="give an absolute path, or change to a directory that exists and run again",
        ) from error


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
            hint="pipe what is to be read into it: cat FILE | staging ... -",
            side="source",
        )
    return cast("BinaryIO", open(0, "rb", buffering=0, closefd=False))
