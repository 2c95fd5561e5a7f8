"""All that can be known before the first byte of a weight is fetched, found in seconds and told together.

    what was read of the manifest, or why it was not; may the prefix be listed, then
    one listing                  is every object there, in its size
    headers and small documents  may objects be read and decrypted; are the shards whole
    layout rules                 would the files serve
    the directory                may it be written to, is its disk large enough

Invariants: of weights nothing is read but headers, at most two requests each; files that the ready marker
vouches for are not looked at; nothing on the local disk is created or changed; a finding never hides another.
What was decided about rules when the checkpoint was published holds here too: whether they were applied or
switched off, what they say now is a warning (decision 21), but for a header that was whole and is broken now.
What was in order then and seems not to be now is read once more, for it may have been damaged on the way.
Without `layout_check` no object but the manifest is read.
Not guaranteed: that the disk stays free, or that what may be read now may be read later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from staging.directory.fs import Fs
from staging.layout.inventory import Inventory
from staging.layout.policy import Policy
from staging.layout.rule import Finding
from staging.store.denials import gives_no_reason
from staging.store.store import Store
from staging.sync.destination import Destination, look
from staging.sync.excerpts import Excerpts, is_looked_into, read_excerpts
from staging.sync.options import SyncOptions
from staging.sync.pins import Pins, pin
from staging.sync.plan import Fetch, Keep, Refuse, Remove
from staging.sync.refusal import refusal_of
from staging.sync.space import check_space
from staging.vocabulary.errors import (
    AccessDenied,
    IntegrityError,
    LayoutInvalid,
    MalformedInput,
    NoSpace,
    StagingError,
    by_gravity,
    together,
)
from staging.vocabulary.events import Note, Reporter, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile

_CONCURRENCY: Final = 32
_SHOWN: Final = 3
_BROKEN: Final = "safetensors-broken"
_PASSED: Final = "the rules of the version that published it let it pass, so that it is fetched"
_UNCHECKED: Final = "it was published with --layout-check off"
_ABOUT_PERMISSIONS: Final = ("denied", "kms-key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found. `etags` are the versions of the objects, by path, as far as they were looked at.

    `findings` has the gravest first; the files can be fetched when there is none. `needed_bytes` are
    those that have to be allocated still, at least, and `free_bytes` those that are free; None where that
    cannot be known.
    """

    manifest: Manifest | None
    etags: Mapping[str, str]
    findings: tuple[StagingError, ...]
    needed_bytes: int | None
    free_bytes: int | None

    def require(self) -> Manifest:
        """The manifest, when nothing was found. Raises one error for all findings otherwise."""
        if self.findings:
            raise together(self.findings)
        if self.manifest is None:
            raise ValueError("neither a manifest nor a finding")
        return self.manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """A preflight, and the plan as far as names and sizes can tell. Sizes in bytes.

    `kept_files` are vouched for by the ready marker. `checked_files` have the right size and would be
    hashed first; what is not right among them would be refused or fetched. `fetched_bytes` are at
    most those of the other files: `partial_bytes` of them may lie there from an interrupted run.
    """

    preflight: Preflight
    fetched_files: int
    fetched_bytes: int
    partial_bytes: int
    kept_files: int
    kept_bytes: int
    checked_files: int
    checked_bytes: int
    removed_files: int


def preflight(
    store: Store,
    location: S3Location,
    directory: Path,
    options: SyncOptions,
    report: Reporter = silent,
    *,
    manifest: Manifest | StagingError,
    fs: Fs | None = None,
    spared: Collection[str] = (),
) -> Preflight:
    """Find out whether `manifest` can be fetched from `location` into `directory`, and would serve.

    `manifest` is what `read_manifest` returned or raised. `spared` are paths whose bytes are elsewhere on
    this disk already and will be linked: they need neither space nor a look. Everything that is wrong is
    in the findings; nothing is raised for it.
    """
    known = None if isinstance(manifest, StagingError) else manifest
    there = look(directory, known, fs=fs or Fs(), spared=spared)
    return _preflight(store, location, options, report, manifest, there, spared)


