"""What only writing can tell: may this role write, and does the store keep what it promises?

Everything happens below one prefix of its own, `<prefix>/.checkpoint/doctor-<token>/`, and goes away at the
end, also after a failure or an interruption; what cannot be removed is listed in `leftovers`. A promise
is tested by what would break it: a wrong checksum must be refused, and so must a second creation.

Not guaranteed: that nothing stays when the process is killed, or where objects are locked or versioned.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from staging.doctor.check import Check
from staging.store.denials import denied_action
from staging.store.settings import S3Settings
from staging.store.store import (
    AlreadyExists,
    Changed,
    ListedPart,
    MultipartUpload,
    Store,
    UploadedPart,
)
from staging.vocabulary import crc64
from staging.vocabulary.errors import (
    AccessDenied,
    IntegrityError,
    NotFound,
    StagingError,
)
from staging.vocabulary.location import S3Location

_RESUME: Final = "going on after a failure"
_TIDY: Final = "upload: cleaning up"

_PROOF: Final = "proof that bytes arrive as sent"
_ALONE: Final = "proof that nothing is overwritten"
_AUDIT: Final = "`verify` without reading all bytes"
_CAPABILITIES: Final = {
    "checks checksums of objects": (_PROOF, "a wrong one was taken; uploads say so"),
    "checks checksums of parts": (_PROOF, "a wrong one was taken; uploads say so"),
    "creates only what is not there": (
        _ALONE,
        "a second creation replaced the first; uploads say so",
    ),
    "completes only what is not there": (
        _ALONE,
        "Complete replaced an object; uploads look beforehand",
    ),
    "keeps checksums of objects": (_AUDIT, "`verify` needs --level digest"),
    "keeps checksums of multipart objects": (_AUDIT, "`verify` needs --level digest"),
    "lists parts with checksums": (_RESUME, "what was sent is known by its MD5 alone, if at all"),
    "names parts by their MD5": (
        _RESUME,
        "what was sent is known by its checksum alone, if at all",
    ),
    "lists open uploads": ("listing leftovers", "an upload is known by our own record alone"),
    "deletes only the version that is meant": (_TIDY, "whatever is there is deleted"),
    "gives back what it got": ("everything", "other bytes came back"),
}
"""What a store can do, what that is good for, and what it means when it cannot."""

_READABLE: Final = 64 * 1024  # bytes; more than anything here has


class WriteTest:
    """One test of one prefix. `token` makes its keys nobody else's; `kms` says whether a KMS key is used."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        settings: S3Settings,
        *,
        token: str,
        kms: bool | None,
    ) -> None:
        self.checks: list[Check] = []
        self.leftovers: list[str] = []
        self.failure: StagingError | None = None
        self._store = store
        self._settings = settings
        self._kms = kms
        self._prefix = f"{location.control_prefix}doctor-{token}/"
        self._body = f"written by `staging doctor --write-test`, safe to delete: {token}\n".encode()
        self._crc = crc64.crc64(self._body)
        self._right = crc64.to_text(self._crc)
        self._object_key = f"{self._prefix}object"
        self._multipart_key = f"{self._prefix}multipart"
        self._etags: dict[str, str | None] = {}  # of what may be there; None where nobody told
        self._uploads: list[MultipartUpload] = []

    def run(self) -> None:
        """Test everything and remove it all again.

        What is found is in `checks`; `failure` is the error that ended the test early, if one did that is
        about something else than a permission.
        """
        try:
            with self._noting("s3:PutObject", "upload"):
                self._object()
                self._multipart()
                self._delete()
        finally:
            self._clean_up()

    # What is tested

    def _object(self) -> None:
        key = self._object_key
        verified = self._refuses_wrong_checksum(lambda crc: self._create(key, crc))
        if verified:
            self._create(key, self._right)
        self._allowed("s3:PutObject", "upload", f"created {key!r}")
        if self._settings.tags:
            self._allowed("s3:PutObjectTagging", "upload with --tag", "created with tags")
        if self._kms is not False:
            text = "created" if self._kms else "created, whatever the encryption is"
            self._allowed("kms:GenerateDataKey", "upload", text)
        self._capability("checks checksums of objects", verified)
        exclusive = self._meets_object(lambda: self._create(key, self._right))
        self._capability("creates only what is not there", exclusive)
        self._read_back(key)

    def _create(self, key: str, crc: str) -> None:
        self._etags.setdefault(key, None)
        self._etags[key] = self._store.create(key, self._body, crc64nvme=crc).etag

    def _read_back(self, key: str) -> None:
        with self._noting("s3:GetObject", "upload, pod"):
            # By a GET first: the refusal of a HEAD has no reason with it.
            data, _ = self._store.read(key, limit=_READABLE)
            self._allowed("s3:GetObject", "upload, pod", f"read {key!r}")
            if self._kms is not False:
                self._allowed("kms:Decrypt", "upload, pod", f"read {key!r}")
            self._capability("gives back what it got", data == self._body)
            right = self._store.head(key).crc64nvme == self._right
            self._capability("keeps checksums of objects", right)

    def _multipart(self) -> None:
        damaged = self._open(f"{self._prefix}damaged")
        verified = self._refuses_wrong_checksum(lambda crc: self._send(damaged, crc))
        self._capability("checks checksums of parts", verified)
        with self._noting("s3:AbortMultipartUpload", _TIDY):
            self._store.abort_multipart_upload(damaged)
            self._uploads.remove(damaged)
            self._allowed("s3:AbortMultipartUpload", _TIDY, "aborted an upload")
        second = self._open(self._object_key)
        part = self._send(second, self._right)
        self._list_parts(second, part)
        self._list_uploads(second)
        exclusive = self._meets_object(lambda: self._complete(second, part))
        self._capability("completes only what is not there", exclusive)
        key = self._multipart_key
        whole = self._open(key)
        self._complete(whole, self._send(whole, self._right))
        with self._noting("s3:GetObject", "upload, pod"):
            right = self._store.head(key).crc64nvme == self._right
            self._capability("keeps checksums of multipart objects", right)

    def _open(self, key: str) -> MultipartUpload:
        upload = self._store.create_multipart_upload(key)
        self._uploads.append(upload)
        return upload

    def _send(self, upload: MultipartUpload, crc: str) -> UploadedPart:
        return self._store.upload_part(upload, 1, bytearray(self._body), crc64nvme=crc)

    def _complete(self, upload: MultipartUpload, part: UploadedPart) -> None:
        before = self._etags.pop(upload.key, None)
        self._etags[upload.key] = None
        try:
            self._store.complete_multipart_upload(upload, [part], crc64nvme=self._right)
        except AlreadyExists:
            self._etags[upload.key] = before
            raise
        self._uploads.remove(upload)

    def _list_parts(self, upload: MultipartUpload, part: UploadedPart) -> None:
        with self._noting("s3:ListMultipartUploadParts", _RESUME, required=False):
            listed = list(self._store.list_parts(upload))
            self._allowed("s3:ListMultipartUploadParts", _RESUME, "listed parts", required=False)
            told = bool(listed) and listed[0].crc64nvme == part.crc64nvme
            self._capability("lists parts with checksums", told)
            self._capability("names parts by their MD5", self._is_md5(listed))

    def _is_md5(self, listed: list[ListedPart]) -> bool:
        md5 = hashlib.md5(self._body, usedforsecurity=False).hexdigest()
        return bool(listed) and listed[0].etag == md5

    def _list_uploads(self, upload: MultipartUpload) -> None:
        name, purpose = "s3:ListBucketMultipartUploads", "listing leftovers"
        with self._noting(name, purpose, required=False):
            listed = [found.upload for found in self._store.list_multipart_uploads(self._prefix)]
            self._allowed(name, purpose, "listed uploads", required=False)
            self._capability("lists open uploads", upload in listed)

    def _delete(self) -> None:
        name, key = "s3:DeleteObject", self._object_key
        with self._noting(name, _TIDY, required=False):
            self._remove(key)
            self._allowed(name, _TIDY, f"deleted {key!r}", required=False)
            with self._noting("s3:GetObject", "upload, pod"):  # the store looks whether it is there
                try:
                    self._store.delete(self._multipart_key, etag="0" * 32)
                    kept = False
                except Changed:
                    kept = True
                self._capability("deletes only the version that is meant", kept)

    # How it is told

    def _refuses_wrong_checksum(self, send: Callable[[str], object]) -> bool:
        try:
            send(crc64.to_text(self._crc ^ 1))
        except IntegrityError:
            return True
        return False

    def _meets_object(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except AlreadyExists:
            return True
        return False

    def _allowed(self, name: str, purpose: str, text: str, *, required: bool = True) -> None:
        self.checks.append(Check("permission", name, "ok", purpose, text, required))

    def _capability(self, name: str, there: bool) -> None:
        purpose, without = _CAPABILITIES[name]
        text = "yes" if there else f"no: {without}"
        self.checks.append(Check("store", name, "ok" if there else "missing", purpose, text))

    @contextlib.contextmanager
    def _noting(self, name: str, purpose: str, *, required: bool = True) -> Iterator[None]:
        """Turn a refusal into a line about `name`, or about the permission that the refusal names."""
        try:
            yield
        except AccessDenied as error:
            action = denied_action(error.message) or name
            if error.reference == "kms-key" and not action.startswith("kms:"):
                action = "kms:GenerateDataKey" if name == "s3:PutObject" else "kms:Decrypt"
            needed = required or action != name
            self.checks.append(
                Check("permission", action, "missing", purpose, error.message, needed, error.hint)
            )
        except StagingError as error:
            self.failure = self.failure or error
            self.checks.append(
                Check(
                    "store",
                    "takes these requests",
                    "missing",
                    purpose,
                    error.message,
                    True,
                    error.hint,
                )
            )

    # The end

    def _clean_up(self) -> None:
        for upload in [*self._uploads, *self._stray_uploads()]:
            try:
                self._store.abort_multipart_upload(upload)
            except StagingError as error:
                self.leftovers.append(
                    f"multipart upload {upload.upload_id} of s3://{self._store.bucket}/{upload.key}"
                    f" ({error.reference})"
                )
        for key in list(self._etags):
            try:
                self._remove(key)
            except StagingError as error:
                self.leftovers.append(f"s3://{self._store.bucket}/{key} ({error.reference})")

    def _remove(self, key: str) -> None:
        """Delete an object of ours, if it is there."""
        with contextlib.suppress(NotFound):
            etag = self._etags[key]
            self._store.delete(key, etag=self._store.head(key).etag if etag is None else etag)
        del self._etags[key]

    def _stray_uploads(self) -> list[MultipartUpload]:
        """Uploads of which only the store knows, after an interruption: all below our prefix are ours."""
        try:
            listed = [found.upload for found in self._store.list_multipart_uploads(self._prefix)]
        except StagingError:
            return []  # what may not be listed cannot be missed either: ours are known but for one
        return [upload for upload in listed if upload not in self._uploads]
