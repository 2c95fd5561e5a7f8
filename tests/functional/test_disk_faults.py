"""Downloads onto disks that fail once, in small: full, broken, read-only (I1, I5, I6, I15)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import disks
from tests.campaigns.crashes import KINDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_once_ends_the_run_in_words_and_the_next_converges(
    tmp_path: Path, kind: str
) -> None:
    (tally,) = disks.run([kind], errors=disks.ERRORS, changes=3, seed=2, directory=tmp_path)
    assert tally.failures == 3
    assert sum(tally.ended.values()) + sum(tally.done_without.values()) == 3
