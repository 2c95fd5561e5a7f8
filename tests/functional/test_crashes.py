"""Downloads killed at changes to the disk and at random moments, in small (I1, I5, I6, I15)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import crashes


@pytest.mark.slow
@pytest.mark.parametrize("kind", crashes.KINDS)
def test_a_download_that_is_killed_shows_nothing_wrong_and_goes_on(
    tmp_path: Path, kind: str
) -> None:
    (tally,) = crashes.run([kind], moments=1, changes=3, seed=4, directory=tmp_path)
    assert tally.changes > 20
    assert tally.kills >= 3
    assert tally.kills + tally.ended_before == 4
