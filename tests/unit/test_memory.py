"""The default memory budget from the cgroup's limit and the machine's memory (I11)."""

from __future__ import annotations

from pathlib import Path

import pytest

from staging.transfer.memory import default_budget, memory_limit

MIB = 1024**2
GIB = 1024**3
V2 = "sys/fs/cgroup/memory.max"
V1 = "sys/fs/cgroup/memory/memory.limit_in_bytes"
V1_UNLIMITED = "9223372036854771712\n"


def meminfo(total: int) -> str:
    return f"MemTotal:       {total // 1024} kB\nMemFree:         1234 kB\nMemAvailable:    1 kB\n"


@pytest.mark.parametrize(
    ("files", "budget"),
    [
        # cgroup v2
        ({V2: f"{2 * GIB}\n", "proc/meminfo": meminfo(64 * GIB)}, 512 * MIB),
        ({V2: "max\n", "proc/meminfo": meminfo(8 * GIB)}, 2 * GIB),
        ({V2: f"{512 * MIB}\n", "proc/meminfo": meminfo(64 * GIB)}, 192 * MIB),
        ({V2: f"{64 * GIB}\n", "proc/meminfo": meminfo(4 * GIB)}, 1 * GIB),
        ({V2: f"{1 * GIB}\n"}, 256 * MIB),
        # cgroup v1
        ({V1: f"{2 * GIB}\n", "proc/meminfo": meminfo(64 * GIB)}, 512 * MIB),
        ({V1: V1_UNLIMITED, "proc/meminfo": meminfo(8 * GIB)}, 2 * GIB),
        # both: the lesser counts
        ({V2: f"{8 * GIB}\n", V1: f"{2 * GIB}\n"}, 512 * MIB),
        ({V2: "max\n", V1: V1_UNLIMITED, "proc/meminfo": meminfo(2 * GIB)}, 512 * MIB),
        # of the process's own group, and of one above it, where the whole tree is mounted
        (
            {
                "proc/self/cgroup": "0::/pods/one\n",
                "sys/fs/cgroup/pods/one/memory.max": "max\n",
                "sys/fs/cgroup/pods/memory.max": f"{2 * GIB}\n",
                "proc/meminfo": meminfo(64 * GIB),
            },
            512 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "5:devices:/\n4:cpu,memory:/pods/one\n0::/\n",
                "sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes": f"{3 * GIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_UNLIMITED,
            },
            768 * MIB,
        ),
        # the host's name of a group that is mounted as the topmost one, and one out of sight
        ({"proc/self/cgroup": "0::/kubepods/x\n", V2: f"{2 * GIB}\n"}, 512 * MIB),
        ({"proc/self/cgroup": "0::/../../x\n", "x/memory.max": f"{2 * GIB}\n"}, 192 * MIB),
        # no limit
        ({"proc/meminfo": meminfo(2 * GIB)}, 512 * MIB),
        ({"proc/meminfo": meminfo(2048 * GIB)}, 4 * GIB),
        ({"proc/meminfo": meminfo(256 * MIB)}, 192 * MIB),
        # nothing is known
        ({}, 192 * MIB),
        ({V2: "max\n"}, 192 * MIB),
        ({V2: "\n", "proc/meminfo": "MemFree: 5 kB\n"}, 192 * MIB),
    ],
)
def test_a_quarter_of_the_least_limit_within_bounds(
    tmp_path: Path, files: dict[str, str], budget: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    assert default_budget(tmp_path) == budget


def test_this_machine_has_some() -> None:
    assert 192 * MIB <= default_budget() <= 4 * GIB
    assert (memory_limit() or 0) > 64 * MIB


def test_the_limit_itself_is_the_least_that_is_known(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(meminfo(64 * GIB), encoding="ascii")
    assert memory_limit(tmp_path) == 64 * GIB
