"""Holding a program's changes to the disk, as the campaigns do (I5, I6)."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from tests.support.stopped_calls import KILL, Change, Watched, run_stopped

SCRIPT = """
import os, threading
os.mkdir("d")
fd = os.open("d", os.O_RDONLY)
file = os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
try:
    os.pwrite(file, b"abc", 0)
except OSError as error:
    print(error.errno)
os.ftruncate(file, 2)
os.fsync(file)
os.rename("x", "y", src_dir_fd=fd, dst_dir_fd=fd)
os.symlink("y", "z", dir_fd=fd)
os.link("y", "l", src_dir_fd=fd, dst_dir_fd=fd)
def write():
    with open("t", "a") as file:
        file.write("x")
threads = [threading.Thread(target=write) for _ in range(3)]
for thread in threads:
    thread.start()
    thread.join()
os.unlink("d/z")
open(os.devnull, "w").write("elsewhere")
print("done")
"""


def run(directory: Path, number: int = 0, verdict: object = None) -> Watched:
    def decide(change: Change) -> object:
        return verdict if change.number == number else None

    return run_stopped(
        [sys.executable, "-c", SCRIPT],
        below=directory,
        decide=decide,  # type: ignore[arg-type]
        cwd=directory,
        environment={},
        timeout=30,
    )


def plain(call: str) -> str:
    """The call's name without its variants, of which machines have some and lack others."""
    return call.removesuffix("2").removesuffix("at")


def test_changes_are_numbered_over_all_threads(tmp_path: Path) -> None:
    watched = run(tmp_path)
    assert (watched.code, watched.stdout) == (0, "done\n"), str(watched)
    assert [
        (change.number, plain(change.call), Path(change.path).relative_to(tmp_path).as_posix())
        for change in watched.changes
    ] == [
        (1, "mkdir", "d"),
        (2, "open", "d/x"),
        (3, "pwrite64", "d/x"),
        (4, "ftruncate", "d/x"),
        (5, "fsync", "d/x"),
        (6, "rename", "d/y"),
        (7, "symlink", "d/z"),
        (8, "link", "d/l"),
        (9, "open", "t"),
        (10, "write", "t"),
        (11, "open", "t"),
        (12, "write", "t"),
        (13, "open", "t"),
        (14, "write", "t"),
        (15, "unlink", "d/z"),
    ]


def test_a_change_fails_once(tmp_path: Path) -> None:
    watched = run(tmp_path, 3, errno.ENOSPC)
    assert (watched.code, watched.stdout) == (0, f"{errno.ENOSPC}\ndone\n"), str(watched)
    assert (tmp_path / "d/y").read_bytes() == bytes(2)


def test_a_program_is_killed_before_a_change(tmp_path: Path) -> None:
    watched = run(tmp_path, 6, KILL)
    assert watched.code == -9
    assert len(watched.changes) == 6
    assert (tmp_path / "d/x").exists()
    assert not (tmp_path / "d/y").exists()