def examine(
    store: Store,
    location: S3Location,
    directory: Path,
    options: SyncOptions,
    report: Reporter = silent,
    *,
    manifest: Manifest | StagingError,
    fs: Fs | None = None,
    spared: Collection[str] = (),
) -> Examination:
    """A preflight with the local plan: what a run would do. Creates nothing and changes nothing on disk.

    What stands in the way in the directory is among the findings.
    """
    known = None if isinstance(manifest, StagingError) else manifest
    there = look(directory, known, fs=fs or Fs(), spared=spared)
    found = _preflight(store, location, options, report, manifest, there, spared)
    conflict = refusal_of(
        [action for action in there.actions if isinstance(action, Refuse)], directory
    )
    if conflict is not None:
        found = replace(found, findings=tuple(by_gravity([*found.findings, conflict])))
    fetches = [
        action
        for action in there.actions
        if isinstance(action, Fetch) and action.file.path not in spared
    ]
    kept = [action.file for action in there.actions if isinstance(action, Keep)]
    vouched = [file.size for file in kept if file.path in there.vouched]
    unsure = [file.size for file in kept if file.path not in there.vouched]
    return Examination(
        preflight=found,
        fetched_files=len(fetches),
        fetched_bytes=sum(action.file.size for action in fetches),
        partial_bytes=sum(min(action.allocated, action.file.size) for action in fetches),
        kept_files=len(vouched),
        kept_bytes=sum(vouched),
        checked_files=len(unsure),
        checked_bytes=sum(unsure),
        removed_files=sum(isinstance(action, Remove) for action in there.actions),
    )


def _preflight(
    store: Store,
    location: S3Location,
    options: SyncOptions,
    report: Reporter,
    manifest: Manifest | StagingError,
    there: Destination,
    spared: Collection[str],
) -> Preflight:
    findings: list[StagingError] = []
    etags: Mapping[str, str] = {}
    if isinstance(manifest, StagingError):
        findings += _refusals(store, location, manifest)
    else:
        wanted = [
            file
            for file in manifest.files
            if file.path not in there.vouched and file.path not in spared
        ]
        looked = _Look(store, location, manifest, options, report)
        etags = looked.at(wanted)
        findings += looked.findings
    findings += there.findings
    if there.needed_bytes is not None:
        try:
            check_space(there.needed_bytes, there.free_bytes, there.directory)
        except NoSpace as error:
            findings.append(error)
    return Preflight(
        manifest=None if isinstance(manifest, StagingError) else manifest,
        etags=etags,
        findings=tuple(by_gravity(findings)),
        needed_bytes=there.needed_bytes,
        free_bytes=there.free_bytes,
    )


def _refusals(store: Store, location: S3Location, refused: StagingError) -> Sequence[StagingError]:
    """Why there is no manifest; when it may not be read: may the prefix be listed? Both are told at once."""
    if not (isinstance(refused, AccessDenied) and refused.reference in _ABOUT_PERMISSIONS):
        return [refused]
    try:
        store.list_level(location.prefix, limit=1)
    except StagingError as error:
        if not (gives_no_reason(refused) and error.reference == "denied"):
            return [refused, error]
        return [_unseen(location, refused, error)]
    return [refused]


def _unseen(location: S3Location, refused: StagingError, unlisted: StagingError) -> AccessDenied:
    """The error for a prefix of which nothing can be seen: S3 says the same of one that is not there."""
    found = AccessDenied(
        f"there is no such prefix, or it may not be read: {refused.message}; {unlisted.message}",
        reference="denied",
        hint="check the spelling of the prefix, which may not exist: S3 tells that only to who may list;"
        f" {unlisted.hint}; refused after that, the role lacks s3:GetObject as well",
        side="store",
    )
    found.__cause__ = refused
    for note in getattr(unlisted, "__notes__", ()):
        found.add_note(note)
    return found


