"""What became of earlier attempts: a container that starts again cannot remember, so its directory does.

`attempts.json` lies in the control directory of a destination, or of the cache:

    {"schema": "checkpoint-attempts/1",
     "attempts": [{"number": 1, "started": "...", "version": "...", "host": "...", "pid": 1,
                   "ended": "...", "exit": 13, "cause": "connection"}]}

An entry without an end is of an attempt that was killed, or that still runs. A success forgets what was
before it, but not who is still at work. The file is small and replaced as a whole.

Invariants: nothing here is ever an error: what cannot be read counts as nothing, what cannot be written is
said once. Nothing is made in a directory that a refused run would otherwise leave as it was: an entry is
begun when there is a control directory, and a run that failed for reasons that pass makes one where the
destination exists.
Not guaranteed: every entry, when several processes begin or end at the same moment in one directory. That
containers of one pod know each other: each has process numbers of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from staging import __version__
from staging.cli.progress import utc_now
from staging.directory.fs import Fs
from staging.directory.tree import Tree
from staging.vocabulary.errors import StagingError
from staging.vocabulary.redaction import one_line

SCHEMA: Final = "checkpoint-attempts/1"
LIMIT: Final = 16 * 1024
"""Most bytes of the file."""

KEPT: Final = 20
"""Most attempts in it: the last ones."""

_NAME: Final = "attempts.json"
_LONGEST: Final = 100  # characters of any text in it
_PASSING: Final = frozenset({12, 13, 18})
"""Exit codes of failures that the next attempt may not meet; so are those of signals."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as it is on record. `exit` is None as long as it has no end; `cause` is a reference."""

    number: int
    started: str
    version: str
    host: str
    pid: int
    ended: str | None = None
    exit: int | None = None
    cause: str | None = None

    def document(self) -> dict[str, Any]:
        """As it stands in the file."""
        entry: dict[str, Any] = {
            "number": self.number,
            "started": self.started,
            "version": self.version,
            "host": self.host,
            "pid": self.pid,
        }
        if self.exit is not None:
            entry |= {"ended": self.ended, "exit": self.exit, "cause": self.cause}
        return entry

    @classmethod
    def of(cls, entry: object) -> Attempt | None:
        """Read an entry of the file; None for anything else."""
        if not isinstance(entry, dict):
            return None
        number, pid, code = entry.get("number"), entry.get("pid"), entry.get("exit")
        if not (isinstance(number, int) and isinstance(pid, int)):
            return None
        if not 0 < number < 10**9 or not 0 < pid < 2**31:
            return None
        ended = isinstance(code, int) and 0 <= code < 256
        return cls(
            number=number,
            started=_text(entry, "started"),
            version=_text(entry, "version"),
            host=_text(entry, "host"),
            pid=pid,
            ended=_text(entry, "ended") if ended else None,
            exit=code if ended else None,
            cause=_text(entry, "cause") if ended else None,
        )


