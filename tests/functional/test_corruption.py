"""Bytes that arrive wrong are never published, in small; others publish them (I1, I7)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import corruption
from tests.support.faulty_bodies import KINDS


@pytest.mark.slow
def test_no_damage_under_way_is_published(tmp_path: Path) -> None:
    cases = 7 * len(KINDS)
    tally = corruption.run(cases, seed=3, directory=tmp_path)
    assert (tally.cases, tally.published_wrong) == (cases, 0)
    assert {name.partition(",")[0] for name in tally.ended} == set(KINDS)
    assert tally.large >= len(KINDS)
    assert tally.control["boto3"] == dict.fromkeys(corruption.CONTROL, "published wrong bytes")
