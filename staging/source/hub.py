"""A model repository on a Hub as a sequential source: all files of one commit, nothing on disk.

    hf://org/name@revision  ->  commit  ->  its files  ->  ranges read ahead, delivered in order

The revision is resolved once; listing and bytes are asked for by commit, so that a branch that moves
meanwhile changes nothing. Files come in the order of their paths' bytes. Ranges are fetched in parallel,
across the borders of files, and handed out in order, because the digests that the Hub names files by
(the SHA-256 of LFS and Xet files, git's SHA-1 of others) can only be computed from front to end.

Invariants: a file whose last byte was handed out had the digest that its commit names; ranges that were
asked for and not yet handed out never exceed the stated memory.
Left out of every repository is what is about it rather than of it: `.gitattributes`, `.git/`,
`.cache/huggingface/`, and what is reserved for checkpoints' own use, `.checkpoint/`.
Not guaranteed: that hashing keeps up with the network. One processor hashes all bytes, at 0.2 to 2 GB/s.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from staging.layout.inventory import is_safetensors
from staging.source.hub_http import HubFile, HubHttp, malformed
from staging.source.source import SourceFile
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.digest import MAX_FILE_SIZE
from staging.vocabulary.errors import IntegrityError, MalformedInput, UsageError
from staging.vocabulary.paths import NameSet, SafePath, UnsafePath, is_reserved
from staging.vocabulary.redaction import one_line

MAX_FILES: Final = 100_000
"""Most files of a repository, far beyond any checkpoint's."""

DEFAULT_MEMORY: Final = 64 * 1024 * 1024
"""Bytes that are read ahead when nothing else is said."""

_LEFT_BESIDE: Final = (".gitattributes", ".git", ".cache/huggingface")
"""What clones and downloads leave out, or leave beside a model's files."""

_SCHEME: Final = "hf://"
_RANGE: Final = 8 * 1024 * 1024  # most bytes of one request
_POLL: Final = 0.2  # seconds between looks at the other threads' errors
_SHOWN: Final = 200  # characters of a stranger's name
_MAX_REVISION: Final = 255

