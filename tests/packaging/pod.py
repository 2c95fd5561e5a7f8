"""The pod's side without a container engine: its virtual environment, and a box to run the program in.

`make_pod` does what Dockerfile.downloader does, from what is installed here: a virtual environment
with the packages that requirements/downloader.txt names and the project's wheel, nothing else, so that
an import of anything else fails as it would in the pod.

`Box` runs the entry point like a container runtime: its own root with nothing but the interpreter, shared
libraries, the environment and the destination; all read-only but the destination; as process 1; with a
user id nobody knows; without HOME, /tmp, /etc or the caller's umask. Needs root, or says why not.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Self

from packaging.requirements import Requirement

from tests.packaging.dockerfile import ROOT, Dockerfile

PLACE = "/opt/model-downloader"
"""Where the image has the virtual environment."""

_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")

_BOX = """
set -eu
umask 022
root=$1 user=$2 pod=$3 destination=$4
shift 4
show() {
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
}
mount -t tmpfs -o mode=755 none "$root"
while [ "$1" != -- ]; do
    show "$1" "$1"
    shift
done
shift
show "$pod" /opt/model-downloader
mkdir "$root/proc" "$root/models"
mount -t proc proc "$root/proc"
mount --bind "$destination" "$root/models"
mount -o remount,ro "$root"
umask 077
exec chroot --userspec="$user" --groups= "$root" "$@"
"""


def build_wheel(directory: Path) -> Path:
    """The project's wheel, built without a network."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", directory],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


def locked_names() -> list[str]:
    """The distributions that the image installs for this Python."""
    text = (ROOT / "requirements/downloader.txt").read_text().replace("\\\n", " ")
    lines = [Requirement(re.sub(r"\s--hash=\S+", "", line)) for line in text.splitlines()]
    return [line.name for line in lines if line.marker is None or line.marker.evaluate()]


def kept_services() -> set[str]:
    """The services whose descriptions stay in the image's SDK."""
    (run, *_) = Dockerfile.read().stages[0].all("RUN")
    (command,) = (words for words in run.commands() if any("botocore" in word for word in words))
    return set(command[command.index("-c") + 2 :])


def make_pod(directory: Path, wheel: Path) -> Path:
    """The image's virtual environment, at `directory`."""
    venv.create(directory, symlinks=True, with_pip=False)
    (site,) = directory.glob("lib/python3*/site-packages")
    for name in locked_names():
        package = distribution(name)
        for file in package.files or ():
            source = Path(str(package.locate_file(file)))
            if ".." not in file.parts and source.exists():  # scripts lie outside
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, site / file)
    services = kept_services()
    for path in (site / "botocore/data").iterdir():
        if path.is_dir() and path.name not in services:
            shutil.rmtree(path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    packages = [str(site / name) for name in ("staging", "downloader")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *packages], check=True)
    return directory


def image_environment() -> dict[str, str]:
    """The image's ENV, but for paths that are the image's own."""
    environment = Dockerfile.read().stages[-1].environment()
    return {
        name: value for name, value in environment.items() if not value.startswith(("/", PLACE))
    }


def entry_point(place: str) -> list[str]:
    """The image's ENTRYPOINT with the virtual environment at another place."""
    words = Dockerfile.read().stages[-1].the("ENTRYPOINT").exec_form()
    return [word.replace(PLACE, place) for word in words]


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str


class Process:
    """A started program. Leaving the `with` block ends it if it did not end by itself."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, boxed: bool
    ) -> None:
        self._boxed = boxed
        self._popen = subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()  # and with it the box
        self._popen.communicate()

    def read_line(self) -> str:
        """The next line of its standard output."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline()

    def terminate(self) -> None:
        """Send SIGTERM to the program, which must be running."""
        pid = self._popen.pid
        if self._boxed:
            (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(child)
        os.kill(pid, signal.SIGTERM)

    def finish(self, guard: float) -> Ended:
        """Wait for the end. Raises TimeoutExpired after `guard` seconds."""
        out, err = self._popen.communicate(timeout=guard)
        return Ended(self._popen.returncode, out, err)


class Plain:
    """Runs the pod's program as this user, in `/`, without HOME."""

    def __init__(self, pod: Path, destination: Path) -> None:
        self._pod = pod
        self.models = destination
        self.inside = str(destination)
        """The destination's path as the program knows it."""

    def start(
        self, *arguments: str, environment: Mapping[str, str], extra: Path | None = None
    ) -> Process:
        """Start the program; `extra` is a directory for PYTHONPATH."""
        nowhere = str(self.models / "no-aws-configuration")  # the user database knows a home here
        ambient = {"AWS_CONFIG_FILE": nowhere, "AWS_SHARED_CREDENTIALS_FILE": nowhere}
        return Process(
            [*entry_point(str(self._pod)), *arguments],
            {**image_environment(), **ambient, **environment, **_python_path(extra)},
            boxed=False,
        )


class Box:
    """Runs the pod's program in a box of its own, as process 1 and as `user` ("UID:GID")."""

    def __init__(self, pod: Path, destination: Path, root: Path, user: str) -> None:
        self._pod = pod
        self._root = root
        self._user = user
        self.models = destination
        self.inside = "/models"
        destination.chmod(0o777)
        root.mkdir()

    @staticmethod
    def refusal() -> str | None:
        """Why there can be no box here, if so."""
        if os.geteuid() != 0:
            return "a box for the program needs root"
        missing = [tool for tool in ("unshare", "mount", "chroot") if shutil.which(tool) is None]
        if missing:
            return f"a box for the program needs {', '.join(missing)}"
        probe = [*_NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"]
        process = subprocess.run(probe, capture_output=True, text=True, check=False)
        if process.returncode:
            return f"a box for the program needs namespaces: {process.stderr.strip()}"
        return None

    def start(
        self, *arguments: str, environment: Mapping[str, str], extra: Path | None = None
    ) -> Process:
        """Start the program; `extra` is a directory for PYTHONPATH."""
        shown = [*_readable(), *([] if extra is None else [str(extra)])]
        places = map(str, (self._root, self._user, self._pod, self.models))
        box = [*_NAMESPACES, "/bin/sh", "-c", _BOX, "sh", *places, *shown, "--"]
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return Process(
            [*box, *entry_point(PLACE), *arguments],
            {**image_environment(), **path, **environment, **_python_path(extra)},
            boxed=True,
        )


Runner = Plain | Box


def _python_path(extra: Path | None) -> dict[str, str]:
    return {} if extra is None else {"PYTHONPATH": str(extra)}


def _readable() -> list[str]:
    """Directories that the interpreter itself needs, none inside another one."""
    interpreter = Path(sys._base_executable)  # type: ignore[attr-defined]
    candidates = {
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"),
        f"{sys.base_prefix}/lib",
        str(interpreter.parent),
        str(interpreter.resolve().parent),
    }
    found: list[str] = []
    for name in sorted(filter(os.path.isdir, candidates)):
        if not any(name.startswith(f"{outer}/") for outer in found):
            found.append(name)
    return found