class _Look:
    """One look at the objects of a manifest."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        manifest: Manifest,
        options: SyncOptions,
        report: Reporter,
    ) -> None:
        self.findings: list[StagingError] = []
        self._store = store
        self._location = location
        self._manifest = manifest
        self._options = options
        self._report = report

    def at(self, wanted: Sequence[ManifestFile]) -> Mapping[str, str]:
        """Look at the objects of these files, and return the versions of those that are as they must be."""
        try:
            pins = self._pins([file for file in wanted if file.size])
            if self._options.layout_check:
                self._judge(wanted, pins)
        except StagingError as error:  # the others would fail in the same way
            self.findings.append(error)
            return {}
        return pins.etags

    def _pins(self, files: Sequence[ManifestFile]) -> Pins:
        try:
            pins = pin(
                self._store,
                self._location,
                files,
                concurrency=self._options.concurrency or _CONCURRENCY,
            )
        except AccessDenied as error:
            raise self._with_reason(error, files) from error
        self.findings += _grouped(pins.wrong)
        return pins

    def _with_reason(self, error: AccessDenied, files: Sequence[ManifestFile]) -> StagingError:
        """S3 gives no reason with the refusal of a HEAD: a GET that reads nothing is told why."""
        if error.reference != "denied":
            return error
        try:
            self._store.read(self._location.key(files[0].path), limit=0)
        except MalformedInput:  # this one may be read
            return error
        except StagingError as told:
            return told
        return error

    def _read(self, wanted: Sequence[ManifestFile], pins: Pins) -> Excerpts:
        """Read what rules judge; where there is nothing, the start of the largest file, for the key."""
        looked_into = [
            file
            for file in wanted
            if is_looked_into(file.path) and (file.path in pins.etags or not file.size)
        ]
        others = [file for file in wanted if file.path in pins.etags]
        return read_excerpts(
            self._store,
            self._location,
            looked_into or sorted(others, key=lambda file: -file.size)[:1],
            pins.etags,
            family=None if self._manifest.is_unverified else self._manifest.hash,
            memory=self._options.memory,
            concurrency=self._options.concurrency,
            report=self._report,
        )

    def _judge(self, wanted: Sequence[ManifestFile], pins: Pins) -> None:
        """Apply the layout rules to the whole checkpoint; where they were decided on before, only to warn."""
        checked = self._manifest.layout.get("checked")
        excerpts = self._read(wanted, pins)
        by_rule = self._errors(excerpts)
        once_whole = checked is True or self._manifest.is_unverified
        if by_rule and once_whole and not excerpts.wrong:
            excerpts = self._read(wanted, pins)
            by_rule = self._errors(excerpts)
        self.findings += _grouped(excerpts.wrong)
        for rule, found in by_rule.items():
            if checked is True and rule == _BROKEN:
                self.findings.append(_damaged(found, self._location))
            elif isinstance(checked, bool):
                text = f"{_told(found, self._location)}; {_PASSED if checked else _UNCHECKED}"
                self._report(Note(text, warning=True))
            else:
                self.findings.append(_would_not_serve(found, self._location))

    def _errors(self, excerpts: Excerpts) -> dict[str, list[Finding]]:
        """The errors that the rules find, by rule."""
        sizes = {str(file.path): file.size for file in self._manifest.files}
        inventory = Inventory(sizes, excerpts.headers, excerpts.documents)
        by_rule: dict[str, list[Finding]] = {}
        for finding in Policy.of(self._manifest.layout).check(inventory):
            if finding.severity == "error":
                by_rule.setdefault(finding.rule, []).append(finding)
        return by_rule


def _damaged(errors: Sequence[Finding], location: S3Location) -> IntegrityError:
    """For headers that were whole when they were published: these are not the bytes of then."""
    return IntegrityError(
        f"{_told(errors, location)}; it was whole when it was published",
        reference="header-damaged",
        hint="run again, for it may have happened on the way, with a program that is no older than the one"
        f" that published; `staging verify {location} --level digest` tells whether the object is damaged:"
        " then upload the checkpoint again under a new prefix",
        side="store",
    )


def _would_not_serve(errors: Sequence[Finding], location: S3Location) -> LayoutInvalid:
    return LayoutInvalid(
        _told(errors, location),
        reference=errors[0].rule,
        hint=f"{errors[0].hint}; then publish the checkpoint under a new prefix, or fetch this one as it is"
        " with --layout-check off",
        side="store",
    )


def _told(errors: Sequence[Finding], location: S3Location) -> str:
    paths = [finding.path for finding in errors[1:] if finding.path is not None]
    return f"{location}: {errors[0].message}{_and_others(paths)}"


def _grouped(errors: Mapping[str, StagingError]) -> list[StagingError]:
    """One error for all files of which the same is wrong; the first, in order of paths, stands for them."""
    groups: dict[tuple[type[StagingError], str], list[str]] = {}
    for path in sorted(errors, key=lambda path: path.encode("utf-8")):
        groups.setdefault((type(errors[path]), errors[path].reference), []).append(path)
    found = []
    for paths in groups.values():
        first = errors[paths[0]]
        if len(paths) > 1:
            whole = type(first)(
                f"{first.message}{_and_others(paths[1:])}",
                reference=first.reference,
                hint=first.hint,
                side=first.side,
            )
            whole.__cause__ = first
            for note in getattr(first, "__notes__", ()):
                whole.add_note(note)
            first = whole
        found.append(first)
    return found


def _and_others(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    shown = ", ".join(repr(path[:200]) for path in paths[:_SHOWN])
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"; the same of {shown}{more}"
