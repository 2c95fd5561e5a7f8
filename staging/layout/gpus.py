"""GPU types and the EC2 instances that carry them, as data with sources, and whether weights fit into them.

The table is `gpus.json` beside this module. Memory is what EC2 tells of a type, in MiB. Drivers keep some of
it, so that a process sees up to one per cent less.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_MIB: Final = 1024 * 1024

UTILISATION: Final = 0.9
"""Share of a GPU's memory that a server takes: a little less than vLLM 0.33.0's default, 0.92."""

WORKSPACE_BYTES: Final = 4 * 1024**3
"""Memory per GPU for activations, CUDA graphs and communication: an estimate, not a measurement."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A type of GPU. `memory` is in bytes, `source` says where that is from."""

    name: str
    vendor: str
    memory: int
    source: str


@dataclass(frozen=True, slots=True)
class Instance:
    """A type of EC2 instance. `memory` and `local_nvme`, over all drives, are in bytes."""

    name: str
    gpu: Gpu
    gpus: int
    memory: int
    local_nvme: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether weights fit. All sizes are bytes per GPU.

    `left` is what remains for the cache of keys and values; negative when the weights do not fit.
    `exact` is False where the weights were taken as cut evenly, so that a GPU holds at least this much.
    """

    gpu: Gpu
    count: int
    usable: int
    weights: int
    left: int
    exact: bool
    assumptions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """True when the weights fit and something remains."""
        return self.left > 0


@functools.cache
def gpus() -> Mapping[str, Gpu]:
    """All GPU types by name."""
    return {
        row["name"]: Gpu(row["name"], row["vendor"], row["memory_mib"] * _MIB, row["source"])
        for row in _table()["gpus"]
    }


@functools.cache
def instances() -> Mapping[str, Instance]:
    """All instance types by name."""
    return {
        row["name"]: Instance(
            row["name"],
            gpus()[row["gpu"]],
            row["gpus"],
            row["memory_mib"] * _MIB,
            row["local_nvme_gb"] * 10**9,
        )
        for row in _table()["instances"]
    }


def fits(
    weight_bytes: int,
    gpu: Gpu,
    count: int,
    utilisation: float = UTILISATION,
    *,
    per_gpu: int | None = None,
) -> Fit:
    """Say whether weights of `weight_bytes` in all fit into `count` GPUs.

    `per_gpu` is what one GPU holds, where that is known (`parallel.Split.weights`); else the weights are
    taken as cut evenly. Advice, with its assumptions. Raises ValueError for impossible arguments.
    """
    if count < 1 or weight_bytes < 0 or not 0 < utilisation <= 1:
        raise ValueError(
            "a count of at least 1, bytes of at least 0 and a share up to 1 are needed"
        )
    usable = int(gpu.memory * utilisation) - WORKSPACE_BYTES
    weights = -(-weight_bytes // count) if per_gpu is None else per_gpu
    assumptions = [
        f"the server may take {utilisation:.0%} of a GPU's memory",
        f"{WORKSPACE_BYTES // 1024**3} GiB of it go to activations, CUDA graphs and communication",
        "weights are kept as they are stored, and nothing else runs on the GPU",
    ]
    if per_gpu is None and count > 1:
        assumptions.append("weights are cut evenly, so that a GPU holds at least this much")
    exact = per_gpu is not None or count == 1
    return Fit(gpu, count, usable, weights, usable - weights, exact, tuple(assumptions))


@functools.cache
def _table() -> dict[str, Any]:
    text = importlib.resources.files(__package__).joinpath("gpus.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table
