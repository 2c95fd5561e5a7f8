"""A download larger than the memory its process may have, in small (I11)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.campaigns import memory

MIB = 1024 * 1024


@pytest.mark.slow
def test_a_gigabyte_passes_under_half_of_it() -> None:
    with tempfile.TemporaryDirectory() as directory:
        outcome = memory.run(
            1024 * MIB, limit=512 * MIB, memory=192 * MIB, directory=Path(directory)
        )
    assert outcome.peak_bytes <= 256 * MIB
