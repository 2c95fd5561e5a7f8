"""GPU and instance types: the table agrees with what EC2 has answered, and advice states its assumptions.

Covers no numbered invariant.
"""

from __future__ import annotations

import gzip
import importlib.resources
import json
from typing import Any

import pytest

from staging.layout.gpus import UTILISATION, WORKSPACE_BYTES, fits, gpus, instances

MIB = 1024 * 1024


def recorded() -> dict[str, Any]:
    """EC2's answer to DescribeInstanceTypes, as moto keeps it."""
    packed = importlib.resources.files("moto.ec2.resources").joinpath("instance_types.json.gz")
    answer: dict[str, Any] = json.loads(gzip.decompress(packed.read_bytes()))
    return answer


def test_every_instance_is_as_ec2_describes_it() -> None:
    answer = recorded()
    for name, instance in instances().items():
        described = answer[name]
        (gpu,) = described["GpuInfo"]["Gpus"]
        assert instance.gpus == gpu["Count"]
        assert instance.gpu.memory == gpu["MemoryInfo"]["SizeInMiB"] * MIB
        assert instance.gpu.vendor == gpu["Manufacturer"]
        family = instance.gpu.name.split("-")[0]
        assert family in gpu["Name"]
        assert instance.memory == described["MemoryInfo"]["SizeInMiB"] * MIB
        assert instance.local_nvme == described["InstanceStorageInfo"]["TotalSizeInGB"] * 10**9
        assert described["InstanceStorageInfo"]["NvmeSupport"] == "required"


def test_all_sizes_of_the_families_are_there() -> None:
    families = {name.split(".")[0] for name in instances()}
    assert families == {
        "g6",
        "g6e",
        "g7e",
        "p4d",
        "p4de",
        "p5",
        "p5e",
        "p5en",
        "p6-b200",
        "p6-b300",
    }
    there = {name for name in recorded() if name.split(".")[0] in families}
    assert instances().keys() == there


def test_every_gpu_has_a_source_and_the_ones_of_ec2_an_instance() -> None:
    carried = {instance.gpu.name for instance in instances().values()}
    for name, gpu in gpus().items():
        assert gpu.source
        assert gpu.source.startswith("EC2 DescribeInstanceTypes: ") == (name in carried)
        if name in carried:
            assert instances()[gpu.source.split(": ")[1]].gpu is gpu


def test_fits() -> None:
    h200 = gpus()["H200"]
    one = fits(66_890_000_000, h200, 1)
    assert one.fits
    assert one.exact
    assert one.usable == int(144384 * MIB * UTILISATION) - WORKSPACE_BYTES
    assert one.left == one.usable - 66_890_000_000
    assert "90%" in one.assumptions[0]

    four = fits(450_000_000_000, h200, 4)
    assert four.weights == 112_500_000_000
    assert four.fits
    assert not four.exact
    assert "evenly" in four.assumptions[-1]
    assert not fits(450_000_000_000, h200, 2).fits
    assert fits(450_000_000_000, h200, 8, 0.5).fits
    assert not fits(450_000_000_000, h200, 8, 0.35).fits

    known = fits(450_000_000_000, h200, 4, per_gpu=140_000_000_000)
    assert known.exact
    assert not known.fits
    assert known.weights == 140_000_000_000
    assert not any("evenly" in assumption for assumption in known.assumptions)


@pytest.mark.parametrize(
    ("weights", "count", "utilisation"), [(1, 0, 0.9), (-1, 1, 0.9), (1, 1, 0.0), (1, 1, 1.1)]
)
def test_impossible_arguments(weights: int, count: int, utilisation: float) -> None:
    with pytest.raises(ValueError, match="at least"):
        fits(weights, gpus()["L4"], count, utilisation)
