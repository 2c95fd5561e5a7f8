"""Reading what is published under a prefix, and explaining why nothing is.

A manifest's existence is the commit. When there is none, a listing of the prefix tells the operator
which of the usual mistakes it was; when that is empty too, the levels above are searched for the name
that was meant. Nothing is written.

Keys are strangers' text: in messages they are quoted, and hints hold none that a terminal would obey.
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Final

from staging.store.store import Store
from staging.vocabulary.errors import (
    AccessDenied,
    IntegrityError,
    MalformedInput,
    NotFound,
    Side,
    UsageError,
)
from staging.vocabulary.location import MANIFEST_NAME, S3Location
from staging.vocabulary.manifest import MAX_MANIFEST_BYTES, Manifest
from staging.vocabulary.paths import CONTROL_DIRECTORY, why_unsafe

ID_PATTERN: Final = re.compile(r"sha256:[0-9a-f]{64}")

_UNPACKED: Final = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst")
"""Archives that an upload unpacks."""

_ARCHIVES: Final = (*_UNPACKED, ".zip")
_LISTED: Final = 200
"""Entries of a prefix that are looked at to tell what it is."""

_NAMED: Final = 3  # prefixes that are named when none is like the missing one


def read_manifest(store: Store, location: S3Location, *, expect_id: str | None = None) -> Manifest:
    """Read the manifest of a published checkpoint.

    Raises NotFound with the reason when there is none (`bucket`, `prefix-empty`, `prefix-holds-tar`,
    `prefix-nested`, `prefix-is-object`, `upload-unfinished`, `not-published`), MalformedInput when it
    is not valid, and IntegrityError when its id is not `expect_id`.
    """
    manifest = read_if_published(store, location)
    if manifest is None:
        raise explain_absence(store, location)
    require_id(manifest, expect_id, str(location), side="store")
    return manifest


def read_if_published(store: Store, location: S3Location) -> Manifest | None:
    """Read the manifest under a prefix; None when nothing is published there.

    Raises NotFound when there is no such bucket, and MalformedInput when the manifest is not valid.
    """
    try:
        data, _ = store.read(location.manifest_key, limit=MAX_MANIFEST_BYTES)
    except NotFound as error:
        if error.reference == "bucket":
            raise
        return None
    try:
        return Manifest.decode(data)
    except MalformedInput as error:  # the decoder does not know where the bytes come from
        raise MalformedInput(
            f"{location}: {error.message}",
            reference=error.reference,
            hint=error.hint,
            side="store",
        ) from error


def require_id(manifest: Manifest, expect_id: str | None, place: str, *, side: Side) -> None:
    """Raise IntegrityError unless the manifest at `place` has the expected id (None: any).

    Raises UsageError when `expect_id` is no id at all.
    """
    if expect_id is None or manifest.id == expect_id:
        return
    require_usable_id(expect_id)
    raise IntegrityError(
        f"{place} holds {manifest.id}, expected {expect_id}",
        reference="id-mismatch",
        hint="pin the id that `staging show` prints for this prefix, or point to the prefix that holds"
        " the expected one",
        side=side,
    )


def require_usable_id(expect_id: str | None) -> None:
    """Raise UsageError for an expected id that nothing can have, before everything is read for it."""
    if expect_id is not None and not ID_PATTERN.fullmatch(expect_id):
        raise UsageError(
            f"not a checkpoint id: {expect_id[:100]!r}",
            reference="id",
            hint="an id is sha256: and 64 hex digits, as `staging show` prints it",
        )


def find_published(store: Store, root: S3Location) -> list[S3Location]:
    """The prefixes below `root`, itself included, that hold a manifest, in byte order."""
    return [
        S3Location(root.bucket, info.key.removesuffix(MANIFEST_NAME))
        for info in store.list_objects(root.prefix)
        if info.key == MANIFEST_NAME or info.key.endswith("/" + MANIFEST_NAME)
    ]


def explain_absence(store: Store, location: S3Location) -> NotFound:
    """The error that says why nothing is published under a prefix, and what was probably meant."""
    level = store.list_level(location.prefix, limit=_LISTED)
    names = [info.key[len(location.prefix) :] for info in level.objects if info.size]
    archives = [name for name in names if name.lower().endswith(_ARCHIVES)]
    inner = [name for name in level.prefixes if name != f"{CONTROL_DIRECTORY}/"]
    if len(inner) < len(level.prefixes):
        return _not_found(
            location,
            "upload-unfinished",
            "an upload began here and has not finished",
            "wait for the upload to end, or run the same `staging upload` again",
        )
    if archives and not any(name.endswith(".safetensors") for name in names):
        return _not_found(
            location,
            "prefix-holds-tar",
            f"it holds the archive {archives[0][:200]!r} instead of its contents",
            f"run `staging upload {_pasteable(location, archives[0])} s3://{location.bucket}/NEW-PREFIX/`,"
            " which reads it where it is"
            if archives[0].lower().endswith(_UNPACKED)
            else f"get and unpack it, and run `staging upload DIRECTORY s3://{location.bucket}/NEW-PREFIX/`",
        )
    if names:
        cut = len(level.objects) + len(level.prefixes) >= _LISTED
        count = f"{len(names)}{'+' if cut else ''} object{'s' if len(names) > 1 else ''}"
        return _not_found(
            location,
            "not-published",
            f"it holds {count} but no {MANIFEST_NAME}",
            f"when the copy is whole, `staging adopt {shlex.quote(str(location))}` reads it through and"
            " publishes it where it is, `staging upload` publishes it anew, and"
            " `model-downloader --unverified allow` fetches it without proof",
        )
    if inner:
        return _not_found(
            location,
            "prefix-nested",
            f"there is no file at its root, only {_shown(inner)}",
            f"did you mean {location.child(inner[0])}?"
            if len(inner) == 1 and _can_be_named(inner[0])
            else "point to the prefix that holds the manifest; `staging ls` finds it",
        )
    if _is_object(store, location):
        return _not_found(
            location,
            "prefix-is-object",
            "this is an object, not a prefix",
            f"give the prefix of a published checkpoint; `staging ls s3://{location.bucket}/` lists them",
        )
    nearest, others = _nearest(store, location)
    hint = f"did you mean {nearest}?"
    if nearest is None:
        there = f"there is {_listed(others)}; " if others else ""
        hint = f"check the spelling; {there}`staging ls s3://{location.bucket}/` lists what is published"
    return _not_found(location, "prefix-empty", "there is nothing under this prefix", hint)


def _is_object(store: Store, location: S3Location) -> bool:
    if not location.prefix:
        return False
    try:
        store.head(location.prefix.removesuffix("/"))
    except (NotFound, AccessDenied):
        return False
    return True


def _nearest(
    store: Store, location: S3Location
) -> tuple[S3Location | None, tuple[S3Location, ...]]:
    """The existing prefix whose name is most like the missing one's, looked for level by level.

    When none is like it: the prefixes that are there instead, on the first level with any, most alike first.
    """
    missing: list[str] = []
    others: tuple[S3Location, ...] = ()
    at = location
    while at.prefix:
        missing.insert(0, at.prefix.rstrip("/").rpartition("/")[2])
        at = at.parent
        try:
            choices = _choices(store, at, location)
            found = _descend(store, at, choices, missing, location)
        except AccessDenied:  # listing may be allowed for some prefixes only; the finding stands
            break
        if found is not None:
            return found, ()
        if missing[0] not in choices:  # else it is the level below that is in question
            others = others or tuple(map(at.child, _alike(missing[0], choices, cutoff=0)))
    return None, others


def _descend(
    store: Store, at: S3Location, choices: list[str], names: list[str], missing: S3Location
) -> S3Location | None:
    """The prefix below `at`, which has the `choices`, that is most like the path of `names`."""
    for depth, name in enumerate(names):
        close = _alike(name, _choices(store, at, missing) if depth else choices, cutoff=0.6)
        if not close:
            return None
        at = at.child(close[0])
    return at


def _choices(store: Store, at: S3Location, missing: S3Location) -> list[str]:
    """The names of prefixes right below `at` that may have been meant."""
    return [
        prefix.rstrip("/")
        for prefix in store.list_level(at.prefix).prefixes
        if prefix != f"{CONTROL_DIRECTORY}/"
        and _can_be_named(prefix)
        and at.child(prefix) != missing  # a folder's empty placeholder
    ]


def _alike(name: str, choices: list[str], *, cutoff: float) -> list[str]:
    """Those most like a name, best first; upper and lower case make no difference."""
    if name in choices:
        return [name]
    matcher = difflib.SequenceMatcher(b=name.casefold())
    found = []
    for choice in choices:
        matcher.set_seq1(choice.casefold())
        if (likeness := matcher.ratio()) >= cutoff:
            found.append((-likeness, choice))
    return [choice for _, choice in sorted(found)]


def _can_be_named(prefix: str) -> bool:
    """True for a stranger's prefix that a person can be told to type."""
    return why_unsafe(prefix.removesuffix("/")) is None


def _pasteable(location: S3Location, name: str) -> str:
    """The URI of an object as a shell takes it."""
    return shlex.quote(f"{location}{name if name.isprintable() else 'ARCHIVE'}")


def _listed(locations: tuple[S3Location, ...]) -> str:
    named = [str(location) for location in locations[:_NAMED]]
    if len(locations) > _NAMED:
        return f"{', '.join(named)} and {len(locations) - _NAMED} more"
    return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))


def _shown(names: list[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _not_found(location: S3Location, reference: str, reason: str, hint: str) -> NotFound:
    return NotFound(
        f"no published checkpoint at {location}: {reason}",
        reference=reference,
        hint=hint,
        side="store",
    )