_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO: Final = re.compile(f"{_PART}/{_PART}")
_MAX_REPO: Final = 96
_REVISION: Final = re.compile(r"[\w./+=-]+", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NEXT: Final = re.compile(r"""\brel\s*=\s*["']?next\b""")


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A model repository, and the branch, tag or commit that is meant."""

    repo: str
    revision: str = "main"

    @classmethod
    def parse(cls, uri: str) -> HubLocation:
        """Read `hf://ORG/NAME[@REVISION]`. Raises UsageError for anything else.

        A `%2F` and its like are decoded, as the Hub's own tools write revisions with slashes.
        """
        repo, at, revision = unquote(uri.removeprefix(_SCHEME)).rstrip("/").partition("@")
        repo = repo.removeprefix("models/")
        if not uri.startswith(_SCHEME) or not _REPO.fullmatch(repo) or len(repo) > _MAX_REPO:
            reason = "it does not name one model repository"
        elif ".." in repo or "--" in repo or repo.endswith(".git"):
            reason = "no repository can have that name"
        elif not at:
            return cls(repo)
        elif not _REVISION.fullmatch(revision) or ".." in revision or len(revision) > _MAX_REVISION:
            reason = "its revision is none that git knows"
        else:
            return cls(repo, revision)
        raise UsageError(
            f"{one_line(uri.partition('?')[0])[:_SHOWN]!r} is no location on a Hub: {reason}",
            reference="uri",
            hint="give hf://ORG/NAME or hf://ORG/NAME@REVISION; always the whole repository",
        )

    def __str__(self) -> str:
        return f"{_SCHEME}{self.repo}@{self.revision}"


class Hub:
    """All files of one commit of a model repository."""

    kind = "hub"
    sequential = True

    def __init__(
        self,
        location: HubLocation,
        http: HubHttp,
        *,
        memory: int = DEFAULT_MEMORY,
        concurrency: int = 8,
    ) -> None:
        """Resolve the revision and list its files.

        At most `concurrency` ranges are fetched at once, into at most `memory` bytes. Raises NotFound,
        AccessDenied and StoreUnavailable for the Hub's refusals, and MalformedInput for names that are
        unsafe or collide, for a repository without files, and for a listing that makes no sense.
        """
        if concurrency < 1 or memory < concurrency:
            raise ValueError(f"{memory} bytes for {concurrency} requests")
        self._http = http
        self.memory = memory
        self.read_size = None
        self._concurrency = concurrency
        self.commit = resolve(http, location)
        self.name = f"{location.repo}@{self.commit[:12]}"
        self.identity = f"{location.repo}@{self.commit}"
        self._listing = _arranged(list_files(http, location.repo, self.commit), self.name)
        self.size = sum(remote.size for _, remote in self._listing)
        self._scheduler: Scheduler | None = None
        self._ahead: _ReadAhead | None = None
        self._file: SourceFile | None = None
        self._digest = _Digest()
        self._done = False

    def files(self) -> Iterator[SourceFile]:
        """All files in order; each must be read to its end before the next is asked for.

        Raises IntegrityError for an empty file that the Hub has another digest for.
        """
        with Scheduler(self._concurrency, name="hub") as scheduler:
            self._scheduler = scheduler
            remotes = [remote for _, remote in self._listing]
            self._ahead = _ReadAhead(
                remotes, self._http, scheduler, memory=self.memory, concurrency=self._concurrency
            )
            start = 0
            for path, remote in self._listing:
                self._file = SourceFile(path, remote.size, start, stamp=remote.digest)
                self._digest = _Digest(remote)
                if not remote.size:
                    self._digest.check()
                yield self._file
                if self._digest.missing:
                    raise RuntimeError(f"{path} was not read to its end")
                start += remote.size
            self._done = True

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with the next bytes of the file that came last.

        Raises IntegrityError when they are the last ones and the file has another digest, and what
        `HubHttp.read_into` raises.
        """
        if file is not self._file or self._ahead is None or offset != self._digest.at:
            raise RuntimeError(f"{file.path} is not read in order")
        if len(view) > self._digest.missing:
            raise ValueError(f"{file.path} has {file.size} bytes, not {offset + len(view)}")
        if view:
            self._ahead.read(view)
            self._digest.feed(view)
            if not self._digest.missing:
                self._digest.check()

    def finish(self) -> None:
        """Nothing changed: a commit cannot. Makes sure that all of it was read."""
        if not self._done:
            raise RuntimeError(f"{self.name} was not read to its end")

    def close(self) -> None:
        """Call off what is still read ahead."""
        if self._scheduler is not None:
            self._scheduler.cancelled.set()
        self._http.close()


def resolve(http: HubHttp, location: HubLocation) -> str:
    """The commit that a branch, tag or commit names now. Raises what `HubHttp.json` raises."""
    revision = quote(location.revision, safe="")
    answer, _ = http.json(f"api/models/{location.repo}/revision/{revision}", str(location))
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise malformed(str(location), "names no commit")
    if _COMMIT.fullmatch(location.revision) and commit != location.revision:
        raise malformed(str(location), f"is another commit there, {commit}")
    return commit


def list_files(http: HubHttp, repo: str, commit: str) -> list[HubFile]:
    """All files of a commit, as the Hub lists them, page by page. Raises what `HubHttp.json` raises."""
    what = f"the listing of {_SCHEME}{repo}@{commit}"
    path = f"api/models/{repo}/tree/{commit}?recursive=true"
    files: list[HubFile] = []
    page = path
    seen: set[str] = set()
    while True:
        entries, headers = http.json(page, what)
        if not isinstance(entries, list):
            raise malformed(what, "is no list")
        for entry in entries:
            if not isinstance(entry, dict):
                raise malformed(what, "has an entry that is no object")
            if entry.get("type") != "directory":  # its files have entries of their own
                name, size, digest, is_lfs = _facts(entry, what)
                url = f"{http.endpoint}/{repo}/resolve/{commit}/{quote(name)}"
                files.append(HubFile(name, size, digest, is_lfs, url, commit))
        if len(files) > MAX_FILES:
            raise malformed(what, f"has more than {MAX_FILES} files")
        cursor = _next_cursor(headers, what)
        if cursor is None:
            return files
        if cursor in seen:
            raise malformed(what, "has no end")
        seen.add(cursor)
        # Of the link only this: its address may be another Hub's, behind a mirror.
        page = f"{path}&cursor={quote(cursor, safe='')}"


def _facts(entry: Mapping[str, object], what: str) -> tuple[str, int, str, bool]:
    """Name, size in bytes, digest, and whether it is that of an LFS file."""
    name, size, digest = entry.get("path"), entry.get("size"), entry.get("oid")
    lfs = entry.get("lfs")
    if isinstance(lfs, dict):
        digest = lfs.get("oid")
        if lfs.get("size") != size:
            raise malformed(what, f"has two sizes for {one_line(repr(name))[:_SHOWN]}")
    pattern = _COMMIT if lfs is None else _SHA256
    if (
        entry.get("type") == "file"
        and isinstance(name, str)
        and not any("\ud800" <= character <= "\udfff" for character in name)
        and type(size) is int  # which True is not
        and 0 <= size <= MAX_FILE_SIZE
        and isinstance(digest, str)
        and pattern.fullmatch(digest)
    ):
        return name, size, digest, lfs is not None
    raise malformed(what, f"has an entry of no use: {one_line(repr(name))[:_SHOWN]}")


def _next_cursor(headers: Mapping[str, str], what: str) -> str | None:
    """The cursor of the next page from a Link header; None when there is no next page."""
    for part in headers.get("link", "").split(","):
        target, _, parameters = part.partition(";")
        if _NEXT.search(parameters):
            try:
                cursor = parse_qs(urlsplit(target.strip(" <>")).query).get("cursor")
            except ValueError:
                cursor = None
            if not cursor:
                raise malformed(what, "has a next page that cannot be asked for")
            return cursor[0]
    return None


def _arranged(remotes: Sequence[HubFile], name: str) -> list[tuple[SafePath, HubFile]]:
    """The files that make the checkpoint, weights last: what contradicts them is seen before they are sent.

    Otherwise in the order of their paths' bytes.
    """
    arranged = []
    seen = NameSet()
    for remote in sorted(remotes, key=lambda remote: remote.name.encode("utf-8", "surrogatepass")):
        if _is_aside(remote.name):
            continue
        try:
            path = SafePath(remote.name)
        except UnsafePath as error:
            raise _refused(f"{name} has the {error}") from error
        other = seen.add(path)
        if other is not None:
            raise _refused(f"{name} has {other!r} and {path!r}, which collide on some file systems")
        arranged.append((path, remote))
    arranged.sort(key=lambda file: is_safetensors(file[0]))
    if not arranged:
        raise MalformedInput(
            f"{name} has no files",
            reference="hub-empty",
            hint="check the name and the revision",
            side="source",
        )
    return arranged


def _is_aside(name: str) -> bool:
    """True for what is about a repository, or reserved, rather than of the checkpoint."""
    beside = any(f"{name}/".startswith(f"{other}/") for other in _LEFT_BESIDE)
    return beside or is_reserved(name)


def _refused(message: str) -> MalformedInput:
    return MalformedInput(
        one_line(message),
        reference="hub-name",
        hint="rename the file in a copy of the repository, and stage that",
        side="source",
    )


class _Digest:
    """The digest of the file that passes by, as far as it has passed."""

    def __init__(self, remote: HubFile | None = None) -> None:
        self.at = 0
        self._remote = remote
        if remote is None or remote.is_lfs:
            self._hash = hashlib.sha256()
        else:
            # How git names a blob; what vouches for it is that the commit's own name is such a digest.
            self._hash = hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)

    @property
    def missing(self) -> int:
        """Bytes to come."""
        return 0 if self._remote is None else self._remote.size - self.at

    def feed(self, view: memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(view)
        self.at += len(view)

    def check(self) -> None:
        """Raise IntegrityError unless the bytes are those that the commit names."""
        if self._remote is None or self._hash.hexdigest() == self._remote.digest:
            return
        kind = "SHA-256" if self._remote.is_lfs else "git SHA-1"
        raise IntegrityError(
            f"the bytes of {one_line(repr(self._remote.name))[:_SHOWN]} have the {kind}"
            f" {self._hash.hexdigest()}, and the Hub names {self._remote.digest}",
            reference="hub-digest",
            hint="run again; if it stays, the Hub's copy of this file or the mirror is damaged",
            side="source",
        )


class _Range:
    """Bytes of one file that are fetched as one: never across its border."""

    def __init__(self, remote: HubFile, offset: int, buffer: bytearray) -> None:
        self.remote = remote
        self.offset = offset
        self.buffer = buffer
        self.fetched = threading.Event()


class _ReadAhead:
    """The bytes of many files one after another, fetched in parallel before they are asked for.

    Memory is taken in the order of the bytes and by one thread, the reader's, so that no later range
    can keep the next one from being fetched.
    """

    def __init__(
        self,
        remotes: Sequence[HubFile],
        http: HubHttp,
        scheduler: Scheduler,
        *,
        memory: int,
        concurrency: int,
    ) -> None:
        self._http = http
        self._scheduler = scheduler
        self._memory = memory
        self._most = 2 * concurrency
        self._budget = Budget(memory)
        self._plan = _plan(remotes, min(_RANGE, memory // concurrency))
        self._next = next(self._plan, None)
        self._waiting: deque[_Range] = deque()
        self._at = 0  # bytes of the first range that were handed out
        self._taken = 0
        self._submit()

    def read(self, view: memoryview) -> None:
        """Fill `view` with the next bytes. Raises the first error of any range."""
        done = 0
        while done < len(view):
            first = self._waiting[0]
            while not first.fetched.wait(_POLL):
                self._scheduler.raise_error()
            self._scheduler.raise_error()
            count = min(len(view) - done, len(first.buffer) - self._at)
            with memoryview(first.buffer) as data:
                view[done : done + count] = data[self._at : self._at + count]
            done += count
            self._at += count
            if self._at == len(first.buffer):
                self._waiting.popleft()
                self._at = 0
                self._taken -= len(first.buffer)
                self._budget.release(first.buffer)
                self._submit()

    def _submit(self) -> None:
        """Start as many ranges as there is room for."""
        while self._next is not None and len(self._waiting) < self._most:
            remote, offset, length = self._next
            if self._taken + length > self._memory:
                return
            self._taken += length
            buffer = self._budget.acquire(length, self._scheduler.cancelled)
            wanted = _Range(remote, offset, buffer)
            self._waiting.append(wanted)
            self._scheduler.submit(functools.partial(self._fetch, wanted))
            self._next = next(self._plan, None)

    def _fetch(self, wanted: _Range) -> None:
        with memoryview(wanted.buffer) as view:
            self._http.read_into(wanted.remote, wanted.offset, view, self._scheduler.cancelled)
        wanted.fetched.set()


def _plan(remotes: Sequence[HubFile], most: int) -> Iterator[tuple[HubFile, int, int]]:
    """File, offset and length in bytes of all ranges, in order."""
    for remote in remotes:
        for offset in range(0, remote.size, most):
            yield remote, offset, min(most, remote.size - offset)
