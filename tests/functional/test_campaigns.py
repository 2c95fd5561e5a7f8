"""The long campaigns, in small: uploads killed from every kind of source, a huge member (I6, I11, I12)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns import kills

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", kills.KINDS)
def test_an_upload_that_is_killed_goes_on_elsewhere(tmp_path: Path, kind: str) -> None:
    (tally,) = kills.run([kind], kills=2, seed=5, directory=tmp_path)
    assert tally.kills + tally.ended_before == 2


@pytest.mark.slow
def test_memory_does_not_grow_with_a_member() -> None:
    """In a process of its own, whose highest mark is its own."""
    command = [sys.executable, "-m", "tests.campaigns.huge", "--gigabytes", "5"]
    command += ["--memory-mib", "192"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=100)
    assert json.loads(done.stdout)["peak_rss_mib"] <= 256
