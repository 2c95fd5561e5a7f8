"""What a pod needs to download and serve a checkpoint, reckoned from the sizes of its files.

Pure arithmetic; docs/kubernetes.md has the formulae in words. All sizes are bytes, all times seconds.

    emptyDir            every file in whole blocks, and a margin, up to a whole GiB
    ephemeral-storage   the emptyDir, and what else the pod writes
    memory              four times the budget with which 128 chunks are in flight
    startup probe       the files read once at the rate, and what a server does besides
    progress deadline   scheduling, two downloads at the rate, the startup probe

Invariants: nothing shrinks when a file grows or the rate falls; the default memory budget of a
container with this limit (a quarter, `staging.transfer.memory`) is the one reckoned here.
Not guaranteed: that a node keeps up with the rate. It is the reader's to judge, so it is always shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from staging.transfer.sizing import BASE_MEMORY, MIB
from staging.vocabulary.digest import CHUNK_SIZE, chunk_count

GIB: Final = 1024 * MIB

DEFAULT_RATE: Final = 125_000_000
"""Bytes a second that a gp3 volume moves as it comes: the slowest disk that nodes are likely to have."""

MARGIN: Final = GIB
"""Bytes of the emptyDir beyond the files: manifest, markers, directories, the file system's own."""

SCRATCH: Final = 16 * GIB
"""Bytes that all containers of the pod write beside the checkpoint: logs, caches of compiled kernels."""

WARM_UP: Final = 900
"""Seconds that a server needs beside reading the weights: imports, compiling, graphs, first requests."""

SCHEDULING: Final = 600
"""Seconds until the pod's images are pulled and its first container runs."""

ATTEMPTS: Final = 2
"""Downloads that the progress deadline has room for: the first may end in a restart of the container."""

PROBE_PERIOD: Final = 10
"""Seconds between two startup probes."""

DOWNLOAD_CPU: Final = 2
"""Processors to request for the download. It is given no limit: a limit is a throttle."""

_BLOCK: Final = 4096
_IN_FLIGHT: Final = 128
_LEAST_BUDGET: Final = 192 * MIB
# A process takes a quarter of its container's memory; what it has written and the disk has not, the rest.
_BUDGETS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSizing:
    """What a pod needs for a checkpoint. Bytes and seconds; `rate` in bytes a second."""

    files: int
    total_size: int
    rate: int
    download_seconds: int
    load_seconds: int
    empty_dir: int
    ephemeral_storage: int
    memory: int
    probe_period: int
    probe_failures: int
    progress_deadline: int


def pod_sizing(sizes: Iterable[int], *, rate: int = DEFAULT_RATE) -> PodSizing:
    """Reckon what a pod needs for files of these sizes when everything moves at `rate`.

    Raises ValueError when there are no files or the rate is not positive.
    """
    files = list(sizes)
    if not files or rate <= 0:
        raise ValueError("a pod is sized for at least one file and a positive rate")
    total = sum(files)
    seconds = _up(total, rate)
    blocks = sum(_up(size, _BLOCK) * _BLOCK for size in files)
    empty_dir = _up(blocks + MARGIN, GIB) * GIB
    in_flight = min(_IN_FLIGHT, sum(map(chunk_count, files)))
    budget = max(_LEAST_BUDGET, BASE_MEMORY + in_flight * CHUNK_SIZE)
    failures = _up(seconds + WARM_UP, PROBE_PERIOD)
    deadline = SCHEDULING + ATTEMPTS * seconds + failures * PROBE_PERIOD
    return PodSizing(
        files=len(files),
        total_size=total,
        rate=rate,
        download_seconds=seconds,
        load_seconds=seconds + WARM_UP,
        empty_dir=empty_dir,
        ephemeral_storage=empty_dir + SCRATCH,
        memory=_BUDGETS * budget,
        probe_period=PROBE_PERIOD,
        probe_failures=failures,
        progress_deadline=_up(deadline, 60) * 60,
    )


def deployment_patch(sizing: PodSizing, *, identity: str, uri: str | None) -> dict[str, Any]:
    """The sizing as a strategic merge patch for a Deployment like those of `deploy/`.

    `identity` is the checkpoint's id, `uri` its prefix where it has one.
    """
    storage = {"ephemeral-storage": quantity(sizing.ephemeral_storage)}
    memory = {"memory": quantity(sizing.memory)}
    environment = {**({} if uri is None else {"MODEL_URI": uri}), "MODEL_EXPECT_ID": identity}
    downloader = {
        "name": "model-downloader",
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {
            "requests": {"cpu": str(DOWNLOAD_CPU), **memory, **storage},
            "limits": {**memory, **storage},
        },
    }
    server = {
        "name": "vllm",
        "startupProbe": {
            "periodSeconds": sizing.probe_period,
            "failureThreshold": sizing.probe_failures,
        },
        "resources": {"requests": storage, "limits": storage},
    }
    volume = {"name": "models", "emptyDir": {"sizeLimit": quantity(sizing.empty_dir)}}
    pod = {"initContainers": [downloader], "containers": [server], "volumes": [volume]}
    return {
        "spec": {
            "progressDeadlineSeconds": sizing.progress_deadline,
            "template": {"spec": pod},
        }
    }


def quantity(size: int) -> str:
    """A number of bytes as Kubernetes writes it: `64Gi`, `8576Mi`. Raises ValueError for odd bytes."""
    if size % MIB:
        raise ValueError(f"{size} bytes are no whole MiB")
    return f"{size // MIB}Mi" if size % GIB else f"{size // GIB}Gi"


def _up(amount: int, unit: int) -> int:
    return -(-amount // unit)