class Attempts:
    """The record of one destination. `control` is the name of the control directory below `root`.

    Where pods `shared` it, only those of this host are attempts at the same thing.
    """

    def __init__(
        self,
        root: Path,
        control: str,
        *,
        host: str,
        pid: int | None = None,
        shared: bool = False,
    ) -> None:
        self._root = root
        self._shared = shared
        self._control = control
        self._name = f"{control}/{_NAME}"
        self._host = one_line(host)[:_LONGEST]
        self._pid = os.getpid() if pid is None else pid
        self._begun = False
        self.trouble: str | None = None
        self._earlier = self._read()
        self.previous = self._find_previous()
        failed_before = self.previous is not None and self.previous.exit != 0
        self.number = self.previous.number + 1 if self.previous and failed_before else 1
        self._this = Attempt(self.number, utc_now(), __version__, self._host, self._pid)

    def told(self) -> str | None:
        """What to say of the previous attempt; None when there was none, or it was a success."""
        before = self.previous
        if before is None or before.exit == 0:
            return None
        start = f"attempt {self.number}; the previous one"
        if before.exit is not None:
            return f"{start} ended with exit {before.exit} {before.cause} at {before.ended}"
        if before.host == self._host:
            return (
                f"{start}, begun at {before.started}, was killed: no end is recorded (out of memory,"
                " node reboot, SIGKILL, or an end that had to be forced)"
            )
        return (
            f"{start}, begun at {before.started} on {before.host}, has no end recorded: it was killed,"
            " or still runs"
        )

    def begin(self) -> None:
        """Record that this attempt has begun, if there is a control directory yet; once is enough."""
        if not self._begun and self._has_control():
            self._begun = True
            self._write([*self._read(), self._this])  # others may have begun since it was read

    def end(self, code: int, cause: str) -> None:
        """Record how this attempt ended, if it was begun, or if the failure may pass."""
        if not self._begun:
            if code not in _PASSING and code < 128:
                return
            if not (self._root.is_dir() and not self._root.is_symlink()):
                return
        this = replace(self._this, ended=utc_now(), exit=code, cause=cause)
        others = [entry for entry in self._read() if not self._is_this(entry)]
        self._write([*others, this])

    def succeed(self) -> None:
        """Forget the attempts before this one, which did it, but no neighbour that is at work.

        Nothing is written where nothing was.
        """
        if self._begun or (self.previous is not None and self.previous.exit != 0):
            others = [
                entry
                for entry in self._read()
                if self._is_at_work(entry) or (self._shared and entry.host != self._host)
            ]
            self._write([*others, replace(self._this, ended=utc_now(), exit=0, cause="ok")])

    def _sweep(self, tree: Tree) -> None:
        """Remove what attempts left that were killed while they wrote this."""
        for name in tree.listing(self._control):
            if name.startswith(f"{_NAME}.") and name.endswith(".tmp"):
                tree.unlink(f"{self._control}/{name}")

    def _find_previous(self) -> Attempt | None:
        """The last attempt before this one that is not, as far as can be told, a neighbour at work."""
        for entry in reversed(self._earlier):
            if self._shared and entry.host != self._host:
                continue
            if not self._is_at_work(entry):
                return entry
        return None

    def _is_at_work(self, entry: Attempt) -> bool:
        """Whether this is of another process here that has not ended."""
        here = entry.host == self._host and entry.pid != self._pid
        return entry.exit is None and here and _is_running(entry.pid)

    def _is_this(self, entry: Attempt) -> bool:
        this = self._this
        return (entry.number, entry.started, entry.host, entry.pid) == (
            this.number,
            this.started,
            this.host,
            this.pid,
        )

    def _has_control(self) -> bool:
        path = self._root / self._control
        return path.is_dir() and not path.is_symlink()

    def _read(self) -> list[Attempt]:
        if not self._has_control():
            return []
        try:
            tree = Tree.open(self._root, fs=Fs())
            try:
                data = tree.read_document(self._name, limit=LIMIT)
            finally:
                tree.close()
            if data is None:
                return []
            document = json.loads(data)
        except StagingError as error:
            self.trouble = f"earlier attempts cannot be told: {error.message}"
            return []
        except (ValueError, RecursionError):
            self.trouble = f"earlier attempts cannot be told: {self._name} is not valid"
            return []
        entries = document.get("attempts") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            self.trouble = f"earlier attempts cannot be told: {self._name} is not valid"
            return []
        found = [Attempt.of(entry) for entry in entries[-KEPT:]]
        return [attempt for attempt in found if attempt is not None]

    def _write(self, attempts: list[Attempt]) -> None:
        entries = [attempt.document() for attempt in attempts[-KEPT:]]
        while len(data := json.dumps({"schema": SCHEMA, "attempts": entries}).encode()) > LIMIT:
            del entries[0]
        try:
            tree = Tree.open(self._root, fs=Fs())
            try:
                tree.make_directory(self._control)
                self._sweep(tree)
                tree.write_document(self._name, data)
            finally:
                tree.close()
        except StagingError as error:
            # Another process that writes its own at this moment is in nobody's way.
            if not isinstance(error.__cause__, (FileExistsError, FileNotFoundError)):
                self.trouble = f"this attempt cannot be recorded: {error.message}"


def _text(entry: Mapping[Any, Any], name: str) -> str:
    value = entry.get(name)
    return one_line(value)[:_LONGEST] if isinstance(value, str) else "unknown"


def _is_running(pid: int) -> bool:
    """Whether there is such a process here; another one may have taken its number since."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not ours to signal, but there
        return True
    return True
