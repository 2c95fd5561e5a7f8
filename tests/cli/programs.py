"""Running the two programs as users do: processes with an environment of their own, over real HTTP.

    programs = Programs(tmp_path, server)
    programs.staging("upload", "model.tar", "s3://bucket/prefix/")
    refused = programs.download("s3://bucket/wrong/", "node", expect=10)

Nothing of this machine's environment reaches a program but `PATH`. Every outcome is checked for what no
run may ever show: a traceback.

Programs that `run` runs to their end are forks of one process that has imported them, unless something before
them or in their environment asks for a start; those that `started` runs are started.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from tests.support import prefork
from tests.support.prefork import Entry, Prefork
from tests.support.servers import Server
from tests.support.stores import credentials

TIMEOUT: Final = 90.0
"""Seconds a program may take; a guard against hanging, no expectation."""

_ERROR: Final = re.compile(r"^ERROR exit=(\d+) (\S+) (.*)$")
_SCRIPTS: Final = Path(sysconfig.get_path("scripts"))
STAGING: Final = (str(_SCRIPTS / "staging"),)
DOWNLOADER: Final = (sys.executable, "-m", "downloader")
INSTALLED_DOWNLOADER: Final = (str(_SCRIPTS / "model-downloader"),)
_ENTRIES: Final = {
    STAGING: Entry.STAGING,
    DOWNLOADER: Entry.DOWNLOADER,
    INSTALLED_DOWNLOADER: Entry.DOWNLOADER,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and all that it printed."""

    command: str
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; fails when there is anything else."""
        found = json.loads(self.stdout)
        assert isinstance(found, dict), self
        assert found["schema"] == "checkpoint-staging/1", self
        return found

    @property
    def lines(self) -> list[str]:
        """What is on stderr, with the downloader's last lines in the words of `staging`."""
        lines = [_ERROR.sub(r"error: \3 [\2]", line) for line in self.stderr.splitlines()]
        return [re.sub("^HINT ", "hint: ", line) for line in lines]

    @property
    def error(self) -> str:
        """The one error line. Fails when there is none, or more than a hint and notes after it."""
        lines = self.lines
        while lines and lines[-1].startswith(("to ", "NOTE ")):
            lines.pop()
        errors = [line for line in lines if line.startswith("error:")]
        hints = [line for line in lines if line.startswith("hint:")]
        assert len(errors) == 1, self
        assert len(hints) <= 1, self
        assert lines[-1 - len(hints) :] == errors + hints, self
        return errors[0]

    @property
    def hint(self) -> str:
        """The hint after the error, empty when there is none."""
        return next((line for line in self.lines if line.startswith("hint:")), "")

    @property
    def reference(self) -> str:
        """The name of the error's cause."""
        return self.error.rpartition("[")[2].removesuffix("]")


class Programs:
    """Runs programs in one directory, which is their home, against one server."""

    def __init__(self, directory: Path, server: Server | None = None, **environment: str) -> None:
        self.directory = directory
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if server is not None:
            self.environment |= credentials(server)
            self.environment["AWS_ENDPOINT_URL"] = server.endpoint_url
        self.environment |= environment

    def staging(
        self,
        *arguments: str | Path,
        expect: int = 0,
        stdin: bytes | Path | IO[bytes] | None = None,
        **environment: str,
    ) -> Outcome:
        """Run `staging` to its end."""
        return self.run([*STAGING, *arguments], expect=expect, stdin=stdin, environment=environment)

    def download(
        self, *arguments: str | Path, expect: int = 0, installed: bool = False, **environment: str
    ) -> Outcome:
        """Run the downloader to its end, as the module that the image starts or as `installed`."""
        program = INSTALLED_DOWNLOADER if installed else DOWNLOADER
        return self.run([*program, *arguments], expect=expect, environment=environment)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        expect: int = 0,
        stdin: bytes | Path | IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run a command to its end. Fails unless its exit code is `expect`."""
        words, surroundings = list(map(str, command)), {**self.environment, **(environment or {})}
        with contextlib.ExitStack() as stack:
            given = stack.enter_context(stdin.open("rb")) if isinstance(stdin, Path) else stdin
            forked = _forked(words) if prefork.serves(surroundings) else None
            if forked is not None:
                process = _prefork().run(
                    *forked, self.directory, surroundings, given or b"", TIMEOUT
                )
            else:
                process = subprocess.run(
                    words,
                    cwd=self.directory,
                    env=surroundings,
                    capture_output=True,
                    timeout=TIMEOUT,
                    check=False,
                    **(
                        {"input": given or b""}
                        if isinstance(given, bytes | None)
                        else {"stdin": given}
                    ),
                )
        return _checked(command, process.returncode, process.stdout, process.stderr, expect)

    @contextmanager
    def started(
        self, command: Sequence[str | Path], *, stdin: int | IO[bytes] | None = subprocess.DEVNULL
    ) -> Iterator[Running]:
        """A program that runs while the block does; killed at its end if it still runs."""
        with subprocess.Popen(
            list(map(str, command)),
            cwd=self.directory,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield Running(command, process)
            finally:
                process.kill()


@functools.cache
def _prefork() -> Prefork:
    return Prefork()


def _forked(command: Sequence[str]) -> tuple[Entry, Sequence[str]] | None:
    """Which program a command line starts, and its words from the name on; None for other commands."""
    for start, entry in _ENTRIES.items():
        if tuple(command[: len(start)]) == start:
            return entry, command[len(start) - 1 :]
    return None


class Running:
    """A program that has been started."""

    def __init__(self, command: Sequence[str | Path], process: subprocess.Popen[bytes]) -> None:
        self._command = command
        self.process = process

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def outcome(self, expect: int) -> Outcome:
        """Wait for the end. Fails unless the exit code is `expect`."""
        stdout, stderr = self.process.communicate(timeout=TIMEOUT)
        return _checked(self._command, self.process.returncode, stdout, stderr, expect)


def _checked(
    command: Sequence[str | Path], code: int, stdout: bytes, stderr: bytes, expect: int
) -> Outcome:
    outcome = Outcome(shlex.join(map(str, command)), code, stdout.decode(), stderr.decode())
    shown = f"{outcome.command}\nexit code {code}, expected {expect}\n{outcome.stdout}\n{outcome.stderr}"
    assert code == expect, shown
    assert "Traceback" not in outcome.stderr, shown
    return outcome
