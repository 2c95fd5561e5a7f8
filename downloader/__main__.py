"""Entry point of `model-downloader`.

As PID 1 a container gets no default signal handlers: until the program proper is imported, which takes
a good part of a second, a termination ends it right here. Nothing has been touched by then.
"""

from __future__ import annotations

import gc
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
    # Imports and the SDK make a few hundred thousand objects that stay: looking through them again and
    # again, and once more at the end, takes a third of the time that it takes to start.
    gc.set_threshold(100_000, 20, 20)
    from downloader.program import run_downloader

    code = run_downloader()
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
