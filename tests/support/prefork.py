"""Programs as forks of a process that has imported them: a third of a second sooner than a start.

    prefork = Prefork()
    done = prefork.run(Entry.STAGING, ["staging", "ls", "s3://b/"], directory, environment, stdin, 90)

A fork is a process like any other: arguments, environment, directory, standard streams, exit code, signals
and the end of the interpreter are its own. What differs from a start: modules are imported already, and
with them whatever reads the environment as it is imported, so `serves` declines environments that matter
there. Programs that signals are sent to, or that are looked at from outside, are to be started.

The second half of this module is the process that forks. It imports the programs, has no threads, and ends
when its socket does.
"""

from __future__ import annotations

import atexit
import enum
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

LANGUAGE: Final = "C.UTF-8"
"""`LANG` of the process that forks: an interpreter makes its encodings of it."""

_READ_EARLY: Final = ("PYTHON", "LC_", "LD_", "MALLOC_", "OPENSSL_", "AWS_CRT", "TQDM_")
"""What interpreter, libraries and modules take from the environment before a fork could change it."""

_MOST: Final = 128 * 1024
"""Bytes of a request; fewer than a datagram may have."""


class Entry(enum.Enum):
    """The module whose `main` a program runs."""

    STAGING = "staging.cli.main"
    DOWNLOADER = "downloader.__main__"


_IMPORTED: Final = (
    *(entry.value for entry in Entry),
    *(f"staging.cli.{name}" for name in ("adopt", "check", "doctor", "gc", "ls", "preflight")),
    *(f"staging.cli.{name}" for name in ("show", "upload", "verify")),
    "downloader.program",
    "staging.source.tar_file",
    "staging.wire.boto",
    "staging.wire.identity",
)
"""What most runs import. Nothing of huggingface_hub, which reads the environment as it is imported."""


def serves(environment: Mapping[str, str]) -> bool:
    """Whether a fork with this environment is as good as a start."""
    return environment.get("LANG") == LANGUAGE and not any(
        name.startswith(_READ_EARLY) for name in environment
    )


class Prefork:
    """The process that forks, for as long as this process lives. Safe to use from several threads."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": LANGUAGE},
            )
        atexit.register(self._close)

    def _close(self) -> None:
        self._requests.close()
        self._process.wait()

    def run(
        self,
        entry: Entry,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        stdin: bytes | IO[bytes],
        timeout: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end, as `subprocess.run` does. `command` begins with its name.

        Raises subprocess.TimeoutExpired after `timeout` seconds, when the program has been killed.
        """
        request = json.dumps([entry.value, command, str(directory), dict(environment)]).encode()
        assert len(request) <= _MOST, "an environment or a command line that is too long for a fork"
        out, err = _Drain(), _Drain()
        feed = _Feed(stdin) if isinstance(stdin, bytes) else None
        helpers = (out, err) if feed is None else (out, err, feed)
        status, told = os.pipe()
        with open(status, "rb", buffering=0) as answers:
            first = stdin.fileno() if feed is None else feed.theirs
            try:
                socket.send_fds(self._requests, [request], [first, out.theirs, err.theirs, told])
            finally:
                os.close(told)
                for helper in helpers:
                    os.close(helper.theirs)
                    helper.start()
            try:
                code = _awaited(answers, command, timeout)
            finally:
                for helper in helpers:
                    helper.join()
        return subprocess.CompletedProcess(command, code, bytes(out.data), bytes(err.data))


class _Drain(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ours, self.theirs = os.pipe()
        self.data = bytearray()

    def run(self) -> None:
        with open(self._ours, "rb") as stream:
            self.data += stream.read()


class _Feed(threading.Thread):
    """Writes into a pipe, as much as is wanted."""

    def __init__(self, data: bytes) -> None:
        super().__init__(daemon=True)
        self.theirs, self._ours = os.pipe()
        self._view = memoryview(data)

    def run(self) -> None:
        try:
            while self._view:
                self._view = self._view[os.write(self._ours, self._view) :]
        except BrokenPipeError:  # it did not want more
            self._view = self._view[:0]
        finally:
            os.close(self._ours)


def _awaited(status: IO[bytes], command: Sequence[str], timeout: float) -> int:
    """The exit code, from what the parent of the program tells: its id, and then the code."""
    program = status.readline()
    if not program:
        raise ChildProcessError("the process that forks has ended")
    ready, _, _ = select.select([status], [], [], timeout)
    if not ready:
        os.kill(int(program), signal.SIGKILL)
        raise subprocess.TimeoutExpired(command, timeout)
    return int(status.readline())


# The process that forks.


def serve(requests: socket.socket) -> None:
    """Fork for every request; returns when nobody can ask any more, and in no fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for programs
    while True:
        request, fds, _, _ = socket.recv_fds(requests, _MOST, 4)
        if not request:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            watch_over(request, fds)
        for fd in fds:
            os.close(fd)


def watch_over(request: bytes, fds: list[int]) -> None:
    """Fork the program, tell its id and how it ended."""
    *streams, status = fds
    program = os.fork()
    if program == 0:
        os.close(status)
        become(request, streams)
    for fd in streams:
        os.close(fd)
    os.write(status, b"%d\n" % program)
    _, ended = os.waitpid(program, 0)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
    os._exit(0)


def become(request: bytes, streams: list[int]) -> None:
    """Be the program. Ends the interpreter in the usual way."""
    entry, sys.argv, directory, environment = json.loads(request)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.stdin = sys.__stdin__ = open(0, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(  # noqa: SIM115
        1, "w", errors=sys.stdout.errors, closefd=False
    )
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, errors=sys.stderr.errors, closefd=False
    )
    importlib.import_module(entry).main()
    sys.exit()


def main() -> None:
    """Import what there is to import and serve."""
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        for name in _IMPORTED:
            importlib.import_module(name)
        gc.freeze()
        serve(requests)


if __name__ == "__main__":
    main()
