"""What can be learnt about a role's permissions by reading alone: nothing is created, changed or deleted.

Not guaranteed: that "ok" holds for every key. Policies may have conditions on prefixes and tags; what
is asked is asked below the given prefix. A missing key that is told apart from a refusal (404, not 403)
stands for the permission to read it, which S3 checks first.
"""

from __future__ import annotations

from typing import Final

from staging.doctor.check import Check, State
from staging.store.settings import S3Settings
from staging.store.store import MultipartUpload, ObjectInfo, Store
from staging.vocabulary.errors import AccessDenied, MalformedInput, NotFound, StagingError
from staging.vocabulary.location import S3Location

_BY_WRITING: Final = "--write-test finds out"
_BOTH: Final = "upload, pod"
_HOPELESS: Final = frozenset({"credentials", "clock-skew", "region"})
"""Refusals after which every other request would only be refused the same way."""


class ReadTest:
    """One test of one prefix. `token` is part of a key that nobody has.

    The first request is the listing, which is where a wrong bucket, address or key shows with a reason.
    """

    def __init__(self, store: Store, location: S3Location, *, token: str) -> None:
        """List the prefix.

        Raises NotFound when there is no bucket, AccessDenied for credentials that are no good for
        anything, and StoreUnavailable or Stalled when the store cannot be reached.
        """
        self._store = store
        self._location = location
        self._token = token
        self._listing, self._first = _list(store, location)

    def run(self, settings: S3Settings, *, kms: bool | None) -> list[Check]:
        """The permissions, those that only writing can tell included.

        `kms` says whether new objects get encrypted with a KMS key.
        """
        can_list = self._listing.state == "ok"
        return [
            self._listing,
            *_read(self._store, self._location, self._first, can_list=can_list, kms=kms),
            *_uploads(self._store, self._location, self._token),
            *_writes(settings, kms),
        ]


def _refused(name: str, needed_for: str, error: StagingError, *, required: bool) -> Check:
    """A line about a refusal; one that is about something else than permissions leaves it open."""
    state: State = "missing" if error.reference == "denied" else "unknown"
    return Check("permission", name, state, needed_for, error.message, required, error.hint)


def _list(store: Store, location: S3Location) -> tuple[Check, ObjectInfo | None]:
    """Whether the prefix may be listed, and an object right below it, if there is one."""
    name, purpose = "s3:ListBucket", _BOTH
    try:
        level = store.list_level(location.prefix, limit=1)
    except AccessDenied as error:
        if error.reference in _HOPELESS:
            raise
        return _refused(name, purpose, error, required=True), None
    count = "nothing is" if not (level.objects or level.prefixes) else "something is"
    first = level.objects[0] if level.objects else None
    check = Check("permission", name, "ok", purpose, f"{count} below the prefix", required=True)
    return check, first


def _read(
    store: Store,
    location: S3Location,
    first: ObjectInfo | None,
    *,
    can_list: bool,
    kms: bool | None,
) -> list[Check]:
    """Whether objects may be read: by a GET, since the refusal of a HEAD has no reason with it."""
    name = "s3:GetObject"
    key = location.manifest_key if first is None else first.key
    try:
        store.read(key, limit=0)
    except MalformedInput:
        pass  # it has bytes, and they were on their way
    except NotFound:
        text = "a key that is not there is told to be missing, not denied"
        allowed = Check("permission", name, "ok", _BOTH, text, required=True)
        return [allowed, *_decrypt("unknown", "there is no object yet to read", kms)]
    except AccessDenied as error:
        if error.reference == "kms-key":
            text = f"{key!r} may be read, if only its key could be used"
            allowed = Check("permission", name, "ok", _BOTH, text, required=True)
            return [allowed, *_decrypt("missing", error.message, kms, error.hint)]
        denied = _refused(name, _BOTH, error, required=True)
        if not can_list:
            text = "without s3:ListBucket a missing key looks the same as a denied one"
            denied = Check("permission", name, "unknown", _BOTH, text, required=True)
        return [denied, *_decrypt("unknown", "nothing could be read", kms)]
    text = f"{key!r} may be read"
    return [
        Check("permission", name, "ok", _BOTH, text, required=True),
        *_decrypt("ok", text, kms),
    ]


def _decrypt(state: State, text: str, kms: bool | None, hint: str | None = None) -> list[Check]:
    """The line on the key that objects were encrypted with, where a key may be in use."""
    if kms is False and state != "missing":
        return []
    if kms is None and state != "missing":
        state, text = "unknown", "whether the bucket uses a KMS key is not known"
    return [Check("permission", "kms:Decrypt", state, _BOTH, text, required=True, hint=hint)]


def _uploads(store: Store, location: S3Location, token: str) -> list[Check]:
    name, purpose = "s3:ListBucketMultipartUploads", "listing leftovers"
    try:
        one = next(iter(store.list_multipart_uploads(location.prefix)), None)
        text = "an upload is open below the prefix" if one else "no upload is open below the prefix"
        uploads = Check("permission", name, "ok", purpose, text)
    except AccessDenied as error:
        uploads = _refused(name, purpose, error, required=False)
    except StagingError as error:
        uploads = Check("permission", name, "unknown", purpose, error.message)
    return [uploads, _parts(store, location, token)]


def _parts(store: Store, location: S3Location, token: str) -> Check:
    """Whether parts may be listed: of an upload that never was, so the right answer is a 404."""
    name, purpose = "s3:ListMultipartUploadParts", "going on after a failure"
    nowhere = MultipartUpload(f"{location.control_prefix}doctor-{token}", token)
    try:
        next(iter(store.list_parts(nowhere)), None)
    except NotFound:
        pass
    except AccessDenied as error:
        return _refused(name, purpose, error, required=False)
    except StagingError as error:
        return Check("permission", name, "unknown", purpose, error.message)
    text = "an upload that is not there is told to be missing, not denied"
    return Check("permission", name, "ok", purpose, text)


def _writes(settings: S3Settings, kms: bool | None) -> list[Check]:
    """Lines of what only writing can tell."""
    rows = [("s3:PutObject", "upload", True)]
    if settings.tags:
        rows.append(("s3:PutObjectTagging", "upload with --tag", True))
    if kms is not False:
        rows.append(("kms:GenerateDataKey", "upload", True))
    rows.append(("s3:AbortMultipartUpload", "upload: cleaning up", True))
    rows.append(("s3:DeleteObject", "upload: cleaning up", False))
    return [
        Check("permission", name, "unknown", purpose, _BY_WRITING, required)
        for name, purpose, required in rows
    ]
