"""A command as a whole process tree: how long it took, what it cost, how much memory it held.

The measuring is done by `launch`, a small program between the benchmark and the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SHOWN: Final = 2000  # characters of a failed command's output
_LAUNCHER: Final = Path(__file__).with_name("launch.py")


class CommandFailed(Exception):
    """A command ended otherwise than it should, or was ended because it took too long."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree took.

    Seconds of wall and of CPU (user and system, of the command and everything it started and waited
    for), the peak resident bytes of its largest process, and what it printed, on both streams.
    """

    wall: float
    user: float
    system: float
    peak: int
    output: str

    @property
    def cpu(self) -> float:
        """CPU seconds."""
        return self.user + self.system


def measure(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    cpus: Iterable[int] = (),
    timeout: float,
    expect: int = 0,
) -> Usage:
    """Run a command to its end. Raises CommandFailed; no process of it is left then.

    `expect` is the exit code it must end with.
    """
    with tempfile.TemporaryFile() as output, tempfile.NamedTemporaryFile() as result:
        launcher = [
            sys.executable,
            "-I",
            "-S",
            str(_LAUNCHER),
            result.name,
            ",".join(map(str, cpus)),
        ]
        process = subprocess.Popen(  # noqa: S603 - running commands is what this is for
            [*launcher, *command],
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(f"{command[0]} took longer than {timeout:.0f} s") from error
        finally:
            if process.poll() is None:
                # The group is the command's own: it was started as the leader of a session.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
        if status != expect:
            raise CommandFailed(f"{' '.join(command)} ended with {status}:\n{text[-_SHOWN:]}")
        return Usage(**json.loads(Path(result.name).read_text()), output=text)
