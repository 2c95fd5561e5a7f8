"""Entry point of `model-downloader`.

As PID 1 a container gets no default signal handlers: until the program proper is imported, which takes
a good part of a second, a termination ends it right here. Nothing has been touched by then.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def main() -> None:
    """Run the program and exit."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    from downloader.program import run_downloader

    sys.exit(run_downloader())


if __name__ == "__main__":
    main()
