"""The termination message: what Kubernetes shows of a container that has ended.

The kubelet mounts a file for it and reads at most 4096 bytes when the container is gone. It is a courtesy:
whatever stands in the way of writing it, nothing is said and nothing changes.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

DEFAULT_PATH: Final = "/dev/termination-log"
LIMIT: Final = 4096
"""Bytes that the kubelet reads."""


def default_path() -> str | None:
    """Where the message goes unless something else is said; None outside of a container that has it."""
    return DEFAULT_PATH if os.access(DEFAULT_PATH, os.W_OK) else None


def write(path: str, text: str) -> None:
    """Replace the message by `text`, cut to what is read."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > LIMIT:
        data = data[: LIMIT - 3].decode("utf-8", "ignore").encode() + "…".encode()
    # Nobody reads a pipe here, and nothing but a file is emptied.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with suppress(OSError, ValueError):
        fd = os.open(path, flags, 0o644)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
            os.write(fd, data)
        finally:
            os.close(fd)
