"""Comparing a local directory with a manifest: sizes, or every byte.

Weights that a server would load beside the checkpoint's own are findings too; other files that the
manifest does not name are not.
"""

from __future__ import annotations

import functools
import threading

from staging.directory.entry import Kind
from staging.directory.local import LocalDirectory
from staging.directory.tree import Member
from staging.layout.inventory import is_loaded_weight
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Scheduler
from staging.transfer.sizing import choose
from staging.verify.verification import (
    Level,
    Problem,
    Verification,
    extra_weight,
    missing,
    wrong_chunk,
    wrong_size,
)
from staging.vocabulary.digest import CHUNK_SIZE, chunk_count, chunk_span
from staging.vocabulary.errors import UsageError
from staging.vocabulary.events import FileDone, Moved, Reporter, Started, silent
from staging.vocabulary.manifest import Manifest, ManifestFile


def verify_directory(
    local: LocalDirectory,
    manifest: Manifest,
    level: Level,
    *,
    memory: int,
    cores: int,
    report: Reporter = silent,
) -> Verification:
    """Compare a directory with a manifest, at level `size` or `digest`.

    Raises UsageError for level `checksum`, which only stores have, and what the filesystem raises.
    """
    if level is Level.CHECKSUM:
        raise UsageError(
            "a directory keeps no checksums",
            reference="level",
            hint="use --level size or --level digest",
        )
    problems = _extra_weights(local, manifest)
    present = []
    for file in manifest.files:
        entry = local.tree.entry(file.path)
        if entry is None:
            problems.append(missing(file))
        elif entry.kind is not Kind.FILE:
            text = f"{file.path}: is a {entry.kind.value}, not a regular file"
            problems.append(Problem(file.path, "missing", text))
        elif entry.stamp.size != file.size:
            problems.append(wrong_size(file, entry.stamp.size))
        else:
            present.append(file)
    read_bytes = 0
    if level is Level.DIGEST:
        report(Started("verify digest", sum(file.size for file in present), len(present)))
        threads = min(cores, choose(0, memory=memory, cores=cores).concurrency)
        budget = Budget(threads * CHUNK_SIZE)
        for file in present:
            problems.extend(_compare(local, manifest, file, threads, budget, report))
            read_bytes += file.size
    ordered = sorted(problems, key=lambda problem: problem.path)
    return Verification(level, len(manifest.files), read_bytes, tuple(ordered))


def _extra_weights(local: LocalDirectory, manifest: Manifest) -> list[Problem]:
    names = {str(file.path) for file in manifest.files}
    return [
        extra_weight(name)
        for name in local.tree.listing()
        if is_loaded_weight(name) and name not in names and not _is_directory(local, name)
    ]


def _is_directory(local: LocalDirectory, name: str) -> bool:
    entry = local.tree.entry(name)
    return entry is not None and entry.kind is Kind.DIRECTORY


def _compare(
    local: LocalDirectory,
    manifest: Manifest,
    file: ManifestFile,
    threads: int,
    budget: Budget,
    report: Reporter,
) -> list[Problem]:
    wrong: list[int] = []
    lock = threading.Lock()

    def compare(member: Member, scheduler: Scheduler, index: int) -> None:
        offset, length = chunk_span(file.size, index)
        buffer = budget.acquire(length, scheduler.cancelled)
        with memoryview(buffer) as view:
            member.read_into(offset, view)
            good = manifest.hash.hash(view) == file.chunks[index]
        budget.release(buffer)
        if not good:
            with lock:
                wrong.append(index)
        report(Moved(length))

    with local.open_member(file.path) as member, Scheduler(threads, name="verify") as scheduler:
        for index in range(chunk_count(file.size)):
            scheduler.submit(functools.partial(compare, member, scheduler, index))
    report(FileDone(file.path, file.size))
    return [wrong_chunk(file, index) for index in sorted(wrong)]
