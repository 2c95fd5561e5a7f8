"""What the numbers were measured on."""

from __future__ import annotations

import hashlib
import os
import platform
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from awscrt.checksums import crc64nvme
from blake3 import blake3

_SAMPLE: Final = 64 * 1024 * 1024  # bytes


def describe() -> dict[str, Any]:
    """Processor, kernel, Python, and how fast the digests in question run here."""
    facts = _processor()
    flags = facts.get("flags", facts.get("Features", "")).split()
    extensions = "sha_ni" in flags or "sha2" in flags
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "sha_ni": extensions,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "digests": digest_speeds(),
    }


def digest_speeds() -> dict[str, float]:
    """GB/s of one core."""
    data = blake3(b"digest speeds").digest(length=_SAMPLE)
    functions: dict[str, Callable[[], object]] = {
        "sha256": lambda: hashlib.sha256(data).digest(),
        "md5": lambda: hashlib.md5(data, usedforsecurity=False).digest(),
        "blake3": lambda: blake3(data).digest(),
        "crc64nvme": lambda: crc64nvme(data),
    }
    return {
        name: round(_SAMPLE / _seconds(function) / 1e9, 2) for name, function in functions.items()
    }


def _seconds(function: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def _processor() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    return facts
