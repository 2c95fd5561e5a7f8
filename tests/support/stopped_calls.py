"""Programs whose changes to the disk stop, one by one, before the kernel makes them (Linux).

    def decide(change: Change) -> Verdict:
        return KILL if change.number == 7 else None

    watched = run_stopped(command, below=directory, decide=decide, ...)

Each system call that would change something below a directory is held until `decide` has said what becomes
of it: it is made, it fails with an error number, or the program is killed with SIGKILL in its stead. The
kernel holds them (seccomp user notification), which needs no privilege and no other program.

Invariants: changes are numbered from 1 in the order in which they were asked for, over all threads and
children: what `strace --inject` cannot do, since it counts each thread for itself. A change that is not let
through has not happened.
Not guaranteed: that two runs ask for the same changes in the same order; `close` and mappings are not
looked at, nor what other programs do.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

KILL: Final = "kill"
Verdict = int | Literal["kill"] | None
"""An error number to fail with, `KILL`, or None to let it happen."""

_CREATING: Final = os.O_CREAT | os.O_TRUNC
_CLONE: Final = (0x40049409, 0x4020940D)  # FICLONE, FICLONERANGE

_Row = tuple[int | None, int | None, tuple[str, int]]

# Name: numbers on x86_64 and aarch64, and which arguments tell the path: a descriptor, a path, or a
# directory's descriptor and a path below it.
_CALLS: Final[Mapping[str, _Row]] = {
    "write": (1, 64, ("fd", 0)),
    "pwrite64": (18, 68, ("fd", 0)),
    "writev": (20, 66, ("fd", 0)),
    "pwritev": (296, 70, ("fd", 0)),
    "pwritev2": (328, 287, ("fd", 0)),
    "copy_file_range": (326, 285, ("fd", 2)),
    "sendfile": (40, 71, ("fd", 0)),
    "fsync": (74, 82, ("fd", 0)),
    "fdatasync": (75, 83, ("fd", 0)),
    "truncate": (76, 45, ("path", 0)),
    "ftruncate": (77, 46, ("fd", 0)),
    "fallocate": (285, 47, ("fd", 0)),
    "fchmod": (91, 52, ("fd", 0)),
    "chmod": (90, None, ("path", 0)),
    "fchmodat": (268, 53, ("at", 0)),
    "fchown": (93, 55, ("fd", 0)),
    "fchownat": (260, 54, ("at", 0)),
    "utimensat": (280, 88, ("at", 0)),
    "mkdir": (83, None, ("path", 0)),
    "mkdirat": (258, 34, ("at", 0)),
    "mknodat": (259, 33, ("at", 0)),
    "rmdir": (84, None, ("path", 0)),
    "unlink": (87, None, ("path", 0)),
    "unlinkat": (263, 35, ("at", 0)),
    "rename": (82, None, ("path", 1)),
    "renameat": (264, 38, ("at", 2)),
    "renameat2": (316, 276, ("at", 2)),
    "link": (86, None, ("path", 1)),
    "linkat": (265, 37, ("at", 2)),
    "symlink": (88, None, ("path", 1)),
    "symlinkat": (266, 36, ("at", 1)),
}
_CONDITIONAL: Final[Mapping[str, _Row]] = {
    "open": (2, None, ("path", 0)),
    "openat": (257, 56, ("at", 0)),
    "ioctl": (16, 29, ("fd", 0)),
}
"""Calls that change something only when an argument says so."""

_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_ALLOW: Final = 0x7FFF0000
_NOTIFY: Final = 0x7FC00000
_AT_FDCWD: Final = -100
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_CONTINUE: Final = 1
_LONGEST_PATH: Final = 4096

# What runs before the program in its process: installs the filter, hands the listener over, turns into it.
_STARTER: Final = """
import array, ctypes, os, socket, sys
number, filters, control = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "prctl")
program = Program(len(filters) // 8, filters)
listener = libc.syscall(number, 1, 8, ctypes.byref(program))
if listener < 0:
    raise OSError(ctypes.get_errno(), "seccomp")
with socket.socket(fileno=control) as channel:
    channel.sendmsg([b"l"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
os.close(listener)
os.execv(sys.argv[4], sys.argv[4:])
"""


@dataclass(frozen=True, slots=True)
class Change:
    """A system call that would change something: its number from 1, its name, and what it is about."""

    number: int
    call: str
    path: str


@dataclass(frozen=True, slots=True)
class Watched:
    """How a program ended: its exit code (negative for a signal), its output, its changes."""

    code: int
    stdout: str
    stderr: str
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.stdout}\n{self.stderr}"


def run_stopped(
    command: Sequence[str],
    *,
    below: Path,
    decide: Callable[[Change], Verdict],
    cwd: Path,
    environment: Mapping[str, str],
    timeout: float,
) -> Watched:
    """Run a command, the first word of which is a path, and ask `decide` before each change.

    Only changes below a directory count; all others happen. Raises TimeoutError.
    """
    ours, theirs = socket.socketpair()
    with (
        ours,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        with theirs:
            starter = [sys.executable, "-I", "-S", "-c", _STARTER]
            starter += [str(_SECCOMP[platform.machine()]), _filters().hex(), str(theirs.fileno())]
            process = subprocess.Popen(
                [*starter, *command],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(theirs.fileno(),),
            )
        with process:
            try:
                listener = _received(ours)
                try:
                    changes = _supervise(
                        listener, process, os.path.realpath(below), decide, timeout
                    )
                finally:
                    os.close(listener)
                process.wait(timeout)
            finally:
                process.kill()
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
        return Watched(process.returncode, texts[0], texts[1], tuple(changes))


def _received(channel: socket.socket) -> int:
    """The listener that the starter sent."""
    size = array.array("i").itemsize
    message, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(size))
    if not message:
        raise RuntimeError("the kernel does not let this process watch another one's calls")
    return int(array.array("i", ancillary[0][2][:size])[0])


def _supervise(
    listener: int,
    process: subprocess.Popen[bytes],
    below: str,
    decide: Callable[[Change], Verdict],
    timeout: float,
) -> list[Change]:
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    deadline = time.monotonic() + timeout
    names = {number: name for name, number in _numbers().items()}
    changes: list[Change] = []
    while True:
        events = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events:
            raise TimeoutError(f"a watched program did not end: {json.dumps(process.args)}")
        if not events[0][1] & select.POLLIN:
            return changes  # nobody is left
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, buffer)
        except FileNotFoundError:
            continue  # killed while it waited
        identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        name = names[number]
        path = _path(thread, name, arguments)
        verdict: Verdict = None
        if path == below or path.startswith(below + "/"):
            changes.append(Change(len(changes) + 1, name, path))
            verdict = decide(changes[-1])
        if verdict == KILL:
            process.kill()
            continue
        answer = (
            _ANSWER.pack(identity, 0, 0, _CONTINUE)
            if verdict is None
            else _ANSWER.pack(identity, 0, -int(verdict), 0)
        )
        with contextlib.suppress(FileNotFoundError):  # killed meanwhile
            fcntl.ioctl(listener, _SEND, answer)


def _path(thread: int, name: str, arguments: Sequence[int]) -> str:
    """What a held call is about; empty when the process has gone."""
    kind, index = (_CALLS.get(name) or _CONDITIONAL[name])[2]
    try:
        if kind == "fd":
            return os.readlink(f"/proc/{thread}/fd/{_signed(arguments[index])}")
        at = _AT_FDCWD if kind == "path" else _signed(arguments[index])
        text = _text(thread, arguments[index + (kind == "at")])
        if text.startswith("/"):
            return os.path.normpath(text)
        where = "cwd" if at == _AT_FDCWD else f"fd/{at}"
        return os.path.normpath(f"{os.readlink(f'/proc/{thread}/{where}')}/{text}")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _text(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        data = b""
        while b"\0" not in data and len(data) < _LONGEST_PATH:
            piece = memory.read(min(64, _PAGE - (address + len(data)) % _PAGE))
            if not piece:
                break
            data += piece
    return os.fsdecode(data.partition(b"\0")[0])


_PAGE: Final = 4096


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _numbers() -> dict[str, int]:
    """Of each call that this machine has."""
    found: dict[str, int] = {}
    for name, (x86, arm, _) in {**_CALLS, **_CONDITIONAL}.items():
        number = {"x86_64": x86, "aarch64": arm}[platform.machine()]
        if number is not None:
            found[name] = number
    return found


def _filters() -> bytes:
    """The filter: stop the calls of the tables, let all others through."""
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    numbers = _numbers()
    program = [(load, 0, 0, 0)]
    for name in _CALLS:
        if name in numbers:
            program += [(equal, 0, 1, numbers[name]), (answer, 0, 0, _NOTIFY)]
    for name, argument in (("open", 1), ("openat", 2)):
        if name in numbers:
            program += [
                (equal, 0, 4, numbers[name]),
                (load, 0, 0, 16 + 8 * argument),
                (any_bit, 0, 1, _CREATING),
                (answer, 0, 0, _NOTIFY),
                (answer, 0, 0, _ALLOW),
            ]
    program += [(equal, 0, 5, numbers["ioctl"]), (load, 0, 0, 16 + 8)]
    program += [(equal, 1, 0, _CLONE[0]), (equal, 0, 1, _CLONE[1])]
    program += [(answer, 0, 0, _NOTIFY), (answer, 0, 0, _ALLOW)]
    program.append((answer, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
