"""How a directory is synced, and what it holds afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from staging.directory.page_cache import PageCacheChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOptions:
    """How to sync: the memory budget in bytes, the processors to use, and what to insist on.

    `part_size` (bytes, a multiple of 16 MiB) and `concurrency` are chosen when None. With `expect_id`
    any other version under the prefix is an IntegrityError. `page_cache` says whether files stay in
    memory once they are on the disk. Without `layout_check`, files that would not serve are fetched too.
    `holder` tells processes that wait for this one who it is. Without `wait`, a directory that another
    process writes to is a Conflict (`locked`) at once.
    """

    memory: int
    cores: int
    part_size: int | None = None
    concurrency: int | None = None
    expect_id: str | None = None
    page_cache: PageCacheChoice = "auto"
    layout_check: bool = True
    holder: str = ""
    wait: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What a directory holds now, and what this run did for it. Sizes in bytes.

    `fetched_files` were put in place by this run; of their bytes `fetched_bytes` came from the
    store and `resumed_bytes` lay there from an interrupted run or, in a cache, in another version.
    `already_present` means that nothing was changed: the marker vouched for everything. `adopted` says
    that another process had it downloaded while this one waited; `unverified` that no published manifest
    stood behind the files.
    """

    id: str
    files: int
    total_size: int
    fetched_files: int = 0
    fetched_bytes: int = 0
    resumed_bytes: int = 0
    kept_files: int = 0
    removed_files: int = 0
    already_present: bool = False
    adopted: bool = False
    unverified: bool = False
